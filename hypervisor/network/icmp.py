"""ICMP (RFC 792): answer echoes, send some, say when a port is closed."""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypervisor.network.checksum import checksum, is_valid
from hypervisor.network.ipv4 import MAX_PAYLOAD, Ipv4Layer
from hypervisor.network.packets import PROTOCOL_ICMP, Ipv4, ipv4_header

ECHO_REPLY = 0
UNREACHABLE = 3
ECHO = 8
CODE_PORT = 3

MAX_PINGS = 256
"""Echoes that may be on their way at once."""

_HEADER = struct.Struct("!BBHHH")

Replied = Callable[[int | None], None]
"""Called with the round trip in nanoseconds, or None when the time was over."""


def build(kind: int, code: int, identifier: int, sequence: int, data: bytes) -> bytes:
    """Return an ICMP message with its checksum."""
    blank = _HEADER.pack(kind, code, 0, identifier, sequence) + data
    return _HEADER.pack(kind, code, checksum(blank), identifier, sequence) + data


class IcmpLayer:
    """The echo service of a station, and its pings."""

    def __init__(self, ip: Ipv4Layer, clock: Callable[[], int]) -> None:
        self._ip = ip
        self._clock = clock
        self._sequence = 0
        self._pings: dict[int, tuple[bytes, bytes, int, int, Replied]] = {}
        ip.protocols[PROTOCOL_ICMP] = self.receive

    def ping(self, address: bytes, replied: Replied, size: int = 56, timeout_ns: int = 1_000_000_000) -> None:
        """Send an echo with `size` bytes of data and call `replied` once. Raises ValueError for a wrong size."""
        if not 0 <= size <= MAX_PAYLOAD - _HEADER.size or len(self._pings) >= MAX_PINGS:
            raise ValueError(f"no echo of {size} bytes beside {len(self._pings)} others")
        self._sequence = (self._sequence + 1) & 0xFFFF
        data = bytes(index & 0xFF for index in range(size))
        now = self._clock()
        self._pings[self._sequence] = (address, data, now, now + timeout_ns, replied)
        self._ip.send(address, PROTOCOL_ICMP, build(ECHO, 0, 1, self._sequence, data))

    def refuse_port(self, packet: Ipv4, mac: bytes) -> None:
        """Tell the sender of a UDP packet that its port is closed (RFC 1122 4.1.3.1)."""
        if self._ip.is_broadcast(packet.destination):
            return
        header = ipv4_header(packet.source, packet.destination, packet.protocol, len(packet.payload))
        message = build(UNREACHABLE, CODE_PORT, 0, 0, header + packet.payload[:8])
        self._ip.send(packet.source, PROTOCOL_ICMP, message, mac=mac)

    def receive(self, packet: Ipv4, mac: bytes, _verified: bool) -> None:
        """Take an ICMP message; those that ask nothing of us are dropped."""
        if len(packet.payload) < _HEADER.size or not is_valid(packet.payload):
            return
        kind, code, _sum, identifier, sequence = _HEADER.unpack_from(packet.payload)
        data = packet.payload[_HEADER.size :]
        if kind == ECHO and code == 0 and not self._ip.is_broadcast(packet.destination):
            self._ip.send(packet.source, PROTOCOL_ICMP, build(ECHO_REPLY, 0, identifier, sequence, data), mac=mac)
        elif kind == ECHO_REPLY and identifier == 1:
            self._answered(packet.source, sequence, data)

    def tick(self, now: int) -> None:
        """Give up the echoes whose time is over."""
        for sequence in [number for number, ping in self._pings.items() if ping[3] <= now]:
            self._pings.pop(sequence)[4](None)

    def next_deadline(self) -> int | None:
        return min((ping[3] for ping in self._pings.values()), default=None)

    def _answered(self, source: bytes, sequence: int, data: bytes) -> None:
        ping = self._pings.get(sequence)
        if ping is None or ping[0] != source or ping[1] != data:
            return
        del self._pings[sequence]
        ping[4](self._clock() - ping[2])
