"""HTTP bytes in, HTTP bytes out: the RPC application over a transport in memory and a pool in memory."""

from __future__ import annotations

import http.client
import io
import json
import xmlrpc.client
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.api.storage_pool import Disks, Threads, fit
from tests.conftest import Pool
from xapi.datamodel.lexical import escape
from xapi.http.routes import Routes
from xapi.http.server.factory import HTTPFactory
from xapi.http.server.protocol import HTTPServer

LOST = Failure(ConnectionDone())


class Answer(NamedTuple):
    """One HTTP answer: status, headers in order with lower-case names, and body."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    def value(self) -> Any:
        """Return the Value of an XML-RPC success."""
        ((struct,), _) = xmlrpc.client.loads(self.body)
        assert isinstance(struct, dict)
        assert struct["Status"] == "Success", struct
        return struct["Value"]

    def error(self) -> list[str]:
        """Return the ErrorDescription of an XML-RPC failure."""
        ((struct,), _) = xmlrpc.client.loads(self.body)
        assert isinstance(struct, dict)
        assert struct["Status"] == "Failure", struct
        description: list[str] = struct["ErrorDescription"]
        return description

    def json(self) -> Any:
        return json.loads(self.body)


class _Lines:
    """What http.client reads an answer from."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def makefile(self, mode: str) -> io.BytesIO:
        return self.file


def parse(data: bytes) -> Answer:
    """Read one whole answer."""
    response = http.client.HTTPResponse(_Lines(data))  # type: ignore[arg-type]
    response.begin()
    headers = [(name.lower(), value) for name, value in response.getheaders()]
    return Answer(response.status, headers, response.read())


class Connection:
    """One client's connection to the application."""

    def __init__(self, pool: Pool, peer: Any = None) -> None:
        self.pool = pool
        self.transport = StringTransport(peerAddress=peer)
        self.server: HTTPServer = HTTPFactory(Routes(pool.daemon.subsystems), pool.clock).buildProtocol(None)
        Protocol.makeConnection(self.server, self.transport)

    def send(self, data: bytes) -> bytes:
        """Deliver bytes, let the reactor turn, and return what was written."""
        self.server.dataReceived(data)
        return self.take()

    def take(self) -> bytes:
        """Return what was written since the last time, pulling what wants to be pulled."""
        self.pool.turn()
        while self.transport.producer is not None:
            self.transport.producer.resumeProducing()
            self.pool.turn()
        written: bytes = self.transport.value()
        self.transport.clear()
        return written

    def answer(self) -> Answer:
        """Return the answer that has come by now."""
        data = self.take()
        assert data, "there is no answer yet"
        return parse(data)

    def post(self, body: bytes, path: str = "/", **headers: str) -> Answer:
        """Send a POST request and return its answer."""
        return parse(self.send(request(body, path, **headers)))

    def ask(self, name: str, *params: str, **headers: str) -> Answer:
        """Call a method by XML-RPC with values that are XML already."""
        return self.post(call(name, *params), **headers)

    def json(self, name: str, *params: Any, version: str | None = "2.0", path: str = "/jsonrpc") -> Any:
        """Call a method by JSON-RPC and return the answer's object."""
        message = {"method": name, "params": params, "id": 1} | ({"jsonrpc": version} if version else {})
        return self.post(json.dumps(message).encode(), path).json()

    def lose(self) -> None:
        """Let the client go away."""
        self.server.connectionLost(LOST)


def request(body: bytes, path: str = "/", method: str = "POST", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: h", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def text(value: str) -> str:
    """Return a string as an untyped XML-RPC value."""
    return f"<value>{escape(value)}</value>"


def call(name: str, *params: str) -> bytes:
    """Return an XML-RPC call of values that are XML already, as the simplest clients write it."""
    body = "".join(f"<param>{param}</param>" for param in params)
    return (
        f'<?xml version="1.0"?><methodCall><methodName>{name}</methodName><params>{body}</params></methodCall>'
    ).encode()


@pytest.fixture
def connect(pool: Pool) -> Callable[..., Connection]:
    return lambda **more: Connection(pool, **more)


@pytest.fixture
def wire(pool: Pool) -> Connection:
    return Connection(pool)


@pytest.fixture
def session(pool: Pool) -> str:
    """Root's session as an XML-RPC value."""
    return text(pool.session)


@pytest.fixture
def disks(pool: Pool) -> Disks:
    """A fresh pool whose hosts have storage."""
    return fit(pool, Threads())
