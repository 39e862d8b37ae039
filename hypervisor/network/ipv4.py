"""The IPv4 layer of a station with one static address: routes by subnet and gateway, fragments, reassembles."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface

from hypervisor.network.arp import Neighbours
from hypervisor.network.checksum import checksum
from hypervisor.network.frame import ETHERNET_HEADER, GSO_NONE, GSO_TCPV4, Frame
from hypervisor.network.packets import (
    ANY_IPV4,
    BROADCAST_IPV4,
    BROADCAST_MAC,
    ETHERTYPE_IPV4,
    IPV4_HEADER,
    Ipv4,
    ipv4_header,
    parse_ipv4,
)

REASSEMBLY_NS = 30 * 1_000_000_000
MAX_REASSEMBLIES = 16
MAX_FRAGMENTS = 64
MAX_PAYLOAD = 65535 - IPV4_HEADER


class _Datagram:
    """One datagram of which fragments have come."""

    def __init__(self, now: int) -> None:
        self.deadline = now + REASSEMBLY_NS
        self.parts: dict[int, bytes] = {}
        self.length: int | None = None

    def add(self, packet: Ipv4) -> bytes | None:
        """Take a fragment; return the whole payload once all are there. Overlaps stay incomplete (RFC 5722's way)."""
        self.parts.setdefault(packet.fragment_offset, packet.payload)
        if not packet.more_fragments:
            self.length = packet.fragment_offset + len(packet.payload)
        if self.length is None or sum(map(len, self.parts.values())) != self.length:
            return None
        made = bytearray()
        for offset in sorted(self.parts):
            if offset != len(made):
                return None
            made += self.parts[offset]
        return bytes(made)


class Reassembly:
    """Fragments on their way to be datagrams: at most `MAX_REASSEMBLIES` of 64 kB, the oldest gives way."""

    def __init__(self) -> None:
        self._datagrams: dict[tuple[bytes, bytes, int, int], _Datagram] = {}

    def __len__(self) -> int:
        return len(self._datagrams)

    def add(self, packet: Ipv4, now: int) -> Ipv4 | None:
        """Take a fragment and return the whole packet if this was the last one missing."""
        if packet.fragment_offset + len(packet.payload) > MAX_PAYLOAD or not packet.payload:
            return None
        self._expire(now)
        key = (packet.source, packet.destination, packet.protocol, packet.identification)
        datagram = self._datagrams.get(key)
        if datagram is None:
            if len(self._datagrams) >= MAX_REASSEMBLIES:
                del self._datagrams[next(iter(self._datagrams))]
            datagram = self._datagrams[key] = _Datagram(now)
        payload = datagram.add(packet)
        if payload is None:
            if len(datagram.parts) > MAX_FRAGMENTS:
                del self._datagrams[key]
            return None
        del self._datagrams[key]
        return packet._replace(fragment_offset=0, more_fragments=False, payload=payload)

    def _expire(self, now: int) -> None:
        for key in [key for key, datagram in self._datagrams.items() if datagram.deadline <= now]:
            del self._datagrams[key]


class Ipv4Layer:
    """Sends and receives the packets of one address on one link."""

    def __init__(
        self,
        mac: bytes,
        interface: IPv4Interface,
        gateway: IPv4Address | None,
        mtu: int,
        neighbours: Neighbours,
        transmit: Callable[[Frame], None],
        clock: Callable[[], int],
    ) -> None:
        self.mac = mac
        self.address = interface.ip.packed
        self.mtu = mtu
        self.broadcast = interface.network.broadcast_address.packed
        self.protocols: dict[int, Callable[[Ipv4, bytes, bool], None]] = {}
        """Receivers by protocol number: of the packet, its sender's MAC, and whether its checksum is known good."""
        self._network = int(interface.network.network_address)
        self._mask = int(interface.network.netmask)
        self._gateway = None if gateway is None else gateway.packed
        self._neighbours = neighbours
        self._transmit = transmit
        self._clock = clock
        self._reassembly = Reassembly()
        self._identification = 0

    def is_broadcast(self, address: bytes) -> bool:
        """Tell whether an address means everybody, or a group."""
        return address in (BROADCAST_IPV4, self.broadcast) or 224 <= address[0] < 240

    def receive(self, frame: Frame) -> None:
        """Take a frame with an IPv4 packet; one that is not for us or is malformed goes no further."""
        packet = parse_ipv4(frame.data, ETHERNET_HEADER)
        if packet is None or not (packet.destination == self.address or self.is_broadcast(packet.destination)):
            return
        if packet.source == self.address or self.is_broadcast(packet.source):
            return
        verified = bool(frame.csum_start) or frame.validated
        if packet.more_fragments or packet.fragment_offset:
            whole = self._reassembly.add(packet, self._clock())
            if whole is None:
                return
            packet, verified = whole, False
        receiver = self.protocols.get(packet.protocol)
        if receiver is not None:
            receiver(packet, frame.data[6:12], verified)

    def send(
        self,
        destination: bytes,
        protocol: int,
        payload: bytes,
        csum_offset: int | None = None,
        gso_size: int = 0,
        mac: bytes | None = None,
    ) -> bool:
        """Send a payload, in fragments if it must be. Return False if there is no way to `destination`.

        `csum_offset` is the place of a checksum that holds the pseudo header's sum and is left to the
        receiver; `mac` skips the question for the neighbour's. Raises ValueError above `MAX_PAYLOAD`.
        """
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"{len(payload)} bytes do not fit into a packet")
        packets = self._packets(destination, protocol, payload, csum_offset, gso_size)

        def transmit(to: bytes) -> None:
            head = to + self.mac + ETHERTYPE_IPV4
            for packet in packets:
                self._transmit(packet._replace(data=head + packet.data))

        if mac is None and self.is_broadcast(destination):
            mac = BROADCAST_MAC
        if mac is not None:
            transmit(mac)
            return True
        hop = self._next_hop(destination)
        if hop is None:
            return False
        self._neighbours.resolve(hop, self._clock(), transmit)
        return True

    def _next_hop(self, destination: bytes) -> bytes | None:
        if destination == ANY_IPV4:
            return None
        if int.from_bytes(destination, "big") & self._mask == self._network:
            return destination
        return self._gateway

    def _packets(
        self, destination: bytes, protocol: int, payload: bytes, csum_offset: int | None, gso_size: int
    ) -> list[Frame]:
        """Return the packets of a payload, as frames that lack their Ethernet header."""
        self._identification = (self._identification + 1) & 0xFFFF
        number = self._identification
        if gso_size or IPV4_HEADER + len(payload) <= self.mtu:
            header = ipv4_header(self.address, destination, protocol, len(payload), number)
            if csum_offset is None:
                return [Frame(header + payload)]
            kind = GSO_TCPV4 if gso_size else GSO_NONE
            return [Frame(header + payload, ETHERNET_HEADER + IPV4_HEADER, csum_offset, gso_size, kind)]
        if csum_offset is not None:
            total = checksum(payload).to_bytes(2, "big")
            payload = payload[:csum_offset] + total + payload[csum_offset + 2 :]
        step = (self.mtu - IPV4_HEADER) & ~7
        made = []
        for offset in range(0, len(payload), step):
            part = payload[offset : offset + step]
            fragment = (offset, offset + step < len(payload))
            made.append(Frame(ipv4_header(self.address, destination, protocol, len(part), number, fragment) + part))
        return made
