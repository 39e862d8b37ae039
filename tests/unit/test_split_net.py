"""The network device, against a front that the test plays."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from hypervisor.domains.event_channel import EventChannels
from hypervisor.memory.guest_memory import PAGE
from hypervisor.network.frame import EVERY_OFFLOAD, PLAIN, Frame
from hypervisor.network.lock import LockMode
from hypervisor.network.packets import PROTOCOL_UDP
from hypervisor.network.port import QUEUE_FRAMES
from hypervisor.network.switch import MAX_PORTS, Switch
from hypervisor.split.net import NetConfig, NetDevice
from hypervisor.split.net_queue import ANSWERS_HELD, TURN_NS
from tests.unit.net_front import (
    FIRST_RX,
    FIRST_TX,
    MAC,
    OWN_MAC,
    PEER_MAC,
    RX_REF,
    TX_DATA,
    TX_REF,
    NetFront,
    Peer,
    ethernet,
    gso,
    is_whole,
    request,
    transport,
)

OKAY, NULL, ERROR = 0, 1, -1
BLANK, VALIDATED, MORE, EXTRA = 1, 2, 4, 8
RX_VALIDATED, RX_BLANK, RX_MORE, RX_EXTRA = 1, 2, 4, 8
PING = ethernet(b"ping" * 20)


def to_guest(payload: bytes) -> bytes:
    return ethernet(payload, OWN_MAC, PEER_MAC)


def events(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the ports that are raised from here on."""
    raised: list[int] = []
    monkeypatch.setattr(EventChannels, "raise_port", lambda _, port: raised.append(port))
    return raised


# Nodes


def test_nodes_are_those_of_libxl() -> None:
    """Both directories, and what is offered; nothing that is not done."""
    front = NetFront(number=3, network="xenbr0", mtu=9000).connect()
    assert front.backend.back.endswith(f"/vif/{front.domain.domid}/3")
    keys = {"handle": "3", "mac": MAC, "bridge": "xenbr0", "mtu": "9000", "online": "1", "state": "4"}
    keys |= {"feature-rx-copy": "1", "feature-sg": "1", "feature-gso-tcpv4": "1", "feature-gso-tcpv6": "1"}
    keys |= {"feature-split-event-channels": "1", "feature-ipv6-csum-offload": "1"}
    assert {key: front.back(key) for key in keys} == keys
    for absent in ("script", "feature-ctrl-ring", "multi-queue-max-queues", "feature-multicast-control"):
        assert front.back(absent) is None
    told = {key: front.store.read_text(f"{front.backend.front}/{key}") for key in ("mac", "handle", "mtu")}
    assert told == {"mac": MAC, "handle": "3", "mtu": "9000"}


@pytest.mark.parametrize(
    "options", [{"mac": "no"}, {"mac": "01:00:00:00:00:01"}, {"mtu": 60}, {"vlan": 4095}, {"kbps": -1}], ids=str
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """Before there is anything to undo."""
    front = NetFront()
    with pytest.raises(ValueError):
        NetDevice(front.domain, front.switch, replace(NetConfig(MAC), **options))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"request_rx_copy": None}, "request-rx-copy"),
        ({"multi_queue_num_queues": 2}, "multi-queue-num-queues"),
        ({"tx_ring_ref": 4000}, "cannot be mapped"),
        ({"rx_ring_ref": 4000}, "cannot be mapped"),
        ({"tx_ring_ref": None}, "tx-ring-ref is missing"),
        ({"event_channel": 999}, "event channel"),
        ({"event_channel_tx": 1}, "event-channel-rx is missing"),
    ],
    ids=str,
)
def test_a_front_that_makes_no_sense_is_told_so_and_nothing_is_held(keys: dict[str, Any], said: str) -> None:
    """An error node, Closing, and its pages are its own again."""
    front = NetFront().connect(**keys)
    assert front.back("state") == "5"
    error = front.store.read_text(f"/local/domain/0/error/backend/vif/{front.domain.domid}/0/error")
    assert error is not None and said in error
    assert front.granted(TX_REF) == front.granted(RX_REF) == 1
    assert front.device.port.switch is None and not front.device.connected


def test_a_switch_without_room_is_the_fronts_error() -> None:
    """No exception escapes into whoever wrote to xenstore."""
    front = NetFront()
    front.switch._ports += [front.peer.port] * MAX_PORTS
    front.connect()
    assert front.back("state") == "5" and front.granted(TX_REF) == 1


# From the guest


def test_a_packet_goes_out_and_is_answered() -> None:
    """Its bytes, once, and its grant is not held."""
    front = NetFront().connect()
    front.push(*front.slots_for(PING, VALIDATED))
    assert front.answers() == [(0, OKAY)]
    assert front.peer.frames == [Frame(PING, validated=True)]
    assert front.granted(FIRST_TX) == 5
    counters = front.device.counters
    assert (counters.tx_packets, counters.tx_bytes, counters.tx_errors) == (1, len(PING), 0)


@pytest.mark.parametrize("split", [False, True])
def test_a_batch_has_one_event(split: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the channel for sending, when there are two."""
    front = NetFront().connect(split)
    raised = events(monkeypatch)
    front.push(*[slot for number in range(60) for slot in front.slots_for(PING, first=number)])
    assert front.answers() == [(number, OKAY) for number in range(60)]
    assert raised == [front.ports[0]]
    assert len(front.peer.frames) == 60


def test_pieces_are_joined() -> None:
    """The first slot tells the size of the whole."""
    front = NetFront(mtu=65535).connect()
    front.peer.port.mtu = 65535
    data = ethernet(bytes(range(256)) * 47)
    assert front.send(data) == [OKAY] * 3
    assert [frame.data for frame in front.peer.frames] == [data]


def test_pieces_lie_anywhere_in_their_frames() -> None:
    """Three pieces with offsets, the last up to the end of its page."""
    front = NetFront().connect()
    for number, (at, piece) in enumerate([(100, PING[:20]), (4000, PING[20:50]), (PAGE - 44, PING[50:])]):
        front.memory.frame(TX_DATA + number)[at : at + len(piece)] = piece
    whole = len(PING)
    first = request(FIRST_TX, 100, MORE, 1, whole)
    front.push(first, request(FIRST_TX + 1, 4000, MORE, 2, 30), request(FIRST_TX + 2, PAGE - 44, 0, 3, whole - 50))
    assert front.answers() == [(1, OKAY), (2, OKAY), (3, OKAY)]
    assert [frame.data for frame in front.peer.frames] == [PING]


@pytest.mark.parametrize("protocol", [6, PROTOCOL_UDP])
def test_a_blank_checksum_is_passed_on_or_filled_in(protocol: int) -> None:
    """As the far port can."""
    for offloads in (EVERY_OFFLOAD, PLAIN):
        front = NetFront(offloads).connect()
        assert front.send(transport(b"data" * 9, protocol), BLANK) == [OKAY]
        (frame,) = front.peer.frames
        assert bool(frame.csum_start) == (offloads is EVERY_OFFLOAD)
        assert is_whole(frame.data) == (offloads is PLAIN)


@pytest.mark.parametrize("flags", [BLANK, 0])
def test_a_large_segment_is_passed_on_or_cut(flags: int) -> None:
    """Some fronts do not say that its checksum is blank: it is made all the same."""
    payload = bytes(range(256)) * 180
    for offloads in (EVERY_OFFLOAD, PLAIN):
        front = NetFront(offloads).connect()
        data = transport(payload, blank=bool(flags))
        assert front.send(data, flags, gso(1448)) == [OKAY, NULL, *[OKAY] * 11]
        frames = front.peer.frames
        if offloads is EVERY_OFFLOAD:
            assert [(frame.data, frame.gso_size) for frame in frames] == [(transport(payload), 1448)]
        else:
            assert b"".join(frame.data[54:] for frame in frames) == payload
            assert all(is_whole(frame.data) and len(frame.data) <= 1514 for frame in frames)


@pytest.mark.parametrize(
    "slots",
    [
        [request(FIRST_TX, 0, 0, 1, 0)],
        [request(FIRST_TX, 0, 0, 1, 13)],
        [request(FIRST_TX, 0, 0, 1, PAGE + 1)],
        [request(FIRST_TX, PAGE - 10, 0, 1, 60)],
        [request(FIRST_TX, 65535, 0, 1, 60)],
        [request(9999, 0, 0, 1, 60)],
        [request(1 << 31, 0, 0, 1, 60)],
        [request(100, 0, 0, 1, 60)],
        [request(101, 0, 0, 1, 60)],
        [request(FIRST_TX, 0, MORE, 1, 60), request(FIRST_TX + 1, 0, 0, 2, 60)],
        [request(FIRST_TX, 0, MORE, 1, 60), request(FIRST_TX + 1, 0, 0, 2, 65535)],
        [request(FIRST_TX, 0, MORE, 1, 5000), request(FIRST_TX + 1, 0, 0, 2, 100)],
        [request(FIRST_TX, 0, MORE, 1, 100), request(FIRST_TX + 1, 0, 0, 2, 0)],
        [request(FIRST_TX, 0, MORE, 1, 5000), request(FIRST_TX + 1, 100, 0, 2, 4050)],
        [request(FIRST_TX, 0, MORE, 1, 400), *[request(FIRST_TX, 0, MORE, 2, 9)] * 17, request(FIRST_TX, 0, 0, 3, 9)],
        [request(FIRST_TX, 0, BLANK, 1, 60)],
        [request(FIRST_TX, 0, EXTRA, 1, 60), gso(1448)],
        [request(FIRST_TX, 0, EXTRA, 1, 60), gso(0)],
        [request(FIRST_TX, 0, EXTRA, 1, 60), gso(1448, 9)],
        [request(FIRST_TX, 0, EXTRA, 1, 60), gso(extra=2)],
        [request(FIRST_TX, 0, EXTRA, 1, 60), gso(extra=3)],
        [request(FIRST_TX, 0, EXTRA, 1, 60), gso(extra=4)],
        [request(FIRST_TX, 0, EXTRA, 1, 60), gso(extra=0)],
        [request(FIRST_TX, 0, EXTRA, 1, 60), gso(more=1), gso(extra=77)],
    ],
    ids=str,
)
def test_a_bad_packet_is_an_error_and_goes_nowhere(slots: list[bytes]) -> None:
    """Sizes that lie, frames that are not granted to us, extra slots that nobody offered; the next one is served."""
    front = NetFront().connect()
    front.grant(100, TX_DATA, domid=5), front.grant(101, 1 << 20)
    front.push(*slots)
    extras = [slot[8:] == bytes(4) for slot in slots]
    assert [status for _, status in front.answers()] == [NULL if extra else ERROR for extra in extras]
    assert front.peer.frames == []
    assert front.device.counters.tx_errors == 1 and front.back("state") == "4"
    assert front.send(PING) == [OKAY] and len(front.peer.frames) == 1


@pytest.mark.parametrize(
    "slots",
    [
        [request(FIRST_TX, 0, MORE, 1, 60)],
        [request(FIRST_TX, 0, EXTRA, 1, 60)],
        [request(FIRST_TX, 0, EXTRA, 1, 60), gso(more=1)],
        [request(FIRST_TX, 0, MORE, 1, 60)] * 200,
    ],
    ids=lambda slots: str(len(slots)),
)
def test_a_chain_that_does_not_end_is_the_end(slots: list[bytes]) -> None:
    """Nobody knows where the next packet begins: the device fails, as with Linux."""
    front = NetFront().connect()
    front.push(*slots)
    assert front.back("state") == "5" and front.granted(TX_REF) == front.granted(RX_REF) == 1
    assert front.device.port.switch is None


@pytest.mark.parametrize("ring", ["tx", "rx"])
@pytest.mark.parametrize("index", [257, 1 << 31, (1 << 32) - 1])
def test_a_ring_with_wild_indexes_is_not_served_any_more(ring: str, index: int) -> None:
    """Either ring."""
    front = NetFront().connect()
    struct.pack_into("<I", getattr(front, ring), 0, index)
    front.kick()
    front.deliver(Frame(to_guest(b"x" * 50)))
    assert front.back("state") == "5" and front.granted(RX_REF) == 1


def test_a_packet_may_be_larger_than_the_mtu_only_if_it_is_cut() -> None:
    """The MTU of a NIC holds for the guest too."""
    front = NetFront(mtu=1500).connect()
    front.send(ethernet(bytes(1501)))
    assert front.peer.frames == [] and front.device.counters.tx_errors == 1
    front.send(ethernet(bytes(1500)))
    assert len(front.peer.frames) == 1


def test_answers_are_held_until_the_guests_cpu_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or until there are many: the guest, which sends packet by packet, is interrupted once for all of them."""
    front, raised = NetFront().connect(), events(monkeypatch)

    def kick() -> None:
        notify = front.domain.events.channels[front.ports[0]].notify
        assert notify is not None
        notify()

    monkeypatch.setattr(front, "kick", kick)
    for _ in range(ANSWERS_HELD - 1):
        assert front.send(PING) == []
    assert len(front.peer.frames) == ANSWERS_HELD - 1 and raised == []
    front.domain.events.drain()
    assert len(front.answers()) == ANSWERS_HELD - 1 and raised == front.ports
    for _ in range(ANSWERS_HELD - 1):
        assert front.send(PING) == []
    assert front.send(PING) == [OKAY] * ANSWERS_HELD
    front.send(PING)
    front.backend.remove()
    front.domain.events.drain()
    assert front.answers() == []


def test_a_long_batch_lets_others_have_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the rest is put off until the hypercall has let the lock go; nothing is lost."""
    front, deferred = NetFront().connect(), list[Callable[[], None]]()
    times = iter(range(0, 10**15, TURN_NS // 3))
    monkeypatch.setattr(front.domain.vcpus, "on_this_thread", lambda: True)
    monkeypatch.setattr(front.domain.platform, "defer", deferred.append)
    monkeypatch.setattr(front.domain.time.clock, "now", lambda: next(times))
    front.push(*[slot for number in range(10) for slot in front.slots_for(PING, first=number)])
    assert 0 < len(front.peer.frames) < 10 and len(deferred) == 1
    while deferred:
        deferred.pop()()
    front.domain.events.drain()
    assert len(front.peer.frames) == 10 and front.answers() == [(number, OKAY) for number in range(10)]


# To the guest


def test_a_frame_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first slot that was given, with one event for the batch."""
    front = NetFront().connect(split=True)
    front.post(20)
    raised = events(monkeypatch)
    frames = [Frame(to_guest(bytes([number]) * 100), validated=number == 2) for number in range(5)]
    front.deliver(*frames)
    assert raised == [front.ports[1]]
    flags = [0, 0, RX_VALIDATED, 0, 0]
    assert front.frames() == [(frame.data, flag, None) for frame, flag in zip(frames, flags, strict=True)]
    counters = front.device.counters
    assert (counters.rx_packets, counters.rx_bytes) == (5, 5 * 114)


def test_a_frame_waits_for_slots_and_is_not_lost() -> None:
    """The front is asked for an event, and order is kept."""
    front = NetFront().connect()
    frames = [Frame(to_guest(bytes([number]) * 100)) for number in range(10)]
    front.deliver(*frames)
    assert front.taken() == []
    for _ in range(5):
        assert struct.unpack_from("<I", front.rx, 4)[0] == front.posted + 1
        front.post(2)
    assert [data for data, _, _ in front.frames()] == [frame.data for frame in frames]


def test_what_waits_is_bounded_and_then_dropped() -> None:
    """A guest that takes nothing costs a queue, not more."""
    front = NetFront().connect()
    for _ in range(QUEUE_FRAMES + 50):
        front.deliver(Frame(to_guest(b"x" * 100)))
    assert front.device.counters.rx_dropped == 50
    assert len(front.domain.events.queued) == 0
    front.post()
    assert len(front.frames()) == 256


def test_posted_slots_cause_no_events_while_nobody_needs_them() -> None:
    """An event costs the guest an exit: it is asked for only when there are too few slots."""
    front = NetFront().connect()
    front.post(100)
    front.deliver(Frame(to_guest(b"x" * 100)))
    asked = struct.unpack_from("<I", front.rx, 4)[0]
    front.post(50, notify=False)
    front.deliver(Frame(to_guest(b"x" * 100)))
    assert struct.unpack_from("<I", front.rx, 4)[0] == asked < 101


@pytest.mark.parametrize("notifies", [True, False])
def test_slots_of_a_front_that_does_not_tell_are_looked_for(notifies: bool) -> None:
    """When the next frame comes."""
    front = NetFront().connect(feature_rx_notify=int(notifies))
    front.deliver(Frame(to_guest(b"x" * 100)))
    front.post(10, notify=False)
    front.deliver(Frame(to_guest(b"y" * 100)))
    assert len(front.frames()) == (0 if notifies else 2)


def test_large_frames_are_spread_over_slots() -> None:
    """Blank checksum and segment size go along, so a guest gets from another what that one sent."""
    front = NetFront().connect()
    front.post()
    data = transport(bytes(range(256)) * 180, to=OWN_MAC, source=PEER_MAC)
    front.deliver(Frame(data, 34, 16, 1448, 1), Frame(to_guest(b"next" * 20)))
    (got, flags, extra), following = front.frames()
    assert got == data and extra == (1, 0, 1448, 1, 0)
    assert flags == RX_BLANK | RX_VALIDATED | RX_MORE | RX_EXTRA
    assert following == (to_guest(b"next" * 20), 0, None)


@pytest.mark.parametrize(
    ("keys", "size", "blank"),
    [
        ({"feature_gso_tcpv4": 0}, 1514, True),
        ({"feature_sg": 0}, 1514, True),
        ({"feature_no_csum_offload": 1}, 1514, False),
        ({"feature_no_csum_offload": 1, "feature_gso_tcpv4": 0, "feature_sg": 0}, 1514, False),
    ],
    ids=str,
)
def test_what_a_front_cannot_do_is_done_for_it(keys: dict[str, Any], size: int, blank: bool) -> None:
    """Segments are cut to the MTU, checksums filled in."""
    front = NetFront().connect(**keys)
    front.post()
    payload = bytes(range(256)) * 40
    front.deliver(Frame(transport(payload, to=OWN_MAC, source=PEER_MAC), 34, 16, 1460, 1))
    front.deliver(Frame(transport(b"short", to=OWN_MAC, source=PEER_MAC), 34, 16))
    *parts, short = front.frames()
    assert b"".join(data[54:] for data, _, _ in parts) == payload
    assert all(is_whole(data) and extra is None for data, _, extra in parts)
    assert max(len(data) for data, _, _ in parts) == size
    assert bool(short[1] & RX_BLANK) == blank != is_whole(short[0])


def test_a_front_that_takes_one_slot_a_frame_gets_no_larger_ones() -> None:
    """Its MTU is what a page holds."""
    front = NetFront(mtu=9000).connect(feature_sg=None)
    front.peer.port.mtu = 9000
    front.post()
    front.deliver(Frame(to_guest(bytes(5000))), Frame(to_guest(bytes(4000))))
    assert [len(data) for data, _, _ in front.frames()] == [4014]
    assert front.device.counters.rx_dropped == 1


def test_slots_withdrawn_are_errors_and_the_frame_is_lost() -> None:
    """A grant revoked, read-only or another's: nothing is written, the slots are answered, the next frame arrives."""
    front = NetFront().connect()
    front.grant(FIRST_RX, 600, 0), front.grant(FIRST_RX + 1, 601, 5), front.grant(FIRST_RX + 2, 602, 1, 5)
    front.post(8)
    front.peer.port.mtu = front.device.port.mtu = 9000
    before = bytes(front.memory.bytes[600 * PAGE : 604 * PAGE])
    front.deliver(*[Frame(to_guest(b"x" * 100))] * 3)
    assert [status for _, _, _, status in front.taken()] == [ERROR] * 3
    front.grant(FIRST_RX + 4, 604, 0)
    front.deliver(Frame(to_guest(b"x" * 5000)), Frame(to_guest(b"y" * 100)))
    assert bytes(front.memory.bytes[600 * PAGE : 604 * PAGE]) == before
    assert [status for _, _, _, status in front.taken()] == [ERROR, ERROR, 114]
    counters = front.device.counters
    assert (counters.rx_errors, counters.rx_packets, counters.rx_bytes) == (4, 1, 114)


def test_an_answer_from_the_host_comes_with_the_batch() -> None:
    """What a station says to a guest's packet is in the ring before the guest goes on."""
    front = NetFront().connect()
    front.post(5)
    front.peer.port.receive = lambda frame: front.peer.port.send(Frame(to_guest(frame.data[14:])))
    front.push(*front.slots_for(PING))
    assert [data for data, _, _ in front.frames()] == [to_guest(PING[14:])]


def test_a_frame_that_comes_inside_a_hook_of_the_same_guest_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its other NIC, say: there what is posted is done at once."""
    front = NetFront().connect()
    monkeypatch.setattr(front.domain.vcpus, "on_this_thread", lambda: True)
    for posted in (2, 2):
        front.post(posted)
        for letter in (b"x", b"y", b"z"):
            front.peer.port.send(Frame(to_guest(letter * 100)))
    front.post(10)
    assert b"".join(data[14:15] for data, _, _ in front.frames()) == b"xyzxyz"


# What the toolstack changes


def test_a_rate_holds_packets_back_in_the_ring() -> None:
    """Unanswered, in order, until there is credit: none is lost."""
    front = NetFront(kbps=100).connect()
    data = ethernet(b"r" * 1486)
    first = 0
    for _ in range(3):
        front.push(*[slot for number in range(60) for slot in front.slots_for(data, first=number)])
        first += len(front.answers())
    assert first < 180 and front.device.counters.throttled > 0
    for _ in range(100):
        front.now = front.switch.next_deadline() or front.now
        front.switch.tick(front.now)
        front.domain.events.drain()
    assert len(front.peer.frames) == 180 and first + len(front.answers()) == 180
    assert 180 * 1500 / 102_400 - 1.4 < front.now / 1e9 - 1 < 180 * 1500 / 102_400


def test_a_rate_is_taken_away() -> None:
    """What waited goes at once."""
    front = NetFront(kbps=1).connect()
    front.push(*[slot for number in range(64) for slot in front.slots_for(ethernet(b"r" * 1486), first=number)])
    waiting = 64 - len(front.answers())
    assert waiting
    front.change(kbps=0)
    front.domain.events.drain()
    assert len(front.answers()) == waiting and len(front.peer.frames) == 64


def test_a_locked_nic_is_held_to_its_addresses() -> None:
    """The mode changes while it is connected, and back."""
    front = NetFront(locking=LockMode.LOCKED, ipv4=(IPv4Address("10.0.0.9"),)).connect()
    data = transport(b"data", blank=False)
    assert front.send(data) == [OKAY] and front.peer.frames == []
    front.change(ipv4=(IPv4Address("10.0.0.1"),))
    front.send(data)
    front.change(locking=LockMode.DISABLED)
    front.send(data)
    assert len(front.peer.frames) == 1
    front.change(locking=LockMode.UNLOCKED)
    front.send(PING)
    assert len(front.peer.frames) == 2 and front.device.counters.tx_dropped == 2


def test_a_nic_moves_to_another_network() -> None:
    """Nothing of the old one reaches it; the guest hears its state again, by which Linux greets its neighbours."""
    front = NetFront(network="one").connect()
    front.send(PING)
    other, seen = Switch(lambda: front.now), list[str]()
    there = Peer(other)
    front.store.watch(f"{front.backend.back}/state", seen.append)
    front.change(other, network="two")
    assert front.back("bridge") == "two" and front.back("state") == "4" and len(seen) == 2
    front.send(PING)
    assert len(front.peer.frames) == len(there.frames) == 1
    with pytest.raises(ValueError):
        front.change(front.switch, vlan=5000)
    other._ports += [there.port] * MAX_PORTS
    front.change(front.switch, network="one")
    with pytest.raises(ValueError):
        front.change(other, network="two", kbps=1)
    assert front.device.config == NetConfig(MAC, network="one") and front.device.port.limit is None
    front.send(PING)
    assert len(front.peer.frames) == 2 and front.back("bridge") == "one"


def test_vlans_keep_nics_apart() -> None:
    """The same tag or none; a trunk sees the tags."""
    front = NetFront(vlan=7)
    same, other = NetFront(switch=front.switch, vlan=7), NetFront(switch=front.switch, vlan=8)
    for each in (front, same, other):
        each.connect().post(10)
    front.send(ethernet(b"hello" * 20, b"\xff" * 6))
    for each in (same, other):
        each.domain.events.drain()
    assert len(same.frames()) == 1 and other.frames() == [] and front.peer.frames == []


def test_a_pulled_cable_carries_nothing() -> None:
    """Packets are answered, and dropped; the front's node says so."""
    front = NetFront().connect()
    front.post(5)
    front.change(carrier=False)
    assert front.send(PING) == [OKAY]
    front.deliver(Frame(to_guest(b"x" * 50)))
    assert front.peer.frames == [] and front.frames() == [] and front.device.counters.tx_dropped == 1
    assert front.store.read_text(f"{front.backend.front}/disconnect") == "1"
    front.change(carrier=True)
    assert front.send(PING) == [OKAY] and len(front.peer.frames) == 1
    assert front.store.read_text(f"{front.backend.front}/disconnect") == "0"


def test_a_cable_pulled_before_the_front_came_is_told_too() -> None:
    """Between plug and connect."""
    front = NetFront()
    front.backend.plug()
    front.change(carrier=False)
    front.connect()
    assert front.store.read_text(f"{front.backend.front}/disconnect") == "1"
    assert front.device.connected and front.device.port.switch is None


# Coming and going


def test_reconnects_after_another_kernel_came() -> None:
    """Closed, Initialising, new rings; counters and settings stay."""
    front = NetFront().connect()
    front.send(PING)
    for _ in range(2):
        front.write("state", 6)
        assert front.back("state") == "6" and front.granted(TX_REF) == 1 and front.device.port.switch is None
        front.write("state", 1)
        assert front.back("state") == "2"
        front.connect().post(4)
        assert front.send(PING) == [OKAY]
        front.deliver(Frame(to_guest(b"x" * 50)))
        assert len(front.frames()) == 1
    assert front.device.counters.tx_packets == 3


def test_a_restart_drops_rings_and_what_waited() -> None:
    """Resume in place: the guest comes with new ones."""
    front = NetFront().connect()
    front.deliver(Frame(to_guest(b"x" * 50)))
    front.backend.restart()
    assert front.back("state") == "2" and front.device.port.queued == 0
    front.connect().post(5)
    front.deliver(Frame(to_guest(b"y" * 50)))
    assert [data[14:] for data, _, _ in front.frames()] == [b"y" * 50]


@pytest.mark.parametrize("force", [False, True])
def test_it_is_unplugged(force: bool) -> None:
    """With the guest's consent or without; frames on their way do not touch it afterwards."""
    front, done = NetFront().connect(), []
    front.post(10)
    front.peer.port.send(Frame(to_guest(b"x" * 50)))
    if force:
        front.backend.remove(lambda: done.append(True))
    else:
        front.backend.unplug(lambda: done.append(True))
        front.write("state", 6)
    assert done and front.backend.gone and front.granted(TX_REF) == front.granted(RX_REF) == 1
    front.domain.events.drain()
    front.kick()
    assert front.taken() == [] and front.peer.port.send(Frame(to_guest(b"x" * 50)))
    assert front.switch.ports == (front.peer.port,)


def test_the_domains_end_takes_it_off_the_switch() -> None:
    """Frames for it go nowhere."""
    front = NetFront().connect()
    front.tx = front.rx = memoryview(b"")
    front.host.destroy(front.domain)
    assert front.switch.ports == (front.peer.port,)
    assert front.peer.port.send(Frame(to_guest(b"x" * 50)))
