"""A domain's way to xenstore: a byte ring each way in one shared page (public/io/xs_wire.h)."""

from __future__ import annotations

import struct

from hypervisor.domains.domain import Domain
from hypervisor.xenstore.connection import Connection

_SIZE = 1024
_REQUEST, _REPLY = 0, 1024
_REQUEST_CONS, _REQUEST_PROD, _REPLY_CONS, _REPLY_PROD = 2048, 2052, 2056, 2060
_ERROR = 2072
"""Where we say that the ring is broken (XENSTORE_ERROR_RINGIDX is 2)."""


class StoreRing:
    """Carry a connection's bytes over the page `frame` and the event channel `port`, left unbound for us.

    Requests are consumed at once, however little has come: a guest sends an event only when the ring was
    empty. A guest with wild indexes is not served any more.
    """

    def __init__(self, domain: Domain, connection: Connection, frame: int, port: int) -> None:
        self.domain = domain
        self.connection = connection
        self.port = port
        self.broken = False
        self.ended = False
        self._page = domain.memory.frame(frame)
        connection.on_output = self._output
        domain.events.connect_backend(port, self._notified)
        domain.at_end.append(self._domain_ends)

    def _domain_ends(self) -> None:
        """Let go of the domain's memory; what xenstore has to say from here on nobody hears."""
        with self.domain.machine.lock:
            self.ended, self.connection.on_output = True, None
            self.domain.events.disconnect_backend(self.port)
            self._page.release()

    def _index(self, at: int) -> int:
        return int(struct.unpack_from("<I", self._page, at)[0])

    def _notified(self) -> None:
        if self._take() | self._give():
            self.domain.events.notify(self.port)

    def _output(self) -> None:
        """Hear that the connection has something to say: a watch event that some other domain caused."""
        if not self.ended and self._give():
            self.domain.events.notify(self.port)

    def _used(self, consumer: int, producer: int) -> int:
        """Return how much of a ring is in use; more than there is breaks the ring."""
        used = self._index(producer) - self._index(consumer) & 0xFFFFFFFF
        if used > _SIZE:
            self.broken = True
            struct.pack_into("<I", self._page, _ERROR, 2)
        return 0 if self.broken else used

    def _take(self) -> bool:
        """Feed requests to the connection, as many bytes as it has room for; tell whether there were any."""
        count = min(self._used(_REQUEST_CONS, _REQUEST_PROD), self.connection.room())
        if not count:
            return False
        at = self._index(_REQUEST_CONS)
        data = _copy_out(self._page[_REQUEST : _REQUEST + _SIZE], at, count)
        struct.pack_into("<I", self._page, _REQUEST_CONS, at + count & 0xFFFFFFFF)
        self.connection.feed(data)
        return True

    def _give(self) -> bool:
        """Put replies into the ring, as many as fit; tell whether there were any."""
        used = self._used(_REPLY_CONS, _REPLY_PROD)
        if self.broken:
            return False
        data = self.connection.take(_SIZE - used)
        if not data:
            return False
        at = self._index(_REPLY_PROD)
        _copy_in(self._page[_REPLY : _REPLY + _SIZE], at, data)
        struct.pack_into("<I", self._page, _REPLY_PROD, at + len(data) & 0xFFFFFFFF)
        return True


def _copy_out(ring: memoryview, at: int, count: int) -> bytes:
    start = at & len(ring) - 1
    end = min(start + count, len(ring))
    return bytes(ring[start:end]) + bytes(ring[: count - (end - start)])


def _copy_in(ring: memoryview, at: int, data: bytes) -> None:
    start = at & len(ring) - 1
    first = min(len(data), len(ring) - start)
    ring[start : start + first] = data[:first]
    ring[: len(data) - first] = data[first:]
