"""The stream of a saved domain: what comes back, and what is refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator

import pytest
import zstandard

from hypervisor.arch.x86_64.cpu import context as registers
from hypervisor.domains.domain import Domain
from hypervisor.domains.event_channel import VIRQ_TIMER
from hypervisor.domains.life import Reason, State
from hypervisor.host import Host, NoMemory
from hypervisor.hypercalls.hvm_op import CONSOLE_EVTCHN, CONSOLE_PFN, STORE_EVTCHN, STORE_PFN
from hypervisor.memory.guest_memory import PAGE
from hypervisor.migration import resume
from hypervisor.migration.clone import Template
from hypervisor.migration.pages import encode_runs
from hypervisor.migration.reading import NotSuspended
from hypervisor.migration.records import LARGEST, OPTIONAL, ImageError, Kind, Reader
from hypervisor.migration.restore import Image
from hypervisor.migration.save import save
from tests.machines import machine
from tests.unit.saved_domain import CONFIG, ROOM, SIZE, image_of, left, records_of, suspended, written


@pytest.fixture
def host() -> Iterator[Host]:
    with machine(ROOM) as made:
        yield made


@pytest.fixture
def domain(host: Host) -> Domain:
    return suspended(host)


def restored(host: Host, image: bytes) -> Domain:
    return Image(io.BytesIO(image)).build(host)


# What comes back


@pytest.mark.parametrize("compress", [True, False])
def test_a_domain_comes_back(host: Host, domain: Domain, compress: bool) -> None:
    """Memory, CPUs, parameters, map, clock and balloon; under another domid, paused."""
    image = Image(io.BytesIO(image_of(domain, host, compress)))
    other = image.build(host, "12345678-1234-5678-1234-567812345678")
    assert image.config == CONFIG and other.uuid.startswith("12345678")
    assert other.domid != domain.domid and (other.life.state, other.life.pauses) == (State.PAUSED, 1)
    assert bytes(other.memory.bytes[:SIZE]) == bytes(domain.memory.bytes[:SIZE])
    assert list(other.physmap.ballooned.runs()) == [(20, 3), (60, 1)]
    assert other.memory.present == domain.memory.present == 508
    assert (other.memory_map, other.callback_vector) == (domain.memory_map, 0xF3)
    assert [registers.read(v.cpu) for v in other.vcpus] == [registers.read(v.cpu) for v in domain.vcpus]
    assert [v.up for v in other.vcpus] == [True, False]
    assert other.time.clock.now() >= domain.time.clock.now() - 10**9
    assert other.memory.extra == domain.memory.extra


def test_zero_pages_and_holes_take_no_room(host: Host, domain: Domain) -> None:
    """Neither in the stream nor in the memory that is restored."""
    domain.memory.write(100 * PAGE, bytes(50 * PAGE))
    image = image_of(domain, host, compress=False)
    assert len(image) < 8 * PAGE + 3000 + 2 * PAGE
    assert restored(host, image).memory.used() <= 12 * PAGE


def test_event_channel_parameters_and_rings_begin_anew(host: Host, domain: Domain) -> None:
    """Ports are another domain's business; rings of before are empty."""
    domain.params |= {STORE_EVTCHN: 3, CONSOLE_EVTCHN: 4}
    for key in (STORE_PFN, CONSOLE_PFN):
        domain.memory.write(domain.params[key] * PAGE, b"\xff" * PAGE)
    other = restored(host, image_of(domain, host))
    assert STORE_EVTCHN not in other.params and CONSOLE_EVTCHN not in other.params
    assert not any(other.memory.read(500 * PAGE, 2 * PAGE))
    assert other.events.shared_info == -1 and not other.events.channels and not other.grants.frames


def test_the_clock_goes_on_from_where_it_was(host: Host, domain: Domain) -> None:
    """However much later: the guest is told the time by the same rule."""
    image = image_of(domain, host)
    host.destroy(domain)
    at = Image(io.BytesIO(image))
    other = at.build(host)
    assert 0 < other.time.clock.base <= other.time.clock.now() < other.time.clock.base + 10**9


def test_a_record_that_readers_may_skip_is_skipped(host: Host, domain: Domain) -> None:
    """Types with the optional bit; others are refused."""
    records: list[tuple[int, bytes]] = list(records_of(image_of(domain, host)))
    assert restored(host, written([*records[:2], (OPTIONAL | 77, b"news"), *records[2:]]))
    with pytest.raises(ImageError, match="unknown type"):
        restored(host, written([*records[:2], (77, b"news"), *records[2:]]))


def test_a_later_page_replaces_an_earlier_one(host: Host, domain: Domain) -> None:
    """And so does a record of zeros: what a live copy sends again."""
    records = records_of(image_of(domain, host, compress=False))
    page = b"\0\0\0\0\1\0\0\0" + encode_runs([(9, 1)]) + b"new!" * 1024
    at = next(number for number, (kind, _) in enumerate(records) if kind is Kind.STATE)
    other = restored(
        host, written([*records[:at], (Kind.PAGES, page), (Kind.ZEROS, encode_runs([(1, 2)])), *records[at:]])
    )
    assert other.memory.read(9 * PAGE, 4) == b"new!" and not any(other.memory.read(PAGE, 2 * PAGE))


def test_memory_above_a_hole_comes_back() -> None:
    """A domain of more than 3.75 GiB has RAM above 4 GiB too; the stream has no frame in between."""
    low, high = 0xF0000000, 1 << 32
    large = Host(16 << 30, 1)
    domain = large.create(((0, low), (high, high + (4 << 20))))
    domain.params |= {STORE_PFN: 500, CONSOLE_PFN: 501}
    domain.memory.write(low - PAGE, b"below")
    domain.memory.write(high + (4 << 20) - PAGE, b"above")
    domain.physmap.release(high // PAGE, 512)
    domain.life.shut_down(Reason.SUSPEND)
    image = image_of(domain, large)
    other = restored(large, image)
    assert other.ranges == domain.ranges and other.memory.present == domain.memory.present
    assert other.memory.read(low - PAGE, 5) + other.memory.read(high + (4 << 20) - PAGE, 5) == b"belowabove"
    with Template(large, domain) as template:
        clone = template.clone(large)
    assert clone.memory.read(high + (4 << 20) - PAGE, 5) == b"above" and clone.memory.hole == domain.memory.hole
    for each in list(large.domains.values()):
        large.destroy(each)


# Saving


def test_a_domain_that_runs_is_not_saved(host: Host) -> None:
    """Its guest would wake up in a world that it does not know."""
    domain = host.create(((0, SIZE),))
    with pytest.raises(NotSuspended):
        save(host, domain, io.BytesIO())
    with pytest.raises(NotSuspended):
        Template(host, domain)
    assert domain.life.pauses == 1


def test_a_file_that_fails_leaves_the_domain_as_it_was(host: Host, domain: Domain) -> None:
    """It can be saved again, or resumed."""

    class Full(io.BytesIO):
        def write(self, data: bytes, /) -> int:  # type: ignore[override]
            if self.tell() > 5000:
                raise OSError(28, "no space")
            return super().write(data)

    before = image_of(domain, host)
    with pytest.raises(OSError, match="no space"):
        save(host, domain, Full())
    assert domain.life.pauses == 1 and len(image_of(domain, host)) == len(before)
    resume.cancel(host, domain)
    assert domain.life.state is State.PAUSED and domain.life.reason is None and domain.life.pauses == 1


def test_only_a_suspended_domain_is_resumed(host: Host) -> None:
    """A domain that runs, or crashed, is not."""
    domain = host.create(((0, SIZE),))
    for call in (resume.cancel, resume.renew):
        with pytest.raises(ValueError, match="not suspended"):
            call(host, domain)
    assert domain.life.pauses == 1


def test_renewing_forgets_what_the_guest_makes_anew(host: Host, domain: Domain) -> None:
    """Ports, shared page, vcpu_info, grants, timers; memory and parameters stay. Old grants can still be ended."""
    domain.place_shared_info(9)
    domain.events.bind_virq(VIRQ_TIMER, 0)
    port = domain.events.alloc_unbound(0)
    heard: list[int] = []
    domain.events.connect_backend(port, lambda: None, lambda: heard.append(port))
    domain.events.place_vcpu_info(0, 40 * PAGE)
    domain.grants.place(0, 0x80001)
    domain.memory.bytes[domain.memory.offset(0x80001) : domain.memory.offset(0x80001) + 8] = b"\1\0\0\0\5\0\0\0"
    grant = domain.grants.access(0, 0, True)
    domain.vcpus[0].timer = 5
    domain.time.set_watchdog(0, 5)
    resume.renew(host, domain)
    assert not domain.events.channels and domain.events.shared_info == -1 and not domain.events.vcpu_info
    assert heard == [port] and domain.time.deadline() is None and not domain.grants.frames
    domain.grants.place(0, 0x80001)
    grant.end()
    assert not any(domain.memory.frame(0x80001))
    assert domain.memory.read(2 * PAGE, 1) == b"\2" and domain.life.state is State.PAUSED
    domain.events.place_vcpu_info(0, 40 * PAGE)


# Refusals, with good checksums


def changed(kind: Kind, body: bytes) -> Callable[[list[tuple[Kind, bytes]]], list[tuple[Kind, bytes]]]:
    return lambda records: [(found, body if found is kind else old) for found, old in records]


def without(kind: Kind) -> Callable[[list[tuple[Kind, bytes]]], list[tuple[Kind, bytes]]]:
    return lambda records: [record for record in records if record[0] is not kind]


def _bomb() -> bytes:
    return b"\1\0\0\0\1\0\0\0" + encode_runs([(1, 1)]) + zstandard.compress(bytes(1 << 30), 1)


BAD = {
    "no config": without(Kind.CONFIG),
    "no shape": without(Kind.DOMAIN),
    "no state": without(Kind.STATE),
    "a CPU too few": lambda records: records[:-2] + records[-1:],
    "a CPU too many": lambda records: [*records[:-1], records[-2], records[-1]],
    "an end with a body": changed(Kind.END, b"x"),
    "pages after the state": lambda records: [
        *records[:-1],
        next(r for r in records if r[0] is Kind.PAGES),
        records[-1],
    ],
    "a page beyond the memory": changed(Kind.PAGES, b"\0\0\0\0\1\0\0\0" + encode_runs([(512, 1)]) + bytes(PAGE)),
    "a page far beyond": changed(Kind.PAGES, b"\0\0\0\0\1\0\0\0" + encode_runs([(2**52 - 1, 1)]) + bytes(PAGE)),
    "a page too little": changed(Kind.PAGES, b"\0\0\0\0\1\0\0\0" + encode_runs([(1, 2)]) + bytes(PAGE)),
    "many pages": changed(Kind.PAGES, b"\0\0\0\0\1\0\0\0" + encode_runs([(1, 500)]) + bytes(500 * PAGE)),
    "no pages": changed(Kind.PAGES, b"\0\0\0\0\0\0\0\0"),
    "unknown flags": changed(Kind.PAGES, b"\2\0\0\0\1\0\0\0" + encode_runs([(1, 1)]) + bytes(PAGE)),
    "a compressed bomb": lambda records: changed(Kind.PAGES, _bomb())(records),
    "broken compression": changed(Kind.PAGES, b"\1\0\0\0\1\0\0\0" + encode_runs([(1, 1)]) + b"(\xb5/\xfd\x60\0\x0f"),
    "a balloon beyond the memory": changed(Kind.BALLOONED, encode_runs([(500, 13)])),
    "an empty run": changed(Kind.BALLOONED, encode_runs([(5, 0)])),
    "no CPUs": changed(Kind.DOMAIN, b"\0\0\0\0\0\x10\0\0\1\0\0\0" + bytes(8) + SIZE.to_bytes(8, "little")),
    "odd memory": changed(Kind.DOMAIN, b"\2\0\0\0\0\x10\0\0\1\0\0\0" + bytes(8) + (SIZE + 1).to_bytes(8, "little")),
    "a short state": changed(Kind.STATE, bytes(10)),
    "a state without rings": changed(Kind.STATE, bytes(32)),
    "a broken CPU": changed(Kind.VCPU, bytes(900)),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_a_domain_that_cannot_be_is_refused(
    host: Host, domain: Domain, change: Callable[[list[tuple[Kind, bytes]]], list[tuple[Kind, bytes]]]
) -> None:
    """With one error, and nothing left behind."""
    image = written(change(records_of(image_of(domain, host))))
    before = left(host)
    with pytest.raises(ImageError):
        restored(host, image)
    assert left(host) == before


def test_a_ring_outside_of_the_memory_is_refused(host: Host, domain: Domain) -> None:
    """It would be used by our backends."""
    domain.params[CONSOLE_PFN] = 5000
    image, before = image_of(domain, host), left(host)
    with pytest.raises(ImageError):
        restored(host, image)
    assert left(host) == before


def test_frames_where_the_cpu_has_hardware_are_refused(host: Host, domain: Domain) -> None:
    """A frame beyond the memory cannot be the hypervisor's own."""
    domain.memory.extra = {0xFFFFF0000: SIZE}
    image, before = image_of(domain, host), left(host)
    with pytest.raises(ImageError):
        restored(host, image)
    assert left(host) == before


def test_more_memory_than_there_is_is_refused_before_it_is_filled(host: Host, domain: Domain) -> None:
    """By the error of any other domain that does not fit."""
    shape = b"\2\0\0\0\0\x10\0\0\1\0\0\0" + bytes(8) + (1 << 40).to_bytes(8, "little")
    image, before = written(changed(Kind.DOMAIN, shape)(records_of(image_of(domain, host)))), left(host)
    with pytest.raises(NoMemory):
        restored(host, image)
    assert left(host) == before


def test_a_length_is_bounded_before_it_is_read() -> None:
    """A record that says it is huge does not make us wait for its bytes, nor set memory aside."""
    good = bytearray(written([(Kind.CONFIG, b"x")]))
    good[28:32] = (LARGEST + 1).to_bytes(4, "little")

    class Counting(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1, /) -> bytes:
            Counting.asked = max(Counting.asked, size or 0)
            return super().read(size)

    with pytest.raises(ImageError):
        Reader(Counting(bytes(good) + bytes(1000))).take()
    assert Counting.asked < 100


def test_records_of_another_stream_do_not_fit(host: Host, domain: Domain) -> None:
    """Two images of the same domain cannot be mixed, even record for record."""
    first, second = image_of(domain, host), image_of(domain, host)
    half = len(first) // 2
    assert len(first) == len(second)
    with pytest.raises(ImageError):
        restored(host, first[:24] + second[24:])
    with pytest.raises(ImageError):
        restored(host, first[:half] + second[half:])


def test_a_file_that_cannot_be_read_is_an_image_error(host: Host, domain: Domain) -> None:
    """The caller has one error to think of."""
    image = image_of(domain, host)

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 1000:
                raise OSError(5, "bad sector")
            return super().read(size)

    with pytest.raises(ImageError, match="bad sector"):
        Image(Broken(image)).build(host)


def test_a_stream_in_small_pieces_is_read(host: Host, domain: Domain) -> None:
    """Pipes and sockets give what they have."""
    image = image_of(domain, host)

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 100))

    assert Image(Slow(image)).build(host).memory.read(9 * PAGE, 2) == b"\x09\x09"


def test_bytes_after_the_end_are_left_alone(host: Host, domain: Domain) -> None:
    """Something else may follow in a stream."""
    file = io.BytesIO(image_of(domain, host) + b"next")
    Image(file).build(host)
    assert file.read() == b"next"


# Clones


def test_clones_share_what_nobody_wrote(host: Host, domain: Domain) -> None:
    """Each is as a restored domain would be; the source goes on."""
    with Template(host, domain) as template:
        first, second = template.clone(host), template.clone(host)
    resume.cancel(host, domain)
    first.memory.write(9 * PAGE, b"first")
    domain.memory.write(300 * PAGE, b"source")
    assert second.memory.read(9 * PAGE, 5) == b"\x09" * 5 and second.memory.read(300 * PAGE, 1) == b"\x2c"
    assert len({first.domid, second.domid, domain.domid}) == 3
    assert list(first.physmap.ballooned.runs()) == list(domain.physmap.ballooned.runs())
    assert first.memory.present == 508
    assert first.events.shared_info == -1 and not any(first.memory.read(500 * PAGE, 2 * PAGE))
    host.destroy(domain)
    assert second.memory.read(40 * PAGE, 2 * PAGE) == first.memory.read(40 * PAGE, 2 * PAGE)


def test_a_clones_image_is_that_of_a_whole_domain(host: Host, domain: Domain) -> None:
    """What it shares and what is its own, once each."""
    with Template(host, domain) as template:
        clone = template.clone(host)
    clone.memory.write(400 * PAGE, b"own")
    clone.physmap.release(300, 1)
    resume_state = clone.life.state
    clone.life.state, clone.life.pauses = State.RUNNING, 0
    assert domain.life.reason is not None
    clone.life.shut_down(domain.life.reason)
    other = restored(host, image_of(clone, host))
    assert resume_state is State.PAUSED
    assert bytes(other.memory.bytes[:SIZE]) == bytes(clone.memory.bytes[:SIZE])
    assert other.memory.read(400 * PAGE, 3) == b"own" and not any(other.memory.read(300 * PAGE, PAGE))


def test_a_clone_that_does_not_fit_leaves_nothing(host: Host, domain: Domain) -> None:
    """Memory is set aside in full for each."""
    with Template(host, domain) as template:
        made = [template.clone(host) for _ in range(31)]
        before = left(host)
        with pytest.raises(NoMemory):
            template.clone(host)
        assert left(host) == before and len(made) == 31


def test_a_closed_template_keeps_no_file(host: Host, domain: Domain) -> None:
    """When the last domain that maps it is gone too."""
    files = len(os.listdir("/proc/self/fd"))
    with Template(host, domain) as template:
        clone = template.clone(host)
    host.destroy(clone)
    template.close()
    assert len(os.listdir("/proc/self/fd")) == files
