"""A domain's system time, by the time stamp counter."""

from __future__ import annotations

from hypervisor.arch.x86_64.cpu.tsc import frequency, read


class Clock:
    """Nanoseconds since a moment, by the time stamp counter: a domain's system time, which begins at `base`."""

    def __init__(self, start: int | None = None, base: int = 0) -> None:
        self.start = read() if start is None else start
        """The counter's value at system time `base`."""
        self.base = base
        self.hz = frequency()
        shift, hz = 0, self.hz
        while hz > 2 * 10**9:
            hz, shift = hz >> 1, shift - 1
        while hz < 10**9:
            hz, shift = hz << 1, shift + 1
        self.shift = shift
        self.multiplier = (10**9 << 32) // hz
        """With `shift`, as pvclock (public/xen.h, vcpu_time_info) turns ticks into nanoseconds."""

    def now(self) -> int:
        """Return system time, computed as the guest computes it."""
        ticks = read() - self.start
        ticks = ticks << self.shift if self.shift >= 0 else ticks >> -self.shift
        return self.base + (ticks * self.multiplier >> 32)
