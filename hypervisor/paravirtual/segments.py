"""Segment descriptors as a guest's tables hold them, and loading a CPU with them (Intel SDM volume 3, chapter 3)."""

from __future__ import annotations

from dataclasses import dataclass

from hypervisor.cpu.overlay import CS, SS, Overlay, Segment
from hypervisor.memory.guest_memory import BadAddress, Memory
from hypervisor.paravirtual.area import FRAME_MASK, LDT_PAGES, PRESENT, Area

_S, _CODE, _WRITABLE, _CONFORMING, _P, _LONG, _GRANULAR = 1 << 12, 1 << 11, 1 << 9, 1 << 10, 1 << 15, 1 << 21, 1 << 23


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor; `flags` is its second word, as the CPU keeps it."""

    low: int
    flags: int

    @property
    def base(self) -> int:
        """The segment's first address."""
        return self.low >> 16 | (self.flags & 0xFF) << 16 | (self.flags & 0xFF000000)

    @property
    def limit(self) -> int:
        """The segment's last offset."""
        limit = self.low & 0xFFFF | self.flags & 0xF0000
        return limit << 12 | 0xFFF if self.flags & _GRANULAR else limit

    def is_code(self, level: int) -> bool:
        """Tell whether this can be a code segment of a privilege level."""
        flags = self.flags
        if not flags & _S or not flags & _CODE or not flags & _P:
            return False
        return bool(flags & _CONFORMING) or flags >> 13 & 3 == level

    def is_stack(self, level: int) -> bool:
        """Tell whether this can be a stack segment of a privilege level."""
        flags = self.flags
        return bool(flags & _S and flags & _WRITABLE and flags & _P and not flags & _CODE) and flags >> 13 & 3 == level

    def load(self, segment: Segment, selector: int) -> None:
        """Fill a segment register."""
        segment.selector, segment.flags = selector, self.flags
        segment.base, segment.limit = self.base, self.limit


def find(memory: Memory, area: Area, vcpu: int, selector: int, ldt_entries: int) -> Descriptor | None:
    """Return what a selector means in a vCPU's GDT, or its LDT of so many entries; None for nothing."""
    index = selector >> 3
    page = index >> 9
    if selector & 4:
        if index >= ldt_entries or page >= LDT_PAGES:
            return None
        page += 16
    entry = memory.read_u64(area.window_entry(vcpu, page))
    if not entry & PRESENT or (not index and not selector & 4):
        return None
    try:
        raw = memory.read_u64((entry & FRAME_MASK) + (index & 511) * 8)
    except BadAddress:
        return None
    return Descriptor(raw & 0xFFFFFFFF, raw >> 32)


def load_user(overlay: Overlay, code: Descriptor | None, stack: Descriptor | None, cs: int, ss: int) -> bool:
    """Load CS and SS of level 3, and set the CPU's mode; False, with nothing done, for what cannot be loaded.

    SS may be null in 64-bit code. The flags have been loaded before.
    """
    if code is None or not code.is_code(3):
        return False
    null = not ss & ~3 and code.flags & _LONG
    if not null and (stack is None or not stack.is_stack(3) or ss & 3 != 3):
        return False
    code.load(overlay.segments[CS], cs)
    if stack is not None and not null:
        stack.load(overlay.segments[SS], ss)
    else:
        overlay.set_stack(ss, 3, null=True)
    overlay.derive_mode(3, False)
    return True
