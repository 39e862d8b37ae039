"""Read CDs: ISO 9660 (ECMA-119) with Rock Ridge (IEEE P1282) or Joliet names.

A reader of our own, since no library fits (looked at in November 2026): `pycdlib` 1.22 (LGPL) reads the whole tree of
a disc to open it, refuses discs that others read for what does not matter here, and lets struct.error, KeyError and
ValueError out for damaged ones; nothing bounds its time or memory on a hostile disc.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.tree import Content, Kind, check_size
from hypervisor.bootloader.volume import Volume

SECTOR = 2048
_FIRST_DESCRIPTOR, _MOST_DESCRIPTORS = 16, 64
_PRIMARY, _SUPPLEMENTARY, _TERMINATOR = 1, 2, 255
_JOLIET = (b"%/@", b"%/C", b"%/E")
_DIRECTORY, _MORE_EXTENTS = 0x02, 0x80
_LARGEST_DIRECTORY = 16 << 20
_MOST_CONTINUATIONS = 32


@dataclass(frozen=True, slots=True)
class Record:
    """A directory record: its name (None for . and ..), extents of (first byte, length), and what it is."""

    name: str | None
    kind: Kind
    extents: tuple[tuple[int, int], ...]
    target: str = ""
    problem: str = ""


class IsoFileSystem:
    """A disc that is open: `flavour` is ``rock ridge``, ``joliet`` or ````, the way its names are read."""

    def __init__(self, volume: Volume) -> None:
        """Read the descriptors. Raises BootError when they are no good."""
        self.volume, self.budget = volume, volume.budget
        primary, joliet = _descriptors(volume)
        self.block_size: int = struct.unpack_from("<H", primary, 128)[0]
        if self.block_size not in (512, 1024, 2048):
            raise BootError("the disc's block size is no good")
        self.label = primary[40:72].decode("ascii", "replace").strip()
        self.uuid = _uuid(primary)
        self.flavour, self.skip = "", 0
        root = self._root(primary)
        rock_ridge = self._rock_ridge(root)
        if rock_ridge is not None:
            self.flavour, self.skip = "rock ridge", rock_ridge
        elif joliet is not None:
            self.flavour, root = "joliet", self._root(joliet)
        self.name = f"ISO 9660 {self.flavour}".strip()
        self.root = IsoNode(self, root)

    def _root(self, descriptor: bytes) -> Record:
        start, size = struct.unpack_from("<I4xI", descriptor, 158)
        return Record(None, Kind.DIRECTORY, ((start * self.block_size, size),))

    def _rock_ridge(self, root: Record) -> int | None:
        """Return how many bytes to skip in each system use area, None when there is no Rock Ridge.

        The first record of the root says so, in its SP entry (SUSP, IEEE P1281).
        """
        head = self.volume.peek(root.extents[0][0], 256)
        if len(head) < 34 or head[0] < 34 + 7:
            return None
        area = head[34 : head[0]]
        at = area.find(b"SP\x07\x01\xbe\xef")
        return area[at + 6] if at in (0, 14) and len(area) > at + 6 else None


def _descriptors(volume: Volume) -> tuple[bytes, bytes | None]:
    """Return the primary volume descriptor, and Joliet's if there is one."""
    primary = joliet = None
    for number in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + _MOST_DESCRIPTORS):
        block = volume.peek(number * SECTOR, SECTOR)
        if len(block) < SECTOR or block[1:6] != b"CD001" or block[0] == _TERMINATOR:
            break
        if block[0] == _PRIMARY and primary is None:
            primary = block
        elif block[0] == _SUPPLEMENTARY and block[88:91] in _JOLIET and joliet is None:
            joliet = block
    if primary is None:
        raise BootError("the disc has no primary volume descriptor")
    return primary, joliet


def _uuid(primary: bytes) -> str:
    """Return the date by which Linux and GRUB know a disc: of its change, else of its making."""
    changed, made = primary[830:846], primary[813:829]
    digits = (made if changed in (b"0" * 16, bytes(16)) else changed).decode("ascii", "replace")
    return "-".join((digits[:4], *(digits[at : at + 2] for at in range(4, 16, 2))))


class IsoNode:
    """A file, directory or link."""

    def __init__(self, files: IsoFileSystem, record: Record) -> None:
        self._files, self._record = files, record
        self.kind = record.kind
        self.size = sum(length for _, length in record.extents)

    def content(self, limit: int) -> Content:
        """Return a file's bytes or a link's target. Raises BootError."""
        if self.kind is Kind.LINK:
            return self._record.target.encode("utf-8", "surrogateescape")
        if self._record.problem:
            raise BootError(self._record.problem)
        check_size(self.size, limit)
        return b"".join(self._files.volume.read(start, length) for start, length in self._record.extents)

    def names(self) -> Iterator[str]:
        """Yield the names in a directory."""
        for record in self._records():
            if record.name:
                yield record.name

    def lookup(self, name: str) -> IsoNode | None:
        """Return the entry of a name; where none is exact, case does not count: boot loaders see it so."""
        close = None
        for record in self._records():
            if record.name == name:
                return IsoNode(self._files, record)
            if record.name and close is None and record.name.casefold() == name.casefold():
                close = record
        return IsoNode(self._files, close) if close else None

    def _records(self) -> Iterator[Record]:
        """Yield the records of a directory, files of several extents as one."""
        content = self.content(_LARGEST_DIRECTORY)
        pieces: tuple[tuple[int, int], ...] = ()
        at = 0
        while at < len(content):
            self._files.budget.step()
            length = content[at]
            if length < 34 or at + length > len(content):
                at = (at // SECTOR + 1) * SECTOR  # records do not cross sectors
                continue
            raw = bytes(content[at : at + length])
            at += length
            record = parse(self._files, raw)
            if record is None:
                continue
            if raw[25] & _MORE_EXTENTS:
                pieces += record.extents
                self._files.budget.step(len(pieces))
                continue
            if pieces:
                record = Record(record.name, record.kind, pieces + record.extents, record.target, record.problem)
                pieces = ()
            yield record


def parse(files: IsoFileSystem, raw: bytes) -> Record | None:
    """Return what a directory record says; None for . and .. and for what cannot be read."""
    start, size = struct.unpack_from("<I4xI", raw, 2)
    flags, unit, gap, length = raw[25], raw[26], raw[27], raw[32]
    name = raw[33 : 33 + length]
    if len(name) < length or name in (b"\0", b"\1"):
        return None
    kind = Kind.DIRECTORY if flags & _DIRECTORY else Kind.FILE
    problem = "the file is interleaved" if unit or gap else ""
    start = (start + raw[1]) * files.block_size
    if files.flavour == "joliet":
        return Record(_plain(name.decode("utf-16-be", "replace")), kind, ((start, size),), "", problem)
    if not files.flavour:
        return Record(_plain(name.decode("ascii", "replace")), kind, ((start, size),), "", problem)
    return _rock_ridge(files, raw, Record(_plain(name.decode("ascii", "replace")), kind, ((start, size),), "", problem))


def _plain(name: str) -> str:
    """Return a name without the version, and without the dot that separates nothing."""
    base, mark, version = name.rpartition(";")
    return (base if mark and version.isdigit() else name).rstrip(".")


def _rock_ridge(files: IsoFileSystem, raw: bytes, record: Record) -> Record:
    """Return a record with the name, target or place that Rock Ridge gives it."""
    name, target, kind, extents, problem = b"", _Target(), record.kind, record.extents, record.problem
    for mark, data in _system_use(files, raw):
        if mark == b"NM" and data and not data[0] & 0x06:
            name += data[1:]
        elif mark == b"SL" and data:
            kind = Kind.LINK
            target.add(data[1:])
        elif mark == b"CL" and len(data) >= 4:  # a directory that was moved up, for being too deep
            kind, extents = Kind.DIRECTORY, _moved(files, struct.unpack_from("<I", data)[0])
        elif mark == b"ZF":
            problem = "the file is compressed (zisofs)"
        elif mark == b"RE":  # the place to which such directories were moved
            name = b""
            break
    text = name.decode("utf-8", "surrogateescape") if name else record.name
    return Record(text, kind, extents, target.text, problem)


def _moved(files: IsoFileSystem, block: int) -> tuple[tuple[int, int], ...]:
    """Return the extent of a directory of which only the first block is known: its own record says the size."""
    head = files.volume.peek(block * files.block_size, 34)
    size = struct.unpack_from("<I", head, 10)[0] if len(head) == 34 else 0
    return ((block * files.block_size, size),)


class _Target:
    """The target of a link, in parts that may go on in further entries."""

    def __init__(self) -> None:
        self.text, self._joined = "", True

    def add(self, parts: bytes) -> None:
        at = 0
        while at + 2 <= len(parts):
            flags, length = parts[at], parts[at + 1]
            part = parts[at + 2 : at + 2 + length].decode("utf-8", "surrogateescape")
            if flags & 0x08:
                self.text, self._joined = "/", True
            else:
                part = "." if flags & 0x02 else ".." if flags & 0x04 else part
                self.text += part if self._joined else f"/{part}"
                self._joined = bool(flags & 0x01)
            at += 2 + length


def _system_use(files: IsoFileSystem, raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield mark and data of the entries of a record's system use area, continuations included."""
    length = raw[32]
    area: bytes = raw[33 + length + (1 - length % 2) + files.skip :]
    for _ in range(_MOST_CONTINUATIONS):
        following = b""
        at = 0
        while at + 4 <= len(area) and area[at + 2] >= 4:
            files.budget.step()
            mark, data = area[at : at + 2], area[at + 4 : at + area[at + 2]]
            at += area[at + 2]
            if mark == b"ST":
                break
            if mark == b"CE" and len(data) >= 24:
                block, offset, size = struct.unpack_from("<I4xI4xI", data)
                following = files.volume.peek(block * files.block_size + offset, min(size, SECTOR))
            else:
                yield mark, data
        if not following:
            return
        area = following
