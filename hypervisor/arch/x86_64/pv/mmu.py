"""Hypercalls for page tables: mmu_update, mmuext_op, update_va_mapping (public/xen.h).

Translations are forgotten when the guest asks for it and not before, as on hardware: writing an entry flushes
nothing. All flushes of a hypercall are one, at its end.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from typing import Protocol

from hypervisor.arch.vcpu import VCPU
from hypervisor.arch.x86_64.pv.cpu import PVCPU, pv_cpu
from hypervisor.arch.x86_64.pv.descriptors import set_ldt
from hypervisor.domid import DOMID_SELF
from hypervisor.errors import EACCES, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, XenError
from hypervisor.memory.guest_memory import PAGE, BadAddress

_MOST = 1 << 14
"""Updates done in one call; Linux sends some dozens."""
_PREEMPTED = 1 << 31
_NORMAL, _MACHPHYS, _PRESERVE = 0, 1, 2
_PIN_L1, _PIN_L4, _UNPIN, _NEW_BASE, _FLUSH_LOCAL, _INVALIDATE_LOCAL = 0, 3, 4, 5, 6, 7
_FLUSH_MULTI, _INVALIDATE_MULTI, _FLUSH_ALL, _INVALIDATE_ALL = 8, 9, 10, 11
_FLUSH_CACHE, _SET_LDT, _NEW_USER_BASE, _CLEAR_PAGE, _COPY_PAGE, _FLUSH_CACHE_GLOBAL = 12, 13, 15, 16, 17, 18
_FLUSH_TYPE = 3


class Caller(Protocol):
    """What these ask of the domain that calls."""

    domid: int

    def peer(self, domid: int) -> object | None:
        """Return another domain of the host."""


def _check_owner(domain: Caller, owner: int) -> None:
    """Refuse page tables of others: only DOMID_SELF and the caller's own number are served."""
    if owner == DOMID_SELF:
        return
    if owner & 0xFFFF not in (DOMID_SELF, domain.domid) or owner >> 16 & 0xFFFF:
        raise XenError(ESRCH if domain.peer(owner & 0x7FFF) is None else EPERM)


def _each(cpu: VCPU, arguments: Sequence[int], size: int) -> Generator[bytes, None, None]:
    """Yield the entries of a list, copied; the count of those done is written when that ends."""
    address, count, done_at = arguments[0], arguments[1] & 0xFFFFFFFF & ~_PREEMPTED, arguments[2]
    if count > _MOST:
        raise XenError(EINVAL)
    try:
        content = cpu.read(address, size * count)
    except BadAddress:
        raise XenError(EFAULT) from None
    done = 0
    try:
        for number in range(count):
            yield content[size * number : size * (number + 1)]
            done += 1
    finally:
        if done_at:
            cpu.write(done_at, struct.pack("<I", done))


def mmu_update(domain: Caller, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Write page table entries by machine address; the lowest bits of it say what kind of update."""
    _check_owner(domain, arguments[3])
    pv = pv_cpu(cpu)
    tables, area = pv.tables, pv.area
    if arguments[1] == 1 and not arguments[2]:  # most are: nothing to count
        pointer, value = struct.unpack("<QQ", cpu.read(arguments[0], 16))
        if not pointer & 3:
            tables.update(pointer, value)
            return 0
    updates = _each(cpu, arguments, 16)
    try:
        for update in updates:
            pointer, value = struct.unpack("<QQ", update)
            kind = pointer & 3
            if kind == _MACHPHYS:
                frame = pointer >> 12
                if frame >= area.frames:
                    raise XenError(EINVAL)
                pv.memory.write_u64(area.table * PAGE + 8 * frame, value)
            elif kind in (_NORMAL, _PRESERVE):
                tables.update(pointer & ~3, value, kind == _PRESERVE)
            else:
                raise XenError(ENOSYS)
    finally:
        updates.close()
    return 0


def update_va_mapping(domain: Caller, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Write the level-1 entry of a virtual address of the kernel's."""
    address, value, flags = arguments[0], arguments[1], arguments[2]
    pv = pv_cpu(cpu)
    at = pv.tables.entry(pv.state.kernel_root, address)
    if not pv.tables.is_level1(at >> 12):
        raise XenError(EINVAL)
    pv.tables.update(at, value)
    if flags & _FLUSH_TYPE:
        pv.flush_everywhere() if flags & ~_FLUSH_TYPE else pv.flush()
    return 0


def update_va_mapping_otherdomain(domain: Caller, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do `update_va_mapping` with a frame of another domain, which only the caller itself may be."""
    _check_owner(domain, arguments[3])
    return update_va_mapping(domain, cpu, arguments)


def mmuext_op(domain: Caller, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do a list of mmuext_op {u32 cmd; u64 arg1, arg2}: pins, base pointers, flushes, the LDT, whole frames."""
    _check_owner(domain, arguments[3])
    pv = pv_cpu(cpu)
    operations = _each(cpu, arguments, 24)
    try:
        for operation in operations:
            _extended(pv, *struct.unpack("<IxxxxQQ", operation))
    finally:
        operations.close()
    return 0


def _extended(cpu: PVCPU, command: int, first: int, second: int) -> None:
    if _PIN_L1 <= command <= _PIN_L4:
        cpu.tables.pin(first, command + 1)
    elif command == _UNPIN:
        cpu.tables.unpin(first)
    elif command == _NEW_BASE:
        _new_base(cpu, first)
    elif command == _NEW_USER_BASE:
        _new_user_base(cpu, first)
    elif command in (_FLUSH_LOCAL, _INVALIDATE_LOCAL):
        cpu.flush()
    elif command in (_FLUSH_MULTI, _INVALIDATE_MULTI, _FLUSH_ALL, _INVALIDATE_ALL):
        cpu.flush_everywhere()
    elif command in (_FLUSH_CACHE, _FLUSH_CACHE_GLOBAL):
        raise XenError(EACCES)  # for domains with devices of their own
    elif command == _SET_LDT:
        set_ldt(cpu, first, second & 0xFFFFFFFF)
    elif command == _CLEAR_PAGE:
        at = cpu.tables.plain(first)
        cpu.memory.write(at, bytes(PAGE))
    elif command == _COPY_PAGE:
        source = cpu.tables.plain(second)
        cpu.memory.write(cpu.tables.plain(first), cpu.memory.read(source, PAGE))
    else:
        raise XenError(ENOSYS)


def _new_base(cpu: PVCPU, frame: int) -> None:
    old = cpu.state.kernel_root >> 12
    if frame != old:
        cpu.tables.use(frame, 4)
        cpu.set_root(frame * PAGE)
        cpu.tables.drop(old, 4)
    cpu.flush()


def _new_user_base(cpu: PVCPU, frame: int) -> None:
    old = cpu.state.user_root >> 12
    if frame == old:
        return
    if frame:
        cpu.tables.use(frame, 4)
    cpu.state.user_root = frame * PAGE
    if old:
        cpu.tables.drop(old, 4)
    cpu.flush()
