"""Our stations against Linux's own network stack, through a TAP device in a network namespace of its own.

Run as a program, inside `unshare -n`, this file is the experiment; as tests it looks at what came out.
Without unshare, ip, or the right to use them, the tests skip.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from hypervisor.network.endpoint import Endpoint
from hypervisor.network.frame import PLAIN
from hypervisor.network.switch import Switch
from hypervisor.network.tap import Tap
from hypervisor.network.tcp_connection import Connection
from hypervisor.network.udp import Datagram, UdpSocket

ROOT = Path(__file__).parent.parent.parent
LENGTH = int(os.environ.get("STREAM_BYTES", 4 << 20))
CHUNK = hashlib.shake_128(b"chunk").digest(1 << 20)
DEADLINE_S = 60


@pytest.fixture(scope="module", params=["offloads", "plain"])
def outcome(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Run the experiment once each way and return what it saw; plain: Linux verifies every checksum of ours."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("unshare or ip is missing")
    may = subprocess.run(["unshare", "-n", "test", "-w", "/dev/net/tun"], capture_output=True, check=False)
    if may.returncode:
        pytest.skip("no right to a network namespace or a TAP device")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["unshare", "-n", sys.executable, __file__, request.param]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=2 * DEADLINE_S)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def test_linux_answers_our_echo_and_takes_our_fragments(outcome: dict[str, Any]) -> None:
    assert [sent is not None for sent in outcome["pings"]] == [True, True]


def test_linux_fetches_a_stream_from_us_intact(outcome: dict[str, Any]) -> None:
    """Large segments, checksums that the kernel verifies or completes."""
    assert outcome["fetched"] == outcome["served"]


def test_linux_sends_us_a_stream_intact(outcome: dict[str, Any]) -> None:
    assert outcome["stored"] == outcome["served"]


def test_the_connection_ends_in_order(outcome: dict[str, Any]) -> None:
    assert outcome["left"] == ["TIME_WAIT"] or outcome["left"] == []


def test_linux_s_datagram_is_answered(outcome: dict[str, Any]) -> None:
    assert outcome["datagram"] == "HELLO" * 700


def expected_digest() -> str:
    digest = hashlib.sha256()
    for start in range(0, LENGTH, len(CHUNK)):
        digest.update(CHUNK[: LENGTH - start])
    return digest.hexdigest()


class Experiment:
    """A station at 10.9.0.1 on a switch, the host's kernel at 10.9.0.2 behind the TAP device."""

    def __init__(self) -> None:
        self.switch = Switch(time.monotonic_ns)
        self.tap = Tap(self.switch, "kronos%d")
        if "plain" in sys.argv:
            self.tap.port.offloads = PLAIN
        for command in (f"addr add 10.9.0.2/24 dev {self.tap.name}", f"link set {self.tap.name} up"):
            subprocess.run(["ip", *command.split()], check=True)
        self.station = Endpoint(self.switch, time.monotonic_ns, b"\x02\0\0\0\0\x01", IPv4Interface("10.9.0.1/24"))
        self.stored = hashlib.sha256()
        self.stored_bytes = 0
        self.station.tcp.listen(80, self.serve)
        self.station.tcp.listen(81, self.store)
        self.station.udp.bind(self.shout, 7)

    def shout(self, port: UdpSocket, got: Datagram) -> None:
        """Answer in capitals."""
        port.send(got.source, got.port, got.data.upper())

    def serve(self, connection: Connection) -> None:
        """Send `LENGTH` bytes and close."""
        sent = 0

        def feed() -> None:
            nonlocal sent
            while sent < LENGTH:
                chunk = CHUNK[sent % len(CHUNK) :][: LENGTH - sent]
                taken = connection.send(chunk)
                sent += taken
                if taken < len(chunk):
                    return
            connection.close()

        connection.writable = feed
        feed()

    def store(self, connection: Connection) -> None:
        def received(data: bytes) -> None:
            self.stored.update(data)
            self.stored_bytes += len(data)

        connection.received = received
        connection.ended = connection.close

    def step(self, *sockets: socket.socket, writing: bool = False) -> bool:
        """Move frames until one of the sockets is ready; False when it has taken too long."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            readers: list[Tap | socket.socket] = [self.tap, *([] if writing else sockets)]
            ready, writable, _ = select.select(readers, sockets if writing else [], [], 0.01)
            if self.tap in ready:
                self.tap.readable()
            now = time.monotonic_ns()
            self.switch.tick(now)
            self.station.tick(now)
            if writable or any(each in ready for each in sockets) or not sockets:
                return True
        return False

    def ping(self, size: int) -> int | None:
        times: list[int | None] = []
        self.station.ping(IPv4Address("10.9.0.2"), times.append, size)
        while not times:
            self.step()
        return times[0]

    def connect(self, port: int) -> socket.socket:
        stream = socket.socket()
        stream.setblocking(False)
        stream.connect_ex(("10.9.0.1", port))
        self.step(stream, writing=True)
        return stream

    def fetch(self) -> str:
        digest = hashlib.sha256()
        with self.connect(80) as stream:
            while self.step(stream) and (data := stream.recv(1 << 20)):
                digest.update(data)
        return digest.hexdigest()

    def push(self) -> str:
        with self.connect(81) as stream:
            sent = 0
            while sent < LENGTH and self.step(stream, writing=True):
                sent += stream.send(CHUNK[sent % len(CHUNK) :][: LENGTH - sent])
            stream.shutdown(socket.SHUT_WR)
            self.step(stream)
        return self.stored.hexdigest()

    def datagram(self) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
            port.sendto(b"hello" * 700, ("10.9.0.1", 7))
            return port.recv(5000).decode() if self.step(port) else ""


def main() -> None:
    experiment = Experiment()
    pings = [experiment.ping(56), experiment.ping(5000)]
    started = time.monotonic()
    fetched = experiment.fetch()
    between = time.monotonic()
    stored = experiment.push()
    ended = time.monotonic()
    result = {
        "pings": pings,
        "served": expected_digest(),
        "fetched": fetched,
        "stored": stored,
        "datagram": experiment.datagram(),
        "left": [connection.state.name for connection in experiment.station.tcp.connections],
        "fetch_mb_s": LENGTH / 1e6 / (between - started),
        "push_mb_s": LENGTH / 1e6 / (ended - between),
    }
    sys.stdout.write(json.dumps(result))
    experiment.tap.close()


if __name__ == "__main__":
    main()
