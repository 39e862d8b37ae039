"""Fixtures of the client tests: the daemon as a process, and the published Python client."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.clients.daemon import Daemon


class _UnixConnection(http.client.HTTPConnection):
    """XenAPI's own class makes the path of the host name, where `_` stands for `/`; ours may hold `_`."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self.path))


class UnixTransport(XenAPI.UDSTransport):  # type: ignore[misc]
    """XenAPI's transport for xapi_local(), to a socket of any path."""

    _connection: tuple[str | None, _UnixConnection | None]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def make_connection(self, host: str) -> _UnixConnection:
        known, connection = self._connection
        if connection is None or host != known:
            connection = _UnixConnection(self.path)
            self._connection = host, connection
        return connection


class Clients:
    """Makes clients of one daemon, and closes them when the test is over."""

    def __init__(self) -> None:
        self._made: list[Any] = []

    def __call__(self, uri: str | Path) -> Any:
        """Return a XenAPI session, not logged in, with an address or a Unix socket."""
        if isinstance(uri, Path):
            client = XenAPI.Session("http://local/", transport=UnixTransport(uri))
        else:
            client = XenAPI.Session(uri, ignore_ssl=uri.startswith("https"))
        self._made.append(client)
        return client

    def root(self, daemon: Daemon, password: str = "xenroot") -> Any:
        """Return a session in which root is logged in over HTTP."""
        client = self(daemon.http)
        client.login_with_password("root", password)
        return client

    def plain(self, uri: str) -> Any:
        """Return a bare XML-RPC client, which sees the Status struct."""
        client = xmlrpc.client.ServerProxy(uri, allow_none=True)
        self._made.append(client)
        return client

    def close(self) -> None:
        for client in self._made:
            client("close")()


@pytest.fixture
def clients() -> Iterator[Clients]:
    made = Clients()
    yield made
    made.close()


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon with a fresh pool, HTTP, HTTPS and a Unix socket, for all tests that only use it."""
    running = Daemon(tmp_path_factory.mktemp("x"), "--tls", "127.0.0.1:0").ready()
    yield running
    log = running.stop()
    assert not [line for line in log if "#error]" in line or "#critical]" in line or "Traceback" in line]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons; those that still run at the end are killed."""
    started: list[Daemon] = []

    def run(*options: str, state: Path | None = None, **more: Any) -> Daemon:
        made = Daemon(state or tmp_path / "state", *options, **more)
        started.append(made)
        return made

    yield run
    for made in started:
        if made.process.returncode is None:
            made.kill()


@pytest.fixture
def session(daemon: Daemon, clients: Clients) -> Any:
    """Root's session over HTTP."""
    return clients.root(daemon)
