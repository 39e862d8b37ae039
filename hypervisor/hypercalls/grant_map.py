"""Grants that PV domains map: an entry of a page table shows the granted frame (public/grant_table.h).

The entry is that of a virtual address, or one whose machine address the guest gives (GNTMAP_contains_pte). It is
written with the number that the frame has in this domain, one of `Area.foreign`, which `dev_bus_addr` tells too. A
guest may write its page tables as it likes here, so what makes this safe is not the entry: that number shows the
granted frame only while it is mapped, and an empty one before and after; and where the grant may only be read, a
page that is private (`memory.foreign`), whatever the entry says. Nothing is counted.

Answers are those of xen/common/grant_table.c and xen/arch/x86/pv/grant_table.c, with two differences. An entry that
is to be unmapped must show the frame of that very handle: Xen takes any that shows the granted frame. And nothing
happens to a guest that overwrites or drops such an entry, which it can no longer unmap then: Xen raises exception 13.
"""

from __future__ import annotations

import struct

from hypervisor.arch.vcpu import VCPU
from hypervisor.arch.x86_64.pv.area import (
    ACCESSED,
    DIRTY,
    FRAME_MASK,
    GRANTED,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
    canonical,
)
from hypervisor.arch.x86_64.pv.cpu import PVCPU, pv_cpu
from hypervisor.domains import maptrack
from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import GNTST_BAD_GNTREF, GNTST_GENERAL_ERROR, GNTST_OKAY, GrantError
from hypervisor.errors import XenError
from hypervisor.hypercalls.grant_table_op import DEVICE_MAP, HOST_MAP, READONLY, Lists, granter
from hypervisor.memory import foreign

_APPLICATION_MAP, _CONTAINS_PTE, _AVAILABLE = 8, 16, 16
"""GNTMAP_*; the last is the shift of the bits that the guest wants in the entry's bits 9 to 11."""


def _entry(address: int, flags: int) -> int:
    """Return the entry for the address of a frame that is mapped with GNTMAP_* flags."""
    entry = address | PRESENT | ACCESSED | DIRTY | GRANTED | NO_EXECUTE | (flags >> _AVAILABLE & 7) << 9
    if flags & _APPLICATION_MAP:
        entry |= USER
    return entry if flags & READONLY else entry | WRITABLE


def _find(cpu: PVCPU, address: int, contains_pte: int) -> int:
    """Return the index in `Memory.words` of the entry that an address names. Raises GrantError."""
    tables = cpu.tables
    try:
        if contains_pte:
            return tables.level1(address)
        if canonical(address):
            return tables.level1(tables.entry(cpu.state.kernel_root, address))
    except XenError:
        pass
    raise GrantError(GNTST_GENERAL_ERROR)


def _map(domain: Domain, cpu: VCPU, address: int) -> None:
    """Do one gnttab_map_grant_ref: write its status and, when that is good, handle and machine address."""
    host_address, flags, ref, domid = struct.unpack("<QIIH", cpu.read(address, 18))
    status, handle, bus_address = GNTST_OKAY, 0, 0
    try:
        if not flags & (DEVICE_MAP | HOST_MAP):
            raise GrantError(GNTST_BAD_GNTREF)
        owner = granter(domain, domid)
        handle = domain.maptrack.map(None, owner.physmap, owner.grants, ref, not flags & READONLY)
        mapping = domain.maptrack.find(handle)
        mapping.flags, bus_address = flags, mapping.bus_address
        if flags & HOST_MAP:
            _place(domain, pv_cpu(cpu), host_address, handle)
    except GrantError as error:
        status, handle, bus_address = error.status, 0, 0
    cpu.write(address + 18, struct.pack("<hIQ", status, handle, bus_address))


def _place(domain: Domain, cpu: PVCPU, address: int, handle: int) -> None:
    """Write the entry of a new mapping. Raises GrantError, with nothing mapped."""
    mapping = domain.maptrack.find(handle)
    try:
        at = _find(cpu, address, mapping.flags & _CONTAINS_PTE)
    except GrantError:
        domain.maptrack.unmap(handle)
        raise
    words = domain.memory.words
    if words[at] & PRESENT:
        cpu.flush_everywhere()
    words[at] = _entry(mapping.bus_address, mapping.flags)


def _unmap(domain: Domain, cpu: VCPU, address: int) -> None:
    """Do one gnttab_unmap_grant_ref and write its status."""
    host_address, bus_address, handle = struct.unpack("<QQI", cpu.read(address, 20))
    status = _unmapped(domain, pv_cpu(cpu), handle, host_address, bus_address, 0)
    cpu.write(address + 20, struct.pack("<h", status))


def _unmap_and_replace(domain: Domain, cpu: VCPU, address: int) -> None:
    """Do one gnttab_unmap_and_replace: the entry of another virtual address moves to where the mapping was."""
    host_address, replacement, handle = struct.unpack("<QQI", cpu.read(address, 20))
    status = _unmapped(domain, pv_cpu(cpu), handle, host_address, 0, replacement)
    cpu.write(address + 20, struct.pack("<h", status))


def _unmapped(domain: Domain, cpu: PVCPU, handle: int, host_address: int, bus_address: int, replacement: int) -> int:
    """Unmap where the addresses say, neither of them nothing, and return the status; the last ends the mapping."""
    try:
        mapping = domain.maptrack.find(handle)
        if bus_address not in (0, mapping.bus_address):
            raise GrantError(GNTST_GENERAL_ERROR)
        if host_address and mapping.flags & HOST_MAP:
            cpu.flush_everywhere()
            _remove(domain, cpu, mapping, host_address, replacement)
            mapping.flags &= ~HOST_MAP
        if bus_address:
            mapping.flags &= ~DEVICE_MAP
        if not mapping.flags & (DEVICE_MAP | HOST_MAP):
            domain.maptrack.unmap(handle)
    except GrantError as error:
        return error.status
    return GNTST_OKAY


def _remove(domain: Domain, cpu: PVCPU, mapping: maptrack.Mapping, address: int, replacement: int) -> None:
    """Empty the entry of a mapping, or move another there; that one is gone if it fails. Raises GrantError."""
    words, contains_pte, entry = domain.memory.words, mapping.flags & _CONTAINS_PTE, 0
    if replacement:
        if contains_pte:
            raise GrantError(GNTST_GENERAL_ERROR)
        moved = _find(cpu, replacement, False)
        entry, words[moved] = words[moved], 0
    at = _find(cpu, address, contains_pte)
    if (words[at] ^ _entry(mapping.bus_address, mapping.flags)) & (FRAME_MASK | PRESENT | WRITABLE):
        raise GrantError(GNTST_GENERAL_ERROR)
    words[at] = entry


LISTS: Lists = {
    0: (foreign.MOST, 32, _map),
    1: (foreign.MOST, 24, _unmap),
    7: (foreign.MOST, 24, _unmap_and_replace),
}
