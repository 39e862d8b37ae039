"""The delivery of an exception to a guest (Intel SDM volume 3, chapter 6), which Unicorn leaves out.

In 64-bit mode, which is what guests are in, and in the two that kernels of 32 bits start and stay in. Not here: task
gates and 16-bit gates of protected mode, which no kernel of today has; they cannot be delivered through.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypervisor.arch.x86_64.cpu.descriptor import Descriptor
from hypervisor.arch.x86_64.cpu.overlay import CS, DS, ES, FS, GS, RSP, SS
from hypervisor.memory.guest_memory import BadAddress

if TYPE_CHECKING:
    from hypervisor.arch.x86_64.cpu.vcpu import VCPU

INVALID_OPCODE, DOUBLE_FAULT, GENERAL_PROTECTION = 6, 8, 13
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
"""The vectors that push an error code."""
_ALL, _LOW = (1 << 64) - 1, (1 << 32) - 1
_IF, _TF, _NT, _RF, _VM, _AC = 1 << 9, 1 << 8, 1 << 14, 1 << 16, 1 << 17, 1 << 18
_CONFORMING, _BIG = 1 << 10, 1 << 22
_INTERRUPT_GATE, _TRAP_GATE = 14, 15


class Undeliverable(Exception):
    """An exception's gate, stack or frame cannot be used."""


def deliver(cpu: VCPU, vector: int, error_code: int | None, software: bool = False) -> None:
    """Enter the gate of a vector: check it, choose the stack, push the frame, load CS, SS, RIP, RFLAGS.

    `software` is True for INT n, which needs the gate's permission. Raises Undeliverable, with the
    registers as they were.
    """
    overlay = cpu.overlay
    regs, general = overlay.regs, cpu.general
    if not overlay.efer.value & 0x400:
        protected = overlay.cr[0] & 1
        return _deliver32(cpu, vector, error_code, software) if protected else _deliver16(cpu, vector)
    if vector * 16 + 15 > regs.idt.limit:
        raise Undeliverable("beyond the limit of the IDT")
    low, selector, ist, kind, middle, high, _ = struct.unpack("<HHBBHII", _read(cpu, regs.idt.base + 16 * vector, 16))
    level = regs.hflags & 3
    if software and kind >> 5 & 3 < level:
        return deliver(cpu, GENERAL_PROTECTION, vector * 8 + 2)
    if not kind & 0x80 or kind & 0xF not in (_INTERRUPT_GATE, _TRAP_GATE):
        raise Undeliverable(f"vector {vector} has no gate")
    flags, old_rsp = overlay.flags, general[RSP]
    ist &= 7
    if ist:
        stack = _word(cpu, regs.tr.base + 36 + 8 * (ist - 1))
    else:
        stack = _word(cpu, regs.tr.base + 4) if level else old_rsp
    frame = struct.pack(
        "<QQQQQ", regs.rip, overlay.segments[CS].selector, flags, old_rsp, overlay.segments[SS].selector
    )
    if error_code is not None:
        frame = struct.pack("<Q", error_code) + frame
    stack = ((stack & ~15) - len(frame)) & _ALL
    try:
        cpu.write(stack, frame)
    except BadAddress as error:
        raise Undeliverable(f"stack: {error}") from None
    flags &= ~(_TF | _NT | _RF)
    overlay.flags = flags & ~_IF if kind & 0xF == _INTERRUPT_GATE else flags
    if level:
        overlay.set_stack(0, 0, null=True)
    overlay.set_code64(selector & ~3, 0)
    general[RSP] = stack
    regs.rip = low | middle << 16 | high << 32
    return None


def _deliver32(cpu: VCPU, vector: int, error_code: int | None, software: bool) -> None:
    """Enter a 32-bit gate of protected mode."""
    overlay = cpu.overlay
    regs, general, segments = overlay.regs, cpu.general, overlay.segments
    if vector * 8 + 7 > regs.idt.limit:
        raise Undeliverable("beyond the limit of the IDT")
    low, selector, kind, high = struct.unpack("<HHxBH", _read(cpu, regs.idt.base + 8 * vector, 8))
    level, flags = regs.hflags & 3, overlay.flags
    if software and kind >> 5 & 3 < level:
        return _deliver32(cpu, GENERAL_PROTECTION, vector * 8 + 2, False)
    if not kind & 0x80 or kind & 0xF not in (_INTERRUPT_GATE, _TRAP_GATE):
        raise Undeliverable(f"vector {vector} has no gate of 32 bits")
    code = _descriptor(cpu, selector)
    target = level if code.flags & _CONFORMING else code.flags >> 13 & 3
    if not code.is_code(target) or target > level:
        raise Undeliverable(f"the gate of vector {vector} leads to no code")
    inner = target < level
    words = [regs.rip & _LOW, segments[CS].selector, flags]
    if error_code is not None:
        words.insert(0, error_code)
    stack, base, big = general[RSP] & _LOW, segments[SS].base, segments[SS].flags & _BIG
    if inner:
        words += [stack, segments[SS].selector]
        if flags & _VM:
            words += [segments[name].selector for name in (ES, DS, FS, GS)]
        stack, ss = struct.unpack("<IHxx", _read(cpu, regs.tr.base + 4 + 8 * target, 8))
        data = _descriptor(cpu, ss)
        if not data.is_stack(target):
            raise Undeliverable("the TSS has no stack for the gate")
        base, big = data.base, data.flags & _BIG
    mask = _LOW if big else 0xFFFF
    stack = stack & ~mask | stack - 4 * len(words) & mask
    try:
        cpu.write(base + (stack & mask) & _LOW, struct.pack(f"<{len(words)}I", *(word & _LOW for word in words)))
    except BadAddress as error:
        raise Undeliverable(f"stack: {error}") from None
    if inner:
        data.load(segments[SS], ss & ~3 | target)
        if flags & _VM:
            for name in (ES, DS, FS, GS):
                segments[name].selector = segments[name].base = segments[name].limit = segments[name].flags = 0
    code.load(segments[CS], selector & ~3 | target)
    flags &= ~(_TF | _NT | _RF | _VM)
    overlay.flags = flags & ~_IF if kind & 0xF == _INTERRUPT_GATE else flags
    general[RSP], regs.rip = stack, low | high << 16
    overlay.derive_mode(target, False)
    return None


def _deliver16(cpu: VCPU, vector: int) -> None:
    """Go to a vector of real mode."""
    overlay = cpu.overlay
    regs, general, segments = overlay.regs, cpu.general, overlay.segments
    if vector * 4 + 3 > regs.idt.limit:
        raise Undeliverable("beyond the limit of the IDT")
    target, selector = struct.unpack("<HH", _read(cpu, regs.idt.base + 4 * vector, 4))
    flags = overlay.flags
    stack = general[RSP] - 6 & 0xFFFF
    frame = struct.pack("<HHH", regs.rip & 0xFFFF, segments[CS].selector & 0xFFFF, flags & 0xFFFF)
    try:
        cpu.write(segments[SS].base + stack & _LOW, frame)
    except BadAddress as error:
        raise Undeliverable(f"stack: {error}") from None
    general[RSP] = general[RSP] & ~0xFFFF | stack
    segments[CS].selector, segments[CS].base, regs.rip = selector, selector << 4, target
    overlay.flags = flags & ~(_IF | _TF | _RF | _AC)
    overlay.derive_mode(0, False)


def _descriptor(cpu: VCPU, selector: int) -> Descriptor:
    """Return what a selector means in the GDT or LDT."""
    table = cpu.overlay.regs.ldt if selector & 4 else cpu.overlay.regs.gdt
    at = selector & ~7
    if not selector & ~3 or at + 7 > table.limit:
        raise Undeliverable(f"no descriptor {selector:#x}")
    return Descriptor(*struct.unpack("<II", _read(cpu, table.base + at & _LOW, 8)))


def _read(cpu: VCPU, address: int, length: int) -> bytes:
    try:
        return cpu.read(address, length)
    except BadAddress as error:
        raise Undeliverable(str(error)) from None


def _word(cpu: VCPU, address: int) -> int:
    return int.from_bytes(_read(cpu, address, 8), "little")
