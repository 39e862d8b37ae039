"""What is sent past the reactor: all of it, in order, whatever the socket takes."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import tcp, unix
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOProtocol

from xapi.http.server import sending
from xapi.http.server.sending import is_plain, send


class Wire:
    """A transport whose socket takes so many bytes at a time, or fails; what it cannot send at once it buffers."""

    def __init__(self, room: int | OSError) -> None:
        self.dataBuffer = b""
        self._tempDataBuffer: list[bytes] = []
        self.disconnecting = False
        self.socket = self
        self.room = room
        self.sent = b""

    def send(self, data: bytes) -> int:
        if isinstance(self.room, OSError):
            raise self.room
        self.sent += data[: self.room]
        return min(len(data), self.room)

    def write(self, data: bytes) -> None:
        self._tempDataBuffer.append(data)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wires count as transports that have nothing above their socket."""
    monkeypatch.setattr(sending, "PLAIN", (*sending.PLAIN, Wire))


@pytest.mark.parametrize(
    ("room", "sent", "left"),
    [(9, b"hello", []), (5, b"hello", []), (2, b"he", [b"llo"]), (OSError(), b"", [b"hello"])],
    ids=["all", "just all", "some", "none"],
)
def test_what_the_socket_does_not_take_waits_in_the_transport(room: Any, sent: bytes, left: list[bytes]) -> None:
    """And whoever asks is told."""
    wire = Wire(room)
    assert send(wire, b"hello") is (not left)
    assert (wire.sent, wire._tempDataBuffer) == (sent, left)


@pytest.mark.parametrize("state", [{"dataBuffer": b"a"}, {"_tempDataBuffer": [b"a"]}, {"disconnecting": True}])
def test_nothing_overtakes_what_waits(state: dict[str, Any]) -> None:
    """Nor is anything sent behind the end."""
    wire = Wire(9)
    vars(wire).update(state)
    assert not send(wire, b"hello")
    assert wire.sent == b""
    assert wire._tempDataBuffer[-1] == b"hello"


def test_only_what_has_nothing_above_its_socket_is_plain() -> None:
    """TLS has its own idea of what a byte is."""
    assert is_plain(object.__new__(tcp.Server))
    assert is_plain(object.__new__(unix.Server))
    assert not is_plain(object.__new__(TLSMemoryBIOProtocol))
    transport = StringTransport()
    assert not is_plain(transport)
    assert not send(transport, b"hello")
    assert transport.value() == b"hello"
