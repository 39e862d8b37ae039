"""A hostile network front: arbitrary rings, grants, chains and xenstore keys."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.memory.guest_memory import PAGE
from hypervisor.network.frame import PLAIN, Frame
from hypervisor.network.port import QUEUE_FRAMES
from tests.unit.block_front import GRANT_FRAME, MIB, SHARED_FRAME
from tests.unit.net_front import (
    FIRST_RX,
    FIRST_TX,
    OWN_MAC,
    PEER_MAC,
    RX_DATA,
    RX_FRAME,
    RX_REF,
    SLOTS,
    TX_FRAME,
    TX_REF,
    NetFront,
    ethernet,
    gso,
    is_whole,
    request,
    transport,
)

SECRET = b"nobody may read this"
SECRET_FRAME = 290
word16 = st.one_of(st.integers(0, 70), st.integers(4000, 4200), st.integers(0, 65535))
word32 = st.one_of(st.integers(0, 300), st.integers(0, (1 << 32) - 1))
refs = st.one_of(st.integers(FIRST_TX, FIRST_TX + 20), st.integers(0, (1 << 32) - 1))
flags = st.one_of(st.integers(0, 15), st.integers(0, 65535))
slot = st.one_of(
    st.binary(min_size=12, max_size=12),
    st.builds(request, refs, word16, flags, word16, word16),
    st.builds(gso, word16, st.integers(0, 4), st.integers(0, 1), st.integers(0, 6)),
)
entry = st.tuples(
    st.one_of(st.sampled_from([1, 5]), st.integers(0, 65535)),
    st.one_of(st.just(0), st.integers(0, 65535)),
    st.one_of(st.integers(300, 310), st.integers(0, (1 << 32) - 1)),
)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def a_front(**keys: Any) -> NetFront:
    front = NetFront(PLAIN).connect(**keys)
    front.memory.frame(SECRET_FRAME)[:] = (SECRET * 300)[:PAGE]
    return front


def grants(front: NetFront, first: int, entries: list[tuple[int, int, int]]) -> set[int]:
    """Write grant entries and return the frames that they let us write."""
    for number, (kind, domid, frame) in enumerate(entries):
        front.grant(first + number, frame, kind, domid)
    return {frame for kind, domid, frame in entries if kind & 3 == 1 and not kind & 4 and domid == 0}


@few
@given(st.lists(slot, max_size=40), st.lists(entry, max_size=20), st.booleans())
def test_no_packet_escapes_its_grants(pushed: list[bytes], entries: list[tuple[int, int, int]], gso: bool) -> None:
    """Nothing is sent that was not granted, and nothing of the guest's is written; each slot is answered or none."""
    front = a_front(feature_gso_tcpv4=int(gso))
    grants(front, FIRST_TX, [each for each in entries if each[2] != SECRET_FRAME])
    mine = {TX_FRAME, SHARED_FRAME}
    before = {frame: bytes(front.memory.frame(frame)) for frame in range(4 * MIB // PAGE) if frame not in mine}
    before[GRANT_FRAME] = b""
    front.push(*pushed)
    front.memory.frame(GRANT_FRAME)  # entries of the rings are marked while they are in use
    after = {frame: bytes(front.memory.frame(frame)) if frame != GRANT_FRAME else b"" for frame in before}
    assert after == before
    assert not any(SECRET in frame.data for frame in front.peer.frames)
    assert len(front.answers()) in (0, len(pushed))
    assert front.heard or front.back("state") == "5" or not pushed


@few
@given(
    st.lists(st.integers(1, 400), max_size=30),
    st.lists(st.integers(60, 60_000), max_size=40),
    st.lists(entry, max_size=30),
    st.booleans(),
)
def test_what_arrives_is_whole_and_within_the_grants(
    posts: list[int], sizes: list[int], entries: list[tuple[int, int, int]], scattered: bool
) -> None:
    """Slots come in any number, with any grant; frames are written where they may be, or not at all."""
    front = a_front(feature_sg=int(scattered))
    writable = grants(front, FIRST_RX, entries) | set(range(RX_DATA, RX_DATA + SLOTS))
    mine = {GRANT_FRAME, SHARED_FRAME, RX_FRAME, TX_FRAME} | writable
    before = {frame: bytes(front.memory.frame(frame)) for frame in range(4 * MIB // PAGE) if frame not in mine}
    for number, size in enumerate(sizes):
        data = transport(bytes([number]) * size, to=OWN_MAC, source=PEER_MAC)
        front.deliver(Frame(data, 34, 16, 1448, 1))
        if number < len(posts) and front.posted - front.received + posts[number] <= SLOTS:
            front.post(posts[number])
        front.taken()
    assert {frame: bytes(front.memory.frame(frame)) for frame in before} == before
    counters = front.device.counters
    assert min(counters.rx_packets, counters.rx_bytes, counters.rx_errors) >= 0
    assert front.back("state") == "4"


@few
@given(
    st.binary(min_size=1, max_size=300),
    st.lists(st.tuples(st.sampled_from(["tx", "rx"]), word32, st.booleans()), max_size=8),
)
def test_no_content_of_a_ring_raises_or_loops(content: bytes, writes: list[tuple[str, int, bool]]) -> None:
    """Not even when the front rewrites both pages all the time."""
    front = a_front()
    for ring, produced, fill in writes:
        page = getattr(front, ring)
        if fill:
            page[:] = (content * PAGE)[:PAGE]
        struct.pack_into("<I", page, 0, produced)
        front.kick()
        front.deliver(Frame(ethernet(bytes(500), OWN_MAC, PEER_MAC)))
    assert front.back("state") in ("4", "5")
    assert front.device.port.queued <= QUEUE_FRAMES and not front.domain.events.queued


@few
@given(st.lists(word32, min_size=8, max_size=8))
def test_no_index_at_connect_raises(words: list[int]) -> None:
    """Rings may be handed over in use, or full of nonsense."""
    front = a_front()
    front.backend.restart()
    struct.pack_into("<4I", front.tx, 0, *words[:4])
    struct.pack_into("<4I", front.rx, 0, *words[4:])
    front.write("state", 4)
    front.domain.events.drain()
    front.kick()
    front.deliver(Frame(ethernet(bytes(500), OWN_MAC, PEER_MAC)))
    assert front.back("state") in ("4", "5")


@few
@given(st.binary(min_size=1, max_size=9000), st.integers(48, 2000), st.lists(st.integers(1, 4096), max_size=17))
def test_segments_survive_any_way_of_being_cut_into_slots(payload: bytes, size: int, cuts: list[int]) -> None:
    """The stream that a plain peer gets is the one that was sent, with right checksums."""
    front = a_front()
    front.peer.port.mtu = front.device.port.mtu = 9000
    data = transport(payload)
    pieces, at = [], 0
    for length in [*cuts, *[4096] * 4]:
        if at < len(data):
            pieces.append(data[at : at + length])
            at += length
    slots = []
    for number, piece in enumerate(pieces):
        offset = PAGE - len(piece)
        front.memory.frame(300 + number)[offset:] = piece
        more = 4 if number + 1 < len(pieces) else 0
        first = (9, len(data)) if not number else (0, len(piece))
        slots.append(request(FIRST_TX + number, offset, first[0] | more, number, first[1]))
    front.push(slots[0], gso(size), *slots[1:])
    statuses = [status for _, status in front.answers()]
    if len(pieces) > 18:
        assert statuses.count(-1) == len(pieces) and front.peer.frames == []
        return
    assert statuses == [0, 1, *[0] * (len(pieces) - 1)]
    assert b"".join(frame.data[54:] for frame in front.peer.frames) == payload
    assert all(is_whole(frame.data) and len(frame.data) - 54 <= size for frame in front.peer.frames)


class Handshake(RuleBasedStateMachine):
    """A front that writes what it likes, whenever it likes, against a toolstack that plugs, moves and unplugs."""

    def __init__(self) -> None:
        super().__init__()
        self.front = a_front()

    @rule(state=st.one_of(st.integers(0, 9), st.binary(max_size=4)))
    def state(self, state: int | bytes) -> None:
        value = state if isinstance(state, bytes) else str(state).encode()
        self.front.store.write(f"{self.front.backend.front}/state", value)

    @rule(
        key=st.sampled_from(["tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "feature-sg"]),
        value=st.binary(max_size=5),
    )
    def key(self, key: str, value: bytes) -> None:
        self.front.store.write(f"{self.front.backend.front}/{key}", value)

    @rule(split=st.booleans())
    def connect(self, split: bool) -> None:
        if not self.front.backend.gone:
            for key in ("event-channel-tx", "event-channel-rx"):
                self.front.write(key, "")  # so that there is something to remove
                self.front.store.rm(f"{self.front.backend.front}/{key}")
            self.front.connect(split)

    @rule(slots=st.lists(slot, max_size=20))
    def push(self, slots: list[bytes]) -> None:
        if self.front.sent - self.front.heard < 200:
            self.front.push(*slots)

    @rule(count=st.integers(1, 20))
    def post(self, count: int) -> None:
        self.front.post(count)

    @rule(size=st.integers(14, 20_000))
    def deliver(self, size: int) -> None:
        self.front.deliver(Frame(transport(bytes(size), to=OWN_MAC, source=PEER_MAC), 34, 16, 1448, 1))

    @rule(up=st.booleans())
    def carrier(self, up: bool) -> None:
        self.front.change(carrier=up)

    @rule(kbps=st.sampled_from([0, 1, 1000]))
    def limit(self, kbps: int) -> None:
        self.front.change(kbps=kbps)
        self.front.now += 10**8
        self.front.switch.tick(self.front.now)

    @rule()
    def lose_directory(self) -> None:
        self.front.store.rm(self.front.backend.front)

    @rule()
    def close_port(self) -> None:
        for port in self.front.ports:
            if port in self.front.domain.events.channels:
                self.front.domain.events.close(port)

    @rule(force=st.booleans())
    def leave(self, force: bool) -> None:
        """Unplug, see that it ends, and plug another."""
        done: list[bool] = []
        if force:
            self.front.backend.remove(lambda: done.append(True))
        else:
            self.front.backend.unplug(lambda: done.append(True))
            self.front.write("state", 6)
        assert done and self.front.backend.gone
        assert not self.front.store.exists(self.front.backend.back)
        assert (self.front.granted(TX_REF) | self.front.granted(RX_REF)) & 24 == 0
        assert self.front.switch.ports == (self.front.peer.port,)
        self.front = a_front()

    @invariant()
    def the_rings_are_held_only_while_they_are_served(self) -> None:
        self.front.domain.events.drain()
        serving = self.front.device.connected
        held = self.front.granted(TX_REF) & 24 or self.front.granted(RX_REF) & 24
        assert serving or not held  # a front may have named other pages, or one for both
        assert not serving or self.front.back("state") in ("4", "5")
        assert serving or self.front.device.port.switch is None


Handshake.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestHandshake = Handshake.TestCase
