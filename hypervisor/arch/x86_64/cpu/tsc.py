"""The time stamp counter, as guests see it: the host's own, which Unicorn hands to RDTSC.

Guests compute time from it (pvclock), so everything that the hypervisor tells them of time must come from
the same counter: with any other clock the two drift apart, timers fire early and are armed again.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from functools import cache

_LEAST, _MOST = 20_000_000, 2_000_000_000
"""Nanoseconds for which the frequency is measured; in a longer time the machine may have slept."""

_page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
_page.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl rdx,32; or rax,rdx; ret
_read = ctypes.PYFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(_page)))


def read() -> int:
    """Return the counter."""
    return int(_read())


_imported = time.perf_counter_ns(), read()


@cache
def frequency() -> int:
    """Return ticks a second, measured once against the monotonic clock; takes up to 20 ms.

    It takes none in a program that has just started: importing the rest of it was the time to measure.
    """
    start, ticks = _imported
    if time.perf_counter_ns() - start > _MOST:
        start, ticks = time.perf_counter_ns(), read()
    while (passed := time.perf_counter_ns() - start) < _LEAST:
        pass
    return (read() - ticks) * 10**9 // passed
