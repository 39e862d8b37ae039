"""Credit for what a port sends in, refilled a time slice at a time, as netback limits a VIF.

XenServer writes a VIF's `qos_algorithm_params` (kbps, which are kilobytes, and timeslice_us) as bytes
of credit for each slice; Linux's netback lets unused credit grow to 128 KiB at least, since otherwise
one large segment could never leave.
"""

from __future__ import annotations

DEFAULT_TIMESLICE_US = 50_000
MIN_BURST = 131_072
"""Bytes that may always be saved up (netback's tx_add_credit)."""


class TokenBucket:
    """Bytes that may pass: `kbps` KiB a second on the long average.

    Raises ValueError for a rate that is not positive or a slice outside 1 µs … 1 s.
    """

    def __init__(self, kbps: int, timeslice_us: int = DEFAULT_TIMESLICE_US, now: int = 0) -> None:
        if kbps <= 0 or not 0 < timeslice_us <= 1_000_000:
            raise ValueError(f"no rate limit: {kbps} kbps in slices of {timeslice_us} µs")
        self.kbps = kbps
        self.timeslice_us = timeslice_us
        self._slice_ns = timeslice_us * 1000
        self._per_slice = max(1, kbps * 1024 * timeslice_us // 1_000_000)
        self._burst = max(MIN_BURST, self._per_slice)
        self._credit = self._per_slice
        self._window = now

    def take(self, length: int, now: int) -> bool:
        """Spend `length` bytes of credit (at most `MIN_BURST`), or return False and spend nothing."""
        slices = (now - self._window) // self._slice_ns
        if slices > 0:
            self._window += slices * self._slice_ns
            self._credit = min(self._burst, self._credit + slices * self._per_slice)
        if length > self._credit:
            return False
        self._credit -= length
        return True

    def ready_at(self, length: int) -> int:
        """Return when, in nanoseconds of the clock, there will be credit for `length` bytes."""
        missing = max(0, length - self._credit)
        return self._window + -(-missing // self._per_slice) * self._slice_ns
