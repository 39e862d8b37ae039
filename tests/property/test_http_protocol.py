"""Prove for any bytes in any segments what the unit tests prove for some."""

from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from xapi.http.server.exchange import UNREAD, Intake, Request, Response, Route, Takeover
from xapi.http.server.factory import HTTPFactory
from xapi.http.server.protocol import HTTPServer

STREAM = (
    b"GET /a%20b?q=1 HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nX-A: 1\r\nX-A: 2\r\n\r\n"
    b"POST /rpc HTTP/1.1\r\ncontent-length: 11\r\n\r\nhello world"
    b"POST /rpc HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nt: u\r\n\r\n"
    b"POST /up HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\ncontent-length: 4\r\n\r\nabcd"
    b"HEAD / HTTP/1.1\r\n\r\n"
    b"CONNECT /console HTTP/1.1\r\n\r\n"
    b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi"
    b"GET /last HTTP/1.1\r\nconnection: close\r\n\r\n"
    b"GET /never HTTP/1.1\r\n\r\n"
)
FRAGMENTS = st.sampled_from(
    [
        *(b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"CONNECT x:1 HTTP/1.1\r\n", b"GET /%ff HTTP/1.0\r\n"),
        *(b"\r\n", b"\r\n\r\n", b"content-length: 5\r\n", b"hello", b"transfer-encoding: chunked\r\n"),
        *(b"5\r\nhello\r\n", b"0\r\n\r\n", b"host: a\r\n", b"expect: 100-continue\r\n", b"connection: close\r\n"),
        *(b"connection: upgrade\r\nupgrade: x\r\n", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n", b"x:", b" "),
        *(b"x: " + b"a" * 30_000, b"a" * 9_000, b"PUT /unwanted HTTP/1.1\r\n", b"POST /unwanted HTTP/1.0\r\n"),
    ]
)


class Mirror:
    """Answer with what was asked."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.intake = Intake(10_000)

    def route(self, method: str, path: str) -> Route:
        if path != "/unwanted":
            return self
        unwanted = Mirror()
        unwanted.seen, unwanted.intake = self.seen, UNREAD
        return unwanted

    def answer(self, request: Request) -> Response:
        self.seen.append((request.method, request.target, dict(request.headers), request.body, request.version))
        return Response(200, [request.target, b" ", request.body], b"text/plain")


def connect() -> tuple[Mirror, StringTransport, HTTPServer]:
    mirror, transport = Mirror(), StringTransport()
    server = HTTPFactory(mirror, Clock()).buildProtocol(None)
    Protocol.makeConnection(server, transport)
    return mirror, transport, server


def exchange(segments: list[bytes]) -> tuple[list[Any], bytes, bool]:
    """Return the requests seen, the answers without interim ones (which depend on timing), and the end."""
    mirror, transport, server = connect()
    for segment in segments:
        server.dataReceived(segment)
    return mirror.seen, transport.value().replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""), transport.disconnecting


def split(stream: bytes, cuts: set[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(edges) if begin < end]


WHOLE = exchange([STREAM])


def test_the_stream_unsplit_gives_its_eight_requests() -> None:
    """The measure of the property below is right itself."""
    assert len(WHOLE[0]) == 8
    assert WHOLE[1].count(b"HTTP/1.1 200 OK") == 8
    assert WHOLE[2]


@given(st.sets(st.integers(1, len(STREAM) - 1)))
def test_any_split_gives_the_same_requests_and_answers(cuts: set[int]) -> None:
    """Segments carry no meaning."""
    assert exchange(split(STREAM, cuts)) == WHOLE


WHOLE_REQUESTS = (
    b"POST /a HTTP/1.1\r\ncontent-length: 2\r\n\r\n",
    b"POST /a HTTP/1.1\r\ncontent-length: 3\r\n\r\n",
    b"POST / HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
    b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\ncontent-length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n\r\n",
    b"\r\nGET / HTTP/1.1\r\n\r\n",
    b"CONNECT / HTTP/1.1\r\n\r\n",
    b"\r",
    b"POST /b HTTP/1.1\r\nx: ",
)


TAILS = (b"", b"\r\n", b"ab", b"abc", b"ab\r\n", b"ab\r")


@example([(WHOLE_REQUESTS[0], b"ab"), (WHOLE_REQUESTS[-1], b""), (WHOLE_REQUESTS[0], b"ab")])
@given(st.lists(st.tuples(st.sampled_from(WHOLE_REQUESTS), st.sampled_from(TAILS)), max_size=12))
def test_a_head_that_comes_again_means_what_it_means_byte_by_byte(requests: list[tuple[bytes, bytes]]) -> None:
    """What is remembered of a head is never taken for another's, and what follows a body is judged anew."""
    segments = [head + body for head, body in requests]
    assert exchange(segments) == exchange([b"%c" % byte for byte in b"".join(segments)])


def test_single_bytes_give_the_same_requests_and_answers() -> None:
    """The finest split."""
    assert exchange(split(STREAM, set(range(1, len(STREAM))))) == WHOLE


def held(server: HTTPServer) -> int:
    """Count the bytes which a connection keeps of requests that it has not answered."""
    incoming = server.incoming
    waiting = sum(len(request.target) + len(request.body) for request, _ in incoming.waiting)
    fields = sum(len(name) + len(value) for name, value in incoming._fields)
    return waiting + fields + len(incoming._url) + len(incoming._body) + incoming._silent + len(incoming.behind or b"")


@given(st.lists(st.one_of(st.binary(max_size=200), FRAGMENTS), max_size=40))
def test_garbage_never_raises_and_is_never_kept(segments: list[bytes]) -> None:
    """Whatever is sent, at most a head, a body and a segment are held, and every request was answered."""
    mirror, transport, server = connect()
    for segment in segments:
        server.dataReceived(segment)
        assert held(server) <= 2 * 65536 + 10_000
    assert transport.value().count(b"HTTP/1.1 200 OK") == len(mirror.seen)


@given(st.lists(FRAGMENTS, min_size=1, max_size=30), st.data())
def test_any_split_of_garbage_gives_the_same_answers(segments: list[bytes], data: st.DataObject) -> None:
    """Errors, too, do not depend on segments."""
    stream = b"".join(segments)
    cuts = data.draw(st.sets(st.integers(1, len(stream)), max_size=10))
    assert exchange(split(stream, cuts)) == exchange([stream])


class Taken(Protocol):
    """Who takes a connection over, and keeps what comes."""

    def __init__(self) -> None:
        self.heard = b""

    def dataReceived(self, data: bytes) -> None:
        self.heard += data


class Door:
    """Answer GET with what was asked, and give the connection to another for CONNECT: at once, or when told."""

    def __init__(self, at_once: bool) -> None:
        self.taken = Taken()
        self.told: Deferred[Any] = Deferred()
        if at_once:
            self.open()

    def open(self) -> None:
        self.told.callback(Takeover(lambda: self.taken))

    intake = Intake(0)

    def route(self, method: str, path: str) -> Route:
        return self

    def answer(self, request: Request) -> Any:
        return self.told if request.method == "CONNECT" else Response(200, request.target, b"text/plain")


@example(0, "1.0", b"x" * 200, 1000, [], None)
@given(
    st.integers(0, 2),
    st.sampled_from(["1.0", "1.1"]),
    st.one_of(st.binary(max_size=300), FRAGMENTS),
    st.sampled_from([1, 1, 1000]),
    st.lists(st.integers(0, 1000), max_size=6),
    st.none() | st.integers(0, 6),
)
def test_what_comes_behind_a_connect_is_its_successors(
    before: int, version: str, typed: bytes, times: int, cuts: list[int], opened: int | None
) -> None:
    """Each byte once and in order, wherever the segments end and whenever the answer comes; and nothing else is."""
    typed = (typed * times)[:200_000]
    stream = b"GET /a HTTP/1.1\r\n\r\n" * before + f"CONNECT /console HTTP/{version}\r\n\r\n".encode() + typed
    door, transport = Door(opened is None), StringTransport()
    server = HTTPFactory(door, Clock()).buildProtocol(None)
    Protocol.makeConnection(server, transport)
    segments = split(stream, {cut % len(stream) for cut in cuts} - {0})
    for number, segment in enumerate(segments):
        if number == opened:
            door.open()
        server.dataReceived(segment)
    if not door.told.called:
        assert door.taken.heard == b""
        door.open()
    assert door.taken.heard == typed
    assert transport.value().count(b"HTTP/1.1 200 OK") == before + 1 and transport.value().endswith(b"OK\r\n\r\n")
    assert transport.producerState == "producing"
