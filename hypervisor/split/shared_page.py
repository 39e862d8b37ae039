"""The page that a display's or keyboard's front shares with its backend (public/io/fbif.h and kbdif.h).

Each direction has a ring of events of 40 bytes in it, with free-running indexes of 32 bits at the page's start: "in"
is what we send, "out" what the front sends. All that a front can do to us is to move its own two indexes and to write
nonsense into the page: ours are kept here, each of its is read once, and one that is beyond the ring is an error.

Call everything on the domain's own thread (in a hook, or through `EventChannels.post`), as with `ring.Ring`.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import Grant
from hypervisor.errors import XenError
from hypervisor.memory.guest_memory import PAGE, BadAddress
from hypervisor.split.granted import whole_pages
from hypervisor.split.xenbus import Frontend, FrontendError

EVENT = 40
"""Bytes of an event of either direction (XENFB_IN_EVENT_SIZE and its like)."""
_IN_CONSUMER, _IN_PRODUCER, _OUT_CONSUMER, _OUT_PRODUCER = 0, 4, 8, 12
_MASK = 0xFFFF_FFFF
_LAST_FRAME = (1 << 52) - 1
_INDEX = struct.Struct("<I")


def ram(domain: Domain, frame: int) -> int:
    """Return where in the domain's memory a frame of its RAM begins. Raises FrontendError for any other number."""
    start = frame * PAGE
    if not any(low <= start and start + PAGE <= high for low, high in domain.ranges):
        raise FrontendError(f"frame {frame:#x} is no RAM")
    try:
        return domain.memory.offset(frame)
    except BadAddress:
        raise FrontendError(f"frame {frame:#x} is no RAM") from None


class SharedPage:
    """A front's page and event channel, by the keys page-gref (or page-ref) and event-channel, until `close`.

    `in_ring` and `out_ring` are offset and size in bytes of the rings; `heard` is called when the front sends an
    event. Raises FrontendError, with nothing begun.
    """

    def __init__(
        self,
        domain: Domain,
        frontend: Frontend,
        in_ring: tuple[int, int],
        out_ring: tuple[int, int],
        heard: Callable[[], None],
    ) -> None:
        self.domain = domain
        self.port = frontend.number("event-channel", 1, _MASK)
        self._in_at, self._in_slots = in_ring[0], in_ring[1] // EVENT
        self._out_at, self._out_slots = out_ring[0], out_ring[1] // EVENT
        self._grant: Grant | None = None
        self.bytes = self._map(frontend)
        self._produced, self._consumed = self.word(_IN_PRODUCER), self.word(_OUT_CONSUMER)
        try:
            domain.events.connect_backend(self.port, heard)
        except XenError:
            self._unmap()
            raise FrontendError(f"event channel {self.port} cannot be bound") from None

    def _map(self, frontend: Frontend) -> memoryview:
        if not frontend.has("page-gref"):
            at = ram(self.domain, frontend.number("page-ref", 0, _LAST_FRAME))
            return self.domain.memory.bytes[at : at + PAGE]
        (self._grant,) = whole_pages(self.domain, [frontend.number("page-gref", 0, _MASK)], "the shared page")
        return self._grant.bytes

    def _unmap(self) -> None:
        if self._grant is not None:
            self._grant.end()
            self._grant = None

    def close(self) -> None:
        """Let go of the page and the event channel."""
        self.domain.events.disconnect_backend(self.port)
        self.bytes.release()
        self._unmap()

    def word(self, at: int) -> int:
        """Return 32 bits of the page, of now."""
        return int(_INDEX.unpack_from(self.bytes, at)[0])

    def take(self) -> list[bytes]:
        """Take the events that the front has sent, copied. Raises FrontendError for a wild index."""
        produced = self.word(_OUT_PRODUCER)
        count = produced - self._consumed & _MASK
        if count > self._out_slots:
            raise FrontendError("the index of the events sent is wild")
        starts = [self._out_at + (self._consumed + number & _MASK) % self._out_slots * EVENT for number in range(count)]
        events = [bytes(self.bytes[start : start + EVENT]) for start in starts]
        if events:
            self._consumed = produced
            _INDEX.pack_into(self.bytes, _OUT_CONSUMER, produced)
            # A front whose ring was full waits for this to send more.
            self.domain.events.notify(self.port)
        return events

    def put(self, events: deque[bytes]) -> None:
        """Send as many of the events as there is room for, and remove them. Raises FrontendError for a wild index."""
        used = self._produced - self.word(_IN_CONSUMER) & _MASK
        if used > self._in_slots:
            raise FrontendError("the index of the events received is wild")
        room = min(self._in_slots - used, len(events))
        for _ in range(room):
            at = self._in_at + self._produced % self._in_slots * EVENT
            self.bytes[at : at + EVENT] = events.popleft().ljust(EVENT, b"\0")
            self._produced = self._produced + 1 & _MASK
        if room:
            _INDEX.pack_into(self.bytes, _IN_PRODUCER, self._produced)
            self.domain.events.notify(self.port)
