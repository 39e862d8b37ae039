"""Hypercalls by which a PV kernel says how it is entered, and what each CPU's registers are.

set_trap_table, set_callbacks, callback_op, nmi_op, stack_switch, fpu_taskswitch, set_segment_base, set_debugreg
and get_debugreg (public/arch-x86/xen.h, xen-x86_64.h, callback.h, nmi.h; answers as xen/arch/x86/pv has them).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from unicorn import x86_const as x86

from hypervisor.arch.vcpu import VCPU
from hypervisor.arch.x86_64.cpu.overlay import GS
from hypervisor.arch.x86_64.pv import segments
from hypervisor.arch.x86_64.pv.area import END_XEN_SLOT, FIRST_XEN_SLOT, canonical
from hypervisor.arch.x86_64.pv.cpu import PVCPU, pv_cpu
from hypervisor.errors import EFAULT, EINVAL, ENODEV, ENOSYS, EPERM, XenError
from hypervisor.memory.guest_memory import BadAddress

_NMI = 2
_EVENT, _FAILSAFE, _SYSCALL, _SYSENTER, _NMI_CALLBACK, _SYSCALL32 = 0, 1, 2, 5, 4, 7
"""CALLBACKTYPE_*; 3 and 5 are SYSENTER, whose instruction ends in #UD here as it does on AMD's CPUs."""
_MASK_EVENTS = 1
_FS, _GS_USER, _GS_KERNEL, _GS_USER_SELECTOR = range(4)
_GENERAL_DETECT, _CONDITIONS_ACTIVE = 1 << 13, 0xFF
_DR = (
    *(x86.UC_X86_REG_DR0, x86.UC_X86_REG_DR1, x86.UC_X86_REG_DR2, x86.UC_X86_REG_DR3),
    *(0, 0, x86.UC_X86_REG_DR6, x86.UC_X86_REG_DR7),
)


def _check(address: int) -> None:
    if not canonical(address):
        raise XenError(EINVAL)


def set_trap_table(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Take entries of trap_info {u8 vector, flags; u16 cs; unsigned long address}, until one of address 0."""
    state, at = pv_cpu(cpu).state, arguments[0]
    if not at:
        state.traps = [(0, 0)] * 256
        return 0
    for _ in range(256):
        try:
            vector, flags, _, address = struct.unpack("<BBHxxxxQ", cpu.read(at, 16))
        except BadAddress:
            raise XenError(EFAULT) from None
        if not address:
            return 0
        _check(address)
        state.traps[vector] = (address, flags)
        at += 16
    return 0


def set_callbacks(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Take the addresses for events, failsafe and system calls."""
    for kind, address in zip((_EVENT, _FAILSAFE, _SYSCALL), arguments, strict=False):
        if canonical(address):
            _register(pv_cpu(cpu), kind, 0, address)
    return 0


def callback_op(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do CALLBACKOP_register {u16 type, flags; unsigned long address} or _unregister {u16 type}."""
    command, at = arguments[0] & 0xFFFFFFFF, arguments[1]
    if command == 0:
        kind, flags, address = struct.unpack("<HHxxxxQ", cpu.read(at, 16))
        _check(address)
        _register(pv_cpu(cpu), kind, flags, address)
    elif command == 1:
        (kind,) = struct.unpack("<H", cpu.read(at, 2))
        if kind != _NMI_CALLBACK:
            raise XenError(EINVAL if kind in (_EVENT, _FAILSAFE, _SYSCALL, _SYSENTER, _SYSCALL32) else ENOSYS)
        pv_cpu(cpu).state.traps[_NMI] = (0, 0)
    else:
        raise XenError(ENOSYS)
    return 0


def _register(cpu: PVCPU, kind: int, flags: int, address: int) -> None:
    state, entry = cpu.state, (address, bool(flags & _MASK_EVENTS))
    if kind == _EVENT:
        state.event = address
    elif kind == _FAILSAFE:
        state.failsafe = entry
    elif kind == _SYSCALL:
        state.syscall = entry
    elif kind == _SYSCALL32:
        state.syscall32 = entry
    elif kind == _NMI_CALLBACK:
        state.traps[_NMI] = (address, 4)
    elif kind != _SYSENTER:
        raise XenError(ENOSYS)


def nmi_op(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do XENNMI_register_callback {unsigned long handler, pad} or _unregister_callback."""
    command = arguments[0] & 0xFFFFFFFF
    if command == 0:
        (address,) = struct.unpack("<Q", cpu.read(arguments[1], 8))
        _check(address)
        pv_cpu(cpu).state.traps[_NMI] = (address, 4)
    elif command == 1:
        pv_cpu(cpu).state.traps[_NMI] = (0, 0)
    else:
        raise XenError(ENOSYS)
    return 0


def stack_switch(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Take the stack on which the kernel is entered from its users."""
    pv_cpu(cpu).state.stack = arguments[1]
    return 0


def fpu_taskswitch(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Set or clear CR0.TS."""
    pv_cpu(cpu).set_task_switched(bool(arguments[0] & 0xFFFFFFFF))
    return 0


def set_segment_base(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Set FS's base, GS's of the kernel or of its users, or load GS for the users (SEGBASE_*)."""
    which, base = arguments[0] & 0xFFFFFFFF, arguments[1]
    pv = pv_cpu(cpu)
    overlay = pv.overlay
    if which in (_FS, _GS_USER, _GS_KERNEL):
        _check(base)
    if which == _FS:
        overlay.engine.reg_write(x86.UC_X86_REG_FS_BASE, base)
    elif which == _GS_USER:
        overlay.kernel_gs.value = base
    elif which == _GS_KERNEL:
        overlay.segments[GS].base = base
    elif which == _GS_USER_SELECTOR:
        _load_user_gs(pv, base & 0xFFFF)
    else:
        raise XenError(EINVAL)
    return 0


def _load_user_gs(cpu: PVCPU, selector: int) -> None:
    """Load GS's selector; its base becomes the users'. What cannot be loaded is loaded as null, as in Xen."""
    segment = cpu.overlay.segments[GS]
    kernel = segment.base
    found = segments.find(cpu.memory, cpu.area, cpu.number, selector | 3, cpu.state.ldt[1]) if selector > 3 else None
    if found is not None and found.flags & 0x9000 == 0x9000:
        found.load(segment, selector | 3)
        cpu.overlay.kernel_gs.value = found.base
    else:
        segment.selector, segment.limit, segment.flags = 0, 0, 0
        cpu.overlay.kernel_gs.value = 0
    segment.base = kernel


def set_debugreg(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Set a debug register; breakpoints are kept out of Xen's addresses, and general detection is Xen's."""
    number, value = arguments[0] & 0xFFFFFFFF, arguments[1]
    pv = pv_cpu(cpu)
    state = pv.state
    if number > 7:
        raise XenError(ENODEV)
    number += 2 if number in (4, 5) else 0  # aliases, with CR4.DE clear
    if number < 4:
        if not canonical(value) or FIRST_XEN_SLOT <= value >> 39 & 511 < END_XEN_SLOT:
            raise XenError(EPERM)
    elif value >> 32:
        raise XenError(EINVAL)
    elif number == 7:
        conditions = [value >> shift & 3 for shift in range(16, 32, 4)]
        if value & _GENERAL_DETECT or (value & _CONDITIONS_ACTIVE and 2 in conditions):
            raise XenError(EPERM)
    value = value & ~0x1000 | 0xFFFF0FF0 if number == 6 else value & ~0xD800 | 0x400 if number == 7 else value
    state.debug[number] = value
    pv.engine.reg_write(_DR[number], value)
    return 0


def get_debugreg(domain: object, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Return a debug register."""
    number = arguments[0] & 0xFFFFFFFF
    if number > 7:
        raise XenError(ENODEV)
    return pv_cpu(cpu).state.debug[number + 2 if number in (4, 5) else number]
