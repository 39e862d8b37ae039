"""UDP (RFC 768): numbered ports with a receiver each."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from hypervisor.network.checksum import is_valid, pseudo_sum
from hypervisor.network.icmp import IcmpLayer
from hypervisor.network.ipv4 import MAX_PAYLOAD, Ipv4Layer
from hypervisor.network.packets import PROTOCOL_UDP, Ipv4

FIRST_EPHEMERAL = 49152
MAX_DATA = MAX_PAYLOAD - 8

_HEADER = struct.Struct("!HHHH")


class Datagram(NamedTuple):
    """What a socket receives."""

    source: bytes
    port: int
    """The sender's port."""
    data: bytes
    destination: bytes
    """The address it was sent to: ours, or a broadcast's."""
    mac: bytes
    """The sender's link address."""


Receive = Callable[["UdpSocket", Datagram], None]


class UdpSocket:
    """A port of a station. Close it when done."""

    def __init__(self, layer: UdpLayer, port: int, receive: Receive) -> None:
        self.port = port
        self.receive = receive
        self._layer = layer

    def send(self, destination: bytes, port: int, data: bytes, mac: bytes | None = None) -> bool:
        """Send a datagram; `mac` skips ARP. Return False without a route. Raises ValueError if it is too long."""
        return self._layer.send(self.port, destination, port, data, mac)

    def close(self) -> None:
        self._layer.sockets.pop(self.port, None)


class UdpLayer:
    """The UDP ports of a station."""

    def __init__(self, ip: Ipv4Layer, icmp: IcmpLayer) -> None:
        self.sockets: dict[int, UdpSocket] = {}
        self._ip = ip
        self._icmp = icmp
        ip.protocols[PROTOCOL_UDP] = self.receive

    def bind(self, receive: Receive, port: int = 0) -> UdpSocket:
        """Open a port, any free one for 0. Raises ValueError if it is taken or none is free."""
        if port == 0:
            free = (number for number in range(FIRST_EPHEMERAL, 65536) if number not in self.sockets)
            port = next(free, 0)
        if not 0 < port < 65536 or port in self.sockets:
            raise ValueError(f"UDP port {port} cannot be opened")
        self.sockets[port] = UdpSocket(self, port, receive)
        return self.sockets[port]

    def send(self, source_port: int, destination: bytes, port: int, data: bytes, mac: bytes | None) -> bool:
        length = _HEADER.size + len(data)
        if len(data) > MAX_DATA:
            raise ValueError(f"{len(data)} bytes do not fit into a datagram")
        pseudo = pseudo_sum(self._ip.address, destination, PROTOCOL_UDP, length)
        payload = _HEADER.pack(source_port, port, length, pseudo) + data
        return self._ip.send(destination, PROTOCOL_UDP, payload, csum_offset=6, mac=mac)

    def receive(self, packet: Ipv4, mac: bytes, verified: bool) -> None:
        """Take a UDP packet; without a receiver its sender is told so, malformed it is dropped."""
        payload = packet.payload
        if len(payload) < _HEADER.size:
            return
        source_port, port, length, given = _HEADER.unpack_from(payload)
        if not _HEADER.size <= length <= len(payload):
            return
        payload = payload[:length]
        pseudo = pseudo_sum(packet.source, packet.destination, PROTOCOL_UDP, length)
        if given and not verified and not is_valid(payload, pseudo):
            return
        socket = self.sockets.get(port)
        if socket is None:
            self._icmp.refuse_port(packet, mac)
            return
        data = payload[_HEADER.size :]
        socket.receive(socket, Datagram(packet.source, source_port, data, packet.destination, mac))
