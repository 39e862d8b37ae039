"""A daemon whose hosts are in workers: what is killed, cut or stopped beside what goes on, and what is true afterwards.

Each test has a real daemon, real workers and demo guests, or Debian.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon, refused
from tests.clients.guest_console import GuestConsole, LinuxConsole
from tests.clients.lab import Lab
from tests.clients.test_linux_guests import COUNT, GOES_ON
from tests.guests.conftest import build_guest

SECONDS = 60.0
CARD = "02:00:00:00:00:41"


class Pool:
    """The state of one daemon after another, with the workers that are beside them."""

    def __init__(self, state: Path, clients: Clients, *options: str) -> None:
        self.state = state
        self._clients = clients
        self.lab = self.start(*options)

    def start(self, *options: str) -> Lab:
        """Start a daemon; return it with a client."""
        self.daemon = Daemon(self.state, "--workers", *options).ready()
        self.lab = Lab(self.daemon, self._clients.root(self.daemon))
        return self.lab

    def workers(self) -> list[int]:
        """Return the ids of the processes that serve hosts, or have."""
        return [int(lock.read_text()) for lock in sorted(self.state.glob("hosts/*/socket.lock"))]

    def until(self, cls: str, is_so: Callable[[], bool]) -> None:
        """Wait until something is so of objects of a class, by their events."""
        token = ""
        while True:
            token = self.lab.xapi.event_from([cls], token, SECONDS)["token"]
            if is_so():
                return

    def kill_workers(self) -> None:
        """End them at once; they are nobody's children when their daemon has gone."""
        for pid in self.workers():
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            os.kill(pid, signal.SIGKILL)
            _wait(descriptor)


def _wait(descriptor: int) -> None:
    """Wait until a process has ended."""
    assert select.select([descriptor], [], [], SECONDS)[0]
    os.close(descriptor)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path: sockets are in it."""
    with TemporaryDirectory(prefix="p-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def pool(place: Path, clients: Clients, request: pytest.FixtureRequest) -> Iterator[Pool]:
    made = Pool(place / "s", clients, *getattr(request, "param", ()))
    try:
        yield made
        made.lab.close()
        assert not [line for line in made.daemon.lines if "#critical]" in line or "Traceback" in line]
    finally:
        made.daemon.kill()
        made.kill_workers()


def counter(shell: GuestConsole) -> int:
    return int(shell.values("counter")["counter"])


def whole(lab: Lab, vm: str) -> dict[str, Any]:
    """Return what clients see of a VM that nothing should change."""
    record = lab.xapi.VM.get_record(vm)
    metrics = lab.xapi.VM_metrics.get_record(record["metrics"])
    devices = [lab.xapi.VBD.get_currently_attached(ref) for ref in record["VBDs"]]
    devices += [lab.xapi.VIF.get_currently_attached(ref) for ref in record["VIFs"]]
    fields = ("power_state", "domid", "resident_on", "consoles", "VCPUs_at_startup", "current_operations")
    return {"devices": devices, "start": metrics["start_time"], **{name: record[name] for name in fields}}


def test_guests_do_not_notice_that_their_daemon_is_killed(pool: Pool) -> None:
    """The next one finds them as they are: records, console, counter, disk and card."""
    lab = pool.lab
    vm = lab.vm()
    lab.disk(vm)
    lab.card(vm, mac=CARD)
    lab.xapi.VM.start(vm, False, False)
    shell = lab.shell(vm)
    shell.run("fill xvda 7")
    counted = counter(shell)
    before, workers = whole(lab, vm), pool.workers()
    lab.close()
    pool.daemon.kill()
    lab = pool.start()
    assert whole(lab, vm) == before and pool.workers() == workers
    shell = lab.shell(vm)
    assert counter(shell) > counted
    assert "ok" in shell.run("check xvda 7")
    lab.xapi.VM.pause(vm)
    lab.xapi.VM.unpause(vm)
    lab.xapi.VM.clean_shutdown(vm)
    assert lab.xapi.VM.get_power_state(vm) == "Halted"


def test_a_toolstack_is_restarted_without_its_guests_unless_it_is_told_to_stop_them(pool: Pool) -> None:
    """As users of XenServer know it; the option is for who wants nothing to be left."""
    vm = pool.lab.vm()
    pool.lab.xapi.VM.start(vm, False, False)
    (worker,) = pool.workers()
    pool.lab.close()
    pool.daemon.stop()
    lab = pool.start("--stop-workers")
    assert lab.xapi.VM.get_power_state(vm) == "Running" and pool.workers() == [worker]
    descriptor = os.pidfd_open(worker)
    pool.daemon.stop()
    _wait(descriptor)


def test_a_daemon_without_workers_is_refused_while_some_run(pool: Pool) -> None:
    """Their guests would run a second time, on the same disks."""
    vm = pool.lab.vm()
    pool.lab.xapi.VM.start(vm, False, False)
    counted = counter(pool.lab.shell(vm))
    (worker,) = pool.workers()
    pool.lab.close()
    pool.daemon.stop()
    assert f"process {worker} serves a host of this pool; start with --workers" in refused(pool.state)
    assert counter(pool.start().shell(vm)) > counted


def test_a_worker_that_is_killed_takes_its_guests_along_and_comes_back(pool: Pool) -> None:
    """Records say so, and its host takes VMs again."""
    lab = pool.lab
    vm = lab.vm()
    lab.xapi.VM.start(vm, False, False)
    assert "help" in lab.shell(vm).run("help")
    (worker,) = pool.workers()
    pool.kill_workers()
    pool.until("VM", lambda: lab.xapi.VM.get_power_state(vm) == "Halted")
    lab.xapi.VM.start(vm, False, False)
    assert lab.xapi.VM.get_power_state(vm) == "Running" and pool.workers() != [worker]
    assert "help" in lab.shell(vm).run("help")


class Cut:
    """Stands at a worker's socket, and passes on what goes through until it is cut; afterwards nobody answers there."""

    def __init__(self, path: Path) -> None:
        self._path, self._real = path, path.with_name("real")
        path.rename(self._real)
        self._open: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._real))
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()

    def cut(self) -> None:
        """End what goes through."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let the worker be reached again."""
        self._real.rename(self._path)

    def close(self) -> None:
        """Close all that is open."""
        for each in self._open:
            each.close()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_RDWR)


def test_a_host_whose_socket_is_cut_keeps_its_guests_and_is_lost_until_it_is_mended(pool: Pool) -> None:
    """Nothing can be asked of it, and no second worker takes its place; then all is as it was."""
    lab = pool.lab
    vm = lab.vm()
    lab.xapi.VM.start(vm, False, False)
    counted = counter(lab.shell(vm))
    (worker,) = pool.workers()
    lab.close()
    pool.daemon.kill()
    (path,) = pool.state.glob("hosts/*/socket")
    between = Cut(path)
    lab = pool.start()
    metrics = lab.xapi.host.get_metrics(lab.xapi.VM.get_resident_on(vm))
    assert counter(lab.shell(vm)) > counted
    between.cut()
    pool.until("host_metrics", lambda: not lab.xapi.host_metrics.get_live(metrics))
    assert lab.xapi.VM.get_power_state(vm) == "Running"
    for operation in ("pause", "hard_shutdown"):
        with pytest.raises(XenAPI.Failure, match="HOST_OFFLINE"):
            getattr(lab.xapi.VM, operation)(vm)
    pool.daemon.wait_for("another process")
    between.mend()
    pool.until("host_metrics", lambda: bool(lab.xapi.host_metrics.get_live(metrics)))
    between.close()
    assert pool.workers() == [worker] and counter(lab.shell(vm)) > counted
    lab.xapi.VM.pause(vm)
    assert lab.xapi.VM.get_power_state(vm) == "Paused"


@pytest.mark.parametrize("pool", [("--hosts", "2")], indirect=True, ids=["two hosts"])
def test_guests_of_two_workers_are_on_one_lan_and_each_worker_is_alone(pool: Pool) -> None:
    """The address service is one's, and the other's when that one is killed; the daemon has no part in it."""
    lab = pool.lab
    vms = [lab.vm(f"guest {number}") for number in range(2)]
    for vm, host in zip(vms, lab.xapi.host.get_all(), strict=True):
        lab.card(vm)
        lab.xapi.VM.start_on(vm, host, False, False)
    first, second = (lab.address(vm) for vm in vms)
    assert first != second and len(set(pool.workers())) == 2
    assert "received: 3" in lab.shell(vms[0]).run(f"ping {second} 3")
    uuid = lab.xapi.host.get_uuid(lab.xapi.VM.get_resident_on(vms[0]))
    os.kill(int((pool.state / "hosts" / uuid / "socket.lock").read_text()), signal.SIGKILL)
    pool.until("VM", lambda: lab.xapi.VM.get_power_state(vms[0]) == "Halted")
    assert lab.xapi.VM.get_power_state(vms[1]) == "Running"
    lab.xapi.VM.start(vms[0], False, False)
    again = lab.address(vms[0])
    assert "received: 3" in lab.shell(vms[1]).run(f"ping {again} 3")


def test_the_path_of_a_workers_socket_must_not_be_too_long(tmp_path: Path) -> None:
    """It is said before anything is made."""
    state = tmp_path / ("x" * 80)
    assert "is too long a path" in refused(state, "--workers") and not state.exists()


def test_debian_goes_on_while_daemons_come_and_go(place: Path, clients: Clients) -> None:
    """An unmodified Linux with its loop, on the console of the next daemon."""
    state = place / "s"
    (state / "guests").mkdir(parents=True)
    build_guest(state / "guests")
    pool = Pool(state, clients)
    try:
        vm = pool.lab.vm("debian", "Debian Linux (direct kernel)")
        pool.lab.xapi.VM.start(vm, False, False)
        shell = LinuxConsole(pool.lab.client, pool.lab.daemon.http, vm)
        shell.run(COUNT)
        first = int(shell.run(GOES_ON).split()[-1])
        shell.close()
        pool.daemon.kill()
        pool.start()
        shell = LinuxConsole(pool.lab.client, pool.lab.daemon.http, vm)
        assert int(shell.run(GOES_ON).split()[-1]) > first
        shell.close()
    finally:
        pool.daemon.kill()
        pool.kill_workers()
