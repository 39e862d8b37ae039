"""Read FAT12, FAT16 and FAT32 with long names, by Microsoft's "FAT: General Overview of On-Disk Format".

A reader of our own, since no library fits (looked at in November 2026): `pyfatfs` (MIT) needs `fs`, which is given up
and cannot be imported without pkg_resources, gone from setuptools; `dissect.fat` is AGPL; `libfsfat-python` (LGPL,
"pre-alpha") is C that would parse a hostile guest's disk inside of this process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.tree import Content, Kind, check_size
from hypervisor.bootloader.volume import Volume

_ENTRY = 32
_LARGEST_DIRECTORY = 65536 * _ENTRY
_LONG_NAME, _VOLUME_LABEL, _DIRECTORY = 0x0F, 0x08, 0x10
_DELETED, _END, _KANJI = 0xE5, 0x00, 0x05
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
_PAGE = 4096
_PAGES_KEPT = 256


class FatFileSystem:
    """A FAT that is open; its width follows from the number of clusters, as the format has it."""

    def __init__(self, volume: Volume) -> None:
        """Read the boot sector. Raises BootError when it is no good."""
        boot = volume.read(0, 512)
        self.volume, self.budget = volume, volume.budget
        sector, per_cluster, reserved, tables, entries, small, _, table16 = struct.unpack_from("<HBHBHHBH", boot, 11)
        large, table32 = struct.unpack_from("<II", boot, 32)
        if sector not in (512, 1024, 2048, 4096) or not per_cluster or per_cluster & (per_cluster - 1):
            raise BootError("the FAT boot sector is no good")
        if not reserved or not 1 <= tables <= 4 or boot[510:512] != b"\x55\xaa":
            raise BootError("the FAT boot sector is no good")
        table = (table16 or table32) * sector
        self.cluster = sector * per_cluster
        self._table = reserved * sector
        root = self._table + tables * table
        self._data = root + -(-entries * _ENTRY // sector) * sector
        self._clusters = max(0, ((small or large) * sector - self._data) // self.cluster)
        self._width = 12 if self._clusters < 4085 else 16 if self._clusters < 65525 else 32
        if not table16:
            self._width = 32
        if not table or self._clusters > table * 8 // self._width:
            raise BootError("the FAT boot sector is no good (sizes)")
        self._pages: dict[int, bytes] = {}
        self.name = f"FAT{self._width}"
        extended = 67 if self._width == 32 else 39
        serial, label = struct.unpack_from("<I11s", boot, extended)
        self.uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
        self.label = label.decode("cp437").strip()
        self._root = (root, entries * _ENTRY)
        self._root_cluster = struct.unpack_from("<I", boot, 44)[0] if self._width == 32 else 0
        self.root = FatNode(self, Kind.DIRECTORY, 0, 0)

    def next(self, cluster: int) -> int | None:
        """Return the cluster that follows one; None at the end of the chain, or where it is damaged."""
        self.budget.step()
        if self._width == 12:
            at = cluster + cluster // 2
            value = int.from_bytes(self._at(at) + self._at(at + 1), "little") >> (4 if cluster & 1 else 0) & 0xFFF
        else:
            each = self._width // 8
            page, offset = divmod(cluster * each, _PAGE)
            value = int.from_bytes(self._page(page)[offset : offset + each], "little") & 0x0FFFFFFF
        return value if self.holds(value) else None

    def _at(self, offset: int) -> bytes:
        return self._page(offset // _PAGE)[offset % _PAGE : offset % _PAGE + 1]

    def _page(self, number: int) -> bytes:
        """Return a piece of the table, read once."""
        if number not in self._pages:
            if len(self._pages) >= _PAGES_KEPT:
                self._pages.clear()
            self._pages[number] = self.volume.peek(self._table + number * _PAGE, _PAGE)
        return self._pages[number]

    def holds(self, cluster: int) -> bool:
        """Tell whether there is such a cluster."""
        return bool(2 <= cluster < self._clusters + 2)

    def runs(self, cluster: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield (offset in bytes, clusters) of a chain's first `count` clusters, neighbours joined."""
        start, length = cluster, 0
        here: int | None = cluster if self.holds(cluster) else None
        for _ in range(count):
            if here is None:
                break
            if here != start + length:
                yield self._data + (start - 2) * self.cluster, length
                start, length = here, 0
            length += 1
            here = self.next(here)
        if length:
            yield self._data + (start - 2) * self.cluster, length

    def directory(self, cluster: int) -> bytes:
        """Return a directory's entries; cluster 0 is the root."""
        cluster = cluster or self._root_cluster
        if not cluster:
            return self.volume.read(*self._root)
        most = -(-_LARGEST_DIRECTORY // self.cluster)
        return b"".join(self.volume.read(at, count * self.cluster) for at, count in self.runs(cluster, most))


class FatNode:
    """A file or directory."""

    def __init__(self, files: FatFileSystem, kind: Kind, cluster: int, size: int) -> None:
        self._files, self.kind, self._cluster, self.size = files, kind, cluster, size

    def content(self, limit: int) -> Content:
        """Return a file's bytes. Raises BootError when its chain is shorter than it."""
        check_size(self.size, limit)
        files, content, done = self._files, bytearray(self.size), 0
        for at, count in files.runs(self._cluster, -(-self.size // files.cluster)):
            length = min(count * files.cluster, self.size - done)
            content[done : done + length] = files.volume.read(at, length)
            done += length
        if done < self.size:
            raise BootError("a file's chain of clusters is cut off")
        return content

    def names(self) -> Iterator[str]:
        """Yield the long names, or the short ones where there are none."""
        for long, short, _, _, _ in self._entries():
            yield long or short

    def lookup(self, name: str) -> FatNode | None:
        """Return the entry with a long or short name; case does not count."""
        wanted = name.casefold()
        for long, short, attributes, cluster, size in self._entries():
            if wanted in (long.casefold(), short.casefold()):
                kind = Kind.DIRECTORY if attributes & _DIRECTORY else Kind.FILE
                return FatNode(self._files, kind, cluster, size)
        return None

    def _entries(self) -> Iterator[tuple[str, str, int, int, int]]:
        """Yield long name or "", short name, attributes, first cluster, size."""
        content = self._files.directory(self._cluster)
        long: dict[int, bytes] = {}
        checksum = -1
        for at in range(0, len(content), _ENTRY):
            self._files.budget.step()
            entry = content[at : at + _ENTRY]
            if entry[0] == _END:
                return
            if entry[0] == _DELETED:
                long = {}
            elif entry[11] & 0x3F == _LONG_NAME:
                if entry[0] & 0x40:
                    long, checksum = {}, entry[13]
                if entry[13] == checksum:
                    long[entry[0] & 0x3F] = entry[1:11] + entry[14:26] + entry[28:32]
            else:
                name = _long(long) if long and _checksum(entry[:11]) == checksum else ""
                long = {}
                if not entry[11] & _VOLUME_LABEL and entry[:1] != b".":
                    high, low, size = struct.unpack_from("<H4xHI", entry, 20)
                    yield (
                        name,
                        _short(entry),
                        entry[11],
                        (high << 16 | low if self._files.name == "FAT32" else low),
                        size,
                    )


def _long(pieces: dict[int, bytes]) -> str:
    """Join the pieces of a long name; "" when one is missing."""
    if sorted(pieces) != list(range(1, len(pieces) + 1)):
        return ""
    text = b"".join(pieces[number] for number in sorted(pieces)).decode("utf-16-le", "replace")
    return text.split("\0")[0]


def _checksum(short: bytes) -> int:
    """Return what ties the pieces of a long name to the short one."""
    total = 0
    for byte in short:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def _short(entry: bytes) -> str:
    """Return an 8.3 name, in lower case where Windows NT says so."""
    raw = bytes([_DELETED]) + entry[1:11] if entry[0] == _KANJI else entry[:11]
    base, extension = raw[:8].decode("cp437").rstrip(), raw[8:].decode("cp437").rstrip()
    base = base.lower() if entry[12] & _LOWER_BASE else base
    extension = extension.lower() if entry[12] & _LOWER_EXTENSION else extension
    return f"{base}.{extension}" if extension else base
