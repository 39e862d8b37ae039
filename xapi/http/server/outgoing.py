"""How an answer goes out that is not one small write: pulled by the transport, or written as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer, IPushProducer
from zope.interface import implementer

from xapi.http.server.body import ClientGone
from xapi.http.server.framing import Frame


class Owner(Protocol):
    """The connection that an answer goes out by."""

    @property
    def wire(self) -> Any: ...

    def progress(self) -> None:
        """Hear that the peer reads, or begins to be waited for."""

    def pulled(self) -> None:
        """Hear that an answer that was pulled has been sent."""


@implementer(IPullProducer)
class Pulled:
    """A whole answer, of which one piece is written whenever the transport has nothing left to send."""

    __slots__ = ("_owner", "_pieces")

    def __init__(self, owner: Owner, pieces: Iterator[bytes]) -> None:
        self._owner = owner
        self._pieces = pieces

    def resumeProducing(self) -> None:
        """Write the next piece; being asked after the last one means that the transport has sent it."""
        piece = next(self._pieces, None)
        if piece is None:
            self._owner.pulled()
        else:
            self._owner.progress()
            self._owner.wire.write(piece)

    def stopProducing(self) -> None:
        """Give up: the connection is lost."""


@implementer(IPushProducer)
class Outgoing:
    """The body of an answer whose head is out, written by whoever answers, who then returns it."""

    __slots__ = ("_drained", "_gone", "_owner", "frame")

    def __init__(self, owner: Owner, frame: Frame) -> None:
        self._owner = owner
        self._drained: Deferred[None] | None = None
        """While the client has not read what it was sent: fires when it has."""
        self._gone = False
        self.frame = frame

    @property
    def is_held(self) -> bool:
        """The client has not read what it was sent."""
        return self._drained is not None

    async def write(self, data: bytes) -> None:
        """Send a part, of at most some 100 KiB; wait while the client has not read what it was sent.

        Raises ClientGone, and ValueError beyond the length that was said.
        """
        if self._gone:
            raise ClientGone
        for piece in self.frame.part(data):
            self._owner.wire.write(piece)  # in a later turn, so that who has much to write lets others have theirs
        if self._drained is not None:
            self._owner.progress()
            await self._drained
            if self._gone:
                raise ClientGone

    def lost(self) -> None:
        """Hear that the client is gone."""
        self._gone = True
        self.resumeProducing()

    def pauseProducing(self) -> None:
        """Hear from the transport that it has enough."""
        if self._drained is None:
            self._drained = Deferred()

    def resumeProducing(self) -> None:
        """Hear from the transport that it has sent all."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.called:
            drained.callback(None)

    def stopProducing(self) -> None:
        """Hear that the connection is being lost, which `lost` tells."""
