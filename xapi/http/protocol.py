"""Serve HTTP/1.0 and HTTP/1.1 to one application over any Twisted stream transport.

A small answer is one `transport.write`; a large one is pulled, about 512 KB a turn, so that calls on other
connections wait milliseconds. Deadlines are computed when the one timer of a connection fires, so an ordinary
request never touches the timer.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, cast

from twisted.internet import protocol
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IPullProducer,
    IReactorTime,
    IUNIXTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xapi.http.budget import Budget
from xapi.http.exchange import (
    Application,
    Limits,
    Request,
    Response,
    Takeover,
    answer_head,
    discard,
    error_response,
    framed,
    in_pieces,
)
from xapi.http.incoming import BODY, Incoming
from xapi.http.sending import is_plain, send

_SMALL = 256 * 1024  # bytes that may lie in the transport without its asking for them
_log = Logger()


@implementer(IPullProducer)
class _Sender:
    """Write one piece of an answer whenever the transport has nothing left to send."""

    __slots__ = ("_body", "_connection", "_pieces", "_turn", "started")

    def __init__(self, connection: "HTTPServer", pieces: Iterator[bytes], body: object) -> None:
        self._connection = connection
        self._pieces = pieces
        self._body = body
        self._turn: IDelayedCall | None = None
        self.started = False

    def resumeProducing(self) -> None:
        """Write the next piece; being asked after the last one means that the transport has sent it."""
        self._unschedule()
        try:
            piece = next(self._pieces, None)
        except Exception:
            _log.failure("producing the body of an answer failed")
            self._connection.sender_failed()
            return
        if piece is None:
            self._connection.sender_done()
        elif piece:
            self.started = True
            self._connection.progress()
            self._connection.wire.write(piece)
        else:  # a transport without bytes to send would never ask again
            self._turn = self._connection.clock.callLater(0, self.resumeProducing)

    def stopProducing(self) -> None:
        """Give up: the connection is lost."""
        self._unschedule()
        body, self._body = self._body, None
        discard(body)

    def _unschedule(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and turn.active():
            turn.cancel()


class HTTPServer(protocol.Protocol):
    """Serve one connection: answer in order, bound memory and time.

    `unread_seconds` is kept for answers that are pulled. Small ones go to the transport unasked, up to 256 KiB,
    after which one is pulled too: so a peer that sends without reading cannot make the transport's buffer grow.
    """

    def __init__(self, application: Application, clock: IReactorTime, limits: Limits, budget: Budget) -> None:
        self.clock = clock
        self._application = application
        self._limits = limits
        self._budget = budget
        self._closing = False  # nothing more is written
        self._gone = False
        self._request: Request | None = None  # being answered, if busy
        self._keep = True
        self._busy = False
        self._draining = False
        self._pending: Deferred[Any] | None = None
        self._sender: _Sender | None = None
        self._unread = 0  # bytes written since the transport was last known to be empty
        self._buffered = 0  # bytes received while busy
        self._paused = False
        self._since = 0.0
        self._began = 0.0  # when the request that is being received began to come
        self._fresh = True  # no request has come yet
        self._patience: float | None = None  # until when a client is heard that was answered while it sent
        self._timer: IDelayedCall | None = None
        self._successor: IProtocol | None = None

    def connectionMade(self) -> None:
        """Start the idle clock; an answer in two segments must not wait for an acknowledgement."""
        self.wire = cast(Any, self.transport)
        self._incoming = Incoming(self._application, self._limits, self.wire.getPeer(), self.wire)
        if not self._budget.admit(self):
            self.abort()
            return
        self._direct = is_plain(self.wire)
        if hasattr(self.wire, "setTcpNoDelay") and not IUNIXTransport.providedBy(self.wire):
            self.wire.setTcpNoDelay(True)
        self._since = self.clock.seconds()
        self._arm()
        if isinstance(self.factory, HTTPFactory):
            self.factory.opened(self)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Cancel what is being done for a client that is gone."""
        if isinstance(self.factory, HTTPFactory):
            self.factory.lost(self)
        self._gone = self._closing = True
        self._budget.left(self)
        self._incoming.end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sender is not None:
            self._sender.stopProducing()
            self._sender = None
        if self._pending is not None:
            self._pending.cancel()
        if self._successor is not None:
            self._successor.connectionLost(reason)

    # Receiving

    def dataReceived(self, data: bytes) -> None:
        """Answer what is complete."""
        if self._successor is not None:
            self._successor.dataReceived(data)
            return
        incoming = self._incoming
        if incoming.ending:
            self._hold_back(len(data))  # dropped, so that a client's going away is still seen
            if self._patience is not None:
                self._since = self.clock.seconds()
            return
        before = incoming.stage
        unfinished = incoming.receive(data)
        begins = not before or bool(incoming.waiting)
        if incoming.waiting or incoming.refusal is not None:
            self._drain()
        if self._busy:
            if self._successor is None:  # who has just taken over reads at its own pace
                self._hold_back(len(data))
            return
        if unfinished:
            self._since = self.clock.seconds()
            if begins:
                self._began = self._since
            self._arm()
        if incoming.continuing:
            self._send_continue()

    def _hold_back(self, size: int) -> None:
        """Stop reading when more came than may be buffered until the answer is sent."""
        self._buffered += size
        if self._buffered > self._incoming.room and not self._paused and not self._closing:
            self._paused = True
            self.wire.pauseProducing()

    # Answering

    def _drain(self) -> None:
        """Answer what is waiting, in order, until one takes its time."""
        if self._draining:  # not recursion, so that a thousand pipelined requests need no stack
            return
        self._draining = True
        incoming = self._incoming
        try:
            while not self._busy and not self._closing:
                if incoming.waiting:
                    self._request, self._keep = incoming.waiting.popleft()
                    self._busy = True
                    self._fresh = False
                    self._respond(self._request)
                elif incoming.refusal is not None:
                    refusal, incoming.refusal = incoming.refusal, None
                    self._request, self._keep, self._busy = None, False, True
                    self._deliver(refusal)
                elif incoming.behind is not None:
                    incoming.go_on()
                else:
                    break
        finally:
            self._draining = False
        if not self._busy and not self._closing:
            self._settle()

    def _settle(self) -> None:
        """Go on receiving: all that was complete is answered."""
        self._since = self._began = self.clock.seconds()
        self._buffered = 0
        self._request = None
        self._incoming.settled()
        self._read_on()
        if self._incoming.continuing:
            self._send_continue()
        if self._incoming.stage or self._timer is None:
            self._arm()

    def _read_on(self) -> None:
        if self._paused:
            self._paused = False
            self.wire.resumeProducing()

    def _send_continue(self) -> None:
        self._incoming.continuing = False
        self.wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _respond(self, request: Request) -> None:
        try:
            response = self._application.respond(request)
        except Exception:
            _log.failure("answering a request failed")
            response = error_response(500)
        if isinstance(response, Deferred):
            self._pending = response
            response.addCallbacks(self._answered, self._failed)
        else:
            self._answer(response)

    def _answered(self, response: Response | Takeover) -> None:
        self._pending = None
        if self._gone:
            discard(getattr(response, "body", None))
        else:
            self._answer(response)
            self._drain()

    def _failed(self, failure: Failure) -> None:
        self._pending = None
        if not (self._gone and isinstance(failure.value, CancelledError)):
            _log.failure("answering a request failed", failure=failure)
        if not self._gone:
            self._deliver(error_response(500))
            self._drain()

    def _answer(self, response: Response | Takeover) -> None:
        try:
            self._deliver(response)
        except Exception:  # nothing has been written yet
            _log.failure("the application's answer cannot be sent")
            self._deliver(error_response(500))

    def _deliver(self, response: Response | Takeover) -> None:
        """Write an answer at once, or begin to send it."""
        if isinstance(response, Takeover):
            self._hand_over(response)
            return
        if self._closing:
            discard(response.body)
            return
        request, body, status = self._request, response.body, response.status
        streamed = False
        if isinstance(body, bytes):
            length: int | None = len(body)
        elif isinstance(body, Sequence):
            length = sum(map(len, cast(Sequence[bytes], body)))
        else:
            length, streamed = response.length, True
        chunked = length is None and (request is None or request.version == "1.1")
        if length is None and not chunked:
            self._keep = False
        head = answer_head(status, response.content_type, self._keep, tuple(response.headers))
        bodiless = status == 204 or status == 304
        if chunked and not bodiless:
            head += b"transfer-encoding: chunked\r\n\r\n"
        elif length is None or bodiless:
            head += b"\r\n"
        else:
            head += b"content-length: %d\r\n\r\n" % length
        if bodiless or (request is not None and request.method == "HEAD"):
            discard(body)
            body, length, streamed = b"", 0, False
        size = self._unread + len(head) + (length or 0)
        if streamed:
            pieces = framed(head, cast(Iterator[bytes], body), length, chunked)
        elif size > _SMALL:
            pieces = in_pieces(chain((head,), (body,) if isinstance(body, bytes) else cast(Sequence[bytes], body)))
        else:
            self._unread = size
            self._write(head + (body if isinstance(body, bytes) else b"".join(cast(Sequence[bytes], body))))
            self._finish()
            return
        self._since = self.clock.seconds()
        self._sender = _Sender(self, pieces, body)
        self._arm()
        self.wire.registerProducer(self._sender, False)

    def _hand_over(self, takeover: Takeover) -> None:
        """Let another protocol have the connection, and what the client has sent for it without waiting for us."""
        behind = self._incoming.behind
        if behind is None:
            self._deliver(error_response(400, "A request with a body cannot take the connection over"))
            return
        self.wire.write(b"HTTP/1.1 200 OK\r\n\r\n")
        self._read_on()
        self._successor = takeover.make()
        self._successor.makeConnection(self.wire)
        if behind:
            self._successor.dataReceived(bytes(behind))

    def _write(self, data: bytes) -> None:
        """Write a small answer."""
        if not self._direct:
            self.wire.write(data)
        elif send(self.wire, data):
            self._unread = 0

    def _finish(self) -> None:
        self._busy = False
        if not self._keep:
            self._close()

    def progress(self) -> None:
        """Note that the peer reads."""
        self._since = self.clock.seconds()

    def sender_done(self) -> None:
        """Go on after an answer that was pulled: the transport is empty."""
        self.wire.unregisterProducer()
        self._sender = None
        self._unread = 0
        self._finish()
        self._drain()

    def sender_failed(self) -> None:
        """Answer 500 if nothing is sent yet; else only an abort tells the client that the rest is missing."""
        self.wire.unregisterProducer()
        sender, self._sender = self._sender, None
        if sender is None or sender.started:
            self.abort()
        else:
            self._deliver(error_response(500))
            self._drain()

    # Time

    def _close(self) -> None:
        self._closing = self._incoming.ending = True
        self._since = self.clock.seconds()
        self._read_on()  # TLS closes only when it reads the peer's part of the closing
        if self._incoming.unread:
            self._patience = self._since + self._limits.linger_seconds
            if self._direct:
                self.wire.loseWriteConnection()  # whoever reads to the end has it
        else:
            self.wire.loseConnection()
        self._arm()

    def abort(self) -> None:
        """Close the connection at once, whatever has not been sent."""
        self._closing = self._incoming.ending = True
        self.wire.abortConnection()

    def _due(self) -> float | None:
        """Return when the patience with the peer ends; None while it waits for us."""
        limits = self._limits
        if self._patience is not None:
            return min(self._patience, self._since + limits.linger_rest)
        if self._closing or self._sender is not None:
            return self._since + limits.unread_seconds
        if self._busy:
            return None
        stage = self._incoming.stage
        if stage == BODY:
            whole = self._began + self._incoming.received() / limits.body_rate
            return min(self._since, whole) + limits.body_seconds
        if stage:
            return self._since + limits.head_seconds
        return self._since + (min(limits.head_seconds, limits.idle_seconds) if self._fresh else limits.idle_seconds)

    def _arm(self) -> None:
        """Make sure that the timer fires no later than the deadline; firing early is harmless."""
        due = None if self._gone else self._due()
        if due is None:
            return
        delay = max(0, due - self.clock.seconds())
        if self._timer is None:
            self._timer = self.clock.callLater(delay, self._tick)
        elif self._timer.getTime() > due:
            self._timer.reset(delay)

    def spare(self) -> tuple[int, float] | None:
        """Return how much this connection is needed, the least first; None while somebody waits for an answer."""
        if self._successor is not None or self._gone:
            return None
        if self._patience is not None:
            return 0, self._since
        if self._busy or self._sender is not None or self._closing:
            return None
        return (2, self._began) if self._incoming.stage else (1, self._since)

    def give_way(self) -> None:
        """End at once: the connection is needed for another client."""
        self.abort()

    def _tick(self) -> None:
        self._timer = None
        due = self._due()
        if due is None:
            return
        if self.clock.seconds() < due:
            self._arm()
        elif self._patience is not None:
            self._patience = None
            self._since = self.clock.seconds()
            self.wire.loseConnection()
            self._arm()
        elif self._closing or self._sender is not None:
            self.abort()
        elif self._incoming.stage:
            self._incoming.refuse(408)
            self._drain()
        else:
            self._close()


class HTTPFactory(protocol.Factory):
    """Make the protocol of each connection."""

    noisy = False

    def __init__(
        self,
        application: Application,
        clock: IReactorTime,
        limits: Limits | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._application = application
        self._clock = clock
        self._limits = limits or Limits()
        self._budget = budget or Budget()
        self._open: set[HTTPServer] = set()
        self._closed: Deferred[None] | None = None

    def opened(self, server: HTTPServer) -> None:
        """Hear that a connection has begun."""
        self._open.add(server)

    def lost(self, server: HTTPServer) -> None:
        """Hear that a connection has ended."""
        self._open.discard(server)
        if self._closed is not None and not self._open and not self._closed.called:
            self._closed.callback(None)

    def close(self) -> Deferred[None]:
        """End all connections; the Deferred fires when they have ended."""
        self._closed = Deferred()
        for server in list(self._open):
            server.abort()
        if not self._open and not self._closed.called:
            self._closed.callback(None)
        return self._closed

    def buildProtocol(self, addr: IAddress | None) -> HTTPServer:
        """Serve one more connection."""
        server = HTTPServer(self._application, self._clock, self._limits, self._budget)
        server.factory = self
        return server
