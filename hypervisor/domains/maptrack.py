"""What a domain has mapped of other domains' grants, by the handles that it was given (Xen's maptrack).

A mapping pins its grant: the granter sees GTF_reading and GTF_writing in the entry and cannot give the frame back
until the mapper unmaps it, or ends. When the granter ends first, or is frozen to be cloned, the mapper keeps a copy
of what it saw, and its handle; when the mapper is frozen, its foreign frames are empty, as Xen saves them. A domain
that is suspended and goes on where it is keeps its mappings; a saved image has none, and empty frames in their place.

A translated domain chooses the frame that shows the granted one. A PV one chooses an entry of a page table
(`hypercalls.grant_map`), and sees the frame at a number of its own behind its memory, one for each handle.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypervisor.domains.grant_table import (
    GNTST_BAD_HANDLE,
    GNTST_BAD_PAGE,
    GNTST_GENERAL_ERROR,
    GNTST_NO_SPACE,
    Grant,
    GrantError,
    GrantTable,
)
from hypervisor.memory.foreign import MOST, Loan
from hypervisor.memory.guest_memory import PAGE, BadAddress
from hypervisor.memory.physmap import Physmap

_BUS = 1 << 39
"""The first frame of bus addresses in translated domains: where they have nothing."""


@dataclass(slots=True)
class Mapping:
    """What a handle stands for."""

    grant: Grant
    loan: Loan | None
    """The frame that shows it; None where it is mapped for devices alone, of which there are none."""
    bus_address: int
    """What the guest is told as dev_bus_addr, and may unmap by: a number of this handle's."""
    flags: int = 0
    """GNTMAP_*, less what was unmapped."""


class Maptrack:
    """The mappings of a domain with this physmap. Under the host's lock, on the domain's thread but for `close`."""

    def __init__(self, domid: int, physmap: Physmap) -> None:
        self._domid = domid
        self._physmap = physmap
        self._mappings: dict[int, Mapping] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._mappings)

    def map(self, frame: int | None, granter: Physmap, table: GrantTable, ref: int, write: bool) -> int:
        """Let a frame show one that was granted; return the handle. Raises GrantError with nothing mapped.

        Without a frame it is the one of `Physmap.foreign` that goes with the handle, or none where there are none.
        """
        if len(self._mappings) >= MOST:
            raise GrantError(GNTST_NO_SPACE)
        handle = self._free[-1] if self._free else len(self._mappings)
        grant = table.access(ref, self._domid, write)
        try:
            if grant.length != PAGE:
                raise GrantError(GNTST_GENERAL_ERROR)
            if grant.frame in granter.ballooned:
                raise GrantError(GNTST_BAD_PAGE)
            if frame is None and self._physmap.foreign:
                frame = self._physmap.foreign[handle]
            try:
                loan = None if frame is None else self._physmap.borrow(frame, table.memory, grant.frame, write)
            except OSError:
                raise GrantError(GNTST_NO_SPACE) from None
            except BadAddress:
                raise GrantError(GNTST_GENERAL_ERROR) from None
        except GrantError:
            grant.end()
            raise
        if self._free:
            self._free.pop()
        bus_frame = self._physmap.foreign[handle] if self._physmap.foreign else _BUS + handle
        self._mappings[handle] = Mapping(grant, loan, bus_frame * PAGE)
        return handle

    def find(self, handle: int) -> Mapping:
        """Return what a handle stands for. Raises GrantError."""
        mapping = self._mappings.get(handle)
        if mapping is None:
            raise GrantError(GNTST_BAD_HANDLE)
        return mapping

    def unmap(self, handle: int) -> None:
        """Empty the frame that a handle stands for, and forget the handle. Raises GrantError with it as it was."""
        mapping = self.find(handle)
        try:
            if mapping.loan is not None:
                self._physmap.end(mapping.loan)
        except OSError:
            raise GrantError(GNTST_GENERAL_ERROR) from None
        mapping.grant.end()
        del self._mappings[handle]
        self._free.append(handle)

    def empty(self) -> None:
        """Empty all foreign frames; the handles stay, and can be unmapped. Raises OSError with some of them empty."""
        for mapping in self._mappings.values():
            if mapping.loan is not None:
                self._physmap.end(mapping.loan)

    def close(self) -> None:
        """Forget all, for the domain ends or begins anew; frames that cannot be emptied stay until its memory goes."""
        for mapping in self._mappings.values():
            if mapping.loan is not None:
                try:
                    self._physmap.end(mapping.loan)
                except OSError:
                    mapping.loan.abandon()
            mapping.grant.end()
        self._mappings.clear()
        self._free.clear()
