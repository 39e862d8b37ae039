"""Locked ports: what a guest may claim to be, by the rules that XenServer gives Open vSwitch, and a few more."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

import pytest

from hypervisor.network.lock import Lock, LockMode, addresses
from hypervisor.network.packets import ipv4_header

OWN = b"\x02\0\0\0\0\x01"
ALIEN = b"\x02\0\0\0\0\x02"
GROUP = b"\xff" * 6
ADDRESS, OTHER, ANY = b"\x0a\0\0\x01", b"\x0a\0\0\x02", bytes(4)
ADDRESS_6, OTHER_6, ANY_6 = b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02", bytes(16)
LOCK = Lock(LockMode.LOCKED, OWN, frozenset({ADDRESS}), frozenset({ADDRESS_6}))


def arp(sender: bytes = OWN, address: bytes = ADDRESS, target: bytes = OTHER) -> bytes:
    return GROUP + OWN + b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02" + sender + address + bytes(6) + target


def ipv4(
    payload: bytes = b"", source: bytes = ADDRESS, protocol: int = 6, fragment: tuple[int, bool] | None = None
) -> bytes:
    return ALIEN + OWN + b"\x08\x00" + ipv4_header(source, OTHER, protocol, len(payload), 1, fragment) + payload


def udp(source_port: int, port: int, data: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data


def dhcp(mac: bytes = OWN, operation: int = 1) -> bytes:
    return udp(68, 67, bytes((operation, 1, 6, 0)) + bytes(24) + mac + bytes(250))


def ipv6(payload: bytes, source: bytes = ADDRESS_6, header: int = 58) -> bytes:
    return (
        ALIEN
        + OWN
        + b"\x86\xdd"
        + struct.pack("!IHBB", 0x60000000, len(payload), header, 255)
        + source
        + OTHER_6
        + payload
    )


def discovery(kind: int, target: bytes = ADDRESS_6, option: bytes = b"\x02\x01" + OWN) -> bytes:
    return bytes((kind, 0, 0, 0)) + bytes(4) + target + option


def behind_fragment(payload: bytes, offset: int = 0) -> bytes:
    return struct.pack("!BBHI", 58, 0, offset << 3 | 1, 7) + payload


PERMITTED = {
    "ARP with the own address": arp(),
    "ARP probe for the own address": arp(address=ANY, target=ADDRESS),
    "IPv4 from the own address": ipv4(bytes(20)),
    "a later fragment": ipv4(bytes(16), protocol=17, fragment=(1480, False)),
    "a DHCP request": ipv4(dhcp(), source=ANY, protocol=17),
    "a DHCP renewal": ipv4(dhcp(), protocol=17),
    "UDP": ipv4(udp(5000, 53), protocol=17),
    "TCP over IPv6": ipv6(bytes(20), header=6),
    "neighbour solicitation": ipv6(discovery(135, OTHER_6, b"\x01\x01" + OWN)),
    "neighbour advertisement": ipv6(discovery(136)),
    "duplicate address detection": ipv6(discovery(135, ADDRESS_6, b""), source=ANY_6),
    "echo over IPv6": ipv6(bytes((128, 0, 0, 0)) + bytes(8)),
    "a listener report before any address": ipv6(b"\x3a\x00\x05\x02\0\0\x01\0" + bytes((143,)) + bytes(27), ANY_6, 0),
}

REFUSED = {
    "another MAC": arp()[:6] + ALIEN + arp()[12:],
    "ARP with another MAC inside": arp(sender=ALIEN),
    "ARP with another address": arp(address=OTHER),
    "ARP probe for another address": arp(address=ANY, target=OTHER),
    "ARP of another kind": arp()[:14] + b"\x00\x06" + arp()[16:],
    "ARP cut off": arp()[:40],
    "IPv4 from another address": ipv4(bytes(20), source=OTHER),
    "IPv4 from no address": ipv4(bytes(20), source=ANY),
    "IPv4 cut off": ipv4(bytes(20))[:40],
    "IPv4 with a header that is none": ipv4()[:14] + b"\x41" + ipv4()[15:],
    "a DHCP answer": ipv4(udp(67, 68, bytes(300)), protocol=17),
    "a DHCP request for another MAC": ipv4(dhcp(ALIEN), source=ANY, protocol=17),
    "a DHCP answer to a relay": ipv4(dhcp(operation=2), protocol=17),
    "a DHCP request from another address": ipv4(dhcp(), source=OTHER, protocol=17),
    "a DHCP request in fragments": ipv4(dhcp(), source=ANY, protocol=17, fragment=(0, True)),
    "UDP whose header is in two fragments": ipv4(b"\0", protocol=17, fragment=(0, True)),
    "IPv6 from another address": ipv6(bytes(20), source=OTHER_6, header=6),
    "IPv6 from no address": ipv6(bytes(20), source=ANY_6, header=6),
    "IPv6 cut off": ipv6(bytes(20), header=6)[:60],
    "a router's advertisement": ipv6(discovery(134)),
    "a redirect": ipv6(discovery(137)),
    "solicitation with another MAC": ipv6(discovery(135, OTHER_6, b"\x01\x01" + ALIEN)),
    "advertisement of another address": ipv6(discovery(136, OTHER_6)),
    "advertisement of another MAC": ipv6(discovery(136, option=b"\x02\x01" + ALIEN)),
    "advertisement with an endless option": ipv6(discovery(136, option=b"\x02\x00" + OWN)),
    "detection of another's address": ipv6(discovery(135, OTHER_6, b""), source=ANY_6),
    "discovery in fragments": ipv6(behind_fragment(discovery(136)), header=44),
    "a DHCPv6 answer": ipv6(udp(547, 546), header=17),
    "headers without end": ipv6(b"\x3c\x00\0\0\0\0\0\0" * 20, header=60),
    "another protocol": ALIEN + OWN + b"\x88\xb5" + bytes(46),
    "a length instead of a type": ALIEN + OWN + b"\x00\x2e" + bytes(46),
}


@pytest.mark.parametrize("data", PERMITTED.values(), ids=PERMITTED.keys())
def test_a_locked_guest_may_send(data: bytes) -> None:
    assert LOCK.permits_from(data)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_a_locked_guest_may_not_send(data: bytes) -> None:
    assert not LOCK.permits_from(data)


@pytest.mark.parametrize("data", PERMITTED.values(), ids=PERMITTED.keys())
def test_without_any_address_nothing_passes(data: bytes) -> None:
    """XenServer: a locked VIF with no addresses has no traffic."""
    assert not Lock(LockMode.LOCKED, OWN).permits_from(data)


@pytest.mark.parametrize(("destination", "permitted"), [(OWN, True), (GROUP, True), (ALIEN, False)])
def test_a_locked_guest_hears_only_what_is_meant_for_it(destination: bytes, permitted: bool) -> None:
    assert LOCK.permits_to(destination + ALIEN + b"\x08\x00") is permitted


def test_prefixes_hold_their_addresses_and_no_others() -> None:
    """Of both families; one of another length is in none, and an empty one is false like an empty set."""
    found = addresses([ip_network("192.0.2.0/30"), ip_network("198.51.100.7/32")])
    inside = ["192.0.2.0", "192.0.2.3", "198.51.100.7"]
    assert all(ip_address(each).packed in found for each in inside)
    assert not any(ip_address(each).packed in found for each in ["192.0.2.4", "198.51.100.6", "::192.0.2.1"])
    assert b"" not in found and "192.0.2.1" not in found
    assert ip_address("2001:db8::ffff").packed in addresses([ip_network("2001:db8::/64")])
    assert bytes(4) in addresses([ip_network("0.0.0.0/0")])
    assert not addresses([])
