"""A domain's system time, as a guest computes it from a counter of its CPU's."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Nanoseconds since a moment: `base`, and what has passed since the counter stood at `start`.

    A guest turns ticks into nanoseconds by `shift` and `multiplier` (public/xen.h, vcpu_time_info).
    """

    hz: int
    """Ticks a second."""
    start: int
    base: int
    shift: int
    multiplier: int

    def now(self) -> int:
        """Return system time."""
