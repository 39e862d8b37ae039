"""The delivery of an exception to a guest in 64-bit mode (Intel SDM volume 3, chapter 6), which Unicorn leaves out."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypervisor.cpu.overlay import CS, RSP, SS
from hypervisor.memory.guest_memory import BadAddress

if TYPE_CHECKING:
    from hypervisor.cpu.vcpu import VCPU

INVALID_OPCODE, DOUBLE_FAULT, _GENERAL_PROTECTION = 6, 8, 13
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
"""The vectors that push an error code."""
_ALL = (1 << 64) - 1
_IF, _TF, _NT, _RF = 1 << 9, 1 << 8, 1 << 14, 1 << 16
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
        raise Undeliverable("not in long mode")
    if vector * 16 + 15 > regs.idt.limit:
        raise Undeliverable("beyond the limit of the IDT")
    low, selector, ist, kind, middle, high, _ = struct.unpack("<HHBBHII", _read(cpu, regs.idt.base + 16 * vector, 16))
    level = regs.hflags & 3
    if software and kind >> 5 & 3 < level:
        return deliver(cpu, _GENERAL_PROTECTION, vector * 8 + 2)
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


def _read(cpu: VCPU, address: int, length: int) -> bytes:
    try:
        return cpu.read(address, length)
    except BadAddress as error:
        raise Undeliverable(str(error)) from None


def _word(cpu: VCPU, address: int) -> int:
    return int.from_bytes(_read(cpu, address, 8), "little")
