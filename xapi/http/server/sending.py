"""Sending without asking first.

Twisted would ask epoll whether the socket is writable, and send in a later turn: two system calls and a turn more for
what nearly always goes out now. Where thousands are sent something at a time, their sockets would stand before that of
a small call.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import tcp, unix

PLAIN = (tcp.Server, unix.Server)
"""Transports without a layer between them and the socket: not TLS, not those of tests."""


def is_plain(wire: Any) -> bool:
    """Tell whether what a transport is given goes to the socket as it is."""
    return type(wire) in PLAIN


def send(wire: Any, data: bytes) -> bool:
    """Write to a transport, at once where its socket takes it; tell whether that has taken all."""
    if type(wire) in PLAIN and not wire.dataBuffer and not wire._tempDataBuffer and not wire.disconnecting:
        try:
            sent = wire.socket.send(data)
        except OSError:  # full, or gone: the transport finds out and tells
            sent = 0
        if sent == len(data):
            return True
        data = data[sent:]
    wire.write(data)
    return False
