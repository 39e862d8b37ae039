"""HTTP and TLS of a real daemon by real sockets: answers to who still sends, what TLS agrees on, many connections."""

from __future__ import annotations

import http.client
import resource
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import XenAPI

from tests.clients.daemon import Daemon

MIB = 1 << 20
FILES = 512
"""Files that the daemon may open: enough for itself, 256 connections, and as many as are accepted in one turn."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("state") / "s", "--tls", "127.0.0.1:0").ready()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def session(daemon: Daemon) -> str:
    """Root's session."""
    api = XenAPI.Session(daemon.http)
    api.login_with_password("root", "xenroot")
    api("close")()
    return str(api._session)


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connected(daemon: Daemon, scheme: str) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(urlsplit(daemon.https).netloc, timeout=30, context=unverified())
    return http.client.HTTPConnection(urlsplit(daemon.http).netloc, timeout=30)


def test_an_upload_without_a_length_that_closes_its_half_finds_the_answer(daemon: Daemon, session: str) -> None:
    """The end of what it sends is no end of the connection."""
    with socket.create_connection(("127.0.0.1", urlsplit(daemon.http).port or 0), timeout=30) as client:
        client.sendall(f"PUT /import?session_id={session} HTTP/1.0\r\n\r\n".encode() + bytes(MIB))
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 501 ") and answer.endswith(b"put_import is not implemented\n")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_sends_50_mib_before_reading_finds_the_answer(daemon: Daemon, session: str, scheme: str) -> None:
    """Not a broken pipe."""
    connection = connected(daemon, scheme)
    connection.request("PUT", f"/import?session_id={session}", body=bytes(50 * MIB))
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (501, b"put_import is not implemented\n")
    assert answer.getheader("connection") == "close"
    connection.close()


def test_a_call_that_is_too_big_finds_its_answer(daemon: Daemon) -> None:
    """The same holds for every refusal."""
    connection = connected(daemon, "http")
    connection.request("POST", "/", body=bytes(20 * MIB))
    assert connection.getresponse().status == 413
    connection.close()


def test_who_asks_before_it_sends_is_spared_the_sending(daemon: Daemon, session: str) -> None:
    """Expect: 100-continue gets the answer in its place, and the connection ends with it."""
    host, port = urlsplit(daemon.http).hostname, urlsplit(daemon.http).port
    with socket.create_connection((host, port), 30) as wire:
        wire.sendall(f"PUT /import?session_id={session} HTTP/1.1\r\nhost: h\r\ncontent-length: {50 * MIB}\r\n"
                     "expect: 100-continue\r\n\r\n".encode())  # fmt: skip
        answer = b"".join(iter(lambda: wire.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert answer.endswith(b"put_import is not implemented\n")


def handshake(daemon: Daemon, **settings: object) -> tuple[str, str]:
    """Return version and suite that a client of some settings agrees on."""
    context = unverified()
    for name, value in settings.items():
        if name == "ciphers":
            context.set_ciphers(str(value))
        else:
            setattr(context, name, value)
    host, port = urlsplit(daemon.https).hostname, urlsplit(daemon.https).port
    with socket.create_connection((host, port), 30) as wire, context.wrap_socket(wire) as secure:
        cipher = secure.cipher()
        assert cipher is not None
        return str(secure.version()), cipher[0]


@pytest.mark.parametrize("suite", ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"])
def test_suites_of_tls_1_2(daemon: Daemon, suite: str) -> None:
    """Those two that xapi takes."""
    assert handshake(daemon, maximum_version=ssl.TLSVersion.TLSv1_2, ciphers=suite) == ("TLSv1.2", suite)


OTHERS = "AES256-GCM-SHA384 AES128-SHA ECDHE-RSA-AES256-SHA384 ECDHE-RSA-CHACHA20-POLY1305 DHE-RSA-AES256-GCM-SHA384"


@pytest.mark.parametrize("suite", OTHERS.split())
def test_other_suites_of_tls_1_2_are_refused(daemon: Daemon, suite: str) -> None:
    """CBC, keys that can be had later, and what xapi does not take."""
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(daemon, maximum_version=ssl.TLSVersion.TLSv1_2, ciphers=suite)


def test_tls_1_3_is_agreed_on(daemon: Daemon) -> None:
    """By clients that can."""
    assert handshake(daemon)[0] == "TLSv1.3"


def test_more_connections_than_files_do_no_harm(tmp_path: Path) -> None:
    """Idle ones give way, by TLS too, and the daemon goes on."""
    daemon = Daemon(tmp_path / "s", "--tls", "127.0.0.1:0")
    try:
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        daemon.ready()
        addresses = [(urlsplit(url).hostname, urlsplit(url).port) for url in (daemon.http, daemon.https)]
        idle = [socket.create_connection(addresses[number % 2], 30) for number in range(2 * FILES)]
        api = XenAPI.Session(daemon.http)
        api.login_with_password("root", "xenroot")
        assert len(api.xenapi.pool.get_all()) == 1
        api("close")()
        for each in idle:
            each.close()
    finally:
        lines = daemon.stop()
    assert any("connections are taken" in line for line in lines)
    assert not any("EMFILE" in line or "Too many open files" in line for line in lines)
