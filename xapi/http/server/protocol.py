"""Serve HTTP/1.0 and HTTP/1.1 to one application over any Twisted stream transport.

A small answer is one `transport.write`; a large one is pulled, about 512 KB a turn, so that calls on other
connections wait milliseconds; one that is written as it is made waits for its reader. How long a peer is waited for
is in `patience.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from twisted.internet import protocol
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IProtocol, IReactorTime, IUNIXTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xapi.http.server.body import Body, ClientGone
from xapi.http.server.budget import Budget
from xapi.http.server.exchange import Answer, Application, Limits, Refusal, Request, Response, Takeover, error_response
from xapi.http.server.flow import Flow
from xapi.http.server.framing import Frame, answer_head, header_lines, in_pieces, status_line
from xapi.http.server.incoming import Incoming
from xapi.http.server.outgoing import Outgoing, Pulled
from xapi.http.server.patience import Patience
from xapi.http.server.sending import is_plain, send

if TYPE_CHECKING:
    from xapi.http.server.factory import HTTPFactory

_SMALL = 256 * 1024  # bytes that may lie in the transport without its asking for them
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_log = Logger()


@implementer(IHalfCloseableProtocol)
class HTTPServer(protocol.Protocol):
    """Serve one connection: answer in order, bound memory and time.

    `unread_seconds` is kept for answers that are pulled or written. Small ones go to the transport unasked, up to 256
    KiB, after which one is pulled too: so a peer that sends without reading cannot make the transport's buffer grow.
    """

    wire: Any

    def __init__(
        self, application: Application, clock: IReactorTime, limits: Limits, budget: Budget, register: HTTPFactory
    ) -> None:
        self._application = application
        self._limits = limits
        self._budget = budget
        self._register = register
        self.patience = Patience(self, clock, limits)
        self.closing = False
        """Nothing more is written."""
        self.gone = False
        self.busy = False
        """A request is being answered."""
        self.outgoing: Outgoing | Pulled | None = None
        """What the answer goes out by, if it is not small."""
        self.successor: IProtocol | None = None
        self._request: Request | None = None  # being answered, if busy
        self._keep = True
        self._draining = False
        self._pending: Deferred[Any] | None = None
        self._unread = 0  # bytes written since the transport was last known to be empty

    def connectionMade(self) -> None:
        """Start the idle clock; an answer in two segments must not wait for an acknowledgement."""
        self.wire = self.transport
        self.peer: IAddress | None = self.wire.getPeer()
        self.incoming = Incoming(self._application, self._limits, self)
        self._flow = Flow(self.wire)
        if not self._budget.admit(self):
            self.abort()
            return
        if hasattr(self.wire, "setTcpNoDelay") and not IUNIXTransport.providedBy(self.wire):
            self.wire.setTcpNoDelay(True)
        self.patience.began()
        self._register.opened(self)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """End what is being done for a client that is gone; who reads a body finds out at its end."""
        self._register.lost(self)
        self.gone = self.closing = True
        self._budget.left(self)
        if reason.check(ConnectionDone) and self.incoming.ends_with_the_close:
            self.incoming.closed(None)
        else:
            self.incoming.closed(ClientGone)
        self.incoming.end()
        self.patience.stop()
        if isinstance(self.outgoing, Outgoing):
            self.outgoing.lost()
        self.outgoing = None
        if self._pending is not None and (self._stream is None or self._stream.is_empty):
            self._pending.cancel()
        self._request = None
        if self.successor is not None:
            self.successor.connectionLost(reason)

    def readConnectionLost(self) -> None:
        """Hear that the client sends no more: the end of a body that has no other; else the connection is lost."""
        self._flow.ended = True
        if self.incoming.ends_with_the_close and not self.closing:
            self.incoming.closed(None)
        else:
            self.wire.connectionLost(Failure(ConnectionDone()))

    def writeConnectionLost(self) -> None:
        """Hear that our half of the connection is closed, as we had it."""

    # Receiving

    def dataReceived(self, data: bytes) -> None:
        """Answer what is complete."""
        if self.successor is not None:
            self.successor.dataReceived(data)
            return
        incoming = self.incoming
        if incoming.ending:
            self._hold_back(len(data))  # dropped, so that a client's going away is still seen
            self.patience.heard()
            return
        before = incoming.stage
        unfinished = incoming.receive(data)
        begins = not before or bool(incoming.waiting)
        if incoming.waiting or incoming.refusal is not None:
            self._drain()
        if self.busy:
            if incoming.stream is not None and incoming.stream is self._stream:
                self.patience.touch()
                if incoming.stream.is_full:
                    self._flow.pause()
            elif self.successor is None:  # who has just taken over reads at its own pace
                self._hold_back(len(data))
            return
        if unfinished:
            self.patience.got_on(begins)
        if incoming.continuing:
            self._send_continue()

    def _hold_back(self, size: int) -> None:
        if not self.closing:
            self._flow.hold(size, self.incoming.room)

    def room(self) -> None:
        """Read on: the reader of a body has caught up."""
        stream = self.incoming.stream
        if self._flow.held <= self.incoming.room and not self.gone and (stream is None or not stream.is_full):
            self._flow.go_on()

    def wanted(self) -> None:
        """Wait for the next bytes of a body."""
        self._tell_to_continue()
        self.progress()

    @property
    def _stream(self) -> Body | None:
        """The body of the request that is being answered, if it is streamed."""
        return None if self._request is None else self._request.stream

    def _tell_to_continue(self) -> None:
        stream = self._stream
        if stream is not None and stream.expected:
            stream.expected = False
            self._send_continue()

    def _send_continue(self) -> None:
        self.incoming.continuing = False
        self.wire.write(_CONTINUE)

    # Answering

    def _drain(self) -> None:
        """Answer what is waiting, in order, until one takes its time."""
        if self._draining:  # not recursion, so that a thousand pipelined requests need no stack
            return
        self._draining = True
        incoming = self.incoming
        try:
            while not self.busy and not self.closing:
                if incoming.waiting:
                    request, self._keep = incoming.waiting.popleft()
                    self._request = request
                    self.busy = True
                    if request.stream is not None and request.stream is incoming.stream:
                        self._flow.held = 0  # nothing else is behind
                        self.room()
                    self._respond(request)
                elif incoming.refusal is not None:
                    refusal, incoming.refusal = incoming.refusal, None
                    self._request, self._keep, self.busy = None, False, True
                    self._deliver(refusal)
                elif incoming.behind is not None:
                    incoming.go_on()
                else:
                    break
        finally:
            self._draining = False
        if not self.busy and not self.closing:
            self._settle()

    def _settle(self) -> None:
        """Go on receiving: all that was complete is answered."""
        self._flow.held = 0
        self._request = None
        self.incoming.settled()
        self._flow.go_on()
        if self.incoming.continuing:
            self._send_continue()
        self.patience.settled()

    def _respond(self, request: Request) -> None:
        try:
            answer = request.route.answer(request)
        except Exception:
            self._failed(Failure())
            return
        if isinstance(answer, Deferred):
            self._pending = answer
            answer.addCallbacks(self._answered, self._failed_late)
        else:
            self._answer(answer)

    def _answered(self, answer: Answer) -> None:
        self._pending = None
        if not self.gone:
            self._answer(answer)
            self._drain()

    def _failed_late(self, failure: Failure) -> None:
        self._pending = None
        self._failed(failure)
        if not self.gone:
            self._drain()

    def _failed(self, failure: Failure) -> None:
        """Answer an error; if an answer has begun, only an abort tells the client that the rest is missing."""
        if not failure.check(Refusal, ClientGone) and not (self.gone and failure.check(CancelledError)):
            _log.failure("answering a request failed", failure=failure)
        if self.gone:
            return
        if isinstance(self.outgoing, Outgoing):
            self.abort()
        elif isinstance(failure.value, Refusal):
            self._deliver(error_response(failure.value.status, failure.value.text, failure.value.headers))
        else:
            self._deliver(error_response(500))

    def _answer(self, answer: Answer) -> None:
        try:
            self._deliver(answer)
        except Exception:  # nothing has been written yet, or the last of what was begun
            self._failed(Failure())

    def _deliver(self, answer: Answer) -> None:
        """Write an answer at once, or begin to send it."""
        if self.closing:
            return
        if isinstance(answer, Response):
            self._send(answer)
        elif isinstance(answer, Takeover):
            self._hand_over(answer)
        elif answer is self.outgoing:
            self._end(answer)
        else:
            raise TypeError(f"no answer: {answer!r}")

    def _send(self, response: Response) -> None:
        if self.outgoing is not None:
            raise TypeError("there is an answer already, which was begun")
        request, body, status = self._request, response.body, response.status
        length = len(body) if isinstance(body, bytes) else sum(map(len, body))
        if request is not None and request.stream is not None and not request.stream.is_short:
            self._keep = False
        head = answer_head(status, response.content_type, self._keep, tuple(response.headers))
        bodiless = status == 204 or status == 304
        head += b"\r\n" if bodiless else b"content-length: %d\r\n\r\n" % length
        if bodiless or (request is not None and request.method == "HEAD"):
            body, length = b"", 0
        size = self._unread + len(head) + length
        if size > _SMALL:
            pieces = in_pieces(chain((head,), (body,) if isinstance(body, bytes) else body))
            self._put_out(Pulled(self, pieces))
        else:
            self._unread = size
            if send(self.wire, head + (body if isinstance(body, bytes) else b"".join(body))):
                self._unread = 0
            self._finish()

    def begin(
        self,
        status: int,
        content_type: bytes | None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        length: int | None = None,
    ) -> Outgoing:
        """Begin an answer by its head; see `exchange.Connection`. Raises ClientGone."""
        request = self._request
        if self.closing or request is None:
            raise ClientGone
        if self.outgoing is not None:
            raise TypeError("there is an answer already, which was begun")
        silent = status in (204, 304) or request.method == "HEAD"
        chunked = length is None and request.version == "1.1"
        if length is None and not chunked:
            self._keep = False
        head = answer_head(status, content_type, self._keep, tuple(headers))
        if length is not None and status not in (204, 304):
            head += b"content-length: %d\r\n" % length
        elif chunked and status not in (204, 304):
            head += b"transfer-encoding: chunked\r\n"
        self._tell_to_continue()
        outgoing = Outgoing(self, Frame(length, chunked=chunked, silent=silent))
        self._put_out(outgoing)
        self.wire.write(head + b"\r\n")
        return outgoing

    def _put_out(self, outgoing: Outgoing | Pulled) -> None:
        self.outgoing = outgoing
        self.progress()
        self.wire.registerProducer(outgoing, isinstance(outgoing, Outgoing))

    def _end(self, outgoing: Outgoing) -> None:
        """End an answer that was written; what the transport still has of it counts as unread."""
        end = outgoing.frame.end()
        if end:
            self.wire.write(end)
        self.wire.unregisterProducer()
        self.outgoing = None
        self._unread = _SMALL
        self._finish()

    def _hand_over(self, takeover: Takeover) -> None:
        """Let another protocol have the connection, and what the client has sent for it without waiting for us."""
        behind = self.incoming.behind
        if behind is None:
            self._deliver(error_response(400, "A request with a body cannot take the connection over"))
            return
        self.wire.write(status_line(takeover.status) + header_lines(takeover.headers) + b"\r\n")
        self._flow.go_on()
        self.successor = takeover.make()
        self.successor.makeConnection(self.wire)
        if behind:
            self.successor.dataReceived(bytes(behind))

    def _finish(self) -> None:
        """Note that an answer is out: pass over a short rest of the request's body, and go on or close."""
        self.busy = False
        request = self._request
        if request is not None and request.stream is not None:
            request.stream.pass_over()
            if not request.stream.is_short:
                self._keep = False
        if not self._keep:
            self.close()

    def progress(self) -> None:
        """Note that the peer reads, or begins to be waited for."""
        self.patience.touch()
        self.patience.arm()

    def pulled(self) -> None:
        """Go on after an answer that was pulled: the transport is empty."""
        self.wire.unregisterProducer()
        self.outgoing = None
        self._unread = 0
        self._finish()
        self._drain()

    # Ending

    def close(self) -> None:
        """Close the connection, once the client has had its answer."""
        stream = self.incoming.stream
        if stream is not None and not self._flow.ended:
            self.incoming.unread = True
        self.closing = self.incoming.ending = True
        self._flow.go_on()  # TLS closes only when it reads the peer's part of the closing
        if self.incoming.unread:
            if is_plain(self.wire):
                self.wire.loseWriteConnection()  # whoever reads to the end has it
            self.patience.linger()
        else:
            self.wire.loseConnection()
            self.patience.closing()

    def time_out(self) -> None:
        """Answer 408 to a request that does not come, or break its stream."""
        self.incoming.refuse(408)
        self._drain()

    def abort(self) -> None:
        """Close the connection at once, whatever has not been sent."""
        self.closing = self.incoming.ending = True
        self.wire.abortConnection()

    def spare(self) -> tuple[int, float] | None:
        """Return how much this connection is needed, the least first; None while somebody waits for an answer."""
        return None if self.successor is not None or self.gone else self.patience.rank()

    def give_way(self) -> None:
        """End at once: the connection is needed for another client."""
        self.abort()
