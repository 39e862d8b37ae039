"""A domain's way to xenstore: a byte ring each way in one shared page (public/io/xs_wire.h)."""

from __future__ import annotations

import struct

from hypervisor.domains.domain import Domain
from hypervisor.split.byte_ring import ByteRing
from hypervisor.xenstore.connection import Connection

_REQUESTS, _REPLIES = (0, 1024, 2048), (1024, 1024, 2056)
"""Where the rings are in the page, their sizes, and where their indexes are."""
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
        self._requests = ByteRing(self._page, *_REQUESTS)
        self._replies = ByteRing(self._page, *_REPLIES)
        connection.on_output = self._output
        domain.events.connect_backend(port, self._notified)
        domain.at_end.append(self._domain_ends)

    def _domain_ends(self) -> None:
        """Let go of the domain's memory; what xenstore has to say from here on nobody hears."""
        with self.domain.host.lock:
            self.ended, self.connection.on_output = True, None
            self.domain.events.disconnect_backend(self.port)
            self._page.release()

    def _notified(self) -> None:
        if self._take() | self._give():
            self.domain.events.notify(self.port)

    def _output(self) -> None:
        """Hear that the connection has something to say: a watch event that some other domain caused."""
        if not self.ended and self._give():
            self.domain.events.notify(self.port)

    def _serves(self, ring: ByteRing) -> bool:
        """Tell whether a ring can be used; wild indexes break both for good."""
        if ring.wild:
            self.broken = True
            struct.pack_into("<I", self._page, _ERROR, 2)
        return not self.broken

    def _take(self) -> bool:
        """Feed requests to the connection, as many bytes as it has room for; tell whether there were any."""
        data = self._requests.take(self.connection.room()) if self._serves(self._requests) else b""
        if data:
            self.connection.feed(data)
        return bool(data)

    def _give(self) -> bool:
        """Put replies into the ring, as many as fit; tell whether there were any."""
        if not self._serves(self._replies):
            return False
        return bool(self._replies.put(self.connection.take(self._replies.room)))
