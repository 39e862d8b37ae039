"""A hostile block front: arbitrary rings, grants, indirect pages and xenstore keys."""

from __future__ import annotations

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.memory.guest_memory import PAGE
from tests.unit.block_front import GRANT_FRAME, MIB, RING_FRAME, Front, indirect, request

SECRET = b"outside"
index32 = st.one_of(st.integers(0, 40), st.integers(0, (1 << 32) - 1))
refs = st.one_of(st.integers(40, 60), st.integers(0, (1 << 32) - 1))
sectors = st.one_of(st.integers(0, 40), st.integers(2040, 2050), st.integers(0, (1 << 64) - 1))
operations = st.one_of(st.sampled_from([0, 1, 2, 3, 5, 6]), st.integers(0, 255))
segment = st.tuples(refs, st.integers(0, 9), st.integers(0, 9))
slots = st.one_of(
    st.binary(min_size=112, max_size=112),
    st.builds(request, operations, sectors, st.lists(segment, max_size=11)),
    st.builds(indirect, operations, sectors, st.integers(0, 65535), refs),
)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Guarded(AnonymousDisk):
    """A disk that lies inside a larger one, whose rest nobody may reach."""

    def __init__(self) -> None:
        super().__init__(2 * MIB)
        AnonymousDisk.write(self, MIB, SECRET)
        self.size = MIB


def bounded(front: Front) -> None:
    """Let the disk work, and fail if it does not end soon."""
    for _ in range(200):
        if not front.work:
            front.domain.events.drain()
            return
        front.work.popleft()()
    raise AssertionError("the work does not end")


def grants(front: Front, entries: list[tuple[int, int, int]]) -> None:
    for number, (flags, domid, frame) in enumerate(entries):
        struct.pack_into("<HHI", front.memory.bytes, GRANT_FRAME * PAGE + (40 + number) * 8, flags, domid, frame)


entry = st.tuples(
    st.one_of(st.sampled_from([1, 5]), st.integers(0, 65535)),
    st.one_of(st.just(0), st.integers(0, 65535)),
    st.one_of(st.integers(298, 310), st.integers(0, (1 << 32) - 1)),
)


@few
@given(st.lists(slots, max_size=40), st.lists(entry, max_size=21), st.binary(max_size=PAGE), st.booleans())
def test_no_request_escapes_its_disk_and_its_grants(
    pushed: list[bytes], entries: list[tuple[int, int, int]], page: bytes, persistent: bool
) -> None:
    """What is not granted for writing stays as it is, and so does what lies behind the end of the disk."""
    disk = Guarded()
    front = Front(disk).connect(feature_persistent=int(persistent))
    grants(front, entries)
    front.memory.frame(299)[: len(page)] = page
    writable = {frame for flags, domid, frame in entries if flags & 3 == 1 and not flags & 4 and domid == 0}
    mine = {GRANT_FRAME, 11, RING_FRAME} | writable
    before = {frame: bytes(front.memory.frame(frame)) for frame in range(MIB * 4 // PAGE) if frame not in mine}
    front.push(*pushed[:32])
    bounded(front)
    assert {frame: bytes(front.memory.frame(frame)) for frame in before} == before
    disk.size = 2 * MIB
    assert disk.read(MIB, len(SECRET)) == SECRET
    assert front.device.counters.in_flight == 0


@few
@given(st.binary(min_size=1, max_size=300), st.lists(index32, max_size=8))
def test_no_content_of_a_ring_raises_or_loops(content: bytes, producers: list[int]) -> None:
    """Not even when the front rewrites the whole page all the time."""
    front = Front(Guarded()).connect()
    for produced in producers:
        front.ring[:] = (content * PAGE)[:PAGE]
        struct.pack_into("<I", front.ring, 0, produced)
        front.kick()
        bounded(front)
    assert front.device.counters.in_flight == 0


@few
@given(st.integers(0, (1 << 32) - 1), index32, st.integers(0, (1 << 32) - 1))
def test_no_index_at_connect_raises(request_producer: int, response_producer: int, event: int) -> None:
    """A ring may be handed over in use, or full of nonsense."""
    front = Front(Guarded())
    front.connect(ring_ref="1")
    front.backend.restart()
    struct.pack_into("<4I", front.memory.frame(RING_FRAME), 0, request_producer, event, response_producer, event)
    front.write("ring-ref", 8)
    front.write("state", 6)
    front.write("state", 1)
    front.write("state", 3)
    front.kick()
    bounded(front)
    assert front.back("state") in ("4", "5")


class Handshake(RuleBasedStateMachine):
    """A front that writes what it likes, whenever it likes, against a toolstack that plugs and unplugs."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Front(Guarded())
        self.front.connect()

    @rule(state=st.one_of(st.integers(0, 9), st.binary(max_size=4)))
    def state(self, state: int | bytes) -> None:
        value = state if isinstance(state, bytes) else str(state).encode()
        self.front.store.write(f"{self.front.backend.front}/state", value)

    @rule(
        key=st.sampled_from(["ring-ref", "event-channel", "ring-page-order", "protocol"]), value=st.binary(max_size=5)
    )
    def key(self, key: str, value: bytes) -> None:
        self.front.store.write(f"{self.front.backend.front}/{key}", value)

    @rule()
    def connect(self) -> None:
        if not self.front.backend.gone:
            for key in ("ring-page-order", "protocol"):
                self.front.write(key, "")  # so that there is something to remove
                self.front.store.rm(f"{self.front.backend.front}/{key}")
            self.front.connect()

    @rule(slot=slots)
    def push(self, slot: bytes) -> None:
        if self.front.produced - self.front.consumed < 32:
            self.front.push(slot)

    @rule()
    def work(self) -> None:
        bounded(self.front)

    @rule()
    def lose_directory(self) -> None:
        self.front.store.rm(self.front.backend.front)

    @rule(force=st.booleans())
    def leave(self, force: bool) -> None:
        """Unplug, see that it ends, and plug another."""
        done: list[bool] = []
        if force:
            self.front.backend.remove(lambda: done.append(True))
        else:
            self.front.backend.unplug(lambda: done.append(True))
            self.front.write("state", 6)
        bounded(self.front)
        if force and self.front.port in self.front.domain.events.channels:
            self.front.domain.events.close(self.front.port)
        assert done and self.front.backend.gone
        assert not self.front.store.exists(self.front.backend.back)
        assert self.front.granted(8) & 24 == 0
        self.front = Front(Guarded())
        self.front.connect()

    @invariant()
    def the_ring_is_held_only_while_it_is_served(self) -> None:
        bounded(self.front)
        serving = self.front.granted(8) & 24 == 24
        assert not serving or self.front.back("state") in ("4", "5")


Handshake.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestHandshake = Handshake.TestCase
