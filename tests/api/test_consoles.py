"""Consoles over HTTP: who gets one, and the bytes that go both ways; the guest is a fake."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from twisted.internet.testing import StringTransport

from tests.api.test_power import make_vm
from tests.conftest import Pool
from xapi.http.protocol import HTTPFactory
from xapi.http.rpc import RPC


class Wire:
    """A connection to the daemon."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.transport = StringTransport()
        self.protocol = HTTPFactory(RPC(pool.daemon), pool.clock).buildProtocol(None)
        self.protocol.makeConnection(self.transport)

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
    assert wire.connect(f"ref={vm._ref}&session_id={session._ref}").startswith(b"HTTP/1.1 401")


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


def test_bytes_before_the_answer_are_not_understood(pool: Pool, vm: Any, wire: Wire) -> None:
    """A client waits for 200; who does not is told, and nothing is typed."""
    request = f"CONNECT /console?ref={vm._ref}&session_id={pool.session} HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    assert b"400 Bad Request" in wire.send(request.encode())
    assert pool.backend.typed == b""


def test_a_client_that_goes_away_is_followed_no_more(pool: Pool, vm: Any, wire: Wire) -> None:
    """Nothing waits for it."""
    from twisted.internet.error import ConnectionDone
    from twisted.python.failure import Failure

    wire.connect(f"ref={vm._ref}&session_id={pool.session}")
    assert pool.backend.followers == 1
    wire.protocol.connectionLost(Failure(ConnectionDone()))
    pool.turn()
    assert pool.backend.followers == 0
