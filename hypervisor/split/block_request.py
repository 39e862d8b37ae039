"""Requests of the block protocol: their layouts, what they ask for, and the guest's memory that they name.

Layouts are those of public/io/blkif.h, in the two forms that fronts on x86 use: slots of a 64-bit front align
64-bit fields to 8 bytes, those of a 32-bit one to 4. A slot is a copy by the time it comes here; so is an
indirect page before it is looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from hypervisor.disks.disk import SECTOR
from hypervisor.domains.grant_table import Grant, GrantError, GrantTable
from hypervisor.memory.guest_memory import PAGE

READ, WRITE, BARRIER, FLUSH, DISCARD, INDIRECT = 0, 1, 2, 3, 5, 6
OKAY, ERROR, NOT_SUPPORTED = 0, -1, -2
"""BLKIF_OP_* and BLKIF_RSP_*."""

DIRECT_SEGMENTS, INDIRECT_SEGMENTS = 11, 256
"""Most segments in a slot, and in the page that an indirect request names."""
_SEGMENT = struct.Struct("<IBBxx")
_PER_PAGE = PAGE // _SEGMENT.size
_LAST_SECTOR = PAGE // SECTOR - 1

Segment = tuple[int, int, int]
"""Grant reference, first and last sector in its frame."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a kind of front lays its slots out."""

    slot: int
    """Bytes of a slot."""
    direct: struct.Struct
    """Operation, number of segments, handle, id, sector."""
    discard: struct.Struct
    """Operation, flag, handle, id, sector, sectors."""
    indirect: struct.Struct
    """INDIRECT, operation, number of segments, id, sector, handle, references of pages."""
    response: struct.Struct
    """Id, operation, status."""


LAYOUTS = {
    "x86_64-abi": Layout(
        112, struct.Struct("<BBH4xQQ"), struct.Struct("<BBH4xQQQ"), struct.Struct("<BBH4xQQH2x8I"),
        struct.Struct("<QBxh4x"),
    ),
    "x86_32-abi": Layout(
        108, struct.Struct("<BBHQQ"), struct.Struct("<BBHQQQ"), struct.Struct("<BBHQQH2x8I"), struct.Struct("<QBxh"),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `segments` are those in the slot; for an indirect one `page` names where they are."""

    operation: int
    id: int
    sector: int
    count: int
    """How many segments or, to discard, sectors."""
    segments: Sequence[Segment] = ()
    page: int | None = None


class BadRequest(Exception):
    """A request that must be answered with `status` and has no effect."""

    def __init__(self, status: int = ERROR) -> None:
        super().__init__(status)
        self.status = status


def decode(layout: Layout, slot: bytes) -> Request:
    """Return what a slot asks for; nothing in it is judged yet but its form. Raises nothing."""
    operation = slot[0]
    if operation == DISCARD:
        _, _, _, number, sector, count = layout.discard.unpack_from(slot)
        return Request(DISCARD, number, sector, count)
    if operation == INDIRECT:
        _, operation, count, number, sector, _, *pages = layout.indirect.unpack_from(slot)
        return Request(operation, number, sector, count, page=pages[0])
    _, count, _, number, sector = layout.direct.unpack_from(slot)
    there = min(count, DIRECT_SEGMENTS)
    at = layout.direct.size
    segments = [_SEGMENT.unpack_from(slot, at + _SEGMENT.size * index) for index in range(there)]
    return Request(operation, number, sector, count, segments)


class Frames:
    """The frames that a front has granted to our domain 0, by reference.

    A `persistent` front grants a frame once and uses it again and again: up to `most` grants are kept then, the
    least recently used given back first. Otherwise each is given back after its request.
    """

    def __init__(self, table: GrantTable, persistent: bool, most: int) -> None:
        self._table = table
        self._persistent = persistent
        self._most = most
        self._kept: dict[int, Grant] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def access(self, ref: int, write: bool) -> Grant:
        """Return access to a frame; `release` it. Raises BadRequest."""
        if not self._persistent:
            return self._granted(ref, write)
        grant = self._kept.pop(ref, None)
        if grant is None:
            try:
                grant = self._granted(ref, True)
            except BadRequest:
                if write:
                    raise
                return self._granted(ref, False)  # granted for reading only: good for this once
        self._kept[ref] = grant
        return grant

    def _granted(self, ref: int, write: bool) -> Grant:
        try:
            grant = self._table.access(ref, 0, write)
        except GrantError:
            raise BadRequest from None
        if grant.length != PAGE:  # part of a frame cannot be mapped, so Xen refuses it too
            grant.end()
            raise BadRequest
        return grant

    def release(self, grants: Sequence[Grant]) -> None:
        """Give access back, as far as it is not kept."""
        for grant in grants:
            if self._kept.get(grant.ref) is not grant:
                grant.end()
        while len(self._kept) > self._most:
            self._kept.pop(next(iter(self._kept))).end()

    def close(self) -> None:
        """Give all that is kept back."""
        while self._kept:
            self._kept.popitem()[1].end()


@dataclass(slots=True)
class Buffers:
    """The guest's memory that a request names, in order; neighbours in memory are one view."""

    runs: list[tuple[int, int]]
    """Start and end of each view in the guest's memory."""
    views: list[memoryview]
    grants: list[Grant]
    length: int


def segments_of(request: Request, frames: Frames, indirect: int) -> Sequence[Segment]:
    """Return the segments of a request, read from their page if they are in one. Raises BadRequest."""
    if request.page is None:
        if request.count > DIRECT_SEGMENTS:
            raise BadRequest
        return request.segments
    if request.operation not in (READ, WRITE) or not 0 < request.count <= min(indirect, _PER_PAGE):
        raise BadRequest
    grant = frames.access(request.page, False)
    table = bytes(grant.bytes[: request.count * _SEGMENT.size])
    frames.release([grant])
    return list(_SEGMENT.iter_unpack(table))


def gather(segments: Sequence[Segment], frames: Frames, memory: memoryview, write: bool) -> Buffers:
    """Begin access to the frames of segments; `write` is to the guest's memory. Raises BadRequest, with none begun."""
    grants: list[Grant] = []
    runs: list[tuple[int, int]] = []
    end = -1
    length = 0
    try:
        for ref, first, last in segments:
            if not first <= last <= _LAST_SECTOR:
                raise BadRequest
            grant = frames.access(ref, write)
            grants.append(grant)
            start = grant.frame * PAGE + first * SECTOR
            size = (last - first + 1) * SECTOR
            length += size
            if start == end:
                end = start + size
                runs[-1] = runs[-1][0], end
            else:
                end = start + size
                runs.append((start, end))
    except BadRequest:
        frames.release(grants)
        raise
    return Buffers(runs, [memory[start:end] for start, end in runs], grants, length)
