"""The locking modes of a VIF: what the guest behind a port may claim to be.

XenAPI's `locking_mode` (network_default is resolved by the toolstack). The rules follow those that
XenServer writes for Open vSwitch (xenopsd's setup-vif-rules): the VIF's own MAC as source, its listed
addresses in ARP, IPv4, IPv6 and neighbour discovery, DHCP requests, no router's messages, nothing
else. Stricter than those where they leak: a DHCP request must carry the VIF's MAC inside, no DHCP
answer leaves, an ARP probe or duplicate address detection may ask only for a listed address, and
fragments that hide the header to check are dropped. To the guest go only frames to its MAC or to groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

from hypervisor.network.frame import ETHERNET_HEADER
from hypervisor.network.packets import (
    ANY_IPV4,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTOCOL_ICMPV6,
    PROTOCOL_UDP,
)

_ANY_IPV6 = bytes(16)
_ARP_ETHERNET_IPV4 = b"\x00\x01\x08\x00\x06\x04"
_HEADER_6 = ETHERNET_HEADER + 40

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS = {_HOP_BY_HOP, _ROUTING, _DESTINATION, _FRAGMENT, _AUTHENTICATION}
_MAX_EXTENSIONS = 8

_SOLICIT_ROUTER, _SOLICIT, _ADVERTISE = 133, 135, 136
_ROUTERS_ONLY = {134, 137, 138, 146, 147, 151, 152, 153}
"""ICMPv6 types of routers: advertisement, redirect, renumbering, mobile prefixes, multicast routers."""
_LISTENER_REPORTS = {131, 132, 143}
"""Multicast listener reports, which a station sends before it has any address (RFC 3810 5.2.13)."""
_OPTION_SOURCE_LINK, _OPTION_TARGET_LINK = 1, 2


class LockMode(Enum):
    UNLOCKED = "unlocked"
    DISABLED = "disabled"
    LOCKED = "locked"


class Prefixes:
    """The addresses of some networks, as bytes in the order of the wire; like a frozenset of them, but smaller."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._networks = tuple(
            (len(network.network_address.packed), int(network.network_address), int(network.netmask))
            for network in networks
        )

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, bytes):
            return False
        number = int.from_bytes(address, "big")
        return any(len(address) == length and number & mask == base for length, base, mask in self._networks)

    def __bool__(self) -> bool:
        return bool(self._networks)


def addresses(networks: Iterable[IPv4Network | IPv6Network]) -> frozenset[bytes] | Prefixes:
    """Return what holds the addresses of these networks."""
    networks = tuple(networks)
    if all(network.num_addresses == 1 for network in networks):
        return frozenset(network.network_address.packed for network in networks)
    return Prefixes(networks)


@dataclass(frozen=True)
class Lock:
    """A mode with what a locked port is held to. Addresses are bytes in the order of the wire."""

    mode: LockMode = LockMode.UNLOCKED
    mac: bytes = bytes(6)
    ipv4: frozenset[bytes] | Prefixes = frozenset()
    ipv6: frozenset[bytes] | Prefixes = frozenset()

    def permits_from(self, data: bytes) -> bool:
        """Tell whether the guest may send this untagged frame."""
        if self.mode is not LockMode.LOCKED:
            return self.mode is LockMode.UNLOCKED
        if data[6:12] != self.mac:
            return False
        kind = data[12:14]
        if kind == ETHERTYPE_IPV4:
            return self._permits_ipv4(data)
        if kind == ETHERTYPE_ARP:
            return self._permits_arp(data)
        return kind == ETHERTYPE_IPV6 and self._permits_ipv6(data)

    def permits_to(self, data: bytes) -> bool:
        """Tell whether the guest may be given this untagged frame."""
        if self.mode is not LockMode.LOCKED:
            return self.mode is LockMode.UNLOCKED
        return bool(data[0] & 1) or data[:6] == self.mac

    def _permits_arp(self, data: bytes) -> bool:
        if data[14:20] != _ARP_ETHERNET_IPV4 or len(data) < 42 or data[22:28] != self.mac:
            return False
        sender, target = data[28:32], data[38:42]
        return sender in self.ipv4 or (sender == ANY_IPV4 and target in self.ipv4)

    def _permits_ipv4(self, data: bytes) -> bool:
        if len(data) < ETHERNET_HEADER + 20 or data[14] >> 4 != 4 or (data[14] & 15) < 5:
            return False
        header = ETHERNET_HEADER + (data[14] & 15) * 4
        end = ETHERNET_HEADER + (data[16] << 8 | data[17])
        if not header <= end <= len(data):
            return False
        source = data[26:30]
        if data[23] != PROTOCOL_UDP:
            return source in self.ipv4
        if (data[20] & 0x1F) or data[21]:  # not the first fragment: the ports were seen in that one
            return source in self.ipv4
        if end < header + 8 or data[header : header + 2] == b"\x00\x43":
            return False
        if data[header + 2 : header + 4] == b"\x00\x43":
            return self._permits_dhcp(data, header, source)
        return source in self.ipv4

    def _permits_dhcp(self, data: bytes, udp: int, source: bytes) -> bool:
        """Allow a request, by a guest that may have an address, for its own MAC (op 1, chaddr: RFC 2131 2)."""
        if not self.ipv4 or (source != ANY_IPV4 and source not in self.ipv4):
            return False
        whole = not (data[20] & 0x20)
        return whole and data[udp + 8 : udp + 11] == b"\x01\x01\x06" and data[udp + 36 : udp + 42] == self.mac

    def _permits_ipv6(self, data: bytes) -> bool:
        if len(data) < _HEADER_6 or data[14] >> 4 != 6:
            return False
        end = _HEADER_6 + (data[18] << 8 | data[19])
        if end > len(data):
            return False
        source = data[22:38]
        found = _upper_layer(data[:end])
        if found is None:
            return False
        protocol, at, fragmented = found
        if protocol == PROTOCOL_ICMPV6 and at:
            return self._permits_icmpv6(data[:end], at, source, fragmented)
        if protocol == PROTOCOL_UDP and at and (at + 8 > end or data[at : at + 2] == b"\x02\x23"):  # a DHCPv6 server
            return False
        return source in self.ipv6

    def _permits_icmpv6(self, data: bytes, at: int, source: bytes, fragmented: bool) -> bool:
        if at + 4 > len(data):
            return False
        kind = data[at]
        if kind in _ROUTERS_ONLY or (fragmented and kind in (_SOLICIT_ROUTER, _SOLICIT, _ADVERTISE)):
            return False  # RFC 6980: neighbour discovery is never fragmented
        if kind == _SOLICIT_ROUTER:
            return (source in self.ipv6 or source == _ANY_IPV6) and self._options_are_own(data, at + 8)
        if kind == _SOLICIT:
            target = data[at + 8 : at + 24]
            known = source in self.ipv6 or (source == _ANY_IPV6 and target in self.ipv6)
            return known and len(target) == 16 and self._options_are_own(data, at + 24)
        if kind == _ADVERTISE:
            target = data[at + 8 : at + 24]
            return source in self.ipv6 and target in self.ipv6 and self._options_are_own(data, at + 24)
        if kind in _LISTENER_REPORTS and source == _ANY_IPV6:
            return bool(self.ipv6)
        return source in self.ipv6

    def _options_are_own(self, data: bytes, at: int) -> bool:
        """Tell whether each link-layer address among the options of neighbour discovery is the VIF's."""
        while at < len(data):
            if at + 2 > len(data):
                return False
            length = data[at + 1] * 8
            if length == 0 or at + length > len(data):
                return False
            if data[at] in (_OPTION_SOURCE_LINK, _OPTION_TARGET_LINK) and data[at + 2 : at + 8] != self.mac:
                return False
            at += length
        return True


def _upper_layer(data: bytes) -> tuple[int, int, bool] | None:
    """Walk the extension headers of an IPv6 frame: (protocol, offset of its header, whether a fragment).

    The offset is 0 in a later fragment, which holds no header. None: malformed, or more than a few headers.
    """
    protocol, at, fragmented = data[20], _HEADER_6, False
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS:
            return protocol, at, fragmented
        if at + 8 > len(data):
            return None
        if protocol == _FRAGMENT:
            if (data[at + 2] << 8 | data[at + 3]) & 0xFFF8:
                return data[at], 0, True
            fragmented, length = True, 8
        elif protocol == _AUTHENTICATION:
            length = (data[at + 1] + 2) * 4
        else:
            length = (data[at + 1] + 1) * 8
        protocol, at = data[at], at + length
    return None


UNLOCKED = Lock()
DISABLED = Lock(LockMode.DISABLED)
