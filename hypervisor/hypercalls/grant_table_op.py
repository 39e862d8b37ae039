"""grant_table_op: the calling domain's own table, and access to other domains' (public/grant_table.h).

Mapping is for translated domains here, as Xen has it for them (xen/arch/x86/hvm/grant_table.c): `host_addr` is a
guest-physical address, whose frame shows the granted one until it is unmapped, and is empty then. What lay there is
given back to the host. A grant that is mapped for devices alone has a bus address, by which it is unmapped. It is good
for nothing else, and is one of the handle's own, where Xen gives that of the granted frame. PV domains map at
a page table entry: `grant_map`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import (
    GNTST_BAD_COPY_ARG,
    GNTST_BAD_DOMAIN,
    GNTST_BAD_GNTREF,
    GNTST_BAD_PAGE,
    GNTST_GENERAL_ERROR,
    GNTST_OKAY,
    MAX_FRAMES,
    Grant,
    GrantError,
)
from hypervisor.domains.life import State
from hypervisor.domid import DOMID_SELF
from hypervisor.errors import EINVAL, ENOSYS, XenError
from hypervisor.memory import foreign
from hypervisor.memory.guest_memory import PAGE, BadAddress

_SOURCE_GREF, _DESTINATION_GREF = 1, 2
_MAP, _UNMAP, _COPY, _QUERY_SIZE, _UNMAP_AND_REPLACE, _SET_VERSION, _GET_VERSION = 0, 1, 5, 6, 7, 8, 10

DEVICE_MAP, HOST_MAP, READONLY = 1, 2, 4
"""GNTMAP_*. Those beyond, application_map and contains_pte, are for PV domains."""

Operation = tuple[int, int, Callable[[Domain, VCPU, int], None]]
"""Of a command that comes in lists: how many in one call, the bytes of each, and what does it."""
Lists = Mapping[int, Operation]


def grant_table_op(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do one of GNTTABOP_*. Transfer is refused."""
    command, address, count = arguments[0] & 0xFFFFFFFF, arguments[1], arguments[2] & 0xFFFFFFFF
    if command in _LISTS:
        return each(domain, cpu, _LISTS[command], address, count)
    if command == _QUERY_SIZE:  # {u16 dom; u32 nr_frames, max_nr_frames; s16 status}
        cpu.write(address + 4, struct.pack("<IIh", len(domain.grants.frames), MAX_FRAMES, GNTST_OKAY))
        return 0
    if command == _SET_VERSION:  # in place
        try:
            domain.grants.set_version(struct.unpack("<I", cpu.read(address, 4))[0])
        finally:  # a guest that is refused is told too what it has
            cpu.write(address, struct.pack("<I", domain.grants.version))
        return 0
    if command == _GET_VERSION:  # {u16 dom; u32 version}
        cpu.write(address + 4, struct.pack("<I", domain.grants.version))
        return 0
    raise XenError(ENOSYS)


def each(domain: Domain, cpu: VCPU, operation: Operation, address: int, count: int) -> int:
    """Do a list of one command."""
    most, size, do = operation
    if count > most:
        raise XenError(EINVAL)
    for number in range(count):
        do(domain, cpu, address + size * number)
    return 0


def granter(domain: Domain, domid: int) -> Domain:
    """Return the domain that has granted something to another. Raises GrantError."""
    found = domain.peer(domid)
    if found is None or found.life.state is State.DYING:
        raise GrantError(GNTST_BAD_DOMAIN)
    return found


def _map(domain: Domain, cpu: VCPU, address: int) -> None:
    """Do one gnttab_map_grant_ref: write its status and, when that is good, its handle."""
    host_address, flags, ref, domid = struct.unpack("<QIIH", cpu.read(address, 18))
    handle = bus_address = 0
    try:
        if not flags & (DEVICE_MAP | HOST_MAP):
            raise GrantError(GNTST_BAD_GNTREF)
        if flags & HOST_MAP and flags & ~READONLY != HOST_MAP:
            raise GrantError(GNTST_GENERAL_ERROR)
        owner = granter(domain, domid)
        frame = host_address // PAGE if flags & HOST_MAP else None
        handle = domain.maptrack.map(frame, owner.physmap, owner.grants, ref, not flags & READONLY)
        mapping = domain.maptrack.find(handle)
        mapping.flags, bus_address = flags, mapping.bus_address
        status = GNTST_OKAY
    except GrantError as error:
        status = error.status
    cpu.write(address + 18, struct.pack("<hIQ", status, handle, bus_address))


def _unmap(domain: Domain, cpu: VCPU, address: int) -> None:
    """Do one gnttab_unmap_grant_ref and write its status."""
    host_address, bus_address, handle = struct.unpack("<QQI", cpu.read(address, 20))
    cpu.write(address + 20, struct.pack("<h", _unmapped(domain, host_address, bus_address, handle)))


def _unmap_and_replace(domain: Domain, cpu: VCPU, address: int) -> None:
    """Do one gnttab_unmap_and_replace: as Xen has it for translated domains, good only without a replacement."""
    host_address, replacement, handle = struct.unpack("<QQI", cpu.read(address, 20))
    status = GNTST_GENERAL_ERROR if replacement else _unmapped(domain, host_address, 0, handle)
    cpu.write(address + 20, struct.pack("<h", status))


def _unmapped(domain: Domain, host_address: int, bus_address: int, handle: int) -> int:
    """Unmap where the addresses say, and return the status; neither of them asks for nothing."""
    try:
        mapping = domain.maptrack.find(handle)
        if bus_address not in (0, mapping.bus_address):
            raise GrantError(GNTST_GENERAL_ERROR)
        if mapping.loan is not None and host_address and mapping.loan.at != host_address // PAGE:
            raise GrantError(GNTST_GENERAL_ERROR)
        if bus_address if mapping.loan is None else host_address:
            domain.maptrack.unmap(handle)
    except GrantError as error:
        return error.status
    return GNTST_OKAY


def _copy(domain: Domain, cpu: VCPU, address: int) -> None:
    """Do one gnttab_copy and write its status."""
    values = struct.unpack("<QHHxxxxQHHxxxxHH", cpu.read(address, 36))
    source, source_domain, source_offset, target, target_domain, target_offset, length, flags = values
    grants: list[Grant] = []
    try:
        if source_offset + length > PAGE or target_offset + length > PAGE:
            raise GrantError(GNTST_BAD_COPY_ARG)
        from_page = _page(domain, source, source_domain, bool(flags & _SOURCE_GREF), False, grants)
        to_page = _page(domain, target, target_domain, bool(flags & _DESTINATION_GREF), True, grants)
        to_page[target_offset : target_offset + length] = from_page[source_offset : source_offset + length]
        status = GNTST_OKAY
    except GrantError as error:
        status = error.status
    except (BadAddress, ValueError):  # ValueError: a granted part is shorter than the copy
        status = GNTST_BAD_PAGE
    finally:
        for grant in grants:
            grant.end()
    cpu.write(address + 36, struct.pack("<h", status))


def _page(domain: Domain, number: int, domid: int, is_ref: bool, write: bool, grants: list[Grant]) -> memoryview:
    """Return the memory of one side of a copy: a frame of the caller's, or one granted to it."""
    owner = domain if domid in (DOMID_SELF, domain.domid) else domain.peer(domid)
    if owner is None or (not is_ref and owner is not domain):
        raise GrantError(GNTST_BAD_DOMAIN)
    page = None
    if is_ref:
        grant = owner.grants.access(number & 0xFFFFFFFF, domain.domid, write)
        grants.append(grant)
        number, page = grant.frame, grant.bytes
    if write:
        at = owner.memory.offset(number)
        owner.platform.overwritten([(at, at + PAGE)])
    return owner.memory.frame(number) if page is None else page


_LISTS: Lists = {
    _MAP: (foreign.MOST, 32, _map),
    _UNMAP: (foreign.MOST, 24, _unmap),
    _COPY: (64, 40, _copy),
    _UNMAP_AND_REPLACE: (foreign.MOST, 24, _unmap_and_replace),
}
