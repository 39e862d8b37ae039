"""Numbers of the protocols and the header of IPv4 as a value: what more than one module needs.

Addresses are bytes in the order of the wire (4, 6 or 16 of them): that is what they are compared
and hashed as, for each frame. `ipaddress` objects appear only in what the toolstack calls.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from hypervisor.network.checksum import checksum, is_valid

ETHERTYPE_IPV4 = b"\x08\x00"
ETHERTYPE_ARP = b"\x08\x06"
ETHERTYPE_VLAN = b"\x81\x00"
ETHERTYPE_IPV6 = b"\x86\xdd"

PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
PROTOCOL_ICMPV6 = 58

BROADCAST_MAC = b"\xff" * 6
BROADCAST_IPV4 = b"\xff" * 4
ANY_IPV4 = bytes(4)
IPV4_HEADER = 20

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_DONT_FRAGMENT = 0x4000
_MORE_FRAGMENTS = 0x2000
_TTL = 64


def mac_from_text(text: str) -> bytes:
    """Return the six bytes of "aa:bb:cc:dd:ee:ff". Raises ValueError for anything else."""
    parts = text.split(":")
    if len(parts) != 6 or any(len(part) != 2 for part in parts):
        raise ValueError(f"{text!r} is no MAC address")
    return bytes.fromhex("".join(parts))


def mac_to_text(mac: bytes) -> str:
    """Return a MAC address in the usual form, as "aa:bb:cc:dd:ee:ff"."""
    return mac.hex(":")


def is_host_mac(mac: bytes) -> bool:
    """Tell whether a single station can own this address: neither a group's nor zero."""
    return len(mac) == 6 and not mac[0] & 1 and mac != bytes(6)


class Ipv4(NamedTuple):
    """An IPv4 packet as received: header fields that matter, and the payload without padding."""

    source: bytes
    destination: bytes
    protocol: int
    identification: int
    fragment_offset: int
    """Where this fragment's payload belongs, in bytes."""
    more_fragments: bool
    payload: bytes


def parse_ipv4(data: bytes, offset: int) -> Ipv4 | None:
    """Return the IPv4 packet that begins at `offset` of a frame; None if it is malformed or its checksum is wrong."""
    if len(data) < offset + IPV4_HEADER:
        return None
    first, _tos, total, identification, flags, _ttl, protocol, _sum, source, destination = _IPV4.unpack_from(
        data, offset
    )
    header = (first & 15) * 4
    if first >> 4 != 4 or header < IPV4_HEADER or total < header or len(data) < offset + total:
        return None
    if not is_valid(data[offset : offset + header]):
        return None
    place = (flags & 0x1FFF) * 8
    payload = data[offset + header : offset + total]
    return Ipv4(source, destination, protocol, identification, place, bool(flags & _MORE_FRAGMENTS), payload)


def ipv4_header(
    source: bytes,
    destination: bytes,
    protocol: int,
    length: int,
    identification: int = 0,
    fragment: tuple[int, bool] | None = None,
) -> bytes:
    """Return the 20 bytes of an IPv4 header for `length` bytes of payload.

    `fragment` is (offset in bytes, whether more follow); without it the packet must not be fragmented.
    """
    flags = _DONT_FRAGMENT if fragment is None else fragment[0] // 8 | (_MORE_FRAGMENTS if fragment[1] else 0)
    fields = (0x45, 0, IPV4_HEADER + length, identification & 0xFFFF, flags, _TTL, protocol)
    blank = _IPV4.pack(*fields, 0, source, destination)
    return _IPV4.pack(*fields, checksum(blank), source, destination)
