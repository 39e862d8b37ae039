"""The console of a domain: a byte ring each way in one shared page (public/io/console.h).

What the guest writes is taken at once and kept, the newest of it, for those who connect later; listeners
hear it as it comes. What people type waits here until the guest has room for it. A guest that writes wild
indexes loses its own output.

The console ends with its domain. A guest that reboots gets a new domain and so a new console, as on XenServer, where
it is served by a process of the domain's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from hypervisor.domains.domain import Domain
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.byte_ring import ByteRing

_IN, _OUT = (0, 1024, 3072), (1024, 2048, 3080)
"""Where the rings are in the page, their sizes, and where their indexes are."""
HISTORY = 64 * 1024
"""Bytes of output kept."""
TYPED_MOST = 64 * 1024
"""Bytes of input that may wait; more is refused."""


class Console:
    """The console of a domain whose page is `frame` and whose event channel is `port`, left unbound for us.

    `write` and `read` may be called from any thread, and wait for nobody who has the host's lock.
    """

    def __init__(self, domain: Domain, frame: int, port: int) -> None:
        self.domain = domain
        self.port = port
        self.history = bytearray()
        self.ended = False
        """True once the domain has ended: nothing more comes, and nothing can be typed."""
        self._page = domain.memory.frame(frame)[:PAGE]
        self._input = ByteRing(self._page, *_IN)
        self._output = ByteRing(self._page, *_OUT)
        self._lock = threading.Lock()
        """Guards what was typed and what was written; nothing else is taken while it is held."""
        self._written = 0
        """Bytes of output in all."""
        self._typed = bytearray()
        self._posted = False
        self._refused = False
        self._listeners: dict[Callable[[bytes], None], None] = {}
        domain.events.connect_backend(port, self._notified)
        domain.at_end.append(self._domain_ends)

    # Who looks and types

    def listen(self, heard: Callable[[bytes], None]) -> None:
        """Call `heard` with output as it comes, on the domain's thread, under the host's lock.

        With nothing it is called when there is room again after a `write` was refused some, and at the end.
        """
        self._listeners[heard] = None

    def unlisten(self, heard: Callable[[bytes], None]) -> None:
        """Stop `listen`."""
        self._listeners.pop(heard, None)

    def read(self, since: int) -> tuple[bytes, int]:
        """Return the output from a place on, as far as it is kept, and the place where it ends; all begins at 0."""
        with self._lock:
            new = min(self._written - since, len(self.history))
            return bytes(self.history[len(self.history) - new :]), self._written

    def write(self, data: bytes) -> int:
        """Type into the console; return how many bytes were taken."""
        with self._lock:
            taken = data[: max(0, TYPED_MOST - len(self._typed))]
            if self.ended:
                return 0
            self._typed += taken
            self._refused |= len(taken) < len(data)
            post, self._posted = not self._posted and bool(taken), self._posted or bool(taken)
        if post:
            self.domain.events.post(self._type)
        return len(taken)

    # On the domain's thread, under the host's lock

    def _tell(self, data: bytes) -> None:
        for heard in list(self._listeners):
            heard(data)

    def _type(self) -> None:
        """Give input that was posted."""
        with self._lock:
            self._posted = False
        if not self.ended and self._feed():
            self.domain.events.notify(self.port)

    def _notified(self) -> None:
        """Take output and give input; the guest has sent an event."""
        if self.ended:
            return
        fed = self._feed()
        if self._take() or fed:
            self.domain.events.notify(self.port)

    def _feed(self) -> bool:
        """Move typed bytes into the ring; tell whether any went."""
        with self._lock:
            count = self._input.put(self._typed)
            if not count:
                return False
            del self._typed[:count]
            refused, self._refused = self._refused, False
        if refused:
            self._tell(b"")
        return True

    def _take(self) -> bool:
        """Take all output; tell whether there was any."""
        data = self._output.take()
        if not data:
            return False
        with self._lock:
            self._written += len(data)
            self.history += data
            del self.history[:-HISTORY]
        self._tell(data)
        return True

    def _domain_ends(self) -> None:
        """Let go of the domain's memory, and of those who look and type."""
        with self.domain.host.lock:
            with self._lock:
                self.ended = True
                self._typed.clear()
            self.domain.events.disconnect_backend(self.port)
            self._page.release()
            self._tell(b"")
            self._listeners.clear()
