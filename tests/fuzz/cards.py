"""Network fronts that write what they like into their rings, on one switch with each other and an address service."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE
from hypervisor.network.frame import PLAIN, Frame
from hypervisor.network.lock import LockMode
from hypervisor.network.port import QUEUE_FRAMES
from hypervisor.network.services import AddressService
from hypervisor.network.switch import PENDING_FRAMES, Switch
from tests.fuzz.lives import Lives
from tests.fuzz.steps import counted
from tests.property.test_network import ADDRESS, frames
from tests.property.test_split_net import SECRET, SECRET_FRAME, entry, flags, refs, slot, word32
from tests.unit.net_front import RX_DATA, SLOTS, NetFront

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
"""As the frames of the property tests have them."""
KEYS = ("state", "tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "event-channel-rx", "feature-sg",
        "request-rx-copy", "feature-gso-tcpv4", "feature-no-csum-offload", "feature-rx-notify")  # fmt: skip
which = st.integers(0, 1)
number32 = st.one_of(st.integers(0, 5), st.integers(0, (1 << 32) - 1))


class Cards(Lives):
    """Two hostile guests and an address service."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000_000
        self.switch = Switch(lambda: self.now)
        self.service = AddressService(self.switch, lambda: self.now)
        self.fronts = [self._front(mac) for mac in MACS]

    def _front(self, mac: str) -> NetFront:
        front = NetFront(PLAIN, self.switch, mac=mac)
        self.switch.detach(front.peer.port)
        front.memory.frame(SECRET_FRAME)[:] = (SECRET * 300)[:PAGE]
        return front.connect()

    def subject(self, which: int) -> tuple[Host, Domain]:
        return self.fronts[which].host, self.fronts[which].domain

    def begin_anew(self, which: int) -> None:
        assert self.fronts[which].device.port not in self.switch.ports
        self.fronts[which] = self._front(MACS[which])

    # Into the rings

    @rule(which=which, slots=st.lists(slot, min_size=1, max_size=40))
    def push(self, which: int, slots: list[bytes]) -> None:
        counted()
        self.fronts[which].push(*slots)

    @rule(which=which, many=st.lists(frames(), min_size=1, max_size=8), flags=flags)
    def packets(self, which: int, many: list[Frame], flags: int) -> None:
        """Send what is nearly right."""
        for frame in many:
            self._send(which, frame.data, flags & 3)

    def _send(self, which: int, data: bytes, flags: int) -> None:
        counted()
        front = self.fronts[which]
        front.push(*front.slots_for(data, flags))

    @rule(
        which=which,
        ring=st.sampled_from(["tx", "rx"]),
        words=st.tuples(word32, word32),
        content=st.binary(max_size=64),
        at=st.integers(0, PAGE - 64),
    )
    def scribble(self, which: int, ring: str, words: tuple[int, int], content: bytes, at: int) -> None:
        counted()
        page = getattr(self.fronts[which], ring)
        page[at : at + len(content)] = content
        struct.pack_into("<I", page, 0, words[0])
        struct.pack_into("<I", page, 12, words[1])
        self.fronts[which].kick()

    @rule(which=which, count=st.integers(1, SLOTS))
    def post(self, which: int, count: int) -> None:
        counted()
        self.fronts[which].post(count)
        self.fronts[which].domain.events.drain()

    @rule(which=which, entries=st.lists(st.tuples(refs, entry), min_size=1, max_size=8))
    def regrant(self, which: int, entries: list[tuple[int, tuple[int, int, int]]]) -> None:
        """Change grants, but never grant the frame that is looked at."""
        for ref, (kind, domid, frame) in entries:
            self.fronts[which].grant(ref % 400, frame if frame != SECRET_FRAME else 0, kind, domid)

    # What guest and toolstack do besides

    @rule(which=which, key=st.sampled_from(KEYS), value=st.one_of(st.integers(-1, 10), number32, st.binary(max_size=6)))
    def write(self, which: int, key: str, value: int | bytes) -> None:
        counted()
        front = self.fronts[which]
        front.store.write(f"{front.backend.front}/{key}", value if isinstance(value, bytes) else str(value).encode())

    @rule(which=which, split=st.booleans(), features=st.dictionaries(st.sampled_from(KEYS[6:]), st.integers(0, 1)))
    def again(self, which: int, split: bool, features: dict[str, int]) -> None:
        """Close and connect anew, properly."""
        counted()
        front = self.fronts[which]
        for state in (5, 6, 1):
            front.write("state", state)
        for key in KEYS[1:6]:
            front.write(key, "")
            front.store.rm(f"{front.backend.front}/{key}")
        front.connect(split, **features)

    @rule(which=which)
    def close_ports(self, which: int) -> None:
        front = self.fronts[which]
        for port in front.ports:
            if port in front.domain.events.channels:
                front.domain.events.close(port)

    @rule(which=which, up=st.booleans(), kbps=st.sampled_from([0, 1, 1000]), mode=st.sampled_from(LockMode),
          tags=st.lists(st.integers(1, 7), max_size=2))  # fmt: skip
    def settings(self, which: int, up: bool, kbps: int, mode: LockMode, tags: list[int]) -> None:
        counted()
        own = (IPv4Network(IPv4Address(ADDRESS)),)
        self.fronts[which].change(carrier=up, kbps=kbps, locking=mode, ipv4=own, trunks=tuple(tags))

    @rule(seconds=st.sampled_from([0.001, 0.3, 5, 4000]))
    def time_passes(self, seconds: float) -> None:
        counted()
        self.now += int(seconds * 1e9)
        for part in (self.switch, self.service):
            due = part.next_deadline()
            if due is not None and due <= self.now:
                part.tick(self.now)
        for front in self.fronts:
            front.domain.events.drain()

    @rule(which=which, force=st.booleans())
    def unplug(self, which: int, force: bool) -> None:
        """Take a card away, and give the guest's successor another."""
        counted()
        front, done = self.fronts[which], list[bool]()
        if force:
            front.backend.remove(lambda: done.append(True))
        else:
            front.backend.unplug(lambda: done.append(True))
            front.write("state", 6)
        assert done and front.backend.gone and front.device.port not in self.switch.ports
        front.host.destroy(front.domain)
        self.fronts[which] = self._front(MACS[which])

    @invariant()
    def all_is_bounded(self) -> None:
        assert len(self.switch._pending) <= PENDING_FRAMES
        for front in self.fronts:
            assert front.device.port.queued <= QUEUE_FRAMES
            assert len(front.domain.events.queued) < 100
            counters = front.device.counters
            assert min(counters.rx_packets, counters.rx_bytes, counters.tx_packets) >= 0

    @invariant()
    def nothing_outside_is_touched(self) -> None:
        for front in self.fronts:
            assert bytes(front.memory.frame(SECRET_FRAME)) == (SECRET * 300)[:PAGE]
            received = front.memory.bytes[RX_DATA * PAGE : (RX_DATA + SLOTS) * PAGE]
            assert SECRET not in bytes(received)

    def teardown(self) -> None:
        self.service.close()
        for front in self.fronts:
            front.host.destroy(front.domain)
        assert self.switch.ports == ()
