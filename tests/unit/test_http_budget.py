"""Which connections give way when there are too many."""

from __future__ import annotations

import resource
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from tests.conftest import NOW
from xapi.http.server.budget import MOST, Budget, affordable
from xapi.http.server.exchange import Intake, Request, Response, Route, Takeover
from xapi.http.server.factory import HTTPFactory
from xapi.http.server.tls import options
from xapi.process.state import State

OLD_NAMES = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
"""Twisted hands pyOpenSSL what that would rather have by another name."""
GET = b"GET / HTTP/1.1\r\n\r\n"
LOST = Failure(ConnectionDone())


class Application:
    """Answers / at once, /wait never, and hands /console over."""

    intake = Intake(1000)

    def route(self, method: str, path: str) -> Route:
        return self

    def answer(self, request: Request) -> Any:
        if request.path == "/wait":
            return Deferred()
        return Takeover(Protocol) if request.path == "/console" else Response(200, b"", None)


class Peer:
    """Who is at the other end of a connection."""

    def __init__(self, server: IProtocol) -> None:
        self._server = server
        self._transport = StringTransport()
        server.makeConnection(self._transport)

    @property
    def disconnected(self) -> bool:
        return self._transport.disconnected

    def send(self, data: bytes) -> None:
        self._server.dataReceived(data)

    def leave(self) -> None:
        self._server.connectionLost(LOST)


class Site:
    """A server with room for four."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.factory = HTTPFactory(Application(), self.clock, budget=Budget(4))

    def connect(self, sent: bytes = b"") -> Peer:
        self.clock.advance(1)
        peer = Peer(self.factory.buildProtocol(None))
        if sent:
            peer.send(sent)
        return peer


def test_the_longest_idle_gives_way() -> None:
    """Whether it has asked before or not; a request makes it young again."""
    site = Site()
    first, second, third, fourth = (site.connect(sent) for sent in (GET, b"", GET, GET))
    site.clock.advance(1)
    first.send(GET)
    site.connect()
    assert [each.disconnected for each in (first, second, third, fourth)] == [False, True, False, False]
    site.connect()
    assert third.disconnected


def test_what_is_closing_goes_before_the_idle_and_these_before_who_asks_slowly() -> None:
    """In this order, whatever their age."""
    site = Site()
    slow, idle, closing = site.connect(b"GET"), site.connect(GET), site.connect(b"garbage\r\n\r\n")
    site.connect(b"GET /wait HTTP/1.1\r\n\r\n")
    for gone in (closing, idle, slow):
        assert not gone.disconnected
        site.connect(b"GET /wait HTTP/1.1\r\n\r\n")
        assert gone.disconnected


def test_who_waits_for_an_answer_stays_and_the_newcomer_goes() -> None:
    """So does a console."""
    site = Site()
    sent = [b"GET /wait HTTP/1.1\r\n\r\n"] * 3 + [b"CONNECT /console HTTP/1.1\r\n\r\n"]
    busy = [site.connect(each) for each in sent]
    assert site.connect().disconnected
    assert not any(each.disconnected for each in busy)
    busy[0].leave()
    assert not site.connect().disconnected


def test_that_all_are_taken_is_logged_once() -> None:
    """And again only after there was room for long."""
    site = Site()
    with capturedLogs() as events:
        connected = [site.connect() for _ in range(8)]
    assert len([event for event in events if "connections are taken" in event["log_format"]]) == 1
    for each in connected:
        each.leave()
    with capturedLogs() as events:
        for _ in range(5):
            site.connect()
    assert len([event for event in events if "connections are taken" in event["log_format"]]) == 1


@pytest.mark.parametrize(("files", "most"), [(1024, 512), (1 << 20, MOST), (resource.RLIM_INFINITY, MOST)])
def test_connections_leave_half_of_the_files(monkeypatch: pytest.MonkeyPatch, files: int, most: int) -> None:
    """For disks, the database, and programs."""
    monkeypatch.setattr(resource, "getrlimit", lambda what: (files, files))
    assert affordable() == most


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    state = State(tmp_path_factory.mktemp("state") / "s")
    made = state.certificate(NOW, []).read_bytes()
    state.close()
    return made


def begun_by_tls(pem: bytes, budget: Budget) -> tuple[Clock, StringTransport]:
    """Return a connection to an HTTPS port on which nothing has been said."""
    clock, transport = Clock(), StringTransport()
    inner = HTTPFactory(Application(), clock, budget=budget)
    server: Any = TLSMemoryBIOFactory(options(pem), False, inner, clock=clock).buildProtocol(None)
    server.makeConnection(transport)
    return clock, transport


@OLD_NAMES
def test_a_connection_that_does_not_shake_hands_ends_after_a_minute(pem: bytes) -> None:
    """With nobody to say goodbye to."""
    clock, transport = begun_by_tls(pem, Budget())
    clock.advance(59)
    assert not transport.disconnected
    clock.advance(1)
    clock.advance(0)
    assert transport.disconnected


@OLD_NAMES
def test_a_connection_that_is_one_too_many_ends_before_it_shakes_hands(pem: bytes) -> None:
    """TLS costs more than a refusal."""
    _, transport = begun_by_tls(pem, Budget(0))
    assert transport.disconnected
