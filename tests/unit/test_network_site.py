"""Hosts of a site share their LANs, in one process and between several."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.api import Addresses, Card, Network
from hypervisor.network.frame import EVERY_OFFLOAD, GSO_TCPV4, MAX_FRAME, Frame
from hypervisor.network.peers import Peer
from hypervisor.network.port import Port, trunk
from hypervisor.network.site import Site
from hypervisor.toolstack.networks import Networks

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
EVERYBODY = b"\xff" * 6
PLAN = Addresses("192.0.2.0/24", "192.0.2.1", "192.0.2.10", "192.0.2.99")
LAN = Network("xenbr0", Card("eth0"), PLAN)


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def frame(source: int, destination: bytes, text: bytes = b"hello", **more: Any) -> Frame:
    return Frame(destination + mac(source) + b"\x88\xb5" + text.ljust(46), **more)


class Station:
    """A card on a host's network, and what it has heard."""

    def __init__(self, networks: Networks, lock: threading.RLock, name: str = "xenbr0") -> None:
        self.heard: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._lock = lock
        self.port = Port(self._hear, offloads=EVERY_OFFLOAD, membership=trunk(), mtu=65535)
        with lock:
            networks.switch(name).attach(self.port)

    def _hear(self, heard: Frame) -> bool:
        self.heard.put(heard)
        return True

    def say(self, said: Frame) -> None:
        with self._lock:
            self.port.send(said)

    def next(self) -> Frame:
        return self.heard.get(timeout=PATIENCE)


class Machine:
    """A host with its networks, and the stations on them."""

    def __init__(self, site: Site | None) -> None:
        self.lock = threading.RLock()
        self.networks = Networks(self.lock, site)
        self.networks.start()

    def up(self, *networks: Network) -> Machine:
        self.networks.bring_up(networks or (LAN,))
        return self

    def station(self, name: str = "xenbr0") -> Station:
        return Station(self.networks, self.lock, name)

    def serves(self, name: str = "xenbr0") -> bool:
        with self.lock:
            return self.networks.service(name) is not None


Make = Callable[[Site | None], Machine]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as undo:
        yield undo


@pytest.fixture
def make(stack: ExitStack) -> Make:
    def machine(site: Site | None) -> Machine:
        made = Machine(site)
        stack.callback(made.networks.stop)
        return made

    return machine


@pytest.fixture
def one(stack: ExitStack) -> Site:
    site = Site()
    stack.callback(site.close)
    return site


def part(stack: ExitStack, directory: Path) -> Site:
    """Return what a process of its own would have of a site."""
    site = Site(directory)
    stack.callback(site.close)
    return site


def test_two_hosts_hear_each_other_and_frames_stay_whole(one: Site, make: Make) -> None:
    left, right = make(one).up().station(), make(one).up().station()
    large = frame(1, EVERYBODY, b"x" * 60000, csum_start=34, csum_offset=16, gso_size=1448, gso_type=GSO_TCPV4)
    left.say(frame(1, EVERYBODY))
    assert right.next().data == frame(1, EVERYBODY).data
    right.say(frame(2, mac(1), large.data[14:]))
    assert left.next().data[14:] == large.data[14:]


def test_a_frame_for_a_known_card_goes_to_its_host_alone(one: Site, make: Make) -> None:
    stations = [make(one).up().station() for _ in range(3)]
    stations[1].say(frame(1, EVERYBODY))
    assert stations[0].next() and stations[2].next()
    stations[0].say(frame(0, mac(1), b"for one"))
    assert stations[1].next().data[14:21] == b"for one"
    stations[1].say(frame(1, EVERYBODY, b"for all"))
    assert stations[2].next().data[14:21] == b"for all"  # and nothing before it


def test_networks_without_a_card_and_other_lans_are_apart(one: Site, make: Make) -> None:
    private, other = Network("xapi0"), Network("xenbr1", Card("eth1"))
    here, there = make(one).up(LAN, private, other), make(one).up(LAN, private, other)
    heard = there.station()
    for name in ("xapi0", "xenbr1"):
        here.station(name).say(frame(1, EVERYBODY, b"elsewhere"))
    assert there.station("xenbr1").heard.empty()
    here.station().say(frame(2, EVERYBODY, b"here"))
    assert heard.next().data[14:18] == b"here"


def test_a_tag_goes_with_its_frame(one: Site, make: Make) -> None:
    left, right = make(one).up().station(), make(one).up().station()
    tagged = EVERYBODY + mac(1) + b"\x81\x00\x00\x07\x88\xb5" + bytes(46)
    left.say(Frame(tagged))
    assert right.next().data == tagged


def test_one_host_of_a_lan_serves_it_and_another_takes_over(one: Site, make: Make) -> None:
    machines = [make(one).up() for _ in range(3)]
    assert [machine.serves() for machine in machines] == [True, False, False]
    machines[0].networks.stop()
    taken: queue.SimpleQueue[bool] = queue.SimpleQueue()
    ask_who_serves(machines[1], taken)
    assert taken.get(timeout=PATIENCE)
    assert [machine.serves() for machine in machines] == [False, True, False]


def ask_who_serves(machine: Machine, answer: queue.SimpleQueue[bool]) -> None:
    """Have a station of a host ask for the service's address, again and again, until somebody says that he has it."""
    station = machine.station()
    request = b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01" + mac(9) + bytes([192, 0, 2, 50]) + bytes(6)

    def ask() -> None:
        for _ in range(200):
            station.say(Frame((EVERYBODY + mac(9) + request + bytes([192, 0, 2, 1])).ljust(60, b"\0")))
            try:
                heard = station.heard.get(timeout=0.1)
            except queue.Empty:
                continue
            if heard.data[12:14] == b"\x08\x06" and heard.data[21] == 2:
                answer.put(True)
                return

    threading.Thread(target=ask, daemon=True).start()


def test_a_host_that_is_alone_serves_its_networks_itself(make: Make) -> None:
    assert make(None).up().serves()


def test_who_gives_addresses_out_is_decided_anew_when_the_plan_changes(one: Site, make: Make) -> None:
    first, second = make(one).up(), make(one).up()
    silent = Network("xenbr0", Card("eth0"))
    assert not first.up(silent).serves() and not second.serves()
    assert first.up(LAN).serves() and not second.up(LAN).serves()


def test_processes_of_a_site_are_on_its_lans(tmp_path: Path, stack: ExitStack, make: Make) -> None:
    """They meet within the time of a look; each has its own part of the site."""
    left, right = (make(part(stack, tmp_path / "site")).up() for _ in range(2))
    assert (left.serves(), right.serves()) == (True, False)
    answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
    ask_who_serves(right, answer)  # served by the other process
    assert answer.get(timeout=PATIENCE)
    here, there = left.station(), right.station()
    segment = frame(3, EVERYBODY, b"y" * 40000)
    here.say(segment)
    while (heard := there.next()).data != segment.data:
        pass
    assert heard.hops == 1


def test_frames_are_not_sent_on_by_third_processes(tmp_path: Path, stack: ExitStack, make: Make) -> None:
    machines = [make(part(stack, tmp_path / "site")).up(Network("xenbr0", Card("eth0"))) for _ in range(3)]
    stations = [machine.station() for machine in machines]
    for number, text in enumerate((b"one", b"two")):
        heard: list[bytes] = []
        while stations[number + 1].heard.empty():
            stations[number].say(frame(number, EVERYBODY, text))
            try:
                heard.append(stations[number + 1].heard.get(timeout=0.2).data)
                break
            except queue.Empty:
                continue
    for station in stations:
        while not station.heard.empty():
            station.heard.get()
    stations[0].say(frame(0, EVERYBODY, b"once"))
    stations[0].say(frame(0, EVERYBODY, b"last"))
    for station in stations[1:]:
        seen = [station.next().data[14:18], station.next().data[14:18]]
        assert seen == [b"once", b"last"]


def test_a_process_that_is_killed_leaves_its_lan_to_another(tmp_path: Path, stack: ExitStack, make: Make) -> None:
    program = (
        "import sys, threading; from pathlib import Path\n"
        "from tests.unit.test_network_site import LAN, Machine; from hypervisor.network.site import Site\n"
        "machine = Machine(Site(Path(sys.argv[1]))).up(LAN)\n"
        "print(machine.serves(), flush=True); threading.Event().wait()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "site")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert other.stdout is not None
    with other:
        assert other.stdout.readline() == "True\n"
        mine = make(part(stack, tmp_path / "site")).up()
        answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
        ask_who_serves(mine, answer)
        assert answer.get(timeout=PATIENCE) and not mine.serves()
        other.kill()
    ask_who_serves(mine, answer)
    assert answer.get(timeout=PATIENCE) and mine.serves()


def test_a_site_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="open to others"):
        Site(tmp_path / "site")


def test_what_is_no_greeting_ends_the_connection(tmp_path: Path, stack: ExitStack, make: Make) -> None:
    make(part(stack, tmp_path / "site")).up()
    (path,) = (tmp_path / "site").glob("*.lan")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        assert client.recv(100).startswith(b"KRONOS-SITE 1 ")
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(100) == b""


def test_an_earlier_connection_may_end_while_the_process_says_its_name_anew(
    tmp_path: Path, stack: ExitStack, make: Make
) -> None:
    """Both are heard in one turn: the LAN goes on with the later one."""
    machine = make(part(stack, tmp_path / "site")).up()
    station = machine.station()
    (path,) = (tmp_path / "site").glob("*.lan")
    peers = []
    for _ in range(2):
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(str(path))
        assert connection.recv(100).startswith(b"KRONOS-SITE 1 ")
        peers.append(Peer(connection))
    earlier, later = peers
    earlier.greet("other")
    earlier.send("xenbr0", frame(5, EVERYBODY, b"earlier"))
    assert b"earlier" in station.next().data
    with machine.lock:  # for which the site waits with a frame, while the rest comes
        earlier.send("xenbr0", frame(5, EVERYBODY, b"earlier"))
        later.greet("other")
        earlier.close()
    later.send("xenbr0", frame(5, EVERYBODY, b"later"))
    while b"later" not in station.next().data:
        pass


def test_a_process_that_stands_still_is_gone_to_once(tmp_path: Path, stack: ExitStack, make: Make) -> None:
    """Others could not be met any more, were there a connection more to it with each look."""
    with socket.socket(socket.AF_UNIX) as still:
        (tmp_path / "site").mkdir(mode=0o700)
        still.bind(str(tmp_path / "site" / "0.lan"))
        still.listen()
        still.settimeout(PATIENCE)
        now = [0]
        site = Site(tmp_path / "site", lambda: now[0])
        stack.callback(site.close)
        machine = make(site).up()
        near, _ = still.accept()
        with near:
            for _ in range(5):
                now[0] += 2_000_000_000
                answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
                ask_who_serves(machine, answer)
                assert answer.get(timeout=PATIENCE)
            still.settimeout(0)
            with pytest.raises(BlockingIOError):
                still.accept()


frames = st.builds(
    Frame,
    data=st.binary(min_size=14, max_size=2000),
    csum_start=st.integers(0, 65535),
    csum_offset=st.integers(0, 65535),
    gso_size=st.integers(0, 65535),
    gso_type=st.integers(0, 2),
    validated=st.booleans(),
    hops=st.integers(0, 255),
)


@given(st.lists(st.tuples(st.text(max_size=20), frames), max_size=20), st.integers(1, 999))
def test_frames_come_through_as_they_were_sent(sent: list[tuple[str, Frame]], cut: int) -> None:
    """However the stream is cut."""
    here, raw = socket.socketpair()
    there, writing = socket.socketpair()
    with here, raw, there, writing:
        sender, receiver = Peer(here), Peer(there)
        sender.greet("a")
        for lan, each in sent:
            sender.send(lan, each)
        raw.setblocking(False)
        data, got = raw.recv(1 << 20), []
        for at in range(0, len(data), cut):
            writing.sendall(data[at : at + cut])
            got += list(receiver.received())
        assert receiver.name == "a"
        assert got == [("", None), *sent]


@given(st.binary(max_size=300))
def test_no_bytes_do_harm(data: bytes) -> None:
    """They are frames, or the end of the connection."""
    there, writing = socket.socketpair()
    with there, writing:
        receiver = Peer(there)
        writing.sendall(b"KRONOS-SITE 1 x\n" + data)
        try:
            seen = list(receiver.received())
        except ValueError:
            return
        assert all(each is None or 14 <= len(each.data) <= MAX_FRAME for _, each in seen)
