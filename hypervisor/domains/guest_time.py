"""Where a guest reads the time: what Xen writes into its shared page and its vCPUs' structures (public/xen.h)."""

from __future__ import annotations

import struct

from hypervisor.arch.clock import Clock
from hypervisor.memory.guest_memory import Memory


def write_time(memory: Memory, info: int, clock: Clock) -> None:
    """Fill the vcpu_time_info in the vcpu_info at an offset into the memory; system time is computed from it."""
    at = info + 32
    version = struct.unpack_from("<I", memory.bytes, at)[0]
    struct.pack_into(
        "<IIQQIbBH", memory.bytes, at, (version | 1) + 1 & 0xFFFFFFFF, 0, clock.start, clock.base,
        clock.multiplier, clock.shift, 1, 0,
    )  # fmt: skip


def write_wallclock(memory: Memory, shared_info: int, boot: int) -> None:
    """Fill the wall clock of the shared page at an offset: when system time was 0, in ns since 1970."""
    seconds, nanoseconds = divmod(boot, 10**9)
    at = shared_info + 0xC00
    version = struct.unpack_from("<I", memory.bytes, at)[0]
    words = ((version | 1) + 1 & 0xFFFFFFFF, seconds & 0xFFFFFFFF, nanoseconds, seconds >> 32 & 0xFFFFFFFF)
    struct.pack_into("<IIII", memory.bytes, at, *words)
