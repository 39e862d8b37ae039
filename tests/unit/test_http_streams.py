"""Bodies that are read as they come, and answers that are written as they are made."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure

from xapi.http.server.body import AHEAD, SHORT, Body, BodyError, ClientGone
from xapi.http.server.exchange import Intake, Request, Response, Route
from xapi.http.server.factory import HTTPFactory

SEGMENT = 65536
"""Bytes that a transport reads at once."""
GET = b"GET /next HTTP/1.1\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def put(*lines: bytes, version: bytes = b"1.1") -> bytes:
    return b"PUT /put HTTP/%b\r\n%b\r\n" % (version, b"".join(line + b"\r\n" for line in lines))


def sized(length: int) -> bytes:
    return put(b"content-length: %d" % length)


def body_of(request: Request) -> Body:
    assert request.stream is not None
    return request.stream


class Site:
    """One connection to an application that streams, and what it has seen. Answers are coroutines."""

    def __init__(self, answer: Callable[[Request], Any], intake: Intake | None = None) -> None:
        self.intake = intake or Intake(None, streamed=True)
        self.answering = answer
        self.requests: list[Request] = []
        self.clock = Clock()
        self.transport = StringTransport()
        self.server = HTTPFactory(self, self.clock).buildProtocol(None)
        Protocol.makeConnection(self.server, self.transport)

    def route(self, method: str, path: str) -> Route:
        return self

    def answer(self, request: Request) -> Deferred[Any]:
        self.requests.append(request)
        return Deferred.fromCoroutine(self.answering(request))

    def send(self, data: bytes) -> bytes:
        """Deliver bytes in segments and return what was written."""
        for begin in range(0, len(data), SEGMENT):
            self.server.dataReceived(data[begin : begin + SEGMENT])
        return self.take()

    def take(self) -> bytes:
        written: bytes = self.transport.value()
        self.transport.clear()
        return written

    def lose(self, error: type[Exception] = ConnectionLost) -> None:
        self.server.connectionLost(Failure(error()))

    def paused(self) -> bool:
        return self.transport.producerState == "paused"


async def echo(request: Request) -> Response:
    """Answer with the whole body, or that there is none."""
    body = b"none" if request.stream is None else b"".join([data async for data in request.stream])
    return Response(200, body, None)


def reply(body: bytes, keep: bool = True, status: bytes = b"200 OK") -> bytes:
    state = b"keep-alive" if keep else b"close"
    return b"HTTP/1.1 %b\r\nconnection: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, state, len(body), body)


def failures(events: Any) -> list[Any]:
    return [event for event in events if event["log_level"] >= LogLevel.error]


# Reading


def test_the_request_comes_before_its_body() -> None:
    """And the body as it comes; what is behind it is the next request."""
    read: list[bytes] = []

    async def answer(request: Request) -> Response:
        if request.stream is not None:
            read.extend([data async for data in request.stream])
        return Response(200, b"", None)

    site = Site(answer)
    assert site.send(sized(5)) == b"" and len(site.requests) == 1
    site.send(b"he")
    assert read == []
    assert site.send(b"llo" + GET) == reply(b"") * 2
    assert read == [b"he", b"llo"]


@pytest.mark.parametrize(
    ("head", "wired"),
    [
        (sized(5), b"hello"),
        (put(b"transfer-encoding: chunked"), b"1;x=y\r\nh\r\n4\r\nello\r\n0\r\nlate: 1\r\n\r\n"),
        (put(b"content-length: 5", b"connection: upgrade", b"upgrade: x"), b"hello"),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_body_is_the_same_however_it_is_framed_and_cut(head: bytes, wired: bytes, size: int) -> None:
    """Trailers are no part of it."""
    site, stream = Site(echo), head + wired + GET
    for begin in range(0, len(stream), size):
        site.server.dataReceived(stream[begin : begin + size])
    assert site.take() == reply(b"hello") + reply(b"none")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_put_without_a_length_ends_with_the_connection(version: bytes, size: int) -> None:
    """Whatever is in it; a client that closes only its half has the answer."""
    inside = b"\r\n\r\nGET / HTTP/1.1\r\n\r\nPUT"
    site, stream = Site(echo), GET + put(b"host: h", version=version) + inside
    for begin in range(0, len(stream), size):
        site.server.dataReceived(stream[begin : begin + size])
    assert site.take() == reply(b"none")
    site.server.readConnectionLost()
    assert site.take() == reply(inside, keep=False)
    assert site.transport.disconnecting


def test_a_put_without_a_length_is_whole_when_the_client_has_closed() -> None:
    """Then nobody hears the answer, but the work is done; a connection that is torn is an error."""
    ends: list[Any] = []

    async def answer(request: Request) -> Response:
        try:
            ends.append(b"".join([data async for data in body_of(request)]))
        except ClientGone as error:
            ends.append(type(error))
        return Response(200, b"", None)

    for error in (ConnectionDone, ConnectionLost):
        site = Site(answer)
        site.send(put() + b"data")
        site.lose(error)
    assert ends == [b"data", ClientGone]


def test_a_half_close_ends_all_else() -> None:
    """As if the client were gone, since that looks the same."""
    lost: list[Failure] = []
    site = Site(echo)
    site.transport.connectionLost = lost.append  # type: ignore[attr-defined]
    site.send(sized(5) + b"he")
    site.server.readConnectionLost()
    assert [failure.type for failure in lost] == [ConnectionDone]


def test_the_transport_is_paused_while_the_reader_is_behind() -> None:
    """What waits is never more than `AHEAD` and a segment, and goes on by itself."""
    gate: list[Deferred[None]] = []
    count = 0

    async def answer(request: Request) -> Response:
        nonlocal count
        async for data in body_of(request):
            count += len(data)
            gate.append(Deferred())
            await gate[-1]
        return Response(200, b"", None)

    site = Site(answer)
    site.server.dataReceived(sized(3 * AHEAD))
    body, sent = body_of(site.requests[0]), 0
    while sent < 3 * AHEAD:
        assert body.buffered <= AHEAD + SEGMENT
        if site.paused():
            gate.pop().callback(None)
        else:
            site.server.dataReceived(bytes(SEGMENT))
            sent += SEGMENT
    while gate:
        gate.pop().callback(None)
    assert count == 3 * AHEAD and site.take() == reply(b"") and not site.paused()


def test_a_stream_waits_for_the_answer_before_it_and_then_goes_on() -> None:
    """Meanwhile it is held back like all that is behind."""
    first: Deferred[None] = Deferred()

    async def answer(request: Request) -> Response:
        if request.stream is None:
            await first
        return await echo(request)

    site = Site(answer)
    site.server.dataReceived(GET + sized(2 * SEGMENT))
    site.send(bytes(2 * SEGMENT - 1))
    assert site.paused() and len(site.requests) == 1
    first.callback(None)
    assert not site.paused() and len(site.requests) == 2
    assert site.send(b"x") == reply(b"none") + reply(bytes(2 * SEGMENT - 1) + b"x")


def test_many_small_streams_behind_an_answer_are_bounded() -> None:
    """They are held back together."""
    site = Site(lambda request: _never())
    site.server.dataReceived(GET)
    more = b"x" * 20_000 + sized(20_001) + b"x"
    site.server.dataReceived(sized(20_001) + b"x")
    held = 0
    while not site.paused() and held < 1_000_000:
        site.server.dataReceived(more)
        held += len(more)
    assert held < 100_000


async def _never() -> None:
    await Deferred()


def test_what_is_pipelined_behind_a_body_does_not_hold_it_up() -> None:
    """The reader gets the rest, however much more is held back."""
    gate: Deferred[None] = Deferred()

    async def answer(request: Request) -> Response:
        if request.stream is not None:
            await gate
            assert sum([len(data) async for data in request.stream]) == AHEAD
        return Response(200, b"", None)

    site = Site(answer)
    site.server.dataReceived(sized(AHEAD) + b"x")
    site.send(bytes(AHEAD - 1) + GET * 3500)
    assert site.paused() and len(site.requests) == 1
    gate.callback(None)
    assert len(site.requests) > 1 and not site.paused()


# What is not read


async def refuse(request: Request) -> Response:
    """Answer without reading anything."""
    return Response(403, b"no", None)


@pytest.mark.parametrize("length", [1, SHORT])
def test_a_short_body_that_nobody_reads_is_passed_over(length: int) -> None:
    """The connection goes on, before or after all of it has come."""
    site = Site(refuse)
    assert site.send(sized(length)) == reply(b"no", status=b"403 Forbidden")
    assert site.send(bytes(length) + GET) == reply(b"no", status=b"403 Forbidden")
    assert body_of(site.requests[0]).buffered == 0
    assert not site.transport.disconnecting


def test_a_long_body_that_nobody_reads_ends_the_connection() -> None:
    """Who is still sending is heard out, to nobody's use, and finds the answer."""
    site = Site(refuse)
    assert site.send(sized(10 * AHEAD)) == reply(b"no", keep=False, status=b"403 Forbidden")
    assert site.send(bytes(10 * AHEAD) + GET) == b""
    assert not site.paused() and not site.transport.disconnecting and len(site.requests) == 1
    site.clock.advance(5)
    assert site.transport.disconnecting


def test_an_early_error_finds_a_client_that_was_paused() -> None:
    """It is read on, and nothing of what it sent is kept."""
    gate: Deferred[None] = Deferred()

    async def answer(request: Request) -> Response:
        await gate
        return await refuse(request)

    site = Site(answer)
    site.send(sized(1 << 40) + bytes(2 * AHEAD))
    assert site.paused()
    gate.callback(None)
    assert site.take() == reply(b"no", keep=False, status=b"403 Forbidden")
    assert not site.paused() and body_of(site.requests[0]).buffered == 0


def test_the_rest_of_a_short_body_that_does_not_come_ends_the_connection() -> None:
    """It has a minute, like any."""
    site = Site(refuse)
    site.send(sized(100) + b"x")
    site.clock.advance(60)
    site.clock.advance(5)
    assert site.transport.disconnecting


# Limits


@pytest.mark.parametrize(
    ("head", "wired", "status"),
    [
        (put(b"transfer-encoding: chunked"), b"b\r\nhello world\r\n", b"413 Request Entity Too Large"),
        (put(), b"hello world", b"413 Request Entity Too Large"),
        (put(b"transfer-encoding: chunked"), b"1\r\nh\r\nzz\r\n", b"400 Bad Request"),
    ],
)
def test_a_body_that_breaks_is_its_readers_error(head: bytes, wired: bytes, status: bytes) -> None:
    """Which is answered, if the reader has nothing better, and not logged."""
    site = Site(echo, Intake(10, streamed=True))
    with capturedLogs() as events:
        answer = site.send(head + wired)
    assert answer.startswith(b"HTTP/1.1 " + status[:3]) and b"connection: close" in answer
    site.clock.advance(5)
    assert site.transport.disconnecting and failures(events) == []


def test_a_declared_length_above_the_limit_never_reaches_the_reader() -> None:
    """As with whole bodies."""
    site = Site(echo, Intake(10, streamed=True))
    assert site.send(sized(11)).startswith(b"HTTP/1.1 413 ") and site.requests == []


def test_a_reader_waits_so_long_and_no_longer() -> None:
    """Each byte begins the time anew, and it runs only while somebody waits."""
    gate: Deferred[None] = Deferred()

    async def answer(request: Request) -> Response:
        await body_of(request).read()
        await gate
        return await echo(request)

    site = Site(answer, Intake(None, streamed=True, rest_seconds=20))
    site.send(sized(100))
    site.clock.advance(19)
    site.send(b"x")
    site.clock.advance(1000)
    assert site.take() == b""
    gate.callback(None)
    site.clock.advance(19)
    site.send(b"x")
    site.clock.advance(19)
    assert site.take() == b""
    site.clock.advance(1)
    assert site.take().startswith(b"HTTP/1.1 408 ")


def test_a_stream_without_a_limit_must_be_streamed() -> None:
    """A whole body has a limit."""
    with pytest.raises(ValueError, match="has a limit"):
        Intake(None)


# Expect


def test_100_is_sent_when_somebody_reads() -> None:
    """Not to whom an error is told instead."""
    expecting = put(b"content-length: 5", b"expect: 100-continue")
    site = Site(echo)
    assert site.send(expecting) == CONTINUE
    assert site.send(b"hello") == reply(b"hello")
    assert Site(refuse).send(expecting) == reply(b"no", keep=False, status=b"403 Forbidden")


# A client that goes away


def test_what_has_come_is_read_before_the_cut() -> None:
    """It may be all that is needed: clients that know no length say 1 PiB, and cut the connection at the end."""
    read: list[bytes] = []
    gate: Deferred[None] = Deferred()

    async def answer(request: Request) -> Response:
        body = body_of(request)
        await gate
        read.append(await body.read())
        with pytest.raises(ClientGone):
            await body.read()
        read.append(b"cut")
        return Response(200, b"", None)

    site = Site(answer)
    site.send(sized(1 << 50) + b"all")
    with capturedLogs() as events:
        site.lose(ConnectionDone)
        gate.callback(None)
    assert read == [b"all", b"cut"] and site.take() == b"" and failures(events) == []
    assert site.clock.getDelayedCalls() == []


def test_a_cut_that_the_reader_does_not_expect_is_not_logged() -> None:
    """It is the client's doing."""
    site = Site(echo)
    site.send(sized(5) + b"he")
    with capturedLogs() as events:
        site.lose()
    assert failures(events) == []


def test_who_reads_no_body_is_cancelled() -> None:
    """Nobody wants the answer."""
    ended: list[type[BaseException]] = []

    async def answer(request: Request) -> None:
        try:
            await Deferred()
        except CancelledError as error:
            ended.append(type(error))
            raise

    site = Site(answer)
    site.send(GET)
    site.lose()
    assert ended == [CancelledError]


def test_a_connection_that_has_ended_is_no_circle() -> None:
    """It goes without the collector, which seldom looks, also in the middle of a request."""
    gc.disable()
    try:
        for sent in (GET, GET[:9], sized(5) + b"x", GET + sized(9) + b"x"):
            site = Site(echo)
            site.send(sent)
            site.lose()
            server = weakref.ref(site.server)
            site.requests.clear()
            del site.server, site.transport
            assert server() is None
    finally:
        gc.enable()


# Writing


def writing(*parts: bytes, length: int | None = None, content_type: bytes | None = None) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Any:
        outgoing = request.connection.begin(200, content_type, length=length)
        for part in parts:
            await outgoing.write(part)
        return outgoing

    return answer


def test_an_answer_without_a_length_is_chunked_for_http_1_1() -> None:
    """Empty parts would end it, so they are left out; the next request is answered behind it."""
    site = Site(writing(b"abc", b"", b"0123456789"))
    chunked = (
        b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n"
    )
    assert site.send(GET * 2) == chunked * 2
    assert not site.transport.disconnecting and site.transport.producer is None


def test_an_answer_without_a_length_is_ended_by_the_close_for_http_1_0() -> None:
    """Even if the client asked to keep the connection."""
    site = Site(writing(b"abc", b"def", content_type=b"a/b"))
    answer = site.send(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    assert answer == b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: a/b\r\n\r\nabcdef"
    assert site.transport.disconnecting


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_of_a_known_length_says_it(version: bytes) -> None:
    """The same bytes for both versions."""
    site = Site(writing(b"abc", b"def", length=6))
    assert site.send(b"GET / HTTP/%b\r\nconnection: keep-alive\r\n\r\n" % version) == reply(b"abcdef")


@pytest.mark.parametrize("length", [None, 3])
def test_head_hears_the_head_only(length: int | None) -> None:
    """Whatever is written."""
    answer = Site(writing(b"abc", length=length)).send(b"HEAD / HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n") and answer.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize(("parts", "sent"), [([b"abc"], 3), ([b"abc", b"defgh"], 3)])
def test_an_answer_that_breaks_its_length_is_aborted(parts: list[bytes], sent: int) -> None:
    """The client must not take a wrong answer for a whole one."""
    site = Site(writing(*parts, length=6))
    with capturedLogs() as events:
        written = site.send(GET)
    assert len(written.partition(b"\r\n\r\n")[2]) == sent
    assert site.transport.disconnected and len(failures(events)) == 1


def test_a_failure_after_the_head_aborts() -> None:
    """Only the broken framing can tell the client; before it, the status does."""

    async def answer(request: Request) -> Any:
        if request.path != "/next":
            raise ZeroDivisionError
        request.connection.begin(200, None)
        raise ZeroDivisionError

    site = Site(answer)
    with capturedLogs() as events:
        assert site.send(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 500 ")
        site.send(GET)
    assert site.transport.disconnected and len(failures(events)) == 2


def test_an_answer_besides_the_one_that_was_begun_is_an_error() -> None:
    """The client would take it for part of the first."""

    async def answer(request: Request) -> Any:
        request.connection.begin(200, None)
        return Response(200, b"", None)

    site = Site(answer)
    with capturedLogs() as events:
        site.send(GET)
    assert site.transport.disconnected and len(failures(events)) == 1


def test_who_writes_waits_for_the_client_to_read() -> None:
    """What waits in the transport is bounded by what it holds and a part."""
    written = 0

    async def answer(request: Request) -> Any:
        nonlocal written
        outgoing = request.connection.begin(200, None, length=5)
        for _ in range(5):
            await outgoing.write(b"x")
            written += 1
        return outgoing

    site = Site(answer)
    site.server.dataReceived(b"GET /next HTTP/1.1\r\n")
    pause_at_once(site)
    site.server.dataReceived(b"\r\n")
    for count in range(5):
        assert written == count
        assert site.transport.producer is not None
        site.transport.producer.resumeProducing()
    assert written == 5 and site.transport.producer is None


def pause_at_once(site: Site) -> None:
    """Let the transport hold nothing."""
    write: Callable[[bytes], None] = site.transport.write

    def write_and_pause(data: bytes) -> None:
        write(data)
        if site.transport.producer is not None:
            site.transport.producer.pauseProducing()

    site.transport.write = write_and_pause  # type: ignore[method-assign]


def test_an_answer_that_nobody_reads_is_aborted() -> None:
    """After ten minutes in which nothing went out; who makes it may take any time."""
    gate: Deferred[None] = Deferred()

    async def answer(request: Request) -> Any:
        outgoing = request.connection.begin(200, None)
        await gate
        await outgoing.write(b"x")
        return outgoing

    site = Site(answer)
    site.send(GET)
    site.clock.advance(10_000)
    assert not site.transport.disconnected
    pause_at_once(site)
    gate.callback(None)
    site.clock.advance(599)
    assert not site.transport.disconnected
    site.clock.advance(1)
    assert site.transport.disconnected


def test_a_writer_hears_that_the_client_is_gone() -> None:
    """By a cancel while it waits; one that reads a body, and goes on, when it writes."""
    ends: list[str] = []

    async def answer(request: Request) -> Any:
        outgoing = request.connection.begin(200, None)
        try:
            await outgoing.write(b"x")
            if request.stream is not None:
                await request.stream.read()
                await outgoing.write(b"y")
        except (CancelledError, ClientGone) as error:
            ends.append(type(error).__name__)
            raise
        return outgoing

    for head in (GET, sized(5)):
        site = Site(answer)
        pause_at_once(site)
        site.send(head)
        with capturedLogs() as events:
            site.lose()
        assert failures(events) == []
    assert ends == ["ClientGone", "ClientGone"]


def test_an_upload_may_be_answered_before_it_is_read() -> None:
    """As xapi does, and its clients wait for; `Expect` is satisfied first."""
    taken = b""

    async def answer(request: Request) -> Any:
        nonlocal taken
        outgoing = request.connection.begin(200, None, length=0)
        async for data in body_of(request):
            taken += data
        return outgoing

    site = Site(answer)
    assert site.send(put(b"content-length: 5", b"expect: 100-continue")) == CONTINUE + reply(b"")
    site.send(b"hello")
    assert taken == b"hello" and site.send(sized(0)) == reply(b"")


def test_a_begun_answer_that_leaves_a_long_body_unread_ends_the_connection() -> None:
    """Though it had promised to keep it."""

    async def answer(request: Request) -> Any:
        return request.connection.begin(200, None, length=0)

    site = Site(answer)
    assert site.send(sized(1 << 50) + b"x") == reply(b"")
    site.clock.advance(5)
    assert site.transport.disconnecting


def test_the_error_of_a_body_reaches_who_has_the_answer_already() -> None:
    """The connection ends, as it must when its framing is broken."""

    async def answer(request: Request) -> Any:
        outgoing = request.connection.begin(200, None, length=0)
        with pytest.raises(BodyError, match="chunk"):
            await body_of(request).read()
        return outgoing

    site = Site(answer)
    assert site.send(put(b"transfer-encoding: chunked") + b"zz\r\n") == reply(b"")
    site.clock.advance(5)
    assert site.transport.disconnecting


def test_a_gibibyte_goes_through_in_little_memory() -> None:
    """Copied from the request into the answer: what lies in between is counted at each step."""
    total, most = 1 << 30, 0

    async def copy(request: Request) -> Any:
        outgoing = request.connection.begin(200, None, length=total)
        async for data in body_of(request):
            await outgoing.write(data)
        return outgoing

    site = Site(copy)
    written = 0
    reading: list[int] = []
    transport = site.transport

    def write(data: bytes) -> None:
        reading.append(len(data))
        if sum(reading) > SEGMENT and transport.producer is not None:
            transport.producer.pauseProducing()

    transport.write = write  # type: ignore[method-assign]
    site.server.dataReceived(sized(total))
    segment, sent = bytes(SEGMENT), 0
    while written < total:
        if sent < total and not site.paused():
            site.server.dataReceived(segment)
            sent += SEGMENT
        most = max(most, body_of(site.requests[0]).buffered + sum(reading))
        if site.paused() or sent == total:  # the client reads only when it cannot send
            written += sum(reading)
            reading.clear()
            if transport.producer is not None:
                transport.producer.resumeProducing()
    assert most <= AHEAD + 4 * SEGMENT
    assert written - total < 200 and sent == total  # the head, besides
