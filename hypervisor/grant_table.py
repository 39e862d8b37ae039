"""The grant table of one domain: which of its frames other domains may use (public/grant_table.h).

The guest writes the entries, in frames that it placed itself; we read them when a backend of ours, or
another domain, asks for access. `access` checks an entry, marks it in use as the ABI demands (so that the
guest can tell when it may take the frame back), and gives the frame's memory; `Grant.end` takes the mark
away. Every entry is copied before it is judged: the guest may change it at any time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from hypervisor.errors import EINVAL, XenError
from hypervisor.memory import PAGE, BadAddress, Memory

MAX_FRAMES = 64
"""Frames of a table, as Xen's default gnttab_max_frames."""
_V1_ENTRY, _V2_ENTRY, _V2_STATUS = 8, 16, 2
_NOWHERE = -1
"""For a part of the table that the guest has not placed."""

GTF_TYPE, GTF_PERMIT_ACCESS, GTF_ACCEPT_TRANSFER, GTF_TRANSITIVE = 3, 1, 2, 3
GTF_READONLY, GTF_READING, GTF_WRITING, GTF_SUB_PAGE = 1 << 2, 1 << 3, 1 << 4, 1 << 8

GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_BAD_DOMAIN, GNTST_BAD_GNTREF = 0, -1, -2, -3
GNTST_PERMISSION_DENIED, GNTST_BAD_PAGE, GNTST_BAD_COPY_ARG = -8, -9, -10


class GrantError(Exception):
    """A reference cannot be used; `status` is the GNTST_* number."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class Grant:
    """Access to (part of) a frame of another domain, until `end`."""

    table: GrantTable
    ref: int
    frame: int
    writable: bool
    offset: int = 0
    length: int = PAGE
    _uses: int = 1

    @property
    def bytes(self) -> memoryview:
        """The granted memory; read-only where the grant is."""
        page = self.table.memory.frame(self.frame)[self.offset : self.offset + self.length]
        return page if self.writable else page.toreadonly()

    def end(self) -> None:
        """Give the access up."""
        self.table._release(self)


@dataclass(slots=True)
class GrantTable:
    """A domain's table. `frames` are where in its memory the entries lie, `status_frames` the status of v2."""

    memory: Memory
    version: int = 1
    frames: list[int] = field(default_factory=list)
    status_frames: list[int] = field(default_factory=list)
    _in_use: dict[int, list[int]] = field(default_factory=dict)
    """Reference to how many read and write it now: the mark goes with the last."""

    def set_version(self, version: int) -> None:
        """Choose the layout of entries; refused while grants are in use."""
        if version not in (1, 2) or (version != self.version and self._in_use):
            raise XenError(EINVAL)
        self.version = version

    def place(self, number: int, frame: int, status: bool = False) -> None:
        """Let a frame hold the table's part of this number. Raises XenError, BadAddress.

        The table grows to that number at once: Linux places the last part first when it resumes. The parts below
        hold no entries until they are placed. A part placed before keeps its entries, where it was or elsewhere:
        Linux places all again after a suspend that was cancelled, with grants in use.
        """
        frames = self.status_frames if status else self.frames
        if not 0 <= number < MAX_FRAMES:
            raise XenError(EINVAL)
        offset = self.memory.place_extra(frame)
        frames.extend([_NOWHERE] * (number + 1 - len(frames)))
        before, frames[number] = frames[number], offset
        if before != offset:
            content = bytes(PAGE) if before == _NOWHERE else bytes(self.memory.bytes[before : before + PAGE])
            self.memory.bytes[offset : offset + PAGE] = content

    def forget(self) -> None:
        """Let go of the guest's frames; grants still in use can be ended, and mark nothing any more."""
        self.frames.clear()
        self.status_frames.clear()

    def _address(self, frames: list[int], size: int, ref: int) -> int:
        per_frame = PAGE // size
        if not 0 <= ref < len(frames) * per_frame:
            raise GrantError(GNTST_BAD_GNTREF)
        frame = frames[ref // per_frame]
        if frame == _NOWHERE:
            raise GrantError(GNTST_BAD_GNTREF)
        return frame + ref % per_frame * size

    def look(self, ref: int, domid: int, write: bool) -> tuple[int, int, int]:
        """Return frame, offset and length of what is granted to a domain. Raises GrantError.

        Nothing is marked: this is for a copy that is over before the guest runs again.
        """
        if self.version == 1:
            at = self._address(self.frames, _V1_ENTRY, ref)
            flags, owner, frame = struct.unpack_from("<HHI", self.memory.bytes, at)
            offset, length = 0, PAGE
        else:
            at = self._address(self.frames, _V2_ENTRY, ref)
            flags, owner = struct.unpack_from("<HH", self.memory.bytes, at)
            offset, length, frame = 0, PAGE, struct.unpack_from("<Q", self.memory.bytes, at + 8)[0]
            if flags & GTF_SUB_PAGE:
                offset, length = struct.unpack_from("<HH", self.memory.bytes, at + 4)
        if flags & GTF_TYPE != GTF_PERMIT_ACCESS or owner != domid:
            raise GrantError(GNTST_BAD_GNTREF if flags & GTF_TYPE != GTF_PERMIT_ACCESS else GNTST_BAD_DOMAIN)
        if write and flags & GTF_READONLY:
            raise GrantError(GNTST_PERMISSION_DENIED)
        if offset + length > PAGE:
            raise GrantError(GNTST_GENERAL_ERROR)
        try:
            self.memory.check(frame * PAGE, PAGE)
        except BadAddress:
            raise GrantError(GNTST_BAD_PAGE) from None
        return frame, offset, length

    def access(self, ref: int, domid: int, write: bool) -> Grant:
        """Begin to use a frame granted to a domain. Raises GrantError."""
        frame, offset, length = self.look(ref, domid, write)
        uses = self._in_use.setdefault(ref, [0, 0])
        uses[write] += 1
        self._mark(ref, uses)
        return Grant(self, ref, frame, write, offset, length)

    def _release(self, grant: Grant) -> None:
        uses = self._in_use.get(grant.ref)
        if uses is None or not grant._uses:
            return
        grant._uses = 0
        uses[grant.writable] -= 1
        self._mark(grant.ref, uses)
        if uses == [0, 0]:
            del self._in_use[grant.ref]

    def _mark(self, ref: int, uses: list[int]) -> None:
        """Write GTF_reading and GTF_writing, where the layout has them."""
        flags = (GTF_READING if uses[0] or uses[1] else 0) | (GTF_WRITING if uses[1] else 0)
        try:
            if self.version == 1:
                at = self._address(self.frames, _V1_ENTRY, ref)
            else:
                at = self._address(self.status_frames, _V2_STATUS, ref)
        except GrantError:  # the guest took the table away meanwhile
            return
        before = int.from_bytes(self.memory.bytes[at : at + 2], "little")
        now = (before & ~(GTF_READING | GTF_WRITING)) | flags
        struct.pack_into("<H", self.memory.bytes, at, now)
