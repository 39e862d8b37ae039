"""The end of a domain, for those who have views of its memory: consoles, screens, copies, threads."""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypervisor.arch.x86_64.kinds import PV
from hypervisor.arch.x86_64.pv.cpu import PVCPU
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE, BadAddress
from hypervisor.migration.clone import Template
from hypervisor.migration.live import LiveCopy
from hypervisor.migration.reading import NotSuspended
from hypervisor.migration.save import save
from hypervisor.split.console import Console
from hypervisor.split.store_ring import StoreRing
from tests.machines import machine
from tests.unit import display_front
from tests.unit.saved_domain import suspended

MIB = 1 << 20
SIZE = 2 * MIB
SHARED, STORE, CONSOLE, PLACE = 1, 2, 3, 40


@pytest.fixture
def host() -> Iterator[Host]:
    """A machine without threads."""
    with machine(1 << 30) as made:
        yield made


class Joined:
    """A domain with its console and its way to xenstore."""

    def __init__(self, host: Host) -> None:
        self.domain = host.create([(0, SIZE)])
        self.domain.place_shared_info(SHARED)
        events = self.domain.events
        self.connection = host.xenstore.introduce(self.domain.domid)
        self.store = StoreRing(self.domain, self.connection, STORE, events.alloc_unbound(0))
        self.console = Console(self.domain, CONSOLE, events.alloc_unbound(0))


def maps() -> list[str]:
    """The mappings of this process."""
    return Path("/proc/self/maps").read_text().splitlines()


def lies_at(address: int) -> bool:
    """Tell whether the process has a mapping that holds an address."""
    ranges = (tuple(int(end, 16) for end in line.split()[0].split("-")) for line in maps())
    return any(start <= address < end for start, end in ranges)


def resident() -> int:
    """Return bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


# Memory


def test_a_view_outlives_its_domain_and_shows_zeros(host: Host) -> None:
    """What is written to it no other domain has, and with it the range of addresses goes."""
    domain = host.create([(0, SIZE)])
    address, view = domain.memory.address, domain.memory.frame(PLACE)
    view[:6] = b"secret"
    host.destroy(domain)
    assert not any(view)
    others = [host.create([(0, SIZE)]) for _ in range(8)]
    view[:] = b"x" * PAGE
    assert bytes(view) == b"x" * PAGE
    assert not any(any(other.memory.bytes) for other in others)
    for other in others:
        other.memory.write(PLACE * PAGE, b"theirs")
    assert bytes(view) == b"x" * PAGE and lies_at(address)
    for other in others:
        host.destroy(other)
    del view
    assert not lies_at(address)


def test_the_memory_is_given_back_at_once(host: Host) -> None:
    """Not only when the last view has gone."""
    domain = host.create([(0, 64 * MIB)])
    view = domain.memory.frame(PLACE)
    domain.memory.write(0, b"x" * 64 * MIB)
    before = resident()
    host.destroy(domain)
    assert before - resident() > 60 * MIB and not view[0]


def test_nothing_is_read_or_written_after_the_end(host: Host) -> None:
    """By whoever still has the domain, or its vCPU."""
    domain = host.create([(0, SIZE)])
    memory, words = domain.memory, domain.memory.words
    host.destroy(domain)
    uses: list[Callable[[], object]] = [
        lambda: memory.read(0, 8),
        lambda: memory.write(0, b"x"),
        lambda: memory.read_u32(0),
        lambda: memory.write_u64(0, 1),
        lambda: memory.frame(1),
        lambda: words[0],
    ]
    for use in uses:
        with pytest.raises((ValueError, TypeError), match=r"released|read-write"):
            use()
    assert memory.closed
    memory.close()


def test_a_failed_start_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a domain whose CPUs cannot be made is closed; memory that was brought is the caller's."""

    def broken(*_: object) -> None:
        raise BadAddress

    monkeypatch.setattr(PVCPU, "__init__", broken)
    files, before = len(os.listdir("/proc/self/fd")), len(maps())
    for _ in range(3):
        with pytest.raises(BadAddress):
            host.create([(0, SIZE)], kind=PV)
    assert len(os.listdir("/proc/self/fd")) == files and len(maps()) <= before + 1
    assert host.free_memory() == 1 << 30


def test_many_ends_leave_nothing(host: Host) -> None:
    """No mapping, no file, no memory, though every one of them had views until after its end."""

    def one() -> None:
        made = Joined(host)
        views = [made.domain.memory.frame(number) for number in range(8)]
        made.domain.memory.write(SIZE // 2, b"x" * 4096)
        made.console.write(b"typed")
        host.destroy(made.domain)
        host.xenstore.release(made.domain.domid)
        assert made.console.write(b"x") == 0 and not any(views[4])

    for _ in range(30):
        one()
    files, before, size = len(os.listdir("/proc/self/fd")), len(maps()), resident()
    for _ in range(300):
        one()
    assert len(os.listdir("/proc/self/fd")) == files
    assert len(maps()) < before + 20
    assert resident() < size + 16 * MIB


# Rings


def test_a_byte_typed_after_the_end_goes_nowhere(host: Host) -> None:
    """The fault that killed the daemon: the console had a slice of memory that was unmapped."""
    made = Joined(host)
    heard: list[bytes] = []
    made.console.listen(heard.append)
    made.console.write(b"before")
    host.destroy(made.domain)
    others = [host.create([(0, SIZE)]) for _ in range(4)]
    assert made.console.ended and heard == [b""]
    assert made.console.write(b"after") == 0
    assert not any(any(other.memory.bytes) for other in others)
    assert made.console.read(0) == (b"", 0)


def test_xenstores_ring_ends_with_its_domain(host: Host) -> None:
    """Though others cause watch events that were under way."""
    made = Joined(host)
    host.xenstore.write("/tool", b"")
    home = f"/local/domain/{made.domain.domid}"
    host.xenstore.write(home, b"")
    request = home.encode() + b"\0token\0"
    made.connection.feed(struct.pack("<IIII", 4, 0, 0, len(request)) + request)
    host.destroy(made.domain)
    host.xenstore.write(f"{home}/x", b"news")
    made.store._output()
    host.xenstore.release(made.domain.domid)


# Copies


def test_a_save_whose_domain_ends_is_refused(host: Host) -> None:
    """Between two parts; what it would read there is not the domain's."""
    domain = suspended(host)

    class Ending(io.BytesIO):
        def write(self, data: object) -> int:
            if domain.domid in host.domains:
                host.destroy(domain)
            return super().write(data)  # type: ignore[arg-type]

    with pytest.raises(NotSuspended, match="has ended"):
        save(host, domain, Ending())
    assert not host.domains and domain.at_end == []


def test_a_live_copy_whose_domain_ends_is_refused(host: Host) -> None:
    """And leaves no log of the pages of whoever has the addresses next."""
    domain = suspended(host)
    files = len(os.listdir("/proc/self/fd"))
    with LiveCopy(host, domain, io.BytesIO()) as copy:
        copy.round()
        host.destroy(domain)
        assert len(os.listdir("/proc/self/fd")) == files - 1  # the domain's own
        for go_on in (copy.round, copy.finish):
            with pytest.raises(NotSuspended):
                go_on()
    with pytest.raises(NotSuspended):
        LiveCopy(host, domain, io.BytesIO())


def test_a_domain_that_has_ended_is_no_template(host: Host) -> None:
    """And one that was made of it before stays good."""
    domain = suspended(host)
    with Template(host, domain) as template:
        host.destroy(domain)
        clone = template.clone(host)
        view = clone.memory.frame(0)
        host.destroy(clone)
        assert not any(view)
    with pytest.raises(NotSuspended):
        Template(host, domain)


def test_the_end_waits_for_a_step_of_a_copy(host: Host) -> None:
    """On another thread, and not for the copy."""
    domain = suspended(host)
    inside, go_on = threading.Event(), threading.Event()
    said: list[BaseException | int] = []

    class Slow(io.BytesIO):
        def write(self, data: object) -> int:
            inside.set()
            assert go_on.wait(20)
            return super().write(data)  # type: ignore[arg-type]

    def copy() -> None:
        try:
            said.append(save(host, domain, Slow()))
        except NotSuspended as error:
            said.append(error)

    thread = threading.Thread(target=copy)
    thread.start()
    assert inside.wait(20)
    host.destroy(domain)
    go_on.set()
    thread.join()
    assert [type(each) for each in said] == [NotSuspended]


# Threads


def test_who_types_and_looks_all_the_while_meets_no_end_that_hurts() -> None:
    """Two threads that type, two that look at screens and hold views of memory, while domains come and go."""
    over = threading.Event()
    failures: list[BaseException] = []
    current: list[tuple[Console, display_front.Screen, memoryview]] = []

    def again(act: Callable[[Console, display_front.Screen, memoryview], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                while not over.is_set():
                    for each in list(current):
                        act(*each)
            except BaseException as error:
                failures.append(error)

        return run

    def look(_: Console, screen: display_front.Screen, view: memoryview) -> None:
        picture = screen.device.picture()
        assert len(picture.data) == 4 * picture.width * picture.height
        screen.device.follow(lambda: None).take()

    def hold(console: Console, _: display_front.Screen, view: memoryview) -> None:
        view[:8] = b"scribble"
        console.read(0)

    work = [again(lambda console, screen, view: console.write(b"typed")), again(look), again(hold)]
    threads = [threading.Thread(target=each) for each in (*work, work[0])]
    for thread in threads:
        thread.start()
    try:
        with machine(1 << 28) as host:
            for _ in range(40):
                made, screen = Joined(host), display_front.Screen().connect()
                mark = bytes([len(host.domains)]) * 8
                made.domain.memory.write(8 * PAGE, mark)
                current.append((made.console, screen, made.domain.memory.frame(PLACE)))
                made.domain.events.drain()
                screen.host.destroy(screen.domain)
                assert made.domain.memory.read(8 * PAGE, 8) == mark
                host.destroy(made.domain)
                host.xenstore.release(made.domain.domid)
                del current[:-3]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
