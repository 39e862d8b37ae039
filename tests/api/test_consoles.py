"""Consoles over HTTP: who gets one, and the bytes that go both ways; the guest is a fake."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport

from tests.api.test_power import make_vm
from tests.conftest import Pool
from xapi.handlers.console import PATIENCE
from xapi.http.routes import Routes
from xapi.http.server.factory import HTTPFactory


class Wire:
    """A connection to the daemon."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.transport = StringTransport()
        self.protocol = HTTPFactory(Routes(pool.daemon.subsystems), pool.clock).buildProtocol(None)
        Protocol.makeConnection(self.protocol, self.transport)

    def send(self, data: bytes) -> bytes:
        """Send bytes; return what came back since the last time."""
        self.protocol.dataReceived(data)
        self.pool.turn()
        found: bytes = self.transport.value()
        self.transport.clear()
        return found

    def connect(self, query: str, *headers: str, version: str = "1.0") -> bytes:
        lines = [f"CONNECT /console?{query} HTTP/{version}", "Host: h", *headers, "", ""]
        return self.send("\r\n".join(lines).encode())


@pytest.fixture
def vm(pool: Pool) -> Any:
    row = make_vm(pool)
    pool("VM.start", row._ref, False, False)
    return row


@pytest.fixture
def wire(pool: Pool) -> Wire:
    return Wire(pool)


def text_console(pool: Pool, vm: Any) -> Any:
    return next(row for row in map(pool.db.console.__getitem__, vm.consoles) if row.protocol == "vt100")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_terminal_shows_and_takes_bytes(pool: Pool, vm: Any, wire: Wire, version: str) -> None:
    """After 200 and a blank line there is no HTTP any more."""
    uuid = text_console(pool, vm).uuid
    answer = wire.connect(f"uuid={uuid}&session_id={pool.session}", version=version)
    assert answer == b"HTTP/1.1 200 OK\r\n\r\n" + b"earlier demo> "
    assert wire.send(b"GET / HTTP/1.1\r\n\r\n") == b""
    assert pool.backend.typed == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("what", ["console", "VM"])
def test_a_reference_names_the_text_console(pool: Pool, vm: Any, wire: Wire, what: str) -> None:
    """Of a console or of a VM; the session may be a cookie."""
    ref = vm._ref if what == "VM" else text_console(pool, vm)._ref
    assert wire.connect(f"ref={ref}", f"Cookie: a=b; session_id={pool.session}").startswith(b"HTTP/1.1 200")


def test_basic_credentials_do_for_one_request(pool: Pool, vm: Any, wire: Wire) -> None:
    """No session is left behind."""
    before = len(pool.db.session)
    token = b64encode(b"root:xenroot").decode()
    assert wire.connect(f"ref={vm._ref}", f"Authorization: Basic {token}").startswith(b"HTTP/1.1 200")
    assert len(pool.db.session) == before


@pytest.mark.parametrize("headers", [(), ("Cookie: session_id=OpaqueRef:none",), ("Authorization: Basic %%%",)])
def test_nobody_gets_in_without_a_session(pool: Pool, vm: Any, wire: Wire, headers: tuple[str, ...]) -> None:
    """Nor learns what there is."""
    assert wire.connect("uuid=x", *headers).startswith(b"HTTP/1.1 401 Unauthorized")
    assert b"earlier" not in wire.connect(f"ref={vm._ref}", *headers)


def test_a_role_below_vm_operator_gets_none(pool: Pool, vm: Any, wire: Wire) -> None:
    """As for every handler of its role."""
    with pool.db.atomic():
        session = pool.db.session.create(rbac_permissions=("vm.start",), is_local_superuser=False)
    assert wire.connect(f"ref={vm._ref}&session_id={session._ref}").startswith(b"HTTP/1.1 403")


def test_what_has_no_terminal_is_not_found(pool: Pool, vm: Any) -> None:
    """An unknown console, and that of a VM that has halted."""
    console = text_console(pool, vm)._ref
    assert Wire(pool).connect(f"uuid=x&session_id={pool.session}").startswith(b"HTTP/1.1 404")
    pool("VM.hard_shutdown", vm._ref)
    assert Wire(pool).connect(f"ref={console}&session_id={pool.session}").startswith(b"HTTP/1.1 404")


def test_a_screen_is_not_served_yet(pool: Pool, vm: Any, wire: Wire) -> None:
    """It says so."""
    screen = next(ref for ref in vm.consoles if pool.db.console[ref].protocol == "rfb")
    assert wire.connect(f"ref={screen}&session_id={pool.session}").startswith(b"HTTP/1.1 501")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("typed", [b"early", b"GET / HTTP/1.1\r\n\r\n", b"\0\xff" * 20_000])
def test_what_comes_behind_the_request_is_typed(pool: Pool, vm: Any, wire: Wire, version: str, typed: bytes) -> None:
    """A client need not wait for the answer; wherever its bytes are cut, none gets lost."""
    request = f"CONNECT /console?ref={vm._ref}&session_id={pool.session} HTTP/{version}\r\n\r\n".encode()
    assert wire.send(request + typed).startswith(b"HTTP/1.1 200 OK\r\n\r\nearlier")
    assert pool.backend.typed == typed
    for cut in (1, len(request) - 2, len(request) - 1, len(request) + 3):
        other = Wire(pool)
        pool.backend.typed = b""
        other.protocol.dataReceived((request + typed)[:cut])
        other.send((request + typed)[cut:])
        assert pool.backend.typed == typed


def test_what_comes_behind_a_refused_request_is_http(pool: Pool, vm: Any, wire: Wire) -> None:
    """The connection was not taken over."""
    request = f"CONNECT /console?uuid=x&session_id={pool.session} HTTP/1.1\r\n\r\nGET /nothing HTTP/1.1\r\n\r\n"
    answers = wire.send(request.encode())
    assert answers.count(b"HTTP/1.1 404") == 2 and pool.backend.typed == b""


def test_the_end_of_the_domain_ends_the_connection(pool: Pool, vm: Any, wire: Wire) -> None:
    """After all output, whoever ends it; and what is typed then nobody hears."""
    wire.connect(f"ref={vm._ref}&session_id={pool.session}")
    pool("VM.hard_shutdown", vm._ref)
    wire.protocol.dataReceived(b"late")
    pool.turn()
    assert wire.transport.disconnecting and pool.backend.typed == b"" and pool.backend.followers == 0


def test_the_console_of_a_rebooted_vm_is_another_connection(pool: Pool, vm: Any, wire: Wire) -> None:
    """As on XenServer: the first one ends, and what is typed into a new one the new domain gets."""
    wire.connect(f"ref={vm._ref}&session_id={pool.session}")
    pool("VM.hard_reboot", vm._ref)
    pool.turn()
    assert wire.transport.disconnecting
    again = Wire(pool)
    assert again.connect(f"ref={vm._ref}&session_id={pool.session}").startswith(b"HTTP/1.1 200")
    again.send(b"new")
    assert pool.backend.typed == b"new"


def test_typing_waits_for_room(pool: Pool, vm: Any, wire: Wire) -> None:
    """The client is read no further meanwhile, and nothing gets lost."""
    wire.connect(f"ref={vm._ref}&session_id={pool.session}")
    pool.backend.room = 3
    wire.send(b"0123456789")
    assert pool.backend.typed == b"012" and wire.transport.producerState == "paused"
    wire.send(b"abc")
    pool.backend.room = 4
    pool.backend.tell_consoles()
    assert pool.backend.typed == b"0123456" and wire.transport.producerState == "paused"
    pool.backend.room = 100
    pool.backend.tell_consoles()
    assert pool.backend.typed == b"0123456789abc" and wire.transport.producerState == "producing"
    pool.clock.advance(PATIENCE + 1)
    assert not wire.transport.disconnected


def test_typing_for_which_there_is_no_room_is_cut(pool: Pool, vm: Any, wire: Wire) -> None:
    """A guest that reads nothing holds nobody's connection for ever."""
    wire.connect(f"ref={vm._ref}&session_id={pool.session}")
    pool.backend.room = 0
    wire.send(b"x")
    pool.clock.advance(PATIENCE - 1)
    assert not wire.transport.disconnected
    pool.clock.advance(2)
    assert wire.transport.disconnected


def test_a_client_that_goes_away_is_followed_no_more(pool: Pool, vm: Any, wire: Wire) -> None:
    """Nothing waits for it."""
    from twisted.internet.error import ConnectionDone
    from twisted.python.failure import Failure

    wire.connect(f"ref={vm._ref}&session_id={pool.session}")
    assert pool.backend.followers == 1
    wire.protocol.connectionLost(Failure(ConnectionDone()))
    pool.turn()
    assert pool.backend.followers == 0
