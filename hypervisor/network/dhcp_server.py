"""The DHCP server of a network (RFC 2131 4.3): what to say to which message."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from hypervisor.network import dhcp
from hypervisor.network.dhcp import Message
from hypervisor.network.leases import OFFER_NS, Lease, LeaseTable
from hypervisor.network.packets import ANY_IPV4, BROADCAST_IPV4, BROADCAST_MAC
from hypervisor.network.udp import Datagram, UdpSocket

_SECOND_NS = 1_000_000_000
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def valid_name(name: str) -> bool:
    """Tell whether a text is one label of a host's name, in lower case (RFC 1123 2.1)."""
    return _NAME.fullmatch(name) is not None


class Offer(NamedTuple):
    """What the server tells every station."""

    server: IPv4Address
    network: IPv4Network
    lease_seconds: int
    host_name: str
    """The server's own name, which no station may take."""
    options: dict[int, bytes]


class DhcpServer:
    """Answers stations of its own link; a message that came through a relay or under another MAC is ignored."""

    def __init__(self, offer: Offer, leases: LeaseTable, clock: Callable[[], int]) -> None:
        self._offer = offer
        self._leases = leases
        self._clock = clock
        self._answers = {
            dhcp.DISCOVER: self._discover,
            dhcp.REQUEST: self._request,
            dhcp.DECLINE: self._decline,
            dhcp.RELEASE: self._release,
            dhcp.INFORM: self._inform,
        }

    def receive(self, socket: UdpSocket, datagram: Datagram) -> None:
        """Take a datagram to the server's port and answer it if it is due an answer."""
        message = dhcp.parse(datagram.data)
        if message is None or message.operation != dhcp.BOOT_REQUEST or not dhcp.is_station(message, datagram.mac):
            return
        answer = self._answers.get(message.kind)
        reply = answer(message) if answer is not None else None
        if reply is not None:
            address, mac = _recipient(message, reply)
            socket.send(address, dhcp.CLIENT_PORT, dhcp.build(reply), mac)

    def _discover(self, message: Message) -> Message | None:
        now = self._clock()
        wanted = message.address_option(dhcp.OPTION_REQUESTED)
        lease = self._leases.find(message.mac, now, None if wanted is None else IPv4Address(wanted))
        if lease is None:
            return None
        if not lease.is_reserved and not lease.bound:
            lease.expires = now + OFFER_NS
        return self._grant(message, lease, dhcp.OFFER)

    def _request(self, message: Message) -> Message | None:
        server = message.options.get(dhcp.OPTION_SERVER)
        wanted = message.address_option(dhcp.OPTION_REQUESTED) or message.client
        if server is not None and server != self._offer.server.packed:
            held = self._leases.of(message.mac)
            if held is not None and not held.bound:
                self._leases.release(message.mac, held.address)  # it took another server's offer
            return None
        if wanted == ANY_IPV4:
            return None
        now = self._clock()
        lease = self._leases.find(message.mac, now, IPv4Address(wanted))
        if lease is None or lease.address.packed != wanted:
            return self._reply(message, dhcp.NAK, ANY_IPV4, {})
        lease.bound = True
        if not lease.is_reserved:
            lease.expires = now + self._offer.lease_seconds * _SECOND_NS
            self._name(lease, message)
        return self._grant(message, lease, dhcp.ACK)

    def _decline(self, message: Message) -> None:
        address = message.address_option(dhcp.OPTION_REQUESTED)
        if address is not None and self._is_for_us(message):
            self._leases.decline(message.mac, IPv4Address(address), self._clock())

    def _release(self, message: Message) -> None:
        if self._is_for_us(message):
            self._leases.release(message.mac, IPv4Address(message.client))

    def _inform(self, message: Message) -> Message | None:
        """Tell a station that has its address from elsewhere the rest."""
        if IPv4Address(message.client) not in self._offer.network:
            return None
        return self._reply(message, dhcp.ACK, ANY_IPV4, self._offer.options)

    def _is_for_us(self, message: Message) -> bool:
        return message.options.get(dhcp.OPTION_SERVER) == self._offer.server.packed

    def _name(self, lease: Lease, message: Message) -> None:
        """Let a station have the name it asks for, if it is one and nobody's."""
        name = message.options.get(dhcp.OPTION_HOSTNAME, b"").rstrip(b"\0").decode("latin-1").lower()
        if valid_name(name) and name != self._offer.host_name:
            self._leases.give_name(lease, name)

    def _grant(self, message: Message, lease: Lease, kind: int) -> Message:
        seconds = self._offer.lease_seconds
        options = {
            dhcp.OPTION_LEASE: seconds.to_bytes(4, "big"),
            dhcp.OPTION_RENEWAL: (seconds // 2).to_bytes(4, "big"),
            dhcp.OPTION_REBINDING: (seconds * 7 // 8).to_bytes(4, "big"),
            **self._offer.options,
        }
        if lease.name:
            options[dhcp.OPTION_HOSTNAME] = lease.name.encode("ascii")
        return self._reply(message, kind, lease.address.packed, options)

    def _reply(self, message: Message, kind: int, yours: bytes, options: dict[int, bytes]) -> Message:
        first = {dhcp.OPTION_TYPE: bytes((kind,)), dhcp.OPTION_SERVER: self._offer.server.packed}
        client = message.client if kind == dhcp.ACK else ANY_IPV4
        return message._replace(operation=dhcp.BOOT_REPLY, client=client, yours=yours, options={**first, **options})


def _recipient(message: Message, reply: Message) -> tuple[bytes, bytes]:
    """Return the addresses, IPv4's and the link's, that an answer goes to (RFC 2131 4.1)."""
    if reply.kind == dhcp.NAK:
        return BROADCAST_IPV4, BROADCAST_MAC
    if message.client != ANY_IPV4:
        return message.client, message.mac
    if message.flags & dhcp.BROADCAST_FLAG:
        return BROADCAST_IPV4, BROADCAST_MAC
    return reply.yours, message.mac
