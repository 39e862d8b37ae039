"""`xapi-host` as a real process: who may reach it, how it ends, and that it outlives whoever started it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint

from hypervisor.api import Backend, Power
from tests.clients.daemon import CHECKOUT
from tests.contract.hosts import DEMO, MEMORY, UUID, Heard
from xapi.host.remote import RemoteBackend
from xapi.host.wire.tls import mutual
from xapi.host.workers import WorkerEndpoint
from xapi.testing.reactor_thread import running_reactor, wait_for

SECONDS = 30
BACKEND = ("--memory", str(MEMORY), "--pcpus", "1")


class Worker:
    """A worker as somebody's child."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xapi.host.worker", *options, *BACKEND], cwd=CHECKOUT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ready(self) -> str:
        """Wait until it serves; return where."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Ready: "), self.ended()
        return line.removeprefix("Ready: ").strip()

    def ended(self) -> tuple[int, str]:
        """Wait until it has ended; return its status and what it said."""
        _, said = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, said


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path: sockets are in it."""
    with TemporaryDirectory(prefix="w-") as directory:
        yield Path(directory)


@pytest.fixture
def run(place: Path) -> Iterator[Callable[..., Worker]]:
    """Start workers, which end with the test."""
    made: list[Worker] = []

    def start(*options: str) -> Worker:
        made.append(Worker(*options))
        return made[-1]

    yield start
    for worker in made:
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.communicate(timeout=SECONDS)


class Toolstack:
    """A client of a host, on the reactor's thread."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self.heard = Heard()
        self.backend = cast("Backend", RemoteBackend(endpoint, running_reactor()))

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something and return its result."""
        reactor = running_reactor()
        return wait_for(reactor, lambda: Deferred.fromCoroutine(work).addTimeout(SECONDS, reactor))

    def start(self) -> Toolstack:
        """Reach the host, or not."""
        self.do(self.backend.start(self.heard))
        return self


def at(path: Path) -> Toolstack:
    return Toolstack(UNIXClientEndpoint(running_reactor(), str(path)))


def test_a_worker_is_its_users_alone_and_the_only_one(place: Path, run: Callable[..., Worker]) -> None:
    """By the modes of its directory and socket, and by a lock; it has a session of its own."""
    path = place / "host" / "socket"
    first = run("--socket", str(path), "--log-file", str(place / "log"))
    assert first.ready() == f"unix:{path}"
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path)] == [0o700, 0o600]
    assert os.getsid(first.process.pid) == first.process.pid
    status, said = run("--socket", str(path)).ended()
    assert (status, said) == (1, f"xapi-host: {path}: another process ({first.process.pid}) serves there\n")
    place.chmod(0o755)
    status, said = run("--socket", str(place / "socket")).ended()
    assert status == 1 and "is not this user's alone" in said
    assert "ready: unix:" in (place / "log").read_text()


def test_a_worker_that_is_told_to_stop_ends_its_guests_first(place: Path, run: Callable[..., Worker]) -> None:
    """Whoever is connected hears of the loss."""
    worker = run("--socket", str(place / "h" / "socket"))
    worker.ready()
    toolstack = at(place / "h" / "socket").start()
    truth = toolstack.do(toolstack.backend.build(DEMO))
    assert truth.state.power is Power.RUNNING
    worker.process.send_signal(signal.SIGTERM)
    status, said = worker.ended()
    assert status == 0 and "Traceback" not in said
    toolstack.do(toolstack.backend.leave())
    assert toolstack.heard.told[0] == "up" and "lost" in toolstack.heard.told


def test_guests_go_on_while_nobody_is_connected(place: Path, run: Callable[..., Worker]) -> None:
    """The next toolstack finds them as they are."""
    worker = run("--socket", str(place / "h" / "socket"))
    worker.ready()
    first = at(place / "h" / "socket").start()
    built = first.do(first.backend.build(DEMO))
    first.do(first.backend.leave())
    second = at(place / "h" / "socket").start()
    (truth,) = second.do(second.backend.truths()).values()
    assert truth.state.domid == built.state.domid and second.heard.told[0] == "up"
    second.do(second.backend.stop())
    assert worker.ended()[0] == 0, "to stop a host ends its process"


def test_hostile_bytes_end_their_connection_and_no_other(place: Path, run: Callable[..., Worker]) -> None:
    """One line tells of it."""
    path = place / "h" / "socket"
    worker = run("--socket", str(path), "--log-file", str(place / "log"))
    worker.ready()
    toolstack = at(path).start()
    with socket.socket(socket.AF_UNIX) as hostile:
        hostile.settimeout(SECONDS)
        hostile.connect(str(path))
        hostile.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while hostile.recv(4096):
            pass
    assert toolstack.do(toolstack.backend.domains()) == ()
    toolstack.do(toolstack.backend.stop())
    worker.ended()
    assert (place / "log").read_text().count("WARNING") == 1


def test_a_worker_is_started_where_nobody_answers(place: Path) -> None:
    """And one that cannot run says why in the log of who wanted it, who looks again later."""
    reactor = running_reactor()
    endpoint = WorkerEndpoint(reactor, place / "h", BACKEND)
    toolstack = Toolstack(endpoint).start()
    assert toolstack.heard.told == ["up"]
    pid = int((place / "h" / "socket.lock").read_text())
    assert os.getsid(pid) == pid != os.getsid(0)
    toolstack.do(toolstack.backend.stop())
    toolstack.do(endpoint.ended())
    wrong = Toolstack(WorkerEndpoint(reactor, place / "w", ("--memory", "much"))).start()
    assert wrong.heard.told == ["lost"]
    with pytest.raises(Exception, match="invalid int value: 'much'"):
        wrong.do(wrong.backend.stat(UUID))
    wrong.do(wrong.backend.leave())


def pem(name: str, authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None) -> Any:
    """Return a certificate and its key, signed by an authority or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority[0].subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .sign(authority[1] if authority else key, hashes.SHA256())
    )
    return made, key


def write(path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Path:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_over_tls_both_ends_are_known_by_their_certificates(place: Path, run: Callable[..., Worker]) -> None:
    """One that another authority has signed reaches nothing."""
    ours, other = pem("ours"), pem("other")
    authority = write(place / "authority.pem", *ours)
    host = write(place / "host.pem", *pem("host", ours))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = f"127.0.0.1:{port}"
    worker = run("--listen", where, "--certificate", str(host), "--authority", str(authority))
    assert worker.ready() == where

    def client(name: str, signed: Any) -> Toolstack:
        own = write(place / f"{name}.pem", *pem(name, signed))
        endpoint = SSL4ClientEndpoint(running_reactor(), "127.0.0.1", port, mutual(own, authority))
        return Toolstack(endpoint).start()

    stranger = client("stranger", other)
    assert stranger.heard.told == ["lost"]
    stranger.do(stranger.backend.leave())
    friend = client("friend", ours)
    assert friend.do(friend.backend.free_memory()) == MEMORY
    friend.do(friend.backend.stop())
    assert worker.ended()[0] == 0
