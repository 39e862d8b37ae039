"""The learning bridge: where frames go, what they carry, and what is counted."""

from __future__ import annotations

import pytest

from hypervisor.network.frame import EVERY_OFFLOAD, Frame
from hypervisor.network.lock import DISABLED
from hypervisor.network.packets import BROADCAST_MAC, mac_from_text, mac_to_text
from hypervisor.network.port import QUEUE_FRAMES, Port, access, trunk
from hypervisor.network.ratelimit import MIN_BURST, TokenBucket
from hypervisor.network.switch import Switch, connect
from hypervisor.network.table import AGEING_NS, MAX_ENTRIES_OF_A_PORT, MacTable

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Peer:
    """What is plugged into a port: keeps what it gets, and can be full."""

    def __init__(self, switch: Switch, **settings: object) -> None:
        self.got: list[bytes] = []
        self.full = False
        self.woken = 0
        self.port = switch.attach(Port(self._receive, **settings))  # type: ignore[arg-type]

    def _receive(self, frame: Frame) -> bool:
        if not self.full:
            self.got.append(frame.data)
        return not self.full

    def wake(self) -> None:
        self.woken += 1


def mac(number: int) -> bytes:
    return b"\x02\0\0\0" + number.to_bytes(2, "big")


def ethernet(source: int, destination: int | bytes, payload: bytes = b"", tag: int | None = None) -> Frame:
    to = destination if isinstance(destination, bytes) else mac(destination)
    vlan = b"" if tag is None else b"\x81\x00" + tag.to_bytes(2, "big")
    return Frame(to + mac(source) + vlan + b"\x88\xb5" + payload.ljust(46, b"\0"))


def test_an_unknown_address_is_flooded_and_a_learnt_one_is_not() -> None:
    switch = Switch(Clock())
    one, two, three = (Peer(switch) for _ in range(3))
    one.port.send(ethernet(1, 2))
    two.port.send(ethernet(2, 1))
    one.port.send(ethernet(1, 2, b"again"))
    assert [len(one.got), len(two.got), len(three.got)] == [1, 2, 1]


def test_a_station_that_moves_is_found_at_its_new_port() -> None:
    """Live migration announces itself so."""
    switch = Switch(Clock())
    one, two, three = (Peer(switch) for _ in range(3))
    two.port.send(ethernet(2, 1))
    three.port.send(ethernet(2, BROADCAST_MAC))
    two.got.clear()
    one.port.send(ethernet(1, 2))
    assert (two.got, len(three.got)) == ([], 2)


def test_an_address_is_forgotten_after_its_age() -> None:
    clock = Clock()
    switch = Switch(clock)
    one, two, three = (Peer(switch) for _ in range(3))
    two.port.send(ethernet(2, 1))
    three.got.clear()
    clock.now = AGEING_NS + 1
    one.port.send(ethernet(1, 2))
    assert len(three.got) == 1
    assert len(two.got) == 1


def test_one_port_cannot_fill_the_table_of_addresses() -> None:
    table: MacTable[str] = MacTable()
    for number in range(MAX_ENTRIES_OF_A_PORT + 100):
        table.learn(0, mac(number), "greedy", 0)
    table.learn(0, b"\x02other", "other", 0)
    assert (len(table), table.lookup(0, b"\x02other", 0)) == (MAX_ENTRIES_OF_A_PORT + 1, "other")


def test_a_full_ring_makes_frames_wait_in_order_and_the_tail_is_dropped() -> None:
    switch = Switch(Clock())
    one, two = Peer(switch), Peer(switch)
    two.full = True
    sent = [ethernet(1, 2, str(number).encode()) for number in range(QUEUE_FRAMES + 5)]
    for frame in sent:
        one.port.send(frame)
    two.full = False
    two.port.drain()
    assert two.got == [frame.data for frame in sent[:QUEUE_FRAMES]]
    assert (two.port.counters.sent.dropped, two.port.counters.sent.packets) == (5, QUEUE_FRAMES)


def test_a_peer_that_answers_from_within_receive_does_not_recurse() -> None:
    """Two stations that echo everything would else end at the recursion limit."""
    switch = Switch(Clock())
    rounds = []
    ports: list[Port] = []

    def echo(number: int) -> Port:
        def receive(_frame: Frame) -> bool:
            rounds.append(number)
            return ports[number].send(ethernet(number, 1 - number))

        return switch.attach(Port(receive))

    ports += [echo(0), echo(1)]
    ports[0].send(ethernet(0, 1))
    after_one_call = len(rounds)
    switch.tick(0)
    assert 1000 < after_one_call < len(rounds)
    assert switch.next_deadline() == 0


def test_switches_joined_twice_do_not_keep_a_broadcast_for_ever() -> None:
    clock = Clock()
    left, right = Switch(clock), Switch(clock)
    for _ in range(3):
        connect(left, right, trunk())
    one, two = Peer(left), Peer(right)
    one.port.send(ethernet(1, BROADCAST_MAC))
    for _ in range(10):
        left.tick(0)
        right.tick(0)
    assert (left.next_deadline(), right.next_deadline()) == (None, None)
    assert 1 <= len(two.got) < 2000


def test_a_cable_joins_the_vlans_of_two_switches() -> None:
    clock = Clock()
    left, right = Switch(clock), Switch(clock)
    connect(left, right, trunk())
    one, two, other = Peer(left, membership=access(5)), Peer(right, membership=access(5)), Peer(right)
    one.port.send(ethernet(1, 2, b"hello"))
    assert (two.got, other.got) == ([ethernet(1, 2, b"hello").data], [])


def test_a_trunk_sees_tags_and_an_access_port_does_not() -> None:
    switch = Switch(Clock())
    plain, tagged, other = (
        Peer(switch, membership=access(5)),
        Peer(switch, membership=trunk({5, 6}, None)),
        Peer(switch, membership=access(6)),
    )
    plain.port.send(ethernet(1, 2))
    tagged.port.send(ethernet(2, 1, tag=5))
    assert tagged.got == [ethernet(1, 2, tag=5).data]
    assert plain.got == [ethernet(2, 1).data]
    assert other.got == []


@pytest.mark.parametrize("tag", [6, 4095])
def test_a_tag_that_the_port_does_not_carry_is_dropped(tag: int) -> None:
    switch = Switch(Clock())
    one, two = Peer(switch, membership=access(5)), Peer(switch, membership=trunk())
    one.port.send(ethernet(1, 2, tag=tag))
    assert (two.got, one.port.counters.received.dropped) == ([], 1)


def test_a_priority_tag_counts_as_none() -> None:
    switch = Switch(Clock())
    one, two = Peer(switch), Peer(switch)
    one.port.send(ethernet(1, 2, tag=0xE000))
    assert two.got == [ethernet(1, 2).data]


def test_a_second_tag_does_not_hop_to_another_vlan() -> None:
    switch = Switch(Clock())
    attacker, uplink = Peer(switch, membership=trunk({5})), Peer(switch, membership=trunk({6}, untagged=5))
    inner = ethernet(1, 2, tag=6).data
    attacker.port.send(Frame(inner[:12] + b"\x81\x00\x00\x05" + inner[12:]))
    assert (uplink.got, uplink.port.counters.sent.dropped) == ([], 1)


@pytest.mark.parametrize(
    "data",
    [b"", b"short", bytes(70000), mac(2) + BROADCAST_MAC + bytes(48), mac(2) + bytes(6) + bytes(48)],
    ids=["empty", "short", "huge", "group source", "no source"],
)
def test_a_malformed_frame_is_an_error(data: bytes) -> None:
    switch = Switch(Clock())
    one, two = Peer(switch), Peer(switch)
    one.port.send(Frame(data))
    assert (two.got, one.port.counters.received.errors) == ([], 1)


def test_frames_for_the_link_only_are_not_forwarded() -> None:
    switch = Switch(Clock())
    one, two = Peer(switch), Peer(switch)
    one.port.send(ethernet(1, b"\x01\x80\xc2\x00\x00\x0e"))
    assert (two.got, one.port.counters.received.dropped) == ([], 1)


def test_a_packet_above_the_mtu_is_dropped_on_either_side() -> None:
    switch = Switch(Clock())
    large, small = Peer(switch, mtu=9000), Peer(switch)
    large.port.send(ethernet(1, 2, bytes(1501)))
    small.port.send(ethernet(2, 1, bytes(1501)))
    large.port.send(ethernet(1, 2, bytes(1500)))
    assert (small.port.counters.sent.dropped, small.port.counters.received.errors, len(small.got)) == (1, 1, 1)


def test_a_disabled_port_passes_nothing_either_way() -> None:
    switch = Switch(Clock())
    one, two = Peer(switch), Peer(switch, lock=DISABLED)
    one.port.send(ethernet(1, 2))
    two.port.send(ethernet(2, 1))
    assert (one.got, two.got) == ([], [])


def test_a_port_that_is_unplugged_gets_nothing_and_its_addresses_are_forgotten() -> None:
    switch = Switch(Clock())
    one, two = Peer(switch), Peer(switch)
    two.port.send(ethernet(2, 1))
    switch.detach(two.port)
    one.port.send(ethernet(1, 2))
    assert (two.got, switch.location(mac(2))) == ([], None)
    with pytest.raises(ValueError, match="not plugged"):
        switch.detach(two.port)


def test_counters_of_both_directions() -> None:
    switch = Switch(Clock())
    one, two = Peer(switch), Peer(switch)
    one.port.send(ethernet(1, 2))
    assert (one.port.counters.received.packets, one.port.counters.received.bytes) == (1, 60)
    assert (two.port.counters.sent.packets, two.port.counters.sent.bytes) == (1, 60)


def test_the_rate_limit_holds_over_time_and_wakes_the_sender() -> None:
    """100 KiB/s, ten seconds, after the first slice's credit is gone."""
    clock = Clock()
    switch = Switch(clock)
    two = Peer(switch)
    one = Peer(switch)
    one.port.ready = one.wake
    one.port.limit_rate(TokenBucket(100, 50_000, now=0))
    frame = ethernet(1, 2, bytes(1000))
    while (deadline := switch.next_deadline() or 0) <= 10 * SECOND:
        clock.now = max(clock.now, deadline)
        switch.tick(clock.now)
        while one.port.send(frame):
            pass
    passed = sum(map(len, two.got))
    assert 0.98 < passed / (100 * 1024 * 10) < 1.02
    assert one.woken > 100


def test_a_sender_that_cannot_wait_loses_what_exceeds_the_rate() -> None:
    switch = Switch(Clock())
    one, two = Peer(switch), Peer(switch)
    one.port.limit_rate(TokenBucket(1, 50_000, now=0))
    assert one.port.send(ethernet(1, 2))
    assert (two.got, one.port.counters.received.dropped, switch.next_deadline()) == ([], 1, None)


def test_credit_is_saved_up_to_the_burst_only() -> None:
    bucket = TokenBucket(100, 50_000)
    assert bucket.take(MIN_BURST, 3600 * SECOND)
    assert not bucket.take(1500, 3600 * SECOND)
    assert bucket.take(1500, bucket.ready_at(1500))


@pytest.mark.parametrize(("kbps", "slice_us"), [(0, 50_000), (-1, 50_000), (10, 0), (10, 2_000_000)])
def test_a_rate_that_is_none_is_refused(kbps: int, slice_us: int) -> None:
    with pytest.raises(ValueError, match="no rate limit"):
        TokenBucket(kbps, slice_us)


def test_metadata_passes_between_ports_that_take_it() -> None:
    switch = Switch(Clock())
    frames: list[Frame] = []

    def keep(frame: Frame) -> bool:
        frames.append(frame)
        return True

    two = switch.attach(Port(keep, offloads=EVERY_OFFLOAD))
    one = Peer(switch)
    udp = bytes.fromhex("4500001d00004000401100000a0000010a0000020001000200090000ff")
    frame = Frame(mac(2) + mac(1) + b"\x08\x00" + udp, 34, 6)
    one.port.send(frame)
    assert frames == [frame]
    assert two.counters.sent.packets == 1


def test_mac_addresses_as_text() -> None:
    assert mac_to_text(mac_from_text("00:16:3e:AA:bb:01")) == "00:16:3e:aa:bb:01"
    with pytest.raises(ValueError, match="no MAC"):
        mac_from_text("00:16:3e:aa:bb")
