"""Prove the HTTP/1.x server over an in-memory transport and an injected clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure

from xapi.http.server import sending
from xapi.http.server.exchange import UNREAD, Intake, Limits, Request, Response, Route
from xapi.http.server.factory import HTTPFactory
from xapi.http.server.protocol import HTTPServer

GET = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
LOST = Failure(ConnectionDone())


class Echo:
    """Record requests and answer with their path, or as told."""

    def __init__(self, answer: Callable[[Request], Any] | None = None) -> None:
        self.requests: list[Request] = []
        self.intakes = {"/large": Intake(100_000), "/unread": UNREAD, "/import": UNREAD}
        self.answer = answer or (lambda request: Response(200, request.path.encode(), b"text/plain"))

    def route(self, method: str, path: str) -> Route:
        return Path(self, self.intakes.get(path, Intake(10)))


class Path:
    """What answers the requests of one path."""

    def __init__(self, application: Echo, intake: Intake) -> None:
        self.application = application
        self.intake = intake

    def answer(self, request: Request) -> Any:
        self.application.requests.append(request)
        return self.application.answer(request)


class Wire:
    """Hold one connection and what it stands on."""

    def __init__(
        self,
        answer: Callable[[Request], Any] | None = None,
        limits: Limits | None = None,
        transport: StringTransport | None = None,
    ) -> None:
        self.application = Echo(answer)
        self.clock = Clock()
        self.transport = transport or StringTransport()
        self.server: HTTPServer = HTTPFactory(self.application, self.clock, limits).buildProtocol(None)
        Protocol.makeConnection(self.server, self.transport)

    def send(self, data: bytes) -> bytes:
        """Deliver bytes and return all that was written since the last time."""
        self.server.dataReceived(data)
        return self.take()

    def trickle(self, data: bytes) -> bytes:
        for index in range(len(data)):
            self.server.dataReceived(data[index : index + 1])
        return self.take()

    def take(self) -> bytes:
        written: bytes = self.transport.value()
        self.transport.clear()
        return written

    def closing(self) -> bool:
        return self.transport.disconnecting

    def closes_when_the_peer_rests(self) -> bool:
        """Let the peer send nothing more; tell whether the connection was open until then, and is closed."""
        open_before = not self.closing()
        self.clock.advance(5)
        return open_before and self.closing()

    def pull(self) -> list[bytes]:
        """Play a transport that always has room; return what each turn wrote."""
        turns = [self.take()]
        while self.transport.producer is not None:
            self.transport.producer.resumeProducing()
            turns.append(self.take())
        return [turn for turn in turns if turn]


def reply(body: bytes, connection: bytes = b"keep-alive", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nconnection: %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        connection,
        len(body),
        body,
    )


def post(body: bytes, *lines: bytes, path: bytes = b"/") -> bytes:
    head = b"".join(line + b"\r\n" for line in lines) or b"content-length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\nhost: h\r\n%b\r\n%b" % (path, head, body)


def failures(events: Any) -> list[Any]:
    return [event for event in events if event["log_level"] >= LogLevel.error]


# Requests


def test_request_carries_all_its_parts() -> None:
    """Path decoded, query raw, names lower-case, repeated headers joined."""
    wire = Wire()
    wire.send(b"PUT /a%20b%C3%A9?x=%20 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 2\r\n\r\nhi")
    request = wire.application.requests[0]
    assert (request.method, request.target, request.path) == ("PUT", b"/a%20b%C3%A9?x=%20", "/a bé")
    assert (request.query, request.body, request.version) == (b"x=%20", b"hi", "1.1")
    assert request.headers == {b"host": b"h", b"x-a": b"1, 2", b"content-length": b"2"}
    assert request.connection.peer == wire.transport.getPeer()
    assert request.connection.wire is wire.transport


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://h/p?q", "/p"),
        (b"http://h?q", "/"),
        (b"*", "*"),
        (b"/a//b", "/a//b"),
    ],
)
def test_absolute_and_asterisk_targets_have_a_path(target: bytes, path: str) -> None:
    """A proxy's form of the target means the same request."""
    wire = Wire()
    wire.send(b"OPTIONS %b HTTP/1.1\r\n\r\n" % target)
    assert wire.application.requests[0].path == path


def test_bytes_delivered_singly_give_the_same_answers() -> None:
    """Framing does not depend on segments."""
    wire = Wire()
    stream = GET + post(b"hello") + post(b"2\r\nhi\r\n0\r\n\r\n", b"transfer-encoding: chunked")
    assert wire.trickle(stream) == reply(b"/") * 3
    assert [request.body for request in wire.application.requests] == [b"", b"hello", b"hi"]


def test_chunked_body_is_joined_and_its_trailers_are_dropped() -> None:
    """Trailers cannot add headers."""
    wire = Wire()
    wire.send(post(b"1;x=y\r\na\r\n2\r\nbc\r\n0\r\nx-late: 1\r\n\r\n", b"transfer-encoding: chunked"))
    assert wire.application.requests[0].body == b"abc"
    assert b"x-late" not in wire.application.requests[0].headers


# Keep-alive


def test_http_1_1_keeps_the_connection() -> None:
    """The default of 1.1."""
    wire = Wire()
    assert wire.send(GET) == reply(b"/")
    assert wire.send(GET) == reply(b"/")
    assert not wire.closing()


def test_http_1_0_closes() -> None:
    """The default of 1.0."""
    wire = Wire()
    assert wire.send(b"GET / HTTP/1.0\r\n\r\n") == reply(b"/", b"close")
    assert wire.closing()


def test_http_1_0_with_keep_alive_keeps_the_connection() -> None:
    """1.0 clients have to ask."""
    wire = Wire()
    assert wire.send(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n") == reply(b"/")
    assert not wire.closing()


def test_connection_close_ends_after_that_answer() -> None:
    """What follows the last request is not read."""
    wire = Wire()
    assert wire.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n" + GET) == reply(b"/", b"close")
    assert wire.closing()
    assert wire.send(GET) == b""


# Pipelining


def pending_by_path() -> tuple[dict[str, Deferred[Response]], Callable[[Request], Deferred[Response]]]:
    pending: dict[str, Deferred[Response]] = {}
    return pending, lambda request: pending.setdefault(request.path, Deferred())


def plain(body: bytes) -> Response:
    return Response(200, body, b"text/plain")


def test_pipelined_requests_are_answered_in_order() -> None:
    """The second is begun only when the first is answered."""
    pending, answer = pending_by_path()
    wire = Wire(answer)
    assert wire.send(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n") == b""
    assert list(pending) == ["/1"]
    pending["/1"].callback(plain(b"one"))
    assert wire.take() == reply(b"one")
    pending["/2"].callback(plain(b"two"))
    assert wire.take() == reply(b"two")


def test_deferreds_fired_in_the_wrong_order_are_answered_in_order() -> None:
    """The second Deferred exists already and has fired before the first."""
    first: Deferred[Response] = Deferred()
    second: Deferred[Response] = Deferred()
    wire = Wire(lambda request: {"/1": first, "/2": second}[request.path])
    wire.send(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
    second.callback(plain(b"two"))
    assert wire.take() == b""
    first.callback(plain(b"one"))
    assert wire.take() == reply(b"one") + reply(b"two")


def test_an_error_waits_for_the_answers_before_it() -> None:
    """Garbage behind a request must not overtake its answer."""
    pending, answer = pending_by_path()
    wire = Wire(answer)
    assert wire.send(GET + b"\x16garbage\r\n\r\n") == b""
    pending["/"].callback(plain(b"one"))
    written = wire.take()
    assert written.startswith(reply(b"one") + b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n")
    assert wire.closes_when_the_peer_rests()


def test_a_thousand_pipelined_requests_need_no_stack() -> None:
    """Answers of one segment are a loop, not a recursion."""
    wire = Wire(lambda request: plain(b"x"))
    assert wire.send(GET * 2000) == reply(b"x") * 2000


def test_transport_is_paused_while_too_much_is_buffered() -> None:
    """Memory of one connection is bounded; it goes on after the answer."""
    pending, answer = pending_by_path()
    wire = Wire(answer)
    wire.send(GET)
    wire.send(GET * 2000)
    assert wire.transport.producerState == "producing"
    wire.send(GET * 2000)
    assert wire.transport.producerState == "paused"
    wire.application.answer = lambda request: plain(b"x")
    pending["/"].callback(plain(b"x"))
    assert wire.take() != b""
    wire.pull()
    assert wire.transport.producerState == "producing"
    assert len(wire.application.requests) == 4001


def test_bytes_after_a_refusal_are_not_read_for_ever() -> None:
    """They are dropped while an earlier call is answered, and soon not even received."""
    pending, answer = pending_by_path()
    wire = Wire(answer)
    wire.send(GET + b"garbage\r\n\r\n")
    wire.send(b"x" * 65536)
    wire.send(b"x")
    assert wire.transport.producerState == "paused"
    pending["/"].callback(plain(b"x"))
    assert wire.take().startswith(reply(b"x") + b"HTTP/1.1 400 ")
    assert wire.closes_when_the_peer_rests()


def test_unread_small_answers_are_bounded() -> None:
    """A client that sends and never reads gets no more than about 256 KiB buffered."""
    wire = Wire(lambda request: plain(b"x" * 100_000))
    assert len(wire.send(GET * 50)) < 256 * 1024
    assert len(wire.application.requests) == 3
    assert len(b"".join(wire.pull())) > 47 * 100_000


# Expect


def test_expect_is_answered_100_within_the_limit() -> None:
    """The client sends its body only then."""
    wire = Wire()
    assert wire.send(post(b"", b"content-length: 5", b"expect: 100-continue")) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert wire.send(b"hello") == reply(b"/")


def test_expect_100_waits_for_the_answer_before_it() -> None:
    """An interim answer must not be taken for the earlier request's."""
    pending, answer = pending_by_path()
    wire = Wire(answer)
    wire.send(GET)
    assert wire.send(post(b"", b"content-length: 5", b"expect: 100-continue")) == b""
    pending["/"].callback(plain(b"one"))
    assert wire.take() == reply(b"one") + b"HTTP/1.1 100 Continue\r\n\r\n"


def test_expect_of_a_chunked_body_is_answered_100() -> None:
    """No length is declared; the limit is kept as chunks arrive."""
    wire = Wire()
    head = post(b"", b"transfer-encoding: chunked", b"expect: 100-continue")
    assert wire.send(head) == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_expect_of_http_1_0_is_ignored() -> None:
    """1.0 knows no interim answers."""
    wire = Wire()
    assert wire.send(b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n") == b""


# Errors


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400 Bad Request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/2.0\r\n\r\n", b"400 Bad Request"),
        (b"GET /\r\n\r\n", b"400 Bad Request"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"GET /%ff HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n", b"400 Bad Request"),
        (post(b"", b"content-length: 3", b"content-length: 3"), b"400 Bad Request"),
        (post(b"", b"content-length: 3", b"content-length: 4"), b"400 Bad Request"),
        (post(b"", b"content-length: 3, 3"), b"400 Bad Request"),
        (post(b"", b"content-length: -1"), b"400 Bad Request"),
        (post(b"", b"content-length: 3", b"transfer-encoding: chunked"), b"400 Bad Request"),
        (post(b"", b"transfer-encoding: chunked", b"content-length: 3"), b"400 Bad Request"),
        (post(b"", b"transfer-encoding: gzip"), b"400 Bad Request"),
        (post(b"", b"transfer-encoding: gzip, chunked"), b"400 Bad Request"),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", b"400 Bad Request"),
        (post(b"zz\r\n", b"transfer-encoding: chunked"), b"400 Bad Request"),
        (post(b"", b"content-length: 11"), b"413 "),
        (post(b"", b"content-length: 11", b"expect: 100-continue"), b"413 "),
        (post(b"b\r\nhello world\r\n", b"transfer-encoding: chunked"), b"413 "),
        (post(b"", b"content-length: 3", b"expect: miracles"), b"417 Expectation Failed"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 65536 + b"\r\n\r\n", b"431 Request Header Fields Too Large"),
        (b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\n\r\n", b"431 Request Header Fields Too Large"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", b"431 Request Header Fields Too Large"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 102, b"431 Request Header Fields Too Large"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70000, b"431 Request Header Fields Too Large"),
    ],
)
def test_bad_request_is_answered_with_its_status_and_closed(data: bytes, status: bytes) -> None:
    """Nothing of it reaches the application; the body is short text."""
    wire = Wire()
    head, _, body = (wire.send(data) + wire.send(b"a" * 70000)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nconnection: close\r\ncontent-type: text/plain\r\n" in head
    assert 0 < len(body) < 80
    assert wire.closes_when_the_peer_rests()
    assert wire.application.requests == []


def test_a_head_of_a_hundred_lines_is_accepted() -> None:
    """The limit is inclusive."""
    wire = Wire()
    assert wire.send(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100 + b"\r\n") == reply(b"/")


@pytest.mark.parametrize(
    "begin",
    [b"GET / HTTP/1.1\r\nx", b"GET / HTTP/1.1\r\nx: ", b"GET /", post(b"1;", b"transfer-encoding: chunked")],
)
def test_an_endless_line_is_refused_while_it_arrives(begin: bytes) -> None:
    """The parser gathers names and values silently, so what it holds is counted for it."""
    wire = Wire()
    wire.send(begin)
    for _ in range(70):
        wire.server.dataReceived(b"a" * 1000)
    assert wire.take().startswith(b"HTTP/1.1 431 ")


def test_413_is_sent_before_the_body_is_read() -> None:
    """A refused upload is not received."""
    wire = Wire()
    assert wire.send(post(b"", b"content-length: 1000000000")).startswith(b"HTTP/1.1 413 ")
    assert wire.send(b"x" * 65536) == b""


@pytest.mark.parametrize(
    "lines",
    [(b"content-length: 50000000",), (b"transfer-encoding: chunked",), (b"content-length: 9", b"expect: 100-continue")],
)
def test_a_body_that_nobody_wants_is_not_waited_for(lines: tuple[bytes, ...]) -> None:
    """The request is answered by its head; whoever sends on is heard until it rests, so that it finds the answer."""
    wire = Wire()
    assert wire.send(post(b"", *lines, path=b"/unread")) == reply(b"/unread", b"close")
    assert wire.application.requests[0].body == b""
    for _ in range(100):
        wire.server.dataReceived(b"x" * 65536)
    wire.clock.advance(4)
    wire.send(b"x")
    wire.clock.advance(4)
    assert wire.transport.producerState == "producing"
    assert wire.take() == b""
    assert len(wire.application.requests) == 1
    wire.clock.advance(1)
    assert wire.closing()


def test_a_put_that_only_its_end_delimits_is_answered_by_its_head() -> None:
    """xe's uploads have no length."""
    wire = Wire()
    assert wire.send(b"PUT /import HTTP/1.0\r\n\r\nGET / HTTP/1.1\r\n\r\n") == reply(b"/import", b"close")
    assert wire.closes_when_the_peer_rests()


def test_who_sends_without_end_is_heard_for_half_a_minute() -> None:
    """Then the connection ends, come what may."""
    wire = Wire()
    wire.send(post(b"", b"content-length: 1000000000"))
    for _ in range(29):
        wire.send(b"x" * 65536)
        wire.clock.advance(1)
    assert not wire.closing()
    wire.clock.advance(1)
    assert wire.closing()
    wire.clock.advance(600)
    assert wire.transport.disconnected


def test_content_length_of_many_zeros_is_a_number() -> None:
    """int() alone would refuse it after 4,300 digits."""
    wire = Wire()
    assert wire.send(post(b"abc", b"content-length: " + b"0" * 5000 + b"3")) == reply(b"/")


# Upgrade and CONNECT


@pytest.mark.parametrize(
    ("lines", "wired", "body"),
    [
        ((b"connection: upgrade", b"upgrade: h2c"), b"", b""),
        ((b"connection: upgrade", b"upgrade: h2c", b"content-length: 3"), b"abc", b"abc"),
        ((b"connection: upgrade", b"upgrade: h2c", b"content-length: 0"), b"", b""),
        (
            (b"connection: upgrade", b"upgrade: h2c", b"transfer-encoding: chunked"),
            b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
            b"abc",
        ),
    ],
)
@pytest.mark.parametrize("deliver", [Wire.send, Wire.trickle])
def test_upgrade_is_an_ordinary_request(
    deliver: Callable[[Wire, bytes], bytes], lines: tuple[bytes, ...], wired: bytes, body: bytes
) -> None:
    """Its body is read, and what follows is the next request."""
    wire = Wire()
    assert deliver(wire, post(wired, *lines) * 2 + GET) == reply(b"/") * 3
    assert [request.body for request in wire.application.requests] == [body, body, b""]


def test_connect_is_an_ordinary_request() -> None:
    """XenAPI consoles begin with CONNECT /console."""
    wire = Wire()
    assert wire.send(b"CONNECT /console?uuid=x HTTP/1.1\r\n\r\n" + GET) == reply(b"/console") + reply(b"/")


def test_a_thousand_pipelined_upgrades_need_no_stack() -> None:
    """Each makes a new parser, in a loop."""
    wire = Wire(lambda request: plain(b"x"))
    assert wire.send(b"CONNECT h:1 HTTP/1.1\r\n\r\n" * 1500) == reply(b"x") * 1500


# Failures of the application


def test_an_exception_is_logged_and_answered_500_and_the_connection_goes_on() -> None:
    """Framing is intact, so only this call fails."""
    wire = Wire(lambda request: 1 / 0)
    with capturedLogs() as events:
        assert wire.send(GET) == reply(b"Internal Server Error\n", status=b"500 Internal Server Error")
    assert len(failures(events)) == 1
    assert not wire.closing()


def test_a_failed_deferred_is_logged_and_answered_500() -> None:
    """The same for an error that comes later."""
    pending, answer = pending_by_path()
    wire = Wire(answer)
    wire.send(GET)
    with capturedLogs() as events:
        pending["/"].errback(ZeroDivisionError())
    assert wire.take().startswith(b"HTTP/1.1 500 ")
    assert len(failures(events)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        Response(200, "text", None),  # type: ignore[arg-type]
        Response(200, 5, None),  # type: ignore[arg-type]
        Response(200, b"", None, [(b"x", b"a\r\nset-cookie: b")]),
        Response(200, b"", b"text/plain\r\nx: y"),
    ],
)
def test_an_answer_that_cannot_be_sent_is_a_500(answer: object) -> None:
    """Wrong types and line ends in headers are the application's errors."""
    wire = Wire(lambda request: answer)
    with capturedLogs() as events:
        wire.server.dataReceived(GET)
        written = b"".join(wire.pull())
    assert written.startswith(b"HTTP/1.1 500 ")
    assert len(failures(events)) == 1


def test_a_failing_route_is_a_500_and_closes() -> None:
    """The body's framing was not judged, so the connection cannot go on."""
    wire = Wire()
    wire.application.route = lambda method, path: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with capturedLogs() as events:
        assert wire.send(post(b"hello")).startswith(b"HTTP/1.1 500 ")
    assert len(failures(events)) == 1
    assert wire.closes_when_the_peer_rests()


def test_a_client_that_goes_away_cancels_its_call() -> None:
    """Nothing is written, nothing is logged, no timer stays."""
    cancelled: list[object] = []
    wire = Wire(lambda request: Deferred(cancelled.append))
    wire.send(GET)
    with capturedLogs() as events:
        wire.server.connectionLost(LOST)
    assert len(cancelled) == 1
    assert failures(events) == []
    assert wire.take() == b""
    assert wire.clock.getDelayedCalls() == []


def test_an_answer_after_the_client_has_gone_is_dropped() -> None:
    """A canceller may well give a result."""
    wire = Wire(lambda request: Deferred(lambda deferred: deferred.callback(plain(b"late"))))
    wire.send(GET)
    wire.server.connectionLost(LOST)
    assert wire.take() == b""


# Answers


def test_head_is_answered_without_a_body() -> None:
    """The length is the one of GET."""
    wire = Wire(lambda request: plain(b"hello"))
    assert wire.send(b"HEAD / HTTP/1.1\r\n\r\n" + GET) == reply(b"hello")[:-5] + reply(b"hello")


def test_204_has_neither_body_nor_length() -> None:
    """RFC 9110 forbids both."""
    wire = Wire(lambda request: Response(204, b"", None))
    assert wire.send(GET) == b"HTTP/1.1 204 No Content\r\nconnection: keep-alive\r\n\r\n"


def test_given_headers_and_an_unknown_status_are_sent() -> None:
    """The content type stays exactly as given."""
    wire = Wire(lambda request: Response(299, b"x", b"Text/XML", [(b"set-cookie", b"a"), (b"set-cookie", b"b")]))
    assert wire.send(GET) == (
        b"HTTP/1.1 299 Unknown\r\nconnection: keep-alive\r\ncontent-type: Text/XML\r\n"
        b"set-cookie: a\r\nset-cookie: b\r\ncontent-length: 1\r\n\r\nx"
    )


def test_a_small_sequence_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Head and body leave in one segment."""
    writes: list[bytes] = []
    wire = Wire(lambda request: Response(200, [b"a", b"b", b"c"], b"text/plain"))
    monkeypatch.setattr(wire.transport, "write", writes.append)
    wire.send(GET)
    assert writes == [reply(b"abc")]


@pytest.mark.parametrize("body", [b"x" * 3_000_000, [b"x" * 1000] * 3000, [b"x" * 1_500_000] * 2])
def test_a_large_answer_is_pulled_in_pieces_of_512_kb(body: bytes | list[bytes]) -> None:
    """One write of all would make every other connection wait."""
    wire = Wire(lambda request: Response(200, body, b"text/plain"))
    wire.server.dataReceived(GET)
    assert wire.transport.streaming is False
    turns = wire.pull()
    assert b"".join(turns) == reply(b"x" * 3_000_000)
    assert {len(turn) for turn in turns[:-1]} == {512 * 1024}
    assert wire.send(b"HEAD / HTTP/1.1\r\n\r\n") == reply(b"x" * 3_000_000)[:-3_000_000]


def test_a_million_tiny_fragments_take_many_turns() -> None:
    """A turn is short even if its bytes are few."""
    wire = Wire(lambda request: Response(200, [b"x"] * 300_000, b"text/plain"))
    wire.server.dataReceived(GET)
    turns = wire.pull()
    assert b"".join(turns) == reply(b"x" * 300_000)
    assert max(map(len, turns)) < 10_000


def test_pipelined_request_waits_for_a_pulled_answer() -> None:
    """The next answer follows the last piece."""
    wire = Wire(lambda request: plain(b"x" * (300_000 if request.path == "/" else 1)))
    wire.server.dataReceived(GET + b"GET /2 HTTP/1.1\r\n\r\n")
    assert len(wire.application.requests) == 1
    assert b"".join(wire.pull()) == reply(b"x" * 300_000) + reply(b"x")


# Time


def test_a_connection_that_asks_nothing_is_closed_after_a_minute() -> None:
    """It may not even have shaken hands by TLS, which goes on below."""
    wire = Wire()
    wire.clock.advance(59)
    assert not wire.closing()
    wire.clock.advance(1)
    assert wire.closing()
    assert wire.take() == b""


def test_idle_connection_is_closed_after_an_hour() -> None:
    """Counted from the last answer."""
    wire = Wire()
    wire.send(GET)
    wire.clock.advance(3000)
    wire.send(GET)
    wire.take()
    wire.clock.advance(3599)
    assert not wire.closing()
    wire.clock.advance(1)
    assert wire.closing()
    assert wire.take() == b""


def test_incomplete_head_is_answered_408_a_minute_after_its_first_byte() -> None:
    """Further bytes do not prolong it."""
    wire = Wire()
    wire.send(GET)
    wire.take()
    wire.clock.advance(1000)
    wire.send(b"G")
    wire.clock.advance(59)
    assert wire.send(b"ET") == b""
    wire.clock.advance(1)
    assert wire.take() == reply(b"Request Timeout\n", b"close", b"408 Request Timeout")
    assert wire.closes_when_the_peer_rests()


def test_a_body_that_rests_for_a_minute_is_answered_408() -> None:
    """However fast it came before."""
    wire = Wire()
    wire.send(post(b"x" * 90_000, b"content-length: 99999", path=b"/large"))
    wire.clock.advance(59)
    wire.send(b"h")
    wire.clock.advance(59)
    assert wire.take() == b""
    wire.clock.advance(1)
    assert wire.take().startswith(b"HTTP/1.1 408 ")
    assert wire.closes_when_the_peer_rests()


def test_a_body_must_come_at_a_thousand_bytes_a_second_and_a_minute() -> None:
    """A byte a minute would hold a connection for an hour."""
    wire = Wire()
    wire.send(post(b"", b"content-length: 99999", path=b"/large"))
    for _ in range(80):
        wire.clock.advance(1)
        wire.send(b"x" * 1000)
    for _ in range(5):
        assert wire.take() == b""
        wire.clock.advance(12)
        wire.send(b"x")
    wire.clock.advance(1)
    assert wire.take().startswith(b"HTTP/1.1 408 ")


def test_a_long_call_has_no_deadline() -> None:
    """event.from may wait; a half-sent next request waits with it, and then has its minute."""
    pending, answer = pending_by_path()
    wire = Wire(answer)
    wire.send(GET + b"GET /2")
    wire.clock.advance(100_000)
    pending["/"].callback(plain(b"x"))
    assert wire.take() == reply(b"x")
    wire.clock.advance(59)
    assert not wire.closing()
    wire.clock.advance(1)
    assert wire.take().startswith(b"HTTP/1.1 408 ")


def test_an_answer_nobody_reads_is_aborted() -> None:
    """Ten minutes without room in the transport."""
    wire = Wire(lambda request: plain(b"x" * 2_000_000))
    wire.send(GET)
    assert wire.transport.producer is not None
    wire.transport.producer.resumeProducing()
    wire.clock.advance(599)
    wire.transport.producer.resumeProducing()
    wire.clock.advance(599)
    assert not wire.transport.disconnected
    wire.clock.advance(1)
    assert wire.transport.disconnected


def test_a_close_that_the_peer_does_not_let_finish_is_aborted() -> None:
    """The last bytes are not read either."""
    wire = Wire()
    wire.send(b"GET / HTTP/1.0\r\n\r\n")
    wire.clock.advance(600)
    assert wire.transport.disconnected


def test_limits_can_be_set() -> None:
    """Every time and size is a setting."""
    wire = Wire(limits=Limits(idle_seconds=5, head_lines=1))
    assert wire.send(b"GET / HTTP/1.1\r\na: b\r\nc: d\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    wire = Wire(limits=Limits(idle_seconds=5))
    wire.send(GET)
    wire.clock.advance(5)
    assert wire.closing()


def test_ordinary_requests_use_one_timer() -> None:
    """A timer a request would cost more than the request's parsing."""
    wire = Wire()
    before = wire.clock.getDelayedCalls()
    wire.send(GET * 10)
    assert wire.clock.getDelayedCalls() == before


def test_nagle_is_turned_off_on_tcp() -> None:
    """An answer in two segments would wait 40 ms for an acknowledgement."""
    calls: list[bool] = []
    transport = StringTransport()
    transport.setTcpNoDelay = calls.append  # type: ignore[attr-defined]
    Wire(transport=transport)
    assert calls == [True]


class DirectTransport(StringTransport):
    """A transport with a socket behind it, which takes all that is sent."""

    dataBuffer = b""
    _tempDataBuffer: tuple[bytes, ...] = ()

    def __init__(self) -> None:
        StringTransport.__init__(self)
        self.socket = self
        self.sent = 0
        self.pulls = 0

    def send(self, data: bytes) -> int:
        self.sent += len(data)
        return len(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.pulls += 1
        StringTransport.registerProducer(self, producer, streaming)


def test_small_answers_that_the_socket_takes_are_never_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of them waits in the transport, however many there are."""
    monkeypatch.setattr(sending, "PLAIN", (DirectTransport,))
    transport = DirectTransport()
    wire = Wire(lambda request: Response(200, b"x" * 10_000, b"text/plain"), transport=transport)
    for _ in range(100):
        wire.server.dataReceived(GET)
    assert transport.sent > 1_000_000
    assert transport.pulls == 0 and wire.take() == b""
