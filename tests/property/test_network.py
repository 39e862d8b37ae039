"""The virtual network against whatever a guest may send, and wires of any quality."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Interface

from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.network.endpoint import Endpoint
from hypervisor.network.frame import EVERY_OFFLOAD, PLAIN, Frame, Offloads
from hypervisor.network.lock import Lock, LockMode
from hypervisor.network.packets import BROADCAST_MAC, ipv4_header
from hypervisor.network.port import Port, access, trunk
from hypervisor.network.services import AddressService
from hypervisor.network.switch import Switch
from hypervisor.network.tcp_connection import Connection
from hypervisor.network.tcp_reassembly import Reassembly

SECOND = 1_000_000_000
OWN, ALIEN = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
ADDRESS, OTHER = b"\xa9\xfe\0\x05", b"\xa9\xfe\0\x06"
SERVICE = b"\xa9\xfe\0\x01"

macs = st.sampled_from([OWN, ALIEN, BROADCAST_MAC, b"\x33\x33\0\0\0\x01"])
types = st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x86\xdd", b"\x81\x00\x00\x05", b"\x81\x00\x00\x05\x08\x00"])


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """IPv4 that is nearly right, so that what lies behind the header is reached."""
    body = draw(st.binary(max_size=300))
    kind = draw(st.sampled_from(["raw", "udp", "dhcp", "tcp"]))
    protocol = {"raw": 1, "udp": 17, "dhcp": 17, "tcp": 6}[kind]
    if kind in ("udp", "dhcp"):
        port = draw(st.sampled_from([53, 67, 9]))
        if kind == "dhcp":
            body = b"\x01\x01\x06\0" + body[:24].ljust(24, b"\0") + OWN + bytes(202) + b"\x63\x82\x53\x63" + body
        body = b"\0\x44" + port.to_bytes(2, "big") + (8 + len(body)).to_bytes(2, "big") + bytes(2) + body
    source = draw(st.sampled_from([ADDRESS, OTHER, bytes(4)]))
    destination = draw(st.sampled_from([SERVICE, b"\xff" * 4, OTHER]))
    place = draw(st.none() | st.tuples(st.integers(0, 500).map(lambda number: number * 8), st.booleans()))
    return ipv4_header(source, destination, protocol, len(body), 3, place) + body


@st.composite
def neighbour_messages(draw: st.DrawFn) -> bytes:
    """ARP for IPv4 with addresses that are worth forging."""
    addresses = st.sampled_from([ADDRESS, OTHER, bytes(4)])
    head = b"\x00\x01\x08\x00\x06\x04\x00" + bytes((draw(st.integers(1, 2)),))
    inside = st.sampled_from([OWN, ALIEN])
    return head + draw(inside) + draw(addresses) + draw(inside) + draw(addresses)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(["bytes", "ethernet", "ipv4", "ipv4", "arp"]))
    head = draw(macs) + draw(st.sampled_from([OWN, OWN, ALIEN, BROADCAST_MAC]))
    if kind == "bytes":
        data = draw(st.binary(max_size=200))
    elif kind == "ipv4":
        data = head + b"\x08\x00" + draw(packets())
    elif kind == "arp":
        data = head + b"\x08\x06" + draw(neighbour_messages())
    else:
        data = head + draw(types) + draw(st.binary(max_size=200))
    if draw(st.booleans()):
        return Frame(data)
    start = draw(st.sampled_from([0, 14, 26, 34, 38]) | st.integers(-70000, 70000))
    offset = draw(st.sampled_from([0, 6, 12, 16]) | st.integers(-70000, 70000))
    size = draw(st.sampled_from([0, 48, 1448]) | st.integers(-5, 70000))
    return Frame(data, start, offset, size, draw(st.integers(-1, 4)), draw(st.booleans()))


@given(st.lists(st.tuples(st.integers(0, 3), frames()), max_size=30))
def test_no_frame_makes_the_switch_or_the_services_raise(sent: list[tuple[int, Frame]]) -> None:
    now = 0
    switch = Switch(lambda: now)
    service = AddressService(switch, lambda: now)
    ports = [
        switch.attach(Port(lambda frame: True, offloads=EVERY_OFFLOAD)),
        switch.attach(Port(lambda frame: False, membership=trunk())),
        switch.attach(Port(lambda frame: True, membership=trunk({5}), lock=Lock(LockMode.LOCKED, OWN))),
        switch.attach(Port(lambda frame: True, offloads=Offloads(csum_v4=True))),
    ]
    service.endpoint.tcp.listen(9, lambda connection: None)
    for number, frame in sent:
        now += SECOND // 3
        assert ports[number].send(frame)
        switch.tick(now)
        service.tick(now)


def keeping(got: list[bytes]) -> Callable[[Frame], bool]:
    """What a port gives its frames to: it keeps what they hold."""

    def keep(frame: Frame) -> bool:
        got.append(frame.data)
        return True

    return keep


@settings(max_examples=300)
@given(st.lists(frames(), max_size=20), st.sampled_from([PLAIN, EVERY_OFFLOAD]))
def test_a_locked_port_never_leaks_a_forged_source(sent: list[Frame], offloads: Offloads) -> None:
    """Looked at where it arrives: after tags, checksums and segments."""
    switch = Switch(lambda: 0)
    got: list[bytes] = []
    lock = Lock(LockMode.LOCKED, OWN, frozenset({ADDRESS}))
    locked = switch.attach(Port(lambda frame: True, membership=trunk(), lock=lock))
    switch.attach(Port(keeping(got), offloads=offloads))
    switch.attach(Port(keeping(got), offloads=offloads, membership=access(5)))
    for frame in sent:
        locked.send(frame)
    for data in got:
        assert data[6:12] == OWN
        kind = data[12:14]
        assert kind in (b"\x08\x00", b"\x08\x06")
        if kind == b"\x08\x06":
            assert data[22:28] == OWN
            assert data[28:32] == ADDRESS or (data[28:32] == bytes(4) and data[38:42] == ADDRESS)
        elif data[26:30] != ADDRESS:
            assert data[26:30] == bytes(4) and data[36:38] == b"\0\x43" and data[70:76] == OWN
        assert not (kind == b"\x08\x00" and data[23] == 17 and data[34:36] == b"\0\x43" and not data[20] & 31)


stations = st.integers(1, 6)


@given(st.lists(st.tuples(st.integers(0, 3), stations, stations, st.sampled_from([0, 5, 6])), max_size=60))
def test_frames_stay_in_their_vlan_and_known_ones_go_to_their_port_only(
    sent: list[tuple[int, int, int, int]],
) -> None:
    """Against a model: a dict of where each address was last seen in each VLAN."""
    switch = Switch(lambda: 0)
    got: list[list[bytes]] = [[], [], [], []]
    memberships = [access(0), access(5), trunk({5, 6}, 0), trunk({6}, 5)]
    ports = [
        switch.attach(Port(keeping(box), membership=membership))
        for box, membership in zip(got, memberships, strict=True)
    ]
    seen: dict[tuple[int, int], int] = {}
    for port, source, destination, tag in sent:
        membership = memberships[port]
        for box in got:
            box.clear()
        vlan_tag = b"\x81\x00" + tag.to_bytes(2, "big") if tag else b""
        head = bytes((2, 0, 0, 0, 0, destination, 2, 0, 0, 0, 0, source))
        ports[port].send(Frame(head + vlan_tag + b"\x88\xb5" + bytes(46)))
        vlan = tag or membership.untagged
        expected: list[int] = []
        if vlan is not None and (not tag or tag in membership.tagged):
            seen[(vlan, source)] = port
            known = seen.get((vlan, destination))
            outs = range(4) if known is None else [known]
            expected = [out for out in outs if out != port and vlan in memberships[out]]
        assert [number for number, box in enumerate(got) if box] == expected
        for out in expected:
            tagged = memberships[out].untagged != vlan
            assert (got[out][0][12:14] == b"\x81\x00") is tagged
            assert not tagged or int.from_bytes(got[out][0][14:16], "big") == vlan


class Wire:
    """Two switches joined by a wire that loses, doubles and swaps frames, by a seed."""

    def __init__(self, seed: int, loss: float, twice: float, swap: float, offloads: Offloads) -> None:
        self.random = random.Random(seed)
        self.rates = (loss, twice, swap)
        self.now = SECOND
        self.ends: list[Port] = []
        self.flying: list[tuple[int, Frame]] = []
        self.parts: list[Switch | Endpoint] = []
        for number in range(2):
            switch = Switch(lambda: self.now)
            self.ends.append(switch.attach(Port(partial(self.carry, 1 - number), offloads=offloads)))
            mac = b"\x02\0\0\0\0" + bytes((number + 1,))
            interface = IPv4Interface(f"10.0.0.{number + 1}/24")
            self.parts += [switch, Endpoint(switch, lambda: self.now, mac, interface, secret=bytes(16))]

    def carry(self, to: int, frame: Frame) -> bool:
        loss, twice, swap = self.rates
        copies = 0 if self.random.random() < loss else 2 if self.random.random() < twice else 1
        for _ in range(copies):
            place = len(self.flying)
            if self.random.random() < swap:
                place = self.random.randint(0, place)
            self.flying.insert(place, (to, frame))
        return True

    def run(self) -> None:
        """Carry everything, jumping to the next deadline when the wire is empty, until nothing is due."""
        for _ in range(20_000):
            if self.flying:
                self.now += 10_000
                to, frame = self.flying.pop(0)
                self.ends[to].send(frame)
                continue
            due = [at for part in self.parts if (at := part.next_deadline()) is not None]
            if not due:
                return
            self.now = max(self.now, min(due))
            for part in self.parts:
                part.tick(self.now)
        raise AssertionError("the connection never came to rest")


rates = st.floats(0, 0.08)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    rates,
    rates,
    rates,
    st.sampled_from([PLAIN, EVERY_OFFLOAD]),
    st.sampled_from([0, 1, 5_000, 60_000, 250_000]),
)
def test_a_stream_arrives_intact_over_a_bad_wire(
    seed: int, loss: float, twice: float, swap: float, offloads: Offloads, length: int
) -> None:
    """Both ways, each beginning where the other ends, to a close in good order."""
    wire = Wire(seed, loss, twice, swap, offloads)
    one, two = (part for part in wire.parts if isinstance(part, Endpoint))
    there, back, reasons = bytearray(), bytearray(), list[str]()

    def serve(connection: Connection) -> None:
        connection.received = there.extend

        def answer() -> None:
            connection.send(bytes(there[:70_000]))
            connection.close()

        connection.ended = answer

    def prepare(connection: Connection) -> None:
        connection.received = back.extend
        connection.closed = reasons.append

    two.tcp.listen(80, serve)
    client = one.tcp.connect(b"\x0a\0\0\x02", 80, prepare)
    data = random.Random(seed).randbytes(length)
    client.send(data)
    client.opened = client.close
    wire.run()
    assert reasons == [""]
    assert bytes(there) == data
    assert bytes(back) == data[:70_000]


@given(st.binary(max_size=60), st.data())
def test_pieces_of_a_stream_in_any_order_and_overlap_make_it_whole(stream: bytes, data: st.DataObject) -> None:
    """What is taken is always what comes next; once every byte has come, it is all there."""
    spans = st.tuples(st.integers(0, len(stream)), st.integers(0, len(stream)))
    pieces = Reassembly(1 << 20)
    taken = b""
    for span in [*data.draw(st.lists(spans, max_size=20)), (0, len(stream))]:
        first, last = sorted(span)
        pieces.add(first, stream[first:last])
        taken += b"".join(pieces.take(len(taken)))
        assert stream.startswith(taken)
    assert taken == stream
    assert len(pieces) == 0
