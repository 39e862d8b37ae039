"""memory_op: where the domain's frames are, and how many (public/memory.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.domid import DOMID_SELF
from hypervisor.errors import EBUSY, EINVAL, ENOSYS, EPERM, XenError
from hypervisor.memory.guest_memory import PAGE, BadAddress

_MOST_FRAMES = 1024
"""Frames moved in one call, which others wait for; Xen would continue it by itself, the guest has to ask again."""
_SHARED_INFO, _GRANT_TABLE = 0, 1
_STATUS = 1 << 31
"""XENMAPIDX_grant_table_status."""


def memory_op(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do one of XENMEM_*; the start extent of a continued call is in the command's high bits."""
    command, start, address = arguments[0] & 0x3F, arguments[0] >> 6, arguments[1]
    if command in (1, 6):
        return _reservation(domain, cpu, address, start, populate=command == 6)
    if command == 2:
        return domain.memory.size // PAGE
    if command in (3, 4):
        _check_self(domain, struct.unpack("<H", cpu.read(address, 2))[0])
        return domain.memory.present if command == 3 else domain.memory.size // PAGE
    if command == 7:
        domid, _, space, index, frame = struct.unpack("<HHIQQ", cpu.read(address, 24))
        _check_self(domain, domid)
        return _add_to_physmap(domain, space, index, frame)
    if command in (9, 10):
        return _memory_map(domain, cpu, address)
    raise XenError(ENOSYS)


def _check_self(domain: Domain, domid: int) -> None:
    if domid not in (DOMID_SELF, domain.domid):
        raise XenError(EPERM)


def _add_to_physmap(domain: Domain, space: int, index: int, frame: int) -> int:
    if domain.physmap.is_shared(frame):  # Xen would put a page of its own there, and leave the other domain's alone
        raise XenError(EBUSY)
    if space == _SHARED_INFO and index == 0:
        domain.memory.check(frame * PAGE, PAGE)
        domain.place_shared_info(frame)
    elif space == _GRANT_TABLE:
        domain.grants.place(index & ~_STATUS, frame, status=bool(index & _STATUS))
        domain.platform.map_extra(frame)
    else:
        raise XenError(EINVAL)
    return 0


def _memory_map(domain: Domain, cpu: VCPU, address: int) -> int:
    """Write the memory map as e820 entries of 20 bytes, as many as the guest has room for."""
    room, _, buffer = struct.unpack("<IIQ", cpu.read(address, 16))
    entries = domain.memory_map[:room]
    for number, (start, length, kind) in enumerate(entries):
        cpu.write(buffer + 20 * number, struct.pack("<QQI", start, length, kind))
    cpu.write(address, struct.pack("<I", len(entries)))
    return 0


def _reservation(domain: Domain, cpu: VCPU, address: int, start: int, populate: bool) -> int:
    """Give frames back, or take them again (xen_memory_reservation); return how many extents are done."""
    buffer, extents, order, _, domid = struct.unpack("<QQIIH", cpu.read(address, 26))
    _check_self(domain, domid)
    if order > 9:
        raise XenError(EPERM)
    done, physmap = start, domain.physmap
    while done < min(extents, start + max(1, _MOST_FRAMES >> order)):
        frame = struct.unpack("<Q", cpu.read(buffer + 8 * done, 8))[0]
        try:
            moved = physmap.populate(frame, 1 << order) if populate else physmap.release(frame, 1 << order)
        except BadAddress:
            break
        if not moved:
            break
        done += 1
    return done
