"""VCPUOP_initialise: the state in which a guest with hardware virtualisation starts a vCPU (public/hvm/hvm_vcpu.h).

The checks are those of Xen (xen/arch/x86/hvm/domain.c). The vCPU must not be the one that its engine runs now.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hypervisor.arch.x86_64.cpu.overlay import CS, DS, ES, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, SS, Segment
from hypervisor.errors import EINVAL, XenError

if TYPE_CHECKING:
    from hypervisor.arch.x86_64.cpu.vcpu import VCPU

SIZE = 8 + 120
"""Bytes of vcpu_hvm_context: its mode, and the larger of the two sets of registers."""
_REGISTERS32 = struct.Struct("<13IIQ10I5H3H")
_REGISTERS64 = struct.Struct("<14Q")
_ORDER = (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI)
_PRESENT, _CODE_OR_DATA, _EXECUTABLE, _READABLE = 0x80, 0x10, 8, 2
_CODE64, _DATA64, _BUSY_TSS = 0xA9B, 0xC93, 0x8B
_FLAGS = 0x3F7FD5
_CR0, _CR4, _EFER = 0xE005003F, 0x6F0 | 0xF, 0xD01
"""Bits that guests may set with what CPUID offers: CR4 up to OSXMMEXCPT; SCE, LME, LMA and NXE of EFER."""
_LME, _LMA, _PAE, _PG = 1 << 8, 1 << 10, 1 << 5, 1 << 31


def load(cpu: VCPU, context: bytes) -> None:
    """Put a vCPU into a state. Raises XenError, EINVAL, for one in which none can start, with the vCPU off."""
    mode, pad = struct.unpack_from("<II", context)
    if pad or mode > 1:
        raise XenError(EINVAL)
    cpu.start(0)
    if mode:
        *general, rip, flags, cr0, cr3, cr4, efer = _REGISTERS64.unpack_from(context, 8)
        _check(rip >> 47 in (0, 0x1FFFF) and bool(cr0 & _PG and cr4 & _PAE and efer & _LME))
        segments = [(0, 0xFFFFFFFF, _CODE64), *[(0, 0xFFFFFFFF, _DATA64)] * 3, (0, 0x67, _BUSY_TSS)]
    else:
        *general, rip, flags, cr0, cr3, cr4, pad, efer = _REGISTERS32.unpack_from(context, 8)[:15]
        rest = _REGISTERS32.unpack_from(context, 8)[15:]
        _check(not pad and not any(rest[15:]) and not (efer & _LMA and not efer & _LME))
        segments = _checked(rest[:5], rest[5:10], rest[10:15], rip)
    efer |= _LMA if efer & _LME else 0
    _check(not cr0 & ~_CR0 and not cr4 & ~_CR4 and not efer & ~_EFER)
    overlay = cpu.overlay
    for number, value in zip(_ORDER, general):
        overlay.general[number] = value
    overlay.regs.rip, overlay.flags = rip, flags & _FLAGS
    overlay.cr[0], overlay.cr[3], overlay.cr[4], overlay.efer.value = cr0, cr3, cr4, efer
    live = [overlay.segments[number] for number in (CS, DS, SS, ES)] + [overlay.regs.tr]
    for target, (base, limit, attributes) in zip(live, segments):
        _set(target, base, limit, attributes)
    overlay.derive_mode(segments[0][2] >> 5 & 3, shadowed=False)


def _check(good: bool) -> None:
    if not good:
        raise XenError(EINVAL)


def _checked(
    bases: Sequence[int], limits: Sequence[int], attributes: Sequence[int], rip: int
) -> list[tuple[int, int, int]]:
    """Return base, limit and attributes of CS, DS, SS, ES and TR, if a CPU can have them. Raises XenError."""
    found = []
    for at, (base, limit, kind) in enumerate(zip(bases, limits, attributes)):
        if at == 4:
            kind |= 2
            _check(not kind & _CODE_OR_DATA and kind & 0xF == 0xB)
        elif kind:
            kind |= 1 if kind & _PRESENT else 0
            _check(bool(kind & _CODE_OR_DATA))
        _check(not kind >> 12 and bool(kind & _PRESENT or (not kind and at in (1, 3))))
        found.append((base, limit, kind))
    code, stack = found[0][2], found[2][2]
    _check(bool(code & _EXECUTABLE) and not stack & _EXECUTABLE and bool(stack & _READABLE))
    for at in (1, 3):
        kind = found[at][2]
        _check(not kind & _EXECUTABLE or bool(kind & _READABLE))
        _check(not kind or kind >> 5 & 3 <= code >> 5 & 3)
    limit = found[0][1] << 12 | 0xFFF if code & 1 << 11 else found[0][1]
    _check(rip <= limit and stack >> 5 & 3 == code >> 5 & 3)
    return found


def _set(segment: Segment, base: int, limit: int, attributes: int) -> None:
    """Load a segment register; attributes are those of a descriptor's second word without the hole in them."""
    segment.selector, segment.base = 0, base
    segment.limit = (limit << 12 | 0xFFF) & 0xFFFFFFFF if attributes & 1 << 11 and limit < 1 << 20 else limit
    segment.flags = (attributes & 0xFF) << 8 | (attributes & 0xF00) << 12
