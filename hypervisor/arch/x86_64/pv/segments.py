"""Segment descriptors as a guest's tables hold them, and loading a CPU with them (Intel SDM volume 3, chapter 3)."""

from __future__ import annotations

from hypervisor.arch.x86_64.cpu.descriptor import Descriptor
from hypervisor.arch.x86_64.cpu.overlay import CS, SS, Overlay
from hypervisor.arch.x86_64.pv.area import FRAME_MASK, LDT_PAGES, PRESENT, Area
from hypervisor.memory.guest_memory import BadAddress, Memory

_LONG = 1 << 21


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
