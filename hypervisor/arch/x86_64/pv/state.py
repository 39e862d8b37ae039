"""What a PV kernel has told Xen of one vCPU: with the registers, all that there is to carry elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class PVState:
    """What a guest has told Xen of one vCPU, as plain values. Addresses are virtual, roots guest-physical."""

    traps: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * 256)
    """Address and flags (bits 0-1 the level that INT n needs, bit 2: mask events) by vector."""
    event: int = 0
    failsafe: tuple[int, bool] = (0, False)
    """Address, and whether events are masked there; the same for the next two."""
    syscall: tuple[int, bool] = (0, False)
    syscall32: tuple[int, bool] = (0, False)
    stack: int = 0
    """Where the kernel's stack begins when it is entered from its users."""
    kernel_root: int = 0
    user_root: int = 0
    gdt: tuple[int, ...] = ()
    """Frames of the guest's part of the GDT."""
    ldt: tuple[int, int] = (0, 0)
    """Virtual address and number of entries."""
    debug: list[int] = field(default_factory=lambda: [0] * 8)
