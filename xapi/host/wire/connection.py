"""One end of a connection over any stream of Twisted's: a Unix socket, TLS, or bytes in memory.

Both ends greet, then either calls what the other serves. What cannot be read, or is more than was allowed, ends the
connection with one line in the log. An end that is silent for `SILENT` seconds is lost; who has nothing to say sends
a `Beat`. A turn of the reactor takes `TURN` frames at most, what is behind them waits in the socket.

Streams and long answers are written only while the transport takes bytes; whatever else must be said meanwhile waits
here, `UNSENT` bytes of it at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xapi.host.wire.answering import Answering, Objects
from xapi.host.wire.asking import Asking
from xapi.host.wire.errors import Errors, Lost, Mismatch, Violation
from xapi.host.wire.frames import (
    FRAME,
    VERSION,
    WIRE,
    BadFrame,
    Beat,
    Call,
    Cancel,
    Credit,
    Frame,
    Goodbye,
    Hello,
    Reading,
    Release,
    encode,
)

if TYPE_CHECKING:
    from xapi.host.wire.interface import Interface

log = Logger()

BEAT = 5.0
"""Seconds without a word after which an end sends a `Beat`."""
SILENT = 15.0
"""Seconds without a word of the other end after which it is lost; also what it has for its greeting."""
TURN = 50
"""Frames that are taken in one turn of the reactor."""
UNSENT = 64 << 20
"""Bytes that may wait for an end that does not read."""


@dataclass(frozen=True)
class Terms:
    """What both ends must agree on: a service and its version, and the errors that it knows."""

    service: str
    version: int
    errors: Errors = field(default_factory=Errors)


@implementer(IPushProducer)
class Connection(Protocol):
    """One end. `served` is what the other one may call, by name; `facts` are told to it with the greeting.

    `ready` fires with this when the other end has greeted, and fails with Lost where it cannot be spoken to.
    `on_lost` is called once it is lost, with the reason, if it was ready before.
    """

    def __init__(
        self,
        terms: Terms,
        clock: IReactorTime,
        served: Mapping[str, tuple[Interface, object]] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self.errors = terms.errors
        self.objects = Objects(served or {})
        self.asking = Asking(self)
        self.ready: Deferred[Connection] = Deferred()
        self.on_lost: Callable[[Lost], None] = lambda lost: None
        self.peer: Hello | None = None
        """What the other end has greeted with."""
        self._answering = Answering(self)
        self._hello = Hello(WIRE, VERSION, terms.service, terms.version, self.objects.capabilities(), dict(facts or {}))
        self._clock = clock
        self._transport: Any = None
        self._reading = Reading()
        self._held = False
        self._paused = False
        self._unsent: deque[bytes] = deque()
        self._unsent_size = 0
        self._waiting: deque[Deferred[None]] = deque()
        self._released: deque[int] = deque()
        self._why = ""
        self._over = False
        self._heard = self._spoke = clock.seconds()
        self._timer: Any = None
        self._more: Any = None

    # Coming and going

    def connectionMade(self) -> None:
        """Greet."""
        self._transport = self.transport
        self._transport.registerProducer(self, True)
        self._heard = self._clock.seconds()
        self.send(self._hello)
        self._timer = self._clock.callLater(BEAT, self._beat)

    def _beat(self) -> None:
        now = self._clock.seconds()
        if now - self._heard >= SILENT:
            self.drop(f"silent for {now - self._heard:.0f} s")
            return
        self._timer = self._clock.callLater(BEAT, self._beat)
        if self._released:
            self._release()
        elif now - self._spoke >= BEAT:
            self.send(Beat())

    def drop(self, why: str) -> None:
        """End the connection at once, for a reason that is told in the log."""
        if self._over:
            return
        if not self._why:
            log.warn("connection to {peer} ended: {why}", peer=_shown(self._transport), why=why)
            self._why = why
        self._transport.abortConnection()

    def close(self, why: str) -> None:
        """End the connection when all is sent; the other end is told why."""
        if self._over or self._why:
            return
        self.send(Goodbye(why))
        self._why = why
        self._flush()
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def connectionLost(self, reason: Failure = Failure(Lost())) -> None:  # noqa: B008
        """Fail what is under way, here and there."""
        self._over = True
        for timer in (self._timer, self._more):
            if timer is not None and timer.active():
                timer.cancel()
        lost = Lost(self._why or reason.getErrorMessage())
        if self.peer is None:
            self._refuse(lost)
        self._answering.end()
        self.asking.end(lost)
        self.objects.clear()
        while self._waiting:
            self._waiting.popleft().errback(lost)
        if self.peer is not None:
            self.on_lost(lost)

    def _refuse(self, lost: Lost) -> None:
        if not self.ready.called:
            self.ready.errback(lost)

    # What comes

    def dataReceived(self, data: bytes) -> None:
        """Take the frames in it, as many as a turn has time for."""
        self._heard = self._clock.seconds()
        self._reading.feed(data)
        if self._more is None or not self._more.active():
            self._take()

    def _take(self) -> None:
        try:
            for _ in range(TURN):
                frame = self._reading.take()
                if frame is None:
                    self._hold(False)
                    return
                if self._over or self._why:
                    return
                self._receive(frame)
        except (BadFrame, Violation) as error:
            self.drop(str(error))
            return
        self._hold(True)
        self._more = self._clock.callLater(0, self._take)

    def _hold(self, held: bool) -> None:
        """Leave what comes in the socket, or take it again."""
        if held != self._held:
            self._held = held
            self._transport.pauseProducing() if held else self._transport.resumeProducing()

    def _receive(self, frame: Frame) -> None:
        if isinstance(frame, Goodbye):
            self._said_goodbye(frame)
        elif self.peer is None:
            self._greeted(frame)
        elif isinstance(frame, Call | Cancel | Credit | Release):
            self._answering.receive(frame)
        elif not isinstance(frame, Beat):
            self.asking.receive(frame)

    def _greeted(self, frame: Frame) -> None:
        ours = self._hello
        if not isinstance(frame, Hello) or frame.wire != WIRE:
            raise Violation("it does not greet")
        for what, here, there in (
            ("version of the wire", ours.version, frame.version),
            ("service", ours.service, frame.service),
            ("version of the service", ours.service_version, frame.service_version),
        ):
            if here != there:
                why = f"{what} {there!r} at one end, {here!r} at the other"
                self._refuse(Mismatch(why))
                self.close(why)
                return
        self.peer = frame
        self._reading.limit = FRAME
        self.ready.callback(self)

    def _said_goodbye(self, frame: Goodbye) -> None:
        if self.peer is None:
            self._refuse(Mismatch(frame.why))
        self._why = self._why or frame.why
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    # What goes

    def send(self, frame: Frame) -> None:
        """Send a frame; nothing where the connection is over. Raises ValueError for one that is too long."""
        data = encode(frame)
        if self._over or self._why:
            return
        self._spoke = self._clock.seconds()
        if not self._paused:
            self._transport.write(data)
            return
        self._unsent.append(data)
        self._unsent_size += len(data)
        if self._unsent_size > UNSENT:
            self.drop(f"it does not read: {self._unsent_size >> 20} MiB wait for it")

    def released(self, number: int) -> None:
        """Hear that an object of the other end is used no more; from any thread, in whatever is under way."""
        self._released.append(number)

    def _release(self) -> None:
        numbers: list[int] = []
        while self._released and len(numbers) < 10_000:
            numbers.append(self._released.popleft())
        self.send(Release(tuple(numbers)))

    async def room(self) -> None:
        """Wait until the transport takes bytes; who waits longest comes first. Raises Lost."""
        if self._paused:
            wait: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(wait)
            await wait

    def pauseProducing(self) -> None:
        """Hear from the transport that it is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Hear from the transport that it takes bytes again."""
        self._paused = False
        self._flush()
        while self._waiting and not self._paused:
            self._waiting.popleft().callback(None)

    def _flush(self) -> None:
        while self._unsent and not (self._paused and not self._why):
            data = self._unsent.popleft()
            self._unsent_size -= len(data)
            self._transport.write(data)

    def stopProducing(self) -> None:
        """Hear from the transport that it is closed; `connectionLost` follows."""


def _shown(transport: Any) -> str:
    peer = transport.getPeer()
    name = getattr(peer, "name", None) or getattr(peer, "host", None) or "a peer"
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
