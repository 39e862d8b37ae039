"""Who waits for the daemon hears of it: files, descriptors, standard output and systemd's socket."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from xapi.process import config
from xapi.process.config import ConfigError
from xapi.process.readiness import Readiness

ADDRESSES = ["http://0.0.0.0:81/", "http://127.0.0.1:80/", "https://[::]:443/", "unix:/s/xapi"]
TOLD = {
    "url": "http://127.0.0.1:81",
    "https_url": "https://[::1]:443",
    "socket": "/s/xapi",
    "addresses": ADDRESSES,
    "pid": os.getpid(),
    "version": config.version(),
}


class Manager:
    """A service manager's socket, real."""

    def __init__(self, address: str) -> None:
        self.wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.wire.bind(address)
        self.wire.setblocking(False)

    def heard(self) -> list[str]:
        """Return what has been said since the last time."""
        said = []
        while True:
            try:
                said.append(self.wire.recv(4096).decode())
            except BlockingIOError:
                return said


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Callable[[str], Manager]]:
    made: list[Manager] = []

    def manager(address: str) -> Manager:
        made.append(Manager(address))
        return made[-1]

    yield manager
    for each in made:
        each.wire.close()


def readiness(clock: Clock, said: list[str] | None = None, environment: Any = None, **settings: Any) -> Readiness:
    """Return what tells, with settings and what it says on standard output."""
    lines = [] if said is None else said
    return Readiness(config.make({"state": "/s", **settings}), clock, lines.append, environment or {})


@pytest.mark.parametrize("form", ["path", "abstract"])
def test_systemd_hears_that_it_starts_serves_lives_and_ends(
    managed: Callable[[str], Manager], tmp_path: Path, form: str
) -> None:
    """By the protocol of sd_notify, with a watchdog twice in its time; of both kinds of addresses."""
    path = str(tmp_path / "notify") if form == "path" else f"kronos-test-{os.getpid()}"
    manager = managed(path if form == "path" else "\0" + path)
    address = path if form == "path" else "@" + path
    clock = Clock()
    watched = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    told = readiness(clock, environment=watched)
    assert manager.heard() == ["STATUS=Starting"]
    clock.advance(10)
    assert manager.heard() == []
    told.serves(ADDRESSES, Path("/s/xapi"))
    assert manager.heard() == [f"READY=1\nSTATUS=Serving {' '.join(ADDRESSES)}", "WATCHDOG=1"]
    clock.advance(1.5)
    assert manager.heard() == ["WATCHDOG=1"]
    told.stopService()
    assert manager.heard() == ["STOPPING=1\nSTATUS=Stopping"]
    clock.advance(10)
    assert manager.heard() == []


@pytest.mark.parametrize(
    "more", [{}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "none"}], ids=str
)
def test_a_watchdog_that_is_not_ours_hears_nothing(
    managed: Callable[[str], Manager], tmp_path: Path, more: dict[str, str]
) -> None:
    """As when there is none."""
    manager = managed(str(tmp_path / "notify"))
    clock = Clock()
    told = readiness(clock, environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), **more})
    told.serves(ADDRESSES, Path("/s/xapi"))
    clock.advance(10)
    assert [line for line in manager.heard() if "WATCHDOG" in line] == []


def test_a_service_manager_that_has_gone_is_no_error(tmp_path: Path) -> None:
    """Nor one that never was."""
    said: list[str] = []
    told = readiness(Clock(), said, {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    told.serves(ADDRESSES, Path("/s/xapi"))
    told.stopService()
    assert said == [f"Ready: {' '.join(ADDRESSES)}"]


def test_the_file_is_there_while_the_daemon_serves(tmp_path: Path) -> None:
    """What an earlier daemon has left goes before; addresses of all interfaces are told as loopback's."""
    path = tmp_path / "ready"
    path.write_text("old")
    told = readiness(Clock(), ready_file=path)
    assert list(tmp_path.iterdir()) == []
    told.serves(ADDRESSES, Path("/s/xapi"))
    assert json.loads(path.read_text()) == TOLD
    assert list(tmp_path.iterdir()) == [path]
    told.stopService()
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_another_daemon_stays(tmp_path: Path) -> None:
    """One that ends without having served removes nothing."""
    told = readiness(Clock(), ready_file=tmp_path / "ready")
    (tmp_path / "ready").write_text("of another")
    told.stopService()
    assert (tmp_path / "ready").read_text() == "of another"


def test_the_descriptor_gets_a_line_and_is_closed() -> None:
    """So that who reads it to its end goes on."""
    reads, writes = os.pipe()
    told = readiness(Clock(), ready_fd=writes)
    told.serves(ADDRESSES, Path("/s/xapi"))
    with open(reads, "rb") as file:
        assert json.loads(file.read()) == TOLD
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writes)


def test_nobody_at_the_descriptor_s_other_end_is_no_error() -> None:
    """Who gave up waiting does not end the daemon."""
    reads, writes = os.pipe()
    os.close(reads)
    told = readiness(Clock(), ready_fd=writes)
    told.serves(ADDRESSES, Path("/s/xapi"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writes)


def test_what_cannot_be_written_is_told_before_the_start(tmp_path: Path) -> None:
    """In one line that names the setting."""
    reads, writes = os.pipe()
    os.close(writes)
    with pytest.raises(ConfigError, match=f"^ready_fd {reads}: Bad file descriptor$"):
        readiness(Clock(), ready_fd=reads)
    os.close(reads)
    with pytest.raises(ConfigError, match=f"^{tmp_path}/none/ready: No such file or directory$"):
        readiness(Clock(), ready_file=tmp_path / "none" / "ready")
    with pytest.raises(ConfigError, match=f"^{tmp_path}: Is a directory$"):
        readiness(Clock(), ready_file=tmp_path)
