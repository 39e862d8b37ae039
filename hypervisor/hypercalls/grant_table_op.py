"""grant_table_op: the calling domain's own table, and copies between domains (public/grant_table.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.cpu.vcpu import VCPU
from hypervisor.domain import Domain
from hypervisor.errors import EINVAL, ENOSYS, XenError
from hypervisor.event_channel import DOMID_SELF
from hypervisor.grant_table import (
    GNTST_BAD_COPY_ARG,
    GNTST_BAD_DOMAIN,
    GNTST_BAD_PAGE,
    GNTST_OKAY,
    MAX_FRAMES,
    Grant,
    GrantError,
)
from hypervisor.memory import PAGE, BadAddress

_SOURCE_GREF, _DESTINATION_GREF = 1, 2
_MOST = 64
"""Operations in one call."""


def grant_table_op(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do one of GNTTABOP_*. Mapping into a guest, and transfer, are refused."""
    command, address, count = arguments[0] & 0xFFFFFFFF, arguments[1], arguments[2] & 0xFFFFFFFF
    if command in (3, 5) and count > _MOST:
        raise XenError(EINVAL)
    if command == 5:
        for number in range(count):
            _copy(domain, cpu, address + 40 * number)
        return 0
    if command == 6:  # query_size: {u16 dom; u32 nr_frames, max_nr_frames; s16 status}
        cpu.write(address + 4, struct.pack("<IIh", len(domain.grants.frames), MAX_FRAMES, GNTST_OKAY))
        return 0
    if command == 8:  # set_version, in place
        domain.grants.set_version(struct.unpack("<I", cpu.read(address, 4))[0])
        cpu.write(address, struct.pack("<I", domain.grants.version))
        return 0
    if command == 10:  # get_version: {u16 dom; u32 version}
        cpu.write(address + 4, struct.pack("<I", domain.grants.version))
        return 0
    raise XenError(ENOSYS)


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
    if not is_ref:
        return owner.memory.frame(number)
    grant = owner.grants.access(number & 0xFFFFFFFF, domain.domid, write)
    grants.append(grant)
    return grant.bytes
