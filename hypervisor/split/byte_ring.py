"""One direction of a ring of bytes in a page shared with a guest, as console and xenstore have them.

Indexes are free-running 32-bit numbers; both are read once where they are used. A guest may write into them what it
likes: from a ring that would hold more than it can nothing is taken, and into it nothing is put.
"""

from __future__ import annotations

import struct

_MASK = 0xFFFF_FFFF
_INDEXES, _INDEX = struct.Struct("<II"), struct.Struct("<I")


class ByteRing:
    """`size` bytes, a power of two, from `at` of a page; at `indexes` lie its consumer's, then its producer's."""

    def __init__(self, page: memoryview, at: int, size: int, indexes: int) -> None:
        self._page = page
        self._at = at
        self._size = size
        self._indexes = indexes

    @property
    def _used(self) -> int:
        consumed, produced = _INDEXES.unpack_from(self._page, self._indexes)
        return int(produced - consumed & _MASK)

    @property
    def wild(self) -> bool:
        """Tell whether its indexes make no sense."""
        return self._used > self._size

    @property
    def room(self) -> int:
        """Return how many bytes can be put."""
        return max(0, self._size - self._used)

    def take(self, most: int | None = None) -> bytes:
        """Take what is there, `most` bytes at the most."""
        consumed, produced = _INDEXES.unpack_from(self._page, self._indexes)
        used = produced - consumed & _MASK
        count = used if most is None else min(used, most)
        if not count or used > self._size:
            return b""
        start = consumed & self._size - 1
        first = min(count, self._size - start)
        data = bytes(self._page[self._at + start : self._at + start + first])
        if first < count:
            data += bytes(self._page[self._at : self._at + count - first])
        _INDEX.pack_into(self._page, self._indexes, consumed + count & _MASK)
        return data

    def put(self, data: bytes | bytearray) -> int:
        """Put bytes, as many as there is room for; return how many."""
        consumed, produced = _INDEXES.unpack_from(self._page, self._indexes)
        data = data[: max(0, self._size - (produced - consumed & _MASK))]
        start = produced & self._size - 1
        first = min(len(data), self._size - start)
        self._page[self._at + start : self._at + start + first] = data[:first]
        if first < len(data):
            self._page[self._at : self._at + len(data) - first] = data[first:]
        _INDEX.pack_into(self._page, self._indexes + _INDEX.size, produced + len(data) & _MASK)
        return len(data)
