"""The grant table of one domain: which of its frames other domains may use (public/grant_table.h).

The guest writes the entries, in frames that it placed itself; we read them when a backend of ours, or
another domain, asks for access. `access` checks an entry, marks it in use as the ABI demands (so that the
guest can tell when it may take the frame back), and gives the frame's memory; `Grant.end` takes the mark
away. Every entry is copied before it is judged: the guest may change it at any time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from hypervisor.errors import EBUSY, EINVAL, ERANGE, XenError
from hypervisor.memory.atomic import clear_bits, set_bits
from hypervisor.memory.guest_memory import PAGE, BadAddress, Memory

MAX_FRAMES = 64
"""Frames of a table, as Xen's default gnttab_max_frames."""
_V1_ENTRY, _V2_ENTRY, _V2_STATUS = 8, 16, 2
_RESERVED = 8
"""Entries of the toolstack's (GNTTAB_NR_RESERVED_ENTRIES), which a change of version keeps."""
_NOWHERE = -1
"""For a part of the table that the guest has not placed."""

GTF_TYPE, GTF_PERMIT_ACCESS, GTF_ACCEPT_TRANSFER, GTF_TRANSITIVE = 3, 1, 2, 3
GTF_READONLY, GTF_READING, GTF_WRITING, GTF_SUB_PAGE = 1 << 2, 1 << 3, 1 << 4, 1 << 8

GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_BAD_DOMAIN, GNTST_BAD_GNTREF, GNTST_BAD_HANDLE = 0, -1, -2, -3, -4
GNTST_BAD_PAGE, GNTST_BAD_COPY_ARG, GNTST_NO_SPACE = -9, -10, -13


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
class _Pin:
    """The domain that uses an entry, and how often it reads and writes."""

    domid: int
    uses: list[int] = field(default_factory=lambda: [0, 0])


@dataclass(slots=True)
class GrantTable:
    """A domain's table. `frames` are where in its memory the entries lie, `status_frames` the status of v2."""

    memory: Memory
    version: int = 1
    frames: list[int] = field(default_factory=list)
    status_frames: list[int] = field(default_factory=list)
    _in_use: dict[int, _Pin] = field(default_factory=dict)
    """Reference to those who use it now: the mark goes with the last."""

    def set_version(self, version: int) -> None:
        """Choose the layout of entries, as xen/common/grant_table.c does. Raises XenError.

        All entries are empty then but the reserved ones, no others may be in use before. The status words of version 2
        go with it: the guest's frames for them are empty, and can be placed again when it comes back to that version.
        """
        if version not in (1, 2):
            raise XenError(EINVAL)
        if version == self.version:
            return
        if any(ref >= _RESERVED for ref in self._in_use):
            raise XenError(EBUSY)
        kept = self._reserved()
        if version == 1 and any(frame >> 32 for _, _, frame in kept):
            raise XenError(ERANGE)
        for at in (*self.frames, *(self.status_frames if version == 1 else ())):
            self._empty(at)
        if version == 1:
            self.status_frames.clear()
        self.version = version
        if self.frames and self.frames[0] != _NOWHERE:
            for ref, entry in enumerate(kept):
                layout, size = ("<HHI", _V1_ENTRY) if version == 1 else ("<HHxxxxQ", _V2_ENTRY)
                struct.pack_into(layout, self.memory.bytes, self.frames[0] + ref * size, *entry)
        for ref, pin in self._in_use.items():
            self._mark(ref, pin)

    def _reserved(self) -> list[tuple[int, int, int]]:
        """Return flags, domain and frame of the reserved entries, without marks of their use. Raises XenError."""
        kept = []
        for ref in range(_RESERVED if self.frames and self.frames[0] != _NOWHERE else 0):
            if self.version == 1:
                flags, owner, frame = struct.unpack_from("<HHI", self.memory.bytes, self.frames[0] + ref * _V1_ENTRY)
            else:
                flags, owner, frame = struct.unpack_from(
                    "<HHxxxxQ", self.memory.bytes, self.frames[0] + ref * _V2_ENTRY
                )
                if flags & GTF_TYPE == GTF_TRANSITIVE:
                    raise XenError(ERANGE)
                if flags & GTF_TYPE != GTF_PERMIT_ACCESS:
                    flags = owner = frame = 0
            kept.append((flags & ~(GTF_READING | GTF_WRITING), owner, frame))
        return kept

    def _empty(self, at: int) -> None:
        if at != _NOWHERE:
            self.memory.bytes[at : at + PAGE] = bytes(PAGE)

    def occupies(self, at: int) -> bool:
        """Tell whether a part of the table begins at an offset into the memory."""
        return at in self.frames or at in self.status_frames

    def place(self, number: int, frame: int, status: bool = False) -> None:
        """Let a frame hold the table's part of this number. Raises XenError, BadAddress.

        The table grows to that number at once: Linux places the last part first when it resumes. The parts below
        hold no entries until they are placed. A part placed before keeps its entries, where it was or elsewhere:
        Linux places all again after a suspend that was cancelled, with grants in use. Where it was is empty then.
        """
        frames = self.status_frames if status else self.frames
        if not 0 <= number < MAX_FRAMES or (status and self.version != 2):
            raise XenError(EINVAL)
        offset = self.memory.place_extra(frame)
        frames.extend([_NOWHERE] * (number + 1 - len(frames)))
        before, frames[number] = frames[number], offset
        if before != offset:
            content = bytes(PAGE) if before == _NOWHERE else bytes(self.memory.bytes[before : before + PAGE])
            self._empty(before)
            self.memory.bytes[offset : offset + PAGE] = content
        if status and before == _NOWHERE:
            for ref, pin in self._in_use.items():
                self._mark(ref, pin)

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
        refused = flags & GTF_TYPE != GTF_PERMIT_ACCESS or owner != domid or (write and flags & GTF_READONLY)
        if refused or offset + length > PAGE:
            raise GrantError(GNTST_GENERAL_ERROR)
        if frame in self.memory.foreign:  # only its owner may grant it
            raise GrantError(GNTST_BAD_PAGE)
        try:
            self.memory.check(frame * PAGE, PAGE)
        except BadAddress:
            raise GrantError(GNTST_BAD_PAGE) from None
        return frame, offset, length

    def access(self, ref: int, domid: int, write: bool) -> Grant:
        """Begin to use a frame granted to a domain. Raises GrantError."""
        frame, offset, length = self.look(ref, domid, write)
        pin = self._in_use.get(ref)
        if pin is None:
            pin = self._in_use[ref] = _Pin(domid)
        elif pin.domid != domid:  # the entry was changed while it was in use
            raise GrantError(GNTST_GENERAL_ERROR)
        pin.uses[write] += 1
        self._mark(ref, pin)
        grant = Grant(self, ref, frame, write, offset, length)
        if domid:
            self._confirm(grant, domid)
        return grant

    def _confirm(self, grant: Grant, domid: int) -> None:
        """End a grant that the guest, which may be running, took back while it was marked. Raises GrantError."""
        try:
            if self.look(grant.ref, domid, grant.writable) != (grant.frame, grant.offset, grant.length):
                raise GrantError(GNTST_GENERAL_ERROR)
        except GrantError:
            grant.end()
            raise

    def _release(self, grant: Grant) -> None:
        pin = self._in_use.get(grant.ref)
        if pin is None or not grant._uses:
            return
        grant._uses = 0
        pin.uses[grant.writable] -= 1
        self._mark(grant.ref, pin)
        if pin.uses == [0, 0]:
            del self._in_use[grant.ref]

    def _mark(self, ref: int, pin: _Pin) -> None:
        """Write GTF_reading and GTF_writing, where the layout has them.

        In version 1 that is a word which the guest may write at this moment, unless it is a backend of ours that
        asks: they do so while it does not run.
        """
        readers, writers = pin.uses
        flags = (GTF_READING if readers or writers else 0) | (GTF_WRITING if writers else 0)
        try:
            if self.version == 1:
                at = self._address(self.frames, _V1_ENTRY, ref)
            else:
                at = self._address(self.status_frames, _V2_STATUS, ref)
        except GrantError:  # the guest took the table away meanwhile
            return
        if self.version == 1 and pin.domid:
            if flags:
                set_bits(self.memory.address + at, flags)
            clear_bits(self.memory.address + at, (GTF_READING | GTF_WRITING) & ~flags)
            return
        before = int.from_bytes(self.memory.bytes[at : at + 2], "little")
        now = (before & ~(GTF_READING | GTF_WRITING)) | flags
        struct.pack_into("<H", self.memory.bytes, at, now)
