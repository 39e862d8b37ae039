"""Disks that lie in a file (or device) byte for byte: raw images, fixed VHDs, ISOs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hypervisor.disks.disk import SECTOR, DiskError, Kind, check_range, whole_sectors
from hypervisor.disks.image_file import ImageFile


class RawDisk:
    """The first `size` bytes of a file; holes read as zeros and cost nothing."""

    sector_size = SECTOR

    def __init__(self, file: ImageFile, size: int | None = None) -> None:
        """Take over an open file; `size` in bytes (default: all of it) leaves out what follows, such as a footer."""
        self.file = file
        self.size = file.size if size is None else size
        if self.size > file.size:
            raise DiskError(Kind.DAMAGED, f"{file.path}: shorter than its disk")

    @property
    def read_only(self) -> bool:
        return not self.file.writable

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        check_range(self.size, offset, length)
        return self.file.read(offset, length)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill a writable buffer."""
        view = memoryview(buffer).cast("B")
        check_range(self.size, offset, len(view))
        self.file.readinto(offset, view)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`."""
        check_range(self.size, offset, len(data))
        if not self.file.writable:
            raise DiskError(Kind.READ_ONLY, str(self.file.path))
        self.file.write(offset, data)

    def flush(self) -> None:
        """Make all writes durable."""
        if self.file.writable:
            self.file.sync()

    def discard(self, offset: int, length: int) -> None:
        """Zero the whole sectors of a range, as holes where the file system can."""
        check_range(self.size, offset, length)
        if not self.file.writable:
            raise DiskError(Kind.READ_ONLY, str(self.file.path))
        start, end = whole_sectors(offset, length)
        self.file.zero(start, end - start)

    def allocated_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what is not a hole."""
        length = self.size - offset if length is None else length
        check_range(self.size, offset, length)
        return self.file.extents(offset, offset + length)

    def resize(self, size: int) -> None:
        """Grow to `size` bytes, whole sectors; shrinking is refused, and what is not wholly a disk, as a fixed VHD."""
        if not self.file.writable:
            raise DiskError(Kind.READ_ONLY, str(self.file.path))
        if size < self.size or size % SECTOR or self.file.size - self.size >= SECTOR:
            raise DiskError(Kind.REFUSED, f"{self.file.path}: from {self.size} to {size} bytes")
        self.file.truncate(size)
        self.file.sync()
        self.size = size

    @property
    def utilisation(self) -> int:
        """Return the bytes occupied on the host."""
        return self.file.physical

    def close(self) -> None:
        """Flush and close."""
        try:
            if self.file.writable and not self.file.closed:
                self.file.sync()
        finally:
            self.file.close()


def create(path: Path, size: int) -> RawDisk:
    """Make a sparse raw image of `size` bytes, which must be whole sectors, and open it for writing."""
    if size <= 0 or size % SECTOR:
        raise DiskError(Kind.OUT_OF_RANGE, f"{path}: a disk of {size} bytes")
    file = ImageFile.create(path)
    try:
        file.truncate(size)
        return RawDisk(file)
    except BaseException:
        file.close()
        path.unlink()
        raise


def open(path: Path, *, read_only: bool = False) -> RawDisk:
    """Open a raw image; a trailing part of a sector is not served."""
    file = ImageFile.open(path, writable=not read_only)
    return RawDisk(file, file.size // SECTOR * SECTOR)
