"""The structures of a VHD file: Virtual Hard Disk Image Format Specification 1.0 (Microsoft, 11 October 2006).

All numbers are big-endian. What the specification leaves open follows XenServer's tools (blktap: include/vhd.h,
vhd/lib/libvhd.c): the creator `tap`, which other readers take as "the size field counts, not the geometry"; the
`hidden` byte; parent locators whose data space is told in bytes; and a batmap, which that creator promises.
Decoding checks cookies, checksums and bounds, and allocates nothing that the file could make large.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote
from uuid import UUID

from hypervisor.disks.disk import SECTOR, DiskError, Kind

MAX_SIZE = 2040 << 30
"""Bytes of the largest disk that the format's users agree on."""
BLOCK = 2 << 20
"""Bytes of a block, the unit of allocation, in the images that we make."""
MAX_ENTRIES = MAX_SIZE // BLOCK
UNUSED = 0xFFFFFFFF
"""A BAT entry without a block."""
NOWHERE = 0xFFFFFFFFFFFFFFFF
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
HEADER_SIZE = 1024
MAX_LOCATOR = 16 * 1024
"""Bytes of one parent locator that are believed: PATH_MAX in UTF-16, twice."""
NO_UUID = UUID(int=0)

_FOOTER = struct.Struct(">8sIIQI4sIIQQIII16sBB426x")
_HEADER = struct.Struct(">8sQQIIII16sII512s")
_LOCATOR = struct.Struct(">4sIIIQ")
_BATMAP = struct.Struct(">8sQIII")
_FOOTER_SUM, _HEADER_SUM = 64, 36  # where the checksums lie
_VERSION = 0x00010000
_EPOCH = 946_684_800  # 2000-01-01 in Unix time


def timestamp(unix_seconds: int) -> int:
    """Return VHD time, seconds since 2000, of a Unix time; before 2000 it is 0."""
    return min(max(unix_seconds - _EPOCH, 0), 0xFFFFFFFF)


def _checksum(data: bytes, at: int) -> int:
    """Return the one's complement of the sum of all bytes but the checksum's own."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def _summed(data: bytes, at: int) -> bytes:
    return data[:at] + _checksum(data, at).to_bytes(4, "big") + data[at + 4 :]


def _damaged(what: str) -> DiskError:
    return DiskError(Kind.DAMAGED, what)


def geometry(size: int) -> int:
    """Return cylinders << 16 | heads << 8 | sectors a track, by the specification's appendix."""
    sectors = min(size // SECTOR, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        heads, track = 16, 255
    else:
        track = 17
        heads = max(4, (sectors // track + 1023) // 1024)
        if heads > 16 or sectors // track >= heads * 1024:
            heads, track = 16, 31
        if sectors // track >= heads * 1024:
            heads, track = 16, 63
    return sectors // track // heads << 16 | heads << 8 | track


@dataclass(frozen=True, slots=True)
class Footer:
    """The last sector of every image; dynamic ones begin with a copy of it."""

    kind: int
    size: int
    uuid: UUID
    created: int = 0
    data_offset: int = NOWHERE
    original_size: int = 0
    hidden: bool = False
    saved: int = 0
    features: int = 2  # the bit that is always set
    creator: bytes = b"tap\0"
    creator_version: int = 0x00010003
    creator_os: int = 0
    geometry: int = 0

    def encode(self) -> bytes:
        """Return the 512 bytes."""
        return _summed(
            _FOOTER.pack(
                *(b"conectix", self.features, _VERSION, self.data_offset, self.created, self.creator),
                *(self.creator_version, self.creator_os, self.original_size, self.size, self.geometry, self.kind),
                *(0, self.uuid.bytes, self.saved, self.hidden),
            ),
            _FOOTER_SUM,
        )

    @classmethod
    def decode(cls, data: bytes) -> Footer:
        """Read 512 bytes; raise DiskError(DAMAGED)."""
        (
            cookie,
            features,
            version,
            offset,
            created,
            app,
            app_version,
            system,
            original,
            size,
            chs,
            kind,
            total,
            *rest,
        ) = _FOOTER.unpack(data)
        if cookie != b"conectix" or total != _checksum(data, _FOOTER_SUM):
            raise _damaged("no VHD footer")
        if version >> 16 != 1 or kind not in (FIXED, DYNAMIC, DIFFERENCING):
            raise _damaged(f"VHD version {version:#x}, type {kind}")
        if not 0 < size <= MAX_SIZE or size % SECTOR:
            raise _damaged(f"a VHD of {size} bytes")
        uuid, saved, hidden = rest
        return cls(
            *(kind, size, UUID(bytes=uuid), created, offset, original, bool(hidden), saved),
            *(features, app, app_version, system, chs),
        )

    def resized(self, size: int) -> Footer:
        """Return this footer for another size."""
        return replace(self, size=size, geometry=geometry(size))


@dataclass(frozen=True, slots=True)
class Locator:
    """Where one hint to the parent's place lies in the file."""

    code: bytes
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of dynamic and differencing images."""

    entries: int
    table_offset: int
    block_size: int = BLOCK
    parent_uuid: UUID = NO_UUID
    parent_time: int = 0
    parent_name: str = ""
    locators: tuple[Locator, ...] = ()

    @property
    def table_size(self) -> int:
        """Return the bytes of the BAT, padded to a sector."""
        return padded(self.entries * 4)

    def encode(self) -> bytes:
        """Return the 1024 bytes."""
        name = self.parent_name.encode("utf-16-be")[:512].ljust(512, b"\0")
        data = _HEADER.pack(
            *(b"cxsparse", NOWHERE, self.table_offset, _VERSION, self.entries, self.block_size, 0),
            *(self.parent_uuid.bytes, self.parent_time, 0, name),
        )
        for one in self.locators:
            data += _LOCATOR.pack(one.code, padded(one.length), one.length, 0, one.offset)
        return _summed(data.ljust(HEADER_SIZE, b"\0"), _HEADER_SUM)

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Read 1024 bytes; raise DiskError(DAMAGED). Offsets are not yet compared with the file."""
        cookie, _, table, version, entries, block, total, uuid, parent_time, _, name = _HEADER.unpack_from(data)
        if cookie != b"cxsparse" or total != _checksum(data, _HEADER_SUM):
            raise _damaged("no VHD header")
        if version >> 16 != 1 or table % SECTOR or not 0 < entries <= MAX_ENTRIES:
            raise _damaged(f"VHD header version {version:#x}, table of {entries} at {table}")
        if block & (block - 1) or not 4096 <= block <= BLOCK:
            raise _damaged(f"VHD blocks of {block} bytes")
        locators = tuple(
            Locator(code, length, offset)
            for code, _, length, _, offset in _LOCATOR.iter_unpack(data[_HEADER.size : _HEADER.size + 8 * 24])
            if code != b"\0\0\0\0" and length <= MAX_LOCATOR
        )
        text = name.decode("utf-16-be", "replace").split("\0")[0]
        return cls(entries, table, block, UUID(bytes=uuid), parent_time, text, locators)


def padded(length: int) -> int:
    """Return a length rounded up to a whole sector."""
    return -(-length // SECTOR) * SECTOR


def batmap(header: Header) -> bytes:
    """Return the batmap's header; it lies behind the BAT, and its map, here all zero, behind it.

    A set bit would say that all sectors of a block are there. It is only a hint, and we give none, but XenServer's
    tools refuse an image of the creator `tap` that has no batmap.
    """
    offset = header.table_offset + header.table_size + SECTOR
    length = padded(-(-header.entries // 8)) // SECTOR
    return _BATMAP.pack(b"tdbatmap", offset, length, 0x00010002, 0xFFFFFFFF).ljust(SECTOR, b"\0")


def batmap_size(header: Header) -> int:
    """Return the bytes of batmap header and map."""
    return SECTOR + padded(-(-header.entries // 8))


def encode_locators(child: Path, parent: Path) -> list[tuple[bytes, bytes]]:
    """Return (platform code, data) of the three hints, in the order in which XenServer's tools write them."""
    target = parent.resolve()
    relative = os.path.relpath(target, child.parent.resolve())
    dotted = relative if relative.startswith("../") else f"./{relative}"
    try:
        hints = [
            (b"MacX", f"file://{dotted}".encode()),  # not percent-encoded: XenServer's tools do not decode
            (b"W2ku", str(target).replace("/", "\\").encode("utf-16-le")),
            (b"W2ru", dotted.replace("/", "\\").encode("utf-16-le")),
        ]
    except UnicodeEncodeError as error:
        raise DiskError(Kind.REFUSED, f"{parent!s}: a parent's name must be text") from error
    if any(len(data) > MAX_LOCATOR // 2 for _, data in hints):
        raise DiskError(Kind.REFUSED, f"{parent}: too long a path for a VHD")
    return hints


def decode_locator(code: bytes, data: bytes) -> list[str]:
    """Return the paths that a hint may mean; none if it cannot be read."""
    try:
        if code == b"MacX":
            text = data.decode().rstrip("\0")
            if not text.startswith("file://"):
                return []
            plain = text.removeprefix("file://")
            return list(dict.fromkeys([plain, unquote(plain)]))
        if code in (b"W2ru", b"W2ku"):
            return [data.decode("utf-16-le").rstrip("\0").replace("\\", "/")]
    except UnicodeDecodeError:
        pass
    return []
