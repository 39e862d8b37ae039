"""The block device, against a front that the test plays."""

from __future__ import annotations

import struct

import pytest

from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.disks.disk import DiskError, Kind
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.block import number_of
from hypervisor.split.block_queue import BATCH, HERE, SLOW
from tests.unit.block_front import DATA_FRAME, MIB, Front, discard, indirect, request

READ, WRITE, BARRIER, FLUSH, DISCARD = 0, 1, 2, 3, 5
OKAY, ERROR, NOT_SUPPORTED = 0, -1, -2


class Journal(AnonymousDisk):
    """A disk that notes what it is asked for, and can fail."""

    def __init__(self, size: int = MIB) -> None:
        super().__init__(size)
        self.calls: list[tuple[str, int, int]] = []
        self.fails: BaseException | None = None

    def _note(self, what: str, offset: int = 0, length: int = 0) -> None:
        self.calls.append((what, offset, length))
        if self.fails is not None:
            raise self.fails

    def read(self, offset: int, length: int) -> bytes:
        self._note("read", offset, length)
        return super().read(offset, length)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        if not self.calls or self.calls[-1] != ("read", offset, len(buffer)):
            self._note("readinto", offset, len(buffer))
        super().readinto(offset, buffer)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._note("write", offset, len(data))
        super().write(offset, data)

    def flush(self) -> None:
        self._note("flush")

    def discard(self, offset: int, length: int) -> None:
        self._note("discard", offset, length)
        super().discard(offset, length)


def data_of(front: Front, frame: int) -> memoryview:
    return front.memory.frame(frame)


def test_names_have_the_numbers_of_the_vbd_interface() -> None:
    """The short form for the first sixteen disks, the extended one beyond."""
    assert [number_of(name) for name in ("xvda", "xvdb2", "xvdp15")] == [51712, 51730, 51967]
    assert number_of("xvdq") == 1 << 28 | 16 << 8
    assert number_of("xvda16") == 1 << 28 | 16
    assert number_of("xvdaa") == 1 << 28 | 26 << 8


@pytest.mark.parametrize("name", ["sda", "xvd", "xvda999", "xvd1", "xvdA", "xvda\n"])
def test_other_names_are_refused(name: str) -> None:
    """There is no number to guess."""
    with pytest.raises(ValueError):
        number_of(name)


def test_what_is_offered_is_what_there_is() -> None:
    """Size, features and limits stand in the back's nodes."""
    front = Front().connect()
    keys = {"sectors": "2048", "sector-size": "512", "info": "0", "mode": "w", "feature-flush-cache": "1"}
    keys |= {"feature-max-indirect-segments": "256", "multi-queue-max-queues": "4", "max-ring-page-order": "4"}
    keys |= {"feature-barrier": "1", "feature-discard": "1", "discard-secure": "0", "feature-persistent": "1"}
    assert {key: front.back(key) for key in keys} == keys


def test_a_write_is_read_back_by_another_frame() -> None:
    """Parts of frames, in order, across frames that are no neighbours."""
    front = Front().connect()
    data_of(front, 300)[512:1536] = b"a" * 1024
    data_of(front, 310)[:512] = b"b" * 512
    front.grant(40, 300, readonly=True), front.grant(41, 310, readonly=True)
    assert front.do(request(WRITE, 5, [(40, 1, 2), (41, 0, 0)])) == [OKAY]
    front.grant(42, 320)
    assert front.do(request(READ, 5, [(42, 4, 6)])) == [OKAY]
    assert bytes(data_of(front, 320)[2048:3584]) == b"a" * 1024 + b"b" * 512
    assert [front.granted(ref) for ref in (40, 41, 42)] == [5, 5, 1]
    counters = front.device.counters
    assert (counters.reads, counters.writes, counters.read_bytes, counters.written_bytes) == (1, 1, 1536, 1536)
    assert counters.in_flight == 0 and counters.wait_ns > 0


def test_neighbouring_frames_are_one_transfer() -> None:
    """Scatter and gather cost nothing where there is nothing to scatter."""
    disk = Journal()
    front = Front(disk).connect()
    segments = [(front.grant(40 + index, DATA_FRAME + index), 0, 7) for index in range(8)]
    front.do(request(WRITE, 0, segments), request(READ, 0, segments))
    assert disk.calls == [("write", 0, 8 * PAGE), ("readinto", 0, 8 * PAGE)]


def test_the_answer_repeats_id_and_operation() -> None:
    """Of an indirect request, the operation inside."""
    front = Front().connect()
    front.push(request(READ, 0, [(front.grant(40, 300), 0, 0)], 1 << 63), indirect(WRITE, 0, 0, 40))
    assert front.run() == [(1 << 63, READ, OKAY), (7, WRITE, ERROR)]


def test_indirect_requests_carry_256_segments() -> None:
    """1 MiB in one request, and not a segment more."""
    front = Front(AnonymousDisk(2 * MIB)).connect()
    table = data_of(front, 299)
    for index in range(257):
        struct.pack_into("<IBBxx", table, index % 512 * 8, 40 + index % 64, 0, 7)
    for index in range(64):
        front.grant(40 + index, DATA_FRAME + index)
        data_of(front, DATA_FRAME + index)[:] = bytes([index]) * PAGE
    page = front.grant(30, 299, readonly=True)
    assert front.do(indirect(WRITE, 0, 256, page), indirect(WRITE, 0, 257, page)) == [OKAY, ERROR]
    assert front.device.disk is not None
    assert front.device.disk.read(MIB - PAGE, PAGE) == b"\x3f" * PAGE
    assert front.do(indirect(FLUSH, 0, 1, page), indirect(WRITE, 0, 1, 9999)) == [ERROR, ERROR]


@pytest.mark.parametrize(
    "slot",
    [
        request(WRITE, 0, []),
        request(WRITE, 0, [(40, 3, 2)]),
        request(WRITE, 0, [(40, 0, 8)]),
        request(WRITE, 0, [(99, 0, 0)]),
        request(WRITE, 0, [(1 << 31, 0, 0)]),
        request(WRITE, 2048, [(40, 0, 0)]),
        request(WRITE, 2047, [(40, 0, 1)]),
        request(READ, 1 << 63, [(40, 0, 0)]),
        request(READ, (1 << 64) - 1, [(40, 0, 1)]),
        request(READ, 0, [(41, 0, 0)]),
        request(WRITE, 0, [(42, 0, 0)]),
        request(WRITE, 0, [(43, 0, 0)]),
        request(WRITE, 0, [(40, 0, 0)] * 11)[:1] + b"\x0c" + request(WRITE, 0, [(40, 0, 0)] * 11)[2:],
        discard(2047, 2),
        discard(1 << 63, 1 << 63),
    ],
    ids=str,
)
def test_a_bad_request_is_an_error_and_has_no_effect(slot: bytes) -> None:
    """Segments, sectors, grants: to another domain, for reading only, of no frame."""
    disk = AnonymousDisk(MIB)
    front = Front(disk).connect()
    front.grant(40, 300), front.grant(41, 301, readonly=True)
    front.grant(42, 302, domid=5), front.grant(43, 1 << 20)
    data_of(front, 300)[:] = b"x" * PAGE
    assert front.do(slot) == [ERROR]
    assert disk.utilisation == 0 and bytes(data_of(front, 301)) == bytes(PAGE)
    assert front.device.counters.errors == 1
    assert [front.granted(ref) & 24 for ref in (40, 41, 42)] == [0, 0, 0]


def test_unknown_operations_are_not_supported() -> None:
    """So that a front can ask."""
    assert Front().connect().do(request(4, 0, []), request(77, 0, [])) == [NOT_SUPPORTED] * 2


def test_flush_and_barrier_reach_the_disk_in_order() -> None:
    """A barrier is durable itself, and all before it is."""
    disk = Journal()
    front = Front(disk).connect()
    segment = [(front.grant(40, 300), 0, 0)]
    slots = [request(WRITE, 1, segment), request(FLUSH, 0, []), request(BARRIER, 2, segment), request(BARRIER, 0, [])]
    assert front.do(*slots) == [OKAY] * 4
    names = [name for name, _, _ in disk.calls]
    assert names == ["write", "flush", "flush", "write", "flush", "flush"]
    assert front.device.counters.flushes == 3


def test_discard_gives_space_back() -> None:
    """Through to the disk's own discard."""
    disk = AnonymousDisk(MIB)
    disk.write(0, b"x" * MIB)
    assert Front(disk).connect().do(discard(0, 1024)) == [OKAY]
    assert disk.utilisation == MIB // 2


def test_a_read_only_disk_reads_and_flushes_only() -> None:
    """The front was told; one that writes all the same gets errors."""
    disk = Journal()
    front = Front(disk, read_only=True).connect()
    segment = [(front.grant(40, 300), 0, 0)]
    assert (front.back("info"), front.back("mode"), front.back("feature-discard")) == ("4", "r", "0")
    slots = [request(READ, 0, segment), request(FLUSH, 0, []), request(WRITE, 0, segment), discard(0, 1)]
    assert front.do(*slots, request(BARRIER, 0, segment), request(FLUSH, 0, segment)) == [OKAY] * 2 + [ERROR] * 4
    assert "write" not in [name for name, _, _ in disk.calls]


def test_errors_of_the_disk_are_the_guests_and_counted() -> None:
    """Even those that nobody foresaw; the next request is served."""
    disk = Journal()
    front = Front(disk).connect()
    slot = request(WRITE, 0, [(front.grant(40, 300), 0, 0)])
    disk.fails = DiskError(Kind.NO_SPACE, "full")
    assert front.do(slot) == [ERROR]
    disk.fails = None
    assert front.do(slot) == [OKAY]
    assert front.device.counters.errors == 1


def test_an_error_that_nobody_foresaw_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A bug of a disk's must not end its thread."""
    disk = Journal()
    disk.fails = RuntimeError("bug")
    front = Front(disk).connect()
    assert front.do(request(FLUSH, 0, [])) == [ERROR]
    assert "a disk request failed" in caplog.text


def test_persistent_grants_are_kept_and_given_back_at_the_end() -> None:
    """As both sides agreed."""
    front = Front().connect(feature_persistent=1)
    slot = request(WRITE, 0, [(front.grant(40, 300), 0, 0)])
    front.do(slot, slot)
    assert front.granted(40) == 25
    front.write("state", 6)
    assert front.granted(40) == 1


def test_kept_grants_are_bounded_least_recently_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A front that never stops granting new frames does not make us keep them all."""
    monkeypatch.setattr("hypervisor.split.block.PERSISTENT_GRANTS", 2)
    front = Front().connect(feature_persistent=1)
    for ref in (40, 41, 40, 42):
        assert front.do(request(WRITE, 0, [(front.grant(ref, 300) if front.granted(ref) == 0 else ref, 0, 0)])) == [
            OKAY
        ]
    assert [front.granted(ref) for ref in (40, 41, 42)] == [25, 1, 25]


def test_rings_of_several_pages() -> None:
    """Up to sixteen; here all 512 requests at once."""
    front = Front().connect(order=4)
    slot = request(WRITE, 0, [(front.grant(40, 300), 0, 0)])
    assert front.do(*[slot] * 512) == [OKAY] * 512
    assert front.do(slot) == [OKAY]


def test_several_rings_share_the_disk() -> None:
    """Each has its own event channel; answers go where the request came from."""
    front = Front()
    front.backend.plug()
    ports = [front.domain.events.alloc_unbound(0) for _ in range(2)]
    for number, port in enumerate(ports):
        front.write(f"queue-{number}/ring-ref", front.grant(8 + number, 30 + number))
        front.write(f"queue-{number}/event-channel", port)
        struct.pack_into("<4I", front.memory.frame(30 + number), 0, 1, 1, 0, 1)
        front.memory.frame(30 + number)[64:176] = request(FLUSH, 0, [], number).ljust(112, b"\0")
    front.write("multi-queue-num-queues", 2)
    front.write("state", 3)
    front.ring = front.memory.frame(30)
    for port in ports:
        front.port = port
        front.kick()
    front.run()
    answers = [struct.unpack_from("<QBxh", front.memory.frame(30 + number), 64) for number in range(2)]
    assert answers == [(0, FLUSH, OKAY), (1, FLUSH, OKAY)]


def test_a_32_bit_front_is_served_in_its_layout() -> None:
    """Ids at 4, segments at 20, slots of 108 bytes."""
    front = Front().connect(protocol="x86_32-abi")
    data_of(front, 300)[:512] = b"q" * 512
    slot = struct.pack("<BBHQQIBBxx", WRITE, 1, 0, 99, 3, front.grant(40, 300), 0, 0)
    front.ring[64 : 64 + len(slot)] = slot
    struct.pack_into("<I", front.ring, 0, 1)
    front.kick()
    front.run()
    assert struct.unpack_from("<QBxh", front.ring, 64) == (99, WRITE, OKAY)
    assert front.device.disk is not None and front.device.disk.read(1536, 512) == b"q" * 512


def test_a_ring_with_wild_indexes_is_not_served_any_more() -> None:
    """The front hears of it by xenbus."""
    front = Front().connect()
    struct.pack_into("<I", front.ring, 0, 1000)
    front.kick()
    assert front.back("state") == "5" and front.granted(8) == 1 and not front.work


def test_a_disk_gives_way_to_others_after_a_batch() -> None:
    """The thread is asked for again instead of kept."""
    front = Front().connect(order=2)
    front.push(*[request(FLUSH, 0, [])] * (BATCH + 10))
    front.work.popleft()()
    assert len(front.work) == 1 and front.device.counters.in_flight == 10
    assert len(front.run()) == BATCH + 10


def on_its_own_thread(front: Front, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Make the domain believe that it runs here, in no time; return what it puts off until its hypercall is over."""
    deferred: list[object] = []
    monkeypatch.setattr(front.domain.time.clock, "now", lambda: 0)
    monkeypatch.setattr(front.domain.vcpus, "on_this_thread", lambda: True)
    monkeypatch.setattr(front.domain.platform, "defer", deferred.append)
    return deferred


def test_reads_and_writes_are_done_on_the_domains_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first flush, and what follows it, goes to a disk thread."""
    front = Front().connect()
    deferred = on_its_own_thread(front, monkeypatch)
    slot = request(WRITE, 0, [(front.grant(40, 300), 0, 0)])
    front.push(slot, slot, request(FLUSH, 0, []), slot)
    assert len(deferred) == 1 and not front.work
    deferred[0]()  # type: ignore[operator]
    assert front.device.counters.writes == 2 and len(front.work) == 1
    assert [status for _, _, status in front.run()] == [OKAY] * 4


def test_a_slow_disk_is_left_to_the_disk_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow transfer, and those that wait behind it do not keep the domain's thread."""
    front = Front().connect()
    deferred = on_its_own_thread(front, monkeypatch)
    times = iter(range(0, 10**12, SLOW + 1))
    monkeypatch.setattr(front.domain.time.clock, "now", lambda: next(times))
    slot = request(WRITE, 0, [(front.grant(40, 300), 0, 0)])
    front.push(slot, slot)
    deferred[0]()  # type: ignore[operator]
    assert front.device.counters.writes == 1 and len(front.work) == 1
    front.run()
    front.push(slot)
    assert len(deferred) == 1 and len(front.work) == 1
    assert [status for _, _, status in front.run()] == [OKAY]


def test_one_hypercall_does_a_bounded_part_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's timers wait while it does."""
    front = Front().connect(order=1)
    deferred = on_its_own_thread(front, monkeypatch)
    front.push(*[request(WRITE, 0, [(front.grant(40, 300), 0, 0)])] * (HERE + 5))
    deferred[0]()  # type: ignore[operator]
    assert front.device.counters.writes == HERE and len(front.work) == 1


def test_a_cd_is_ejected_and_inserted() -> None:
    """An empty drive has no sectors and every read fails; the front is told by its state written again."""
    first, second = AnonymousDisk(MIB), AnonymousDisk(2 * MIB)
    second.write(0, b"second")
    front, freed = Front(first, cdrom=True, params="one.iso").connect(), []
    slot = request(READ, 0, [(front.grant(40, 300), 0, 0)])
    assert (front.back("info"), front.back("media-present"), front.back("params")) == ("7", "1", "one.iso")
    front.push(slot)
    front.device.change_medium(None, "", lambda: freed.append("first"))
    assert not freed
    assert [status for _, _, status in front.run()] == [OKAY] or freed
    assert (freed, front.back("sectors"), front.back("media-present")) == (["first"], "0", "0")
    assert front.do(slot) == [ERROR]
    front.device.change_medium(second, "two.iso", lambda: freed.append("none"))
    assert (front.back("sectors"), front.back("params"), front.back("state")) == ("4096", "two.iso", "4")
    assert front.do(slot) == [OKAY] and bytes(data_of(front, 300)[:6]) == b"second"


def test_a_disk_grows_while_it_is_used() -> None:
    """New sectors, and Connected written again so that the front looks."""
    disk = AnonymousDisk(MIB)
    front, seen = Front(disk).connect(), list[str]()
    front.store.watch(f"{front.backend.back}/state", seen.append)
    disk.size = 3 * MIB
    front.device.resized()
    assert front.back("sectors") == "6144" and len(seen) == 2 and front.back("state") == "4"


def test_requests_wait_while_the_disk_is_held() -> None:
    """For a snapshot: the disk is not used between `hold` and `release`, and none is lost."""
    front, held = Front().connect(), []
    front.push(request(FLUSH, 0, []))
    front.device.hold(lambda: held.append(True))
    assert held == []
    assert front.run() == [] and held == [True]
    front.device.release()
    assert [status for _, _, status in front.run()] == [OKAY]


def test_only_a_drive_can_be_empty() -> None:
    """A disk has a medium, always."""
    front = Front()
    with pytest.raises(ValueError):
        type(front.device)(front.domain, None, front.work.append, front.device.config)
    with pytest.raises(ValueError):
        front.device.change_medium(None, "", lambda: None)
