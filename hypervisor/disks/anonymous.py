"""A disk in memory: for tests, for scratch space, for what must not outlive the process."""

from __future__ import annotations

from collections.abc import Iterator

from hypervisor.disks.disk import SECTOR, DiskError, Kind, check_range, fill_zeros, whole_sectors

CHUNK = 64 * 1024
"""Bytes that are allocated at a time."""


class AnonymousDisk:
    """Memory in chunks that exist once written; at most `limit` bytes of them, if given."""

    sector_size = SECTOR
    read_only = False

    def __init__(self, size: int, limit: int | None = None) -> None:
        """Make an empty disk of `size` bytes, which must be whole sectors."""
        if size <= 0 or size % SECTOR:
            raise DiskError(Kind.OUT_OF_RANGE, f"a disk of {size} bytes")
        self.size = size
        self._limit = limit
        self._chunks: dict[int, bytearray] = {}
        self._closed = False

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (chunk number, start in it, start in the buffer, length)."""
        if self._closed:
            raise DiskError(Kind.CLOSED, "a disk in memory")
        check_range(self.size, offset, length)
        done = 0
        while done < length:
            number, start = divmod(offset + done, CHUNK)
            count = min(CHUNK - start, length - done)
            yield number, start, done, count
            done += count

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        check_range(self.size, offset, length)
        buffer = bytearray(length)
        self.readinto(offset, buffer)
        return bytes(buffer)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill a writable buffer."""
        view = memoryview(buffer).cast("B")
        for number, start, at, count in self._pieces(offset, len(view)):
            chunk = self._chunks.get(number)
            if chunk is None:
                fill_zeros(view[at : at + count])
            else:
                view[at : at + count] = memoryview(chunk)[start : start + count]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`, or up to where the limit is reached."""
        view = memoryview(data).cast("B")
        for number, start, at, count in self._pieces(offset, len(view)):
            chunk = self._chunks.get(number)
            if chunk is None:
                if self._limit is not None and (len(self._chunks) + 1) * CHUNK > self._limit:
                    raise DiskError(Kind.NO_SPACE, f"a disk in memory, limited to {self._limit} bytes")
                chunk = self._chunks[number] = bytearray(CHUNK)
            chunk[start : start + count] = view[at : at + count]

    def flush(self) -> None:
        """Do nothing: there is nothing more durable here."""

    def discard(self, offset: int, length: int) -> None:
        """Zero the whole sectors of a range; whole chunks go."""
        check_range(self.size, offset, length)
        start, end = whole_sectors(offset, length)
        if start >= end:
            return
        last = (end - 1) // CHUNK
        for number in [number for number in self._chunks if start // CHUNK <= number <= last]:
            low, high = max(start, number * CHUNK), min(end, (number + 1) * CHUNK)
            if high - low == min(CHUNK, self.size - number * CHUNK):
                del self._chunks[number]
            else:
                base = number * CHUNK
                fill_zeros(memoryview(self._chunks[number])[low - base : high - base])

    def allocated_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what was written, in order."""
        end = self.size if length is None else offset + length
        check_range(self.size, offset, end - offset)
        for number in sorted(self._chunks):
            low, high = max(offset, number * CHUNK), min(end, (number + 1) * CHUNK)
            if low < high:
                yield low, high - low

    @property
    def utilisation(self) -> int:
        """Return the bytes of memory in use."""
        return len(self._chunks) * CHUNK

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._chunks.clear()
