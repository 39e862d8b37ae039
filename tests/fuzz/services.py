"""A guest that sends what it likes to what a host offers on its networks: addresses, names, echo and a TCP service."""

from __future__ import annotations

import struct
from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.network.arp import MAX_NEIGHBOURS, MAX_UNRESOLVED
from hypervisor.network.endpoint import MAX_HELD
from hypervisor.network.frame import EVERY_OFFLOAD, PLAIN, Frame
from hypervisor.network.icmp import MAX_PINGS
from hypervisor.network.ipv4 import MAX_REASSEMBLIES
from hypervisor.network.leases import MAX_LEASES
from hypervisor.network.packets import PROTOCOL_TCP, ipv4_header
from hypervisor.network.port import Port
from hypervisor.network.services import AddressService
from hypervisor.network.switch import Switch
from hypervisor.network.tcp import MAX_CONNECTIONS
from hypervisor.network.tcp_connection import Connection
from tests.fuzz.steps import counted
from tests.property.test_network import ADDRESS, OWN, SERVICE, frames

MASK = (1 << 32) - 1
MOST_SENT = 4096
"""Frames that an answer to one frame of ours may take."""
ports = st.sampled_from([49152, 49152, 49152, 50000, 80])
offsets = st.one_of(st.just(0), st.just(0), st.integers(-3, 3), st.integers(0, MASK))
options = st.sampled_from([b"", b"", b"\x02\x04\x05\xb4\x03\x03\x07\x01", b"\x02\x04\0\0", b"\x03\x03\xff\0", b"\x02"])
windows = st.one_of(st.just(65535), st.integers(0, 65535))


class Services(RuleBasedStateMachine):
    """A port of a switch with the services on another; what they send is read for the numbers of TCP."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000_000
        self.switch = Switch(lambda: self.now)
        self.service = AddressService(self.switch, lambda: self.now)
        self.service.endpoint.tcp.listen(80, self._accept)
        self.port = self.switch.attach(Port(self._receive, offloads=EVERY_OFFLOAD))
        self.said: Counter[int] = Counter()
        """By port of ours the number of the next byte that the TCP service waits for,"""
        self.heard: Counter[int] = Counter()
        """and of the next that it sends."""
        self.sent = 0

    def _accept(self, connection: Connection) -> None:
        connection.received = lambda data: self._echo(connection, data)
        connection.ended = connection.close

    def _echo(self, connection: Connection, data: bytes) -> None:
        assert connection.send(data) <= len(data)

    def _receive(self, frame: Frame) -> bool:
        self.sent += 1
        assert self.sent <= MOST_SENT
        data = frame.data
        if len(data) >= 54 and data[12:14] == b"\x08\0" and data[23] == PROTOCOL_TCP:
            header = 14 + (data[14] & 15) * 4
            port, sequence, answered = struct.unpack_from("!2xHII", data, header)
            length = len(data) - header - (data[header + 12] >> 4) * 4 + (data[header + 13] & 3 > 0)
            self.heard[port], self.said[port] = sequence + length, answered
        return True

    def _send(self, frame: Frame) -> None:
        counted()
        self.sent = 0
        assert self.port.send(frame)

    @rule(many=st.lists(frames(), min_size=1, max_size=10))
    def packets(self, many: list[Frame]) -> None:
        """Send what is nearly right: ARP, DHCP, DNS, echoes, fragments."""
        for frame in many:
            self._send(frame)

    @rule(port=ports)
    def open(self, port: int) -> None:
        """Tell who we are, and connect."""
        head = self.service.mac + OWN
        self._send(Frame(head + b"\x08\x06\0\x01\x08\0\x06\x04\0\x01" + OWN + ADDRESS + bytes(6) + SERVICE))
        self.segment(port, 2, 0, 0, b"", b"", 65535)
        self.segment(port, 16, 0, 0, b"", b"", 65535)

    @rule(
        port=ports,
        kind=st.sampled_from([16, 24, 24, 17, 2, 4, 20, 18, 0, 255]),
        off=offsets,
        ahead=offsets,
        options=options,
        data=st.one_of(st.binary(max_size=40), st.just(b"d" * 1400), st.just(b"d" * 30_000)),
        window=windows,
    )
    def segment(self, port: int, kind: int, off: int, ahead: int, options: bytes, data: bytes, window: int) -> None:
        """Say something, in order or not; acknowledge what was heard, or nearly."""
        options = options.ljust(-(-len(options) // 4) * 4, b"\0")
        sequence, answered = self.said[port] + off & MASK, self.heard[port] + ahead & MASK
        length = 5 + len(options) // 4 << 4
        body = struct.pack("!HHIIBBHHH", port, 80, sequence, answered, length, kind, window, 0, 0) + options + data
        packet = ipv4_header(ADDRESS, SERVICE, PROTOCOL_TCP, len(body)) + body
        # Large ones as a guest sends them that leaves cutting to us, which has the checksum left too.
        cut = (34, 16, 1448, 1) if len(data) > 1460 else (0, 0, 0, 0)
        self._send(Frame(self.service.mac + OWN + b"\x08\0" + packet, *cut, validated=True))

    @rule(plain=st.booleans())
    def change_driver(self, plain: bool) -> None:
        self.port.offloads = PLAIN if plain else EVERY_OFFLOAD

    @rule(seconds=st.sampled_from([0.001, 0.3, 5, 100, 4000]))
    def time_passes(self, seconds: float) -> None:
        counted()
        self.sent = 0
        self.now += int(seconds * 1e9)
        for part in (self.switch, self.service):
            due = part.next_deadline()
            if due is not None and due <= self.now:
                part.tick(self.now)
                assert (later := part.next_deadline()) is None or later > self.now, "what is due is not done"

    @invariant()
    def all_is_bounded(self) -> None:
        endpoint = self.service.endpoint
        assert len(self.service.leases()) <= MAX_LEASES and len(endpoint._held) <= MAX_HELD
        assert len(endpoint.neighbours._known) <= MAX_NEIGHBOURS
        assert len(endpoint.neighbours._unresolved) <= MAX_UNRESOLVED
        assert len(endpoint.tcp.connections) <= MAX_CONNECTIONS and len(endpoint.icmp._pings) <= MAX_PINGS
        assert len(endpoint.ip._reassembly) <= MAX_REASSEMBLIES
        assert not self.switch._pending
