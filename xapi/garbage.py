"""When Python's garbage collector runs: a full collection stops the reactor for as long as there are objects.

All that is loaded is taken out of its sight, for it stays: a collection over 500,000 rows takes a second. From
then on only young objects are looked at as they come, some thousands at a time, which takes less than a
millisecond; the old ones when the reactor's thread has had nothing to do for a while.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

YOUNG = 2_000
"""New objects after which the youngest are looked at."""
EVERY = 1.0
"""Seconds between two looks of a `Collector`."""
QUIET = 0.02
"""Seconds of CPU since the last look below which a thread is idle."""
PATIENCE = 600
"""Looks after which the old are collected though it is never quiet."""
LONGEST = 0.010
"""Seconds; what survives a longer collection is not looked at again."""


def hold() -> None:
    """Collect nothing while millions of objects are made that will stay; `settle` ends it."""
    gc.disable()


def settle() -> None:
    """Take all that there is out of the collector's sight, and collect only the young by itself."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(YOUNG, 5, 1_000_000)


class Collector:
    """Collects what has grown old in quiet moments of the thread that calls `look`, every `EVERY` seconds."""

    def __init__(
        self, cpu: Callable[[], float] = time.thread_time, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._cpu = cpu
        self._now = now
        self._used = cpu()
        self._waited = 0

    def look(self) -> None:
        """Collect if something has grown old and the thread is idle, or has been busy for too long."""
        before, self._used = self._used, self._cpu()
        if gc.get_count()[2] == 0:
            return
        self._waited += 1
        if self._used - before > QUIET and self._waited < PATIENCE:
            return
        self._waited = 0
        begun = self._now()
        gc.collect()
        if self._now() - begun > LONGEST:
            gc.freeze()
