"""Hypercalls for descriptor tables: set_gdt and update_descriptor (public/arch-x86/xen.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.arch.x86_64.pv.area import (
    ACCESSED,
    DIRTY,
    GDT_PAGES,
    LDT_PAGES,
    NO_EXECUTE,
    PRESENT,
    WRITABLE,
    canonical,
)
from hypervisor.arch.x86_64.pv.cpu import PVCPU, pv_cpu
from hypervisor.errors import EINVAL, XenError
from hypervisor.memory.guest_memory import PAGE, BadAddress

_MOST = 7168
"""FIRST_RESERVED_GDT_ENTRY: what a guest may have before Xen's own."""
_ENTRY = PRESENT | WRITABLE | ACCESSED | DIRTY | NO_EXECUTE


def set_gdt(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Let a list of frames be the calling CPU's GDT, with a number of entries."""
    pv, entries = pv_cpu(cpu), arguments[1] & 0xFFFFFFFF
    if entries > _MOST:
        raise XenError(EINVAL)
    count = -(-entries // 512)
    frames = struct.unpack(f"<{count}Q", cpu.read(arguments[0], 8 * count))
    if any(frame >= pv.area.frames for frame in frames):
        raise XenError(EINVAL)
    pv.state.gdt = frames
    pv.area.place_gdt(pv.memory, cpu.number, frames)
    pv.flush()
    return 0


def update_descriptor(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Write a descriptor at a machine address. System segments are refused, as in Xen."""
    address, descriptor = arguments[0], arguments[1]
    kind = descriptor >> 40 & 0x1F
    refused = descriptor >> 47 & 1 and not kind & 0x10 and kind not in (0, 0xC)
    if address & 7 or refused or not 0 <= address < pv_cpu(cpu).area.ram:
        raise XenError(EINVAL)
    cpu.memory.write_u64(address, descriptor)
    return 0


def set_ldt(cpu: PVCPU, address: int, entries: int) -> None:
    """Let a page-aligned virtual range be the CPU's LDT (MMUEXT_SET_LDT): it is mapped into the CPU's window."""
    if entries > 8192 or (entries and (address & (PAGE - 1) or not canonical(address))):
        raise XenError(EINVAL)
    words = []
    for page in range(-(-entries // 512)):
        try:
            words.append(cpu.translate(address + page * PAGE) | _ENTRY)
        except BadAddress:
            words.append(0)
    words += [0] * (LDT_PAGES - len(words))
    cpu.memory.write(cpu.area.window_entry(cpu.number, GDT_PAGES), struct.pack(f"<{LDT_PAGES}Q", *words))
    cpu.state.ldt = (address, entries)
    register = cpu.overlay.regs.ldt
    register.selector, register.flags = (8, 0x8200) if entries else (0, 0)
    register.base = cpu.area.window(cpu.number) + GDT_PAGES * PAGE
    register.limit = max(entries * 8 - 1, 0)
    cpu.flush()
