"""Prove of streamed bodies for any bytes in any segments, and any reader, what the unit tests prove for some."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from xapi.http.server.body import AHEAD, SHORT, ClientGone
from xapi.http.server.exchange import Intake, Request, Response, Route
from xapi.http.server.factory import HTTPFactory

SEGMENT = 65536


class Site:
    """One connection to an application that streams; what is done with a body is in the path.

    ``/all`` is read to its end and echoed, ``/some`` once only, ``/none`` not at all. Each read waits for `pace`, if
    the test wants to say when.
    """

    intake = Intake(None, streamed=True)

    def __init__(self, paced: bool = False) -> None:
        self.read: list[bytes] = []
        self.cut = False
        self.paced = paced
        self.pace: Deferred[None] = Deferred()
        self.transport = StringTransport()
        self.requests: list[Request] = []
        self.server = HTTPFactory(self, Clock()).buildProtocol(None)
        Protocol.makeConnection(self.server, self.transport)

    def route(self, method: str, path: str) -> Route:
        return self

    def answer(self, request: Request) -> Deferred[Any]:
        self.requests.append(request)
        return Deferred.fromCoroutine(self._answer(request))

    async def _answer(self, request: Request) -> Response:
        body = b""
        if request.stream is not None and request.path != "/none":
            try:
                while True:
                    if self.paced:
                        self.pace = Deferred()
                        await self.pace
                    data = await request.stream.read()
                    self.read.append(data)
                    body += data
                    if not data or request.path == "/some":
                        break
            except ClientGone:
                self.cut = True
                raise
        return Response(200, body if request.path == "/all" else b"", None)

    def go_on(self) -> None:
        """Let the reader read once."""
        if not self.pace.called:
            self.pace.callback(None)

    @property
    def buffered(self) -> int:
        return sum(request.stream.buffered for request in self.requests if request.stream is not None)


def split(stream: bytes, cuts: set[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(edges) if begin < end]


BODIES = st.sampled_from([b"", b"hello", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n", b"PUT /", bytes(3000)])


def chunked(body: bytes, size: int) -> bytes:
    """Return a body in chunks, with extensions and a trailer."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nlate: PUT\r\n\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Return a request; one that is not read to its end has a length, since else the connection may have to end."""
    method = draw(st.sampled_from([b"PUT", b"POST"]))
    path = draw(st.sampled_from([b"/all", b"/some", b"/none"]))
    body = draw(BODIES)
    if path == b"/all" and draw(st.booleans()):
        return b"%b %b HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n%b" % (method, path, chunked(body, 7))
    return b"%b %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (method, path, len(body), body)


LASTS = st.one_of(
    st.just(b"GET /last HTTP/1.1\r\nconnection: close\r\n\r\n"),
    BODIES.map(lambda body: b"PUT /all HTTP/1.0\r\nhost: h\r\n\r\n" + body),
    BODIES.map(lambda body: b"PUT /all HTTP/1.1\r\n\r\n" + body),
)


def exchange(segments: list[bytes]) -> tuple[bytes, bool]:
    """Return all answers, after the client has closed its half, and whether the connection then ends."""
    site = Site()
    for segment in segments:
        site.server.dataReceived(segment)
    if site.server.incoming.ends_with_the_close:
        site.server.readConnectionLost()
    assert site.buffered == 0
    return site.transport.value(), site.transport.disconnecting


@example([], b"PUT /all HTTP/1.1\r\n\r\n\r\n\r\n", [])
@given(st.lists(requests(), max_size=6), LASTS, st.lists(st.integers(1, 20_000), max_size=12))
def test_any_split_gives_the_same_answers(first: list[bytes], last: bytes, cuts: list[int]) -> None:
    """Of bodies that are read, in part or whole, and passed over; each request has one, and nothing is kept."""
    stream = b"".join(first) + last
    whole = exchange([stream])
    assert whole[0].count(b"HTTP/1.1 200 OK\r\n") == len(first) + 1 and whole[1]
    assert exchange(split(stream, {cut % len(stream) for cut in cuts} - {0})) == whole
    assert exchange(split(stream, set(range(1, min(2000, len(stream)))))) == whole


@given(st.lists(st.one_of(st.none(), st.integers(1, SEGMENT)), max_size=200), st.booleans())
def test_what_waits_for_the_reader_is_bounded(steps: list[int | None], sized: bool) -> None:
    """Whatever comes between two reads (None): at most `AHEAD` and a segment, and each byte is read once, in order."""
    length = sum(step for step in steps if step is not None)
    head = b"content-length: %d\r\n" % length if sized else b""
    site = Site(paced=True)
    site.server.dataReceived(b"PUT /all HTTP/1.1\r\n%b\r\n" % head)
    sent, numbers = b"", iter(range(1 << 30))
    for step in steps:
        if step is None:
            site.go_on()
        else:
            data = (b"%d," % next(numbers) * step)[:step]
            while site.transport.producerState == "paused":
                assert site.buffered > AHEAD // 2
                site.go_on()
            site.server.dataReceived(data)
            sent += data
        assert site.buffered <= AHEAD + SEGMENT
    if not sized:
        site.server.readConnectionLost()
    for _ in range(len(steps) + 2):
        site.go_on()
    assert b"".join(site.read) == sent
    if site.transport.producer is not None:
        site.transport.producer.resumeProducing()
    assert site.transport.value().startswith(b"HTTP/1.1 200 OK\r\n") and site.buffered == 0


@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=5), st.integers(0, 8))
def test_a_pebibyte_that_is_cut_at_its_end_is_read_to_there(data: bytes, cuts: list[int], reads: int) -> None:
    """Then the reader hears of the cut, whether it was waiting or behind."""
    site = Site(paced=True)
    stream = b"PUT /all HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (1 << 50) + data
    for segment in split(stream, {cut % len(stream) for cut in cuts} - {0}):
        site.server.dataReceived(segment)
    for _ in range(reads):
        site.go_on()
    site.server.connectionLost(Failure(ConnectionDone()))
    for _ in range(10):
        site.go_on()
    assert b"".join(site.read) == data and site.cut


@given(st.integers(0, 4 * AHEAD), st.integers(0, 4 * AHEAD), st.booleans())
def test_an_early_error_reaches_a_client_that_still_sends(before: int, after: int, sized: bool) -> None:
    """After however many bytes it comes: it is sent at once, and what comes then is dropped."""
    length = before + after + SHORT + 1
    head = b"content-length: %d" % length if sized else b"transfer-encoding: chunked"
    site = Site(paced=True)
    site.server.dataReceived(b"PUT /some HTTP/1.1\r\n%b\r\n\r\n" % head)
    if not sized:
        site.server.dataReceived(b"%x\r\n" % length)
    sent = 0
    while sent < before and site.transport.producerState == "producing":
        site.server.dataReceived(bytes(min(SEGMENT, before - sent)))
        sent += min(SEGMENT, before - sent)
    site.go_on()
    site.server.dataReceived(b"x")
    assert site.transport.value().startswith(b"HTTP/1.1 200 OK\r\nconnection: close\r\n")
    for _ in range(after // SEGMENT):
        assert site.transport.producerState == "producing"
        site.server.dataReceived(bytes(SEGMENT))
    assert site.buffered == 0 and not site.transport.disconnecting
