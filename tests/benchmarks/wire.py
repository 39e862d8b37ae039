"""Requests as bytes, built before anything is timed, and a blocking connection for what is not timed."""

from __future__ import annotations

import socket
import xmlrpc.client
from typing import Any

COUNTER = b"00000000"
"""What a load client replaces by a number of eight digits, so that each call changes something."""
NOTHING_LEFT = b"the server closed the connection"


def request(method: str, *params: Any) -> bytes:
    """Return a whole HTTP request as Python's xmlrpc.client would send it."""
    body = xmlrpc.client.dumps(params, method).encode()
    head = (
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: identity\r\nContent-Type: text/xml\r\n"
        f"User-Agent: Python-xmlrpc/3\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answer_size(data: bytes | bytearray) -> int:
    """Return the size of the answer whose start is given, head included, or 0 if its head is not whole yet.

    Raises ValueError for what is no answer of status 200 with a length.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = bytes(data[:end]).lower()
    start = head.find(b"\r\ncontent-length:")
    if not head.startswith(b"http/1.1 200") or start < 0:
        raise ValueError(f"not an answer with a length: {head[:200]!r}")
    return end + 4 + int(head[start + 17 :].split(b"\r\n", 1)[0])


class Connection:
    """One kept-alive connection to a server on loopback."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(2**20)

    def exchange(self, data: bytes) -> bytes:
        """Send a request and return the body of the answer."""
        self.socket.sendall(data)
        got = bytearray()
        while not (size := answer_size(got)) or len(got) < size:
            part = self.socket.recv(2**20)
            if not part:
                raise ConnectionError(NOTHING_LEFT)
            got += part
        return bytes(got[got.find(b"\r\n\r\n") + 4 : size])

    def drain(self, data: bytes) -> int:
        """Send a request, read the answer into one reused buffer, and return the answer's size."""
        self.socket.sendall(data)
        buffer = self._buffer
        got = self.socket.recv_into(buffer)
        size = answer_size(buffer[:4096])
        while got < size:
            part = self.socket.recv_into(buffer)
            if not part:
                raise ConnectionError(NOTHING_LEFT)
            got += part
        return size

    def call(self, method: str, *params: Any) -> Any:
        """Call a message of XenAPI and return its value. Raises RuntimeError for a failure."""
        answer: Any = xmlrpc.client.loads(self.exchange(request(method, *params)).decode())[0][0]
        if answer["Status"] != "Success":
            raise RuntimeError(f"{method}: {answer['ErrorDescription']}")
        return answer["Value"]

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
