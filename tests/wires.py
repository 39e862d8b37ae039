"""Two ends of a connection in memory, on a clock that only the test moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar, cast

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IAddress, IProtocolFactory, IPushProducer, IStreamClientEndpoint, ITransport
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from xapi.host.wire.connection import Connection, Terms
from xapi.host.wire.interface import interface_of

FULL = 64 * 1024
"""Bytes that a transport holds before it says that it is full, as Twisted's do."""

T = TypeVar("T")


@implementer(ITransport)
class Half:
    """One end's transport: what is written waits until the test has it arrive."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.other: Half = self
        self.waiting: deque[bytes] = deque()
        self.size = 0
        self.reads = True
        self.ending: BaseException | None = None
        self.ended = False
        self._producer: IPushProducer | None = None
        self._paused = False

    def write(self, data: bytes) -> None:
        """Take bytes."""
        if self.ending is None:
            self.waiting.append(data)
            self.size += len(data)
            if self.size > FULL and self._producer is not None and not self._paused:
                self._paused = True
                self._producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        """Take bytes."""
        self.write(b"".join(data))

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Remember whom to tell."""
        self._producer = producer

    def unregisterProducer(self) -> None:
        """Tell nobody more."""
        self._producer = None

    def pauseProducing(self) -> None:
        """Read nothing."""
        self.reads = False

    def resumeProducing(self) -> None:
        """Read again."""
        self.reads = True

    def getPeer(self) -> IAddress:
        """Return who is at the other end."""
        return UNIXAddress(b"memory")

    getHost = getPeer

    def loseConnection(self) -> None:
        """End when all is written."""
        self.ending = self.ending or ConnectionDone()

    def abortConnection(self) -> None:
        """End at once."""
        self.waiting.clear()
        self.ending = self.ending or ConnectionLost()

    def arrive(self) -> bool:
        """Have the other end read what it is ready for; tell whether anything happened."""
        if self.ended:
            return False
        if self.waiting and self.other.reads and not self.other.ended:
            data = self.waiting.popleft()
            self.size -= len(data)
            self.other.protocol.dataReceived(data)
            if self._paused and not self.waiting and self._producer is not None:
                self._paused = False
                self._producer.resumeProducing()
            return True
        if self.ending is not None and (not self.waiting or self.other.ended):
            self.end(self.ending)
            self.other.end(ConnectionDone() if isinstance(self.ending, ConnectionDone) else ConnectionLost())
            return True
        return False

    def end(self, reason: BaseException) -> None:
        """Tell the end that the connection is over."""
        if not self.ended:
            self.ended = True
            self.protocol.connectionLost(Failure(reason))


class Pair:
    """A connection in memory: `left` calls what `right` serves, and the other way round."""

    def __init__(self, left: Protocol, right: Protocol, clock: Clock) -> None:
        self.clock = clock
        self.halves = Half(left), Half(right)
        self.halves[0].other, self.halves[1].other = self.halves[1], self.halves[0]
        for half in self.halves:
            half.protocol.makeConnection(half)

    def turn(self) -> None:
        """Let all arrive that can."""
        for _ in range(100_000):
            self.clock.advance(0)
            moved = [half.arrive() for half in self.halves]
            if not any(moved) and not self._due():
                return
        raise AssertionError("the connection never rests")

    def _due(self) -> bool:
        return any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls())

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        while seconds > 0:
            self.clock.advance(min(seconds, 1.0))
            self.turn()
            seconds -= 1.0

    def cut(self) -> None:
        """Lose the connection."""
        for half in self.halves:
            half.waiting.clear()
            half.end(ConnectionLost())

    def start(self, work: Awaitable[T]) -> Deferred[T]:
        """Begin something."""

        async def begun() -> T:
            return await work

        return Deferred.fromCoroutine(begun())

    def do(self, work: Awaitable[T]) -> T:
        """Do something that needs no time to pass."""
        return self.outcome(self.start(work))

    def outcome(self, deferred: Deferred[T]) -> T:
        """Return a result that is there once all has arrived."""
        self.turn()
        results: list[Any] = []
        deferred.addBoth(results.append)
        assert results, "nothing has come"
        if isinstance(results[0], Failure):
            results[0].raiseException()
        value: T = results[0]
        return value


def joined(
    terms: Terms, left: Mapping[str, tuple[type, Any]], right: Mapping[str, tuple[type, Any]], clock: Clock
) -> tuple[Connection, Connection, Pair]:
    """Return two ends that serve objects by name, and what lies between them."""
    made = [
        Connection(terms, clock, {name: (interface_of(kind), target) for name, (kind, target) in served.items()})
        for served in (left, right)
    ]
    pair = Pair(made[0], made[1], clock)
    pair.turn()
    return made[0], made[1], pair


@implementer(IStreamClientEndpoint)
class InMemory:
    """An endpoint whose connections are in memory; nobody listens there while it `refuses`."""

    def __init__(self, factory: ServerFactory, clock: Clock) -> None:
        self.factory = factory
        self.clock = clock
        self.refuses = False
        self.pairs: list[Pair] = []

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Connect at once, or fail."""
        if self.refuses:
            return fail(ConnectionRefusedError())
        near, far = factory.buildProtocol(UNIXAddress(b"memory")), self.factory.buildProtocol(None)
        assert near is not None and far is not None
        self.pairs.append(Pair(cast("Protocol", near), cast("Protocol", far), self.clock))
        return succeed(near)

    def turn(self) -> None:
        """Let all arrive that can."""
        for pair in self.pairs:
            pair.turn()

    def cut(self) -> None:
        """Lose all connections."""
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            pair.cut()
