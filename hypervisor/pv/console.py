"""The PV console: a byte ring each way in one shared page (public/io/console.h).

What the guest writes is taken at once and kept, the newest of it, for those who connect later; listeners
hear it as it comes. What people type waits here until the guest has room for it. A guest that writes wild
indexes loses its own output: an index difference beyond the ring is taken for an empty ring.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypervisor.domains.domain import Domain
from hypervisor.memory.guest_memory import PAGE

_IN, _IN_SIZE, _OUT, _OUT_SIZE = 0, 1024, 1024, 2048
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD = 3072, 3076, 3080, 3084
HISTORY = 64 * 1024
"""Bytes of output kept."""
TYPED_MOST = 64 * 1024
"""Bytes of input that may wait; more is refused."""


class Console:
    """The console of a domain whose page is `frame` and whose event channel is `port`, left unbound for us."""

    def __init__(self, domain: Domain, frame: int, port: int) -> None:
        self.domain = domain
        self.port = port
        self.history = bytearray()
        self._page = domain.memory.frame(frame)[:PAGE]
        self._typed = bytearray()
        self._listeners: dict[Callable[[bytes], None], None] = {}
        domain.events.connect_backend(port, self._notified)

    def listen(self, heard: Callable[[bytes], None]) -> None:
        """Call `heard` with output as it comes, on the domain's thread, under the host's lock."""
        self._listeners[heard] = None

    def unlisten(self, heard: Callable[[bytes], None]) -> None:
        """Stop `listen`."""
        self._listeners.pop(heard, None)

    def write(self, data: bytes) -> int:
        """Type into the console, from any thread; return how many bytes were taken."""
        with self.domain.machine.lock:
            taken = data[: max(0, TYPED_MOST - len(self._typed))]
            self._typed += taken
            if self._feed():
                self.domain.events.notify(self.port)
        return len(taken)

    def _index(self, at: int) -> int:
        return int(struct.unpack_from("<I", self._page, at)[0])

    def _notified(self) -> None:
        """Take output and give input; the guest has sent an event."""
        fed = self._feed()
        if self._take() or fed:
            self.domain.events.notify(self.port)

    def _feed(self) -> bool:
        """Move typed bytes into the ring; tell whether any went."""
        consumed, produced = self._index(_IN_CONS), self._index(_IN_PROD)
        used = produced - consumed & 0xFFFFFFFF
        count = min(len(self._typed), _IN_SIZE - used) if used <= _IN_SIZE else 0
        if not count:
            return False
        for number, byte in enumerate(self._typed[:count]):
            self._page[_IN + (produced + number & _IN_SIZE - 1)] = byte
        del self._typed[:count]
        struct.pack_into("<I", self._page, _IN_PROD, produced + count & 0xFFFFFFFF)
        return True

    def _take(self) -> bool:
        """Take all output; tell whether there was any."""
        consumed, produced = self._index(_OUT_CONS), self._index(_OUT_PROD)
        count = produced - consumed & 0xFFFFFFFF
        if not count or count > _OUT_SIZE:
            return False
        start, end = consumed & _OUT_SIZE - 1, (consumed & _OUT_SIZE - 1) + count
        data = bytes(self._page[_OUT + start : _OUT + min(end, _OUT_SIZE)])
        if end > _OUT_SIZE:
            data += bytes(self._page[_OUT : _OUT + end - _OUT_SIZE])
        struct.pack_into("<I", self._page, _OUT_CONS, produced)
        self.history += data
        del self.history[:-HISTORY]
        for heard in list(self._listeners):
            heard(data)
        return True
