"""Whose turn it is among the vCPUs of a domain, which run one after the other: no threads, no clock.

The vCPU that has run least goes next. One that slept is not owed its sleep: when it wakes it counts as if it had
run as long as the others, less one turn, so that it comes soon and two that wake each other in turn leave the
rest their share. A turn ends early for one that has just woken, and at once for a vCPU that waits for another.
Times are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

TURN = 2_000_000
"""How long a vCPU runs while another waits. A change costs some 50 µs, with the TLB to be filled again."""
SHORTEST = 200_000
"""What a vCPU may run before one that woke takes its place."""


class Turns:
    """The turns of `count` vCPUs; `end` is when the present one is over, None for never."""

    def __init__(self, count: int) -> None:
        self.end: int | None = None
        self._ran = [0] * count
        self._last = 0
        self._began = 0
        self._ends = 0
        """When the last turn would have been over; a vCPU that only was interrupted goes on until then."""
        self._gave_up = False

    def next(self, able: Sequence[int], now: int) -> int:
        """Begin a turn, or go on with the last: return which one of the vCPUs that are `able` to run now does."""
        last = self._last
        if last in able and not self._gave_up and now < self._ends:
            chosen = last
        else:
            others = [number for number in able if number != last] if self._gave_up else able
            chosen = min(others or able, key=self._ran.__getitem__)
            self._ends = now + TURN
        self._last, self._began, self._gave_up = chosen, now, False
        self.end = self._ends if len(able) > 1 else None
        return chosen

    def leave(self, now: int, *, gave_up: bool) -> None:
        """Hear that the vCPU whose turn it is has stopped; `gave_up` if it waits for another."""
        self._ran[self._last] += max(0, now - self._began)
        self._gave_up, self.end = gave_up, None

    def wake(self, number: int, able: Sequence[int], now: int) -> bool:
        """Hear that a vCPU can run from now on, `able` those that could before; True if `end` has changed.

        `able` includes the one that runs, if one does.
        """
        others = [self._ran[other] for other in able if other != number]
        if others:
            self._ran[number] = max(self._ran[number], min(others) - TURN)
        soon = max(now, self._began + SHORTEST)
        self._ends = min(self._ends, soon)
        if not able or (self.end is not None and self.end <= soon):
            return False
        self.end = soon
        return True
