"""One direction of a ring of bytes in a page shared with a guest, as console and xenstore have them.

Indexes are free-running 32-bit numbers; each is read once where it is used. A guest may write into them what it likes:
from a ring that would hold more than it can nothing is taken, and into it nothing is put.
"""

from __future__ import annotations

import struct

_MASK = 0xFFFF_FFFF
_INDEX = struct.Struct("<I")


class ByteRing:
    """`size` bytes, a power of two, from `at` of a page on, whose indexes lie at `consumer` and `producer`."""

    def __init__(self, page: memoryview, at: int, size: int, consumer: int, producer: int) -> None:
        self._page = page
        self._at = at
        self._size = size
        self._consumer = consumer
        self._producer = producer

    def _index(self, at: int) -> int:
        return int(_INDEX.unpack_from(self._page, at)[0])

    @property
    def wild(self) -> bool:
        """Tell whether its indexes make no sense."""
        return self._index(self._producer) - self._index(self._consumer) & _MASK > self._size

    @property
    def room(self) -> int:
        """Return how many bytes can be put."""
        used = self._index(self._producer) - self._index(self._consumer) & _MASK
        return max(0, self._size - used)

    def take(self, most: int | None = None) -> bytes:
        """Take what is there, `most` bytes at the most."""
        consumed = self._index(self._consumer)
        used = self._index(self._producer) - consumed & _MASK
        count = used if most is None else min(used, most)
        if not count or used > self._size:
            return b""
        start = consumed & self._size - 1
        first = min(count, self._size - start)
        data = bytes(self._page[self._at + start : self._at + start + first])
        data += bytes(self._page[self._at : self._at + count - first])
        _INDEX.pack_into(self._page, self._consumer, consumed + count & _MASK)
        return data

    def put(self, data: bytes | bytearray) -> int:
        """Put bytes, as many as there is room for; return how many."""
        produced = self._index(self._producer)
        used = produced - self._index(self._consumer) & _MASK
        data = data[: max(0, self._size - used)]
        start = produced & self._size - 1
        first = min(len(data), self._size - start)
        self._page[self._at + start : self._at + start + first] = data[:first]
        self._page[self._at : self._at + len(data) - first] = data[first:]
        _INDEX.pack_into(self._page, self._producer, produced + len(data) & _MASK)
        return len(data)
