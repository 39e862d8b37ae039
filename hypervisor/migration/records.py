"""The wire of a saved domain: a header and records, each checked before it is used.

The form follows docs/specs/libxc-migration-stream.pandoc of Xen: typed records of a length, the first of which
say what the domain is and the last of which says that nothing is missing. All numbers are little-endian, which
the header states; a version is added only when old readers would misread, other additions are records of a type
with `OPTIONAL` set, which readers may skip.

    header  magic 8 bytes, version u16, byte order u16 (1), nonce u64, crc32 u32 of all before it
    record  type u32, length u32, number u32 from 0, crc32 u32; then the body

A record's checksum continues that of the header and covers type, length, number and body, so a record changed,
left out, doubled, moved or taken from another stream is refused. Every length is bounded before it is believed.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from typing import Protocol

MAGIC, VERSION = b"KRONOSVM", 1
_LITTLE_ENDIAN = 1
LARGEST = 8 << 20
"""Most bytes of a body."""
OPTIONAL = 1 << 31
"""Bit of the types that a reader may skip when it does not know them."""

_HEADER = struct.Struct("<8sHHQ")
_CHECKSUM = struct.Struct("<I")
_RECORD = struct.Struct("<III")


class ImageError(Exception):
    """A saved domain cannot be read: it is damaged, truncated, or of a form not known here."""


class Kind(IntEnum):
    """Types of records, in the order in which they come, then those of PV domains only.

    `PAGES`, `ZEROS`, `BALLOONED` and `PINNED` come any number of times.
    """

    CONFIG = 1
    """Bytes of the toolstack's."""
    DOMAIN = 2
    """What the domain consists of."""
    PAGES = 3
    """Content of frames. A later record replaces an earlier one's: a live copy sends a frame again."""
    ZEROS = 4
    """Frames that are zero now, though an earlier record may say otherwise."""
    STATE = 5
    """What the domain knows besides its memory."""
    BALLOONED = 6
    """Frames that the guest has given to the host."""
    VCPU = 7
    """One virtual CPU; one record for each, in order."""
    END = 8
    PV_DOMAIN = 9
    """Stands in the place of `DOMAIN` for a PV one."""
    PINNED = 10
    """Page tables that the guest has pinned; behind `BALLOONED`."""
    PV_VCPU = 11
    """What a vCPU has besides registers; behind each `VCPU`."""


class Sink(Protocol):
    """Where a stream goes."""

    def write(self, data: bytes, /) -> object:
        """Take all of the data, or raise OSError."""


class Source(Protocol):
    """Where a stream comes from."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""


class Writer:
    """A stream that begins with its header at once; `put` adds records. Raises what the file raises."""

    def __init__(self, file: Sink) -> None:
        self._file = file
        header = _HEADER.pack(MAGIC, VERSION, _LITTLE_ENDIAN, int.from_bytes(os.urandom(8), "little"))
        self._checksum = zlib.crc32(header)
        self._number = 0
        self.written = 0
        """Bytes written so far."""
        self._write(header + _CHECKSUM.pack(self._checksum))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.written += len(data)

    def put(self, kind: Kind, body: bytes = b"") -> None:
        """Write a record of up to `LARGEST` bytes."""
        if len(body) > LARGEST:
            raise ValueError(f"a record cannot have {len(body)} bytes")
        head = _RECORD.pack(kind, len(body), self._number)
        self._number += 1
        self._write(head + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head, self._checksum))))
        self._write(body)


class Reader:
    """A stream that is read record by record. Raises ImageError for anything that a `Writer` did not write."""

    def __init__(self, file: Source) -> None:
        self._file = file
        header = self._exactly(_HEADER.size)
        magic, version, order, _ = _HEADER.unpack(header)
        self._checksum = zlib.crc32(header)
        self._number = 0
        self._ahead: tuple[Kind, bytes] | None = None
        if magic != MAGIC:
            raise ImageError("this is no saved domain")
        if _CHECKSUM.unpack(self._exactly(_CHECKSUM.size))[0] != self._checksum:
            raise ImageError("the header is damaged")
        if version != VERSION or order != _LITTLE_ENDIAN:
            raise ImageError(f"the image has version {version}, byte order {order}; this program reads {VERSION}, 1")

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = self._file.read(count)
            except OSError as error:
                raise ImageError(f"the image cannot be read: {error}") from error
            if not part:
                raise ImageError("the image ends too early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def take(self) -> tuple[Kind, bytes]:
        """Return the next record that is known here."""
        if self._ahead is not None:
            record, self._ahead = self._ahead, None
            return record
        while True:
            head = self._exactly(_RECORD.size)
            kind, length, number = _RECORD.unpack(head)
            expected = _CHECKSUM.unpack(self._exactly(_CHECKSUM.size))[0]
            if length > LARGEST or number != self._number:
                raise ImageError(f"record {self._number} is damaged")
            body = self._exactly(length)
            if zlib.crc32(body, zlib.crc32(head, self._checksum)) != expected:
                raise ImageError(f"record {number} is damaged")
            self._number += 1
            if kind in Kind.__members__.values():
                return Kind(kind), body
            if not kind & OPTIONAL:
                raise ImageError(f"record {number} is of an unknown type, {kind:#x}")

    def expect(self, kind: Kind) -> bytes:
        """Return the body of the next record, which must be of a kind."""
        found, body = self.take()
        if found is not kind:
            raise ImageError(f"{found.name} stands where {kind.name} belongs")
        return body

    def each(self, *kinds: Kind) -> Iterator[tuple[Kind, bytes]]:
        """Yield the next records as long as they are of these kinds."""
        while (record := self.take())[0] in kinds:
            yield record
        self._ahead = record
