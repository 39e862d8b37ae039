"""When Python's garbage collector runs: a collection stops the reactor for as long as there are objects to look at.

All that is loaded is taken out of its sight, for it stays: a collection over 500,000 rows takes a second. From
then on objects are looked at as they come: the young by Python itself, some thousands at a time, which takes less
than a millisecond; what has survived that by a `Collector`, often, so that there is never much of it. What makes a
look long all the same, as five hundred guests that run do, is taken out of sight too. So what ends while it is out
of sight must come apart by itself: whatever is made in great numbers has no cycles once it has ended.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

YOUNG = 1_000
"""New objects after which the youngest are looked at."""
PORTION = 4
"""Such looks after which those that survived them are looked at, and the survivors grow old."""
EVERY = 0.25
"""Seconds between two looks of a `Collector`."""
MOST = 10
"""Portions that are looked at in one go."""
LONG = 0.005
"""Seconds; what survives a longer look is not looked at again."""


def hold() -> None:
    """Collect nothing while millions of objects are made that will stay; `settle` ends it."""
    gc.disable()


def settle() -> None:
    """Take all that there is out of the collector's sight, and collect only the young by itself."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(YOUNG, PORTION, 1_000_000)


class Collector:
    """Collects what has grown old, when `look` is called, every `EVERY` seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def look(self) -> None:
        """Collect if something has grown old since the last look; of a flood, which is rows that stay, nothing."""
        portions = gc.get_count()[2]
        if portions == 0:
            return
        begun = self._now()
        if portions <= MOST:
            gc.collect()
        if portions > MOST or self._now() - begun > LONG:
            gc.freeze()
