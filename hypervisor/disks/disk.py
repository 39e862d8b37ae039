"""What every disk offers, whatever it is kept in, and the one error that all of them raise.

A disk is a row of bytes, `size` long, that forgets nothing after `flush()`. Between flushes it is a drive with a
volatile write cache: after a crash each sector written since holds its old or its new content, never anything else.

A disk is used by one thread at a time; whoever shares one takes turns. The reads and writes of the host's files
let go of the interpreter's lock, so different disks are served at the same time.
"""

from __future__ import annotations

import enum
from typing import Protocol

SECTOR = 512
"""Bytes of a sector, the unit of every image format and of the block rings."""


class Kind(enum.Enum):
    """What went wrong, in the terms of errno where it has one."""

    NO_SPACE = "no space"  # ENOSPC: the host's disk, a quota or the disk's own limit is full
    IO = "i/o error"  # EIO: the host could not read or write
    READ_ONLY = "read-only"  # EROFS
    OUT_OF_RANGE = "out of range"  # EINVAL: not inside the disk
    DAMAGED = "damaged"  # the image breaks its format's rules
    BUSY = "in use"  # EWOULDBLOCK: another opener holds the image's lock
    NOT_FOUND = "not found"  # ENOENT: the image, or a parent that it names
    MISMATCH = "wrong parent"  # the parent found is not the image that the child was made from
    REFUSED = "refused"  # a request that makes no sense for this image, such as shrinking it
    CLOSED = "closed"


class DiskError(Exception):
    """Tell what kind of failure it was, and of which image."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(f"{kind.value}: {text}")
        self.kind = kind


class Disk(Protocol):
    """A disk, open. Offsets and lengths are bytes; all methods raise DiskError."""

    @property
    def size(self) -> int: ...
    @property
    def sector_size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes; reading any part outside the disk is refused."""
        ...

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill a writable buffer."""
        ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`; after an error any of its sectors may be old or new."""
        ...

    def flush(self) -> None:
        """Return when all that was written before would survive a power cut."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """Give space back; each sector in the range then reads as zeros, or as before where that cannot be."""
        ...

    def close(self) -> None:
        """Flush and let go; closing twice is harmless."""
        ...


def check_range(size: int, offset: int, length: int) -> None:
    """Refuse what is not wholly inside a disk of `size` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise DiskError(Kind.OUT_OF_RANGE, f"{length} bytes at {offset} of {size}")


def whole_sectors(offset: int, length: int) -> tuple[int, int]:
    """Return the first byte and the end of the sectors that lie wholly inside a range (end may be before first)."""
    return -(-offset // SECTOR) * SECTOR, (offset + length) // SECTOR * SECTOR


ZEROS = memoryview(bytes(2 * 1024 * 1024))
"""A stock of zeros to copy from: the bytes of one usual block."""


def fill_zeros(buffer: memoryview) -> None:
    """Zero a buffer of bytes without making another of its size."""
    for at in range(0, len(buffer), len(ZEROS)):
        piece = buffer[at : at + len(ZEROS)]
        piece[:] = ZEROS[: len(piece)]
