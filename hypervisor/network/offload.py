"""Do in the switch what a sender left to its device: fill in checksums, cut TCP segments.

Everything in a frame's metadata is the guest's word and is checked here before it is used
(`check`); what the receiving port takes as it is passes through `fit` untouched.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from hypervisor.network.checksum import checksum, pseudo_sum
from hypervisor.network.frame import ETHERNET_HEADER, GSO_NONE, GSO_TCPV4, GSO_TCPV6, Frame, Offloads
from hypervisor.network.packets import ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_TCP, PROTOCOL_UDP

MIN_SEGMENT = 48
"""Least `gso_size`: Linux's TCP_MIN_SND_MSS. Smaller ones only serve to have one frame become thousands."""

_FIN_PSH = 0x09
_CWR = 0x80
_CHECKSUM_OFFSET = {PROTOCOL_TCP: 16, PROTOCOL_UDP: 6}
_IPV6_EXTENSIONS = {0, 43, 60}  # hop-by-hop, routing, destination options: the ones a segment may stand behind
_MAX_EXTENSIONS = 8


class BadOffload(Exception):
    """Metadata that does not fit the frame it came with."""


class Transport(NamedTuple):
    """Where the TCP or UDP header of a frame is."""

    start: int
    protocol: int
    version: int
    end: int
    """Offset after the last byte of the packet, padding excluded."""


def transport(data: bytes) -> Transport | None:
    """Find the TCP or UDP header of an untagged, unfragmented IPv4 or IPv6 frame; None if there is none."""
    kind = data[12:14]
    if kind == ETHERTYPE_IPV4:
        found = _transport_v4(data)
    elif kind == ETHERTYPE_IPV6:
        found = _transport_v6(data)
    else:
        return None
    if found is None or found.end > len(data) or found.protocol not in _CHECKSUM_OFFSET:
        return None
    return found if found.start + _CHECKSUM_OFFSET[found.protocol] + 2 <= found.end else None


def _transport_v4(data: bytes) -> Transport | None:
    if len(data) < ETHERNET_HEADER + 20 or data[14] >> 4 != 4 or (data[14] & 15) < 5:
        return None
    if (data[20] & 0x3F) or data[21]:  # a fragment
        return None
    start = ETHERNET_HEADER + (data[14] & 15) * 4
    return Transport(start, data[23], 4, ETHERNET_HEADER + (data[16] << 8 | data[17]))


def _transport_v6(data: bytes) -> Transport | None:
    if len(data) < ETHERNET_HEADER + 40 or data[14] >> 4 != 6:
        return None
    end = ETHERNET_HEADER + 40 + (data[18] << 8 | data[19])
    protocol, start = data[20], ETHERNET_HEADER + 40
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _IPV6_EXTENSIONS:
            return Transport(start, protocol, 6, end)
        if start + 2 > len(data):
            return None
        protocol, start = data[start], start + (data[start + 1] + 1) * 8
    return None


def with_blank_checksum(data: bytes, gso_size: int = 0, gso_type: int = GSO_NONE) -> Frame:
    """Return the frame for `data` whose TCP or UDP checksum is still to be made, as netif.h's csum_blank says.

    netif.h does not say where the checksum is: this finds it. Raises BadOffload where there is none.
    """
    found = transport(data)
    if found is None:
        raise BadOffload("a blank checksum in a frame without TCP or UDP")
    return Frame(data, found.start, _CHECKSUM_OFFSET[found.protocol], gso_size, gso_type)


def with_pseudo_sum(frame: Frame) -> Frame:
    """Return a frame whose blank checksum begins with the sum of its pseudo header, whatever was there."""
    data, start = frame.data, frame.csum_start
    found = transport(data)
    if found is None:
        raise BadOffload("a blank checksum in a frame without TCP or UDP")
    addresses, place = data[26:34] if found.version == 4 else data[22:54], start + frame.csum_offset
    total = pseudo_sum(addresses, b"", found.protocol, found.end - start)
    return frame._replace(data=data[:place] + total.to_bytes(2, "big") + data[place + 2 :])


def check(frame: Frame) -> None:
    """Check the metadata of an untagged frame against its bytes. Raises BadOffload.

    The checksum must be that of the packet's own TCP or UDP header: filling it in changes two bytes,
    and elsewhere (the source address, say) they would undo what a lock has just verified.
    """
    data, start, offset, size, kind = frame[:5]
    if not start and not size and kind == GSO_NONE:
        return
    found = transport(data)
    if found is None or start != found.start or offset != _CHECKSUM_OFFSET[found.protocol]:
        raise BadOffload("a partial checksum elsewhere than in a TCP or UDP header")
    if not size and kind == GSO_NONE:
        return
    if found.protocol != PROTOCOL_TCP or kind != (GSO_TCPV4 if found.version == 4 else GSO_TCPV6):
        raise BadOffload("segmentation of another protocol than the frame's")
    if size < MIN_SEGMENT:
        raise BadOffload(f"segments of {size} bytes")
    if not found.start + 20 <= _payload_start(data, found) <= found.end:
        raise BadOffload("a TCP header outside the packet")


def _payload_start(data: bytes, found: Transport) -> int:
    return found.start + (data[found.start + 12] >> 4) * 4


def wire_length(frame: Frame) -> int:
    """Return the bytes, without Ethernet header, of the largest packet that a checked frame becomes on a wire."""
    length = len(frame.data) - ETHERNET_HEADER
    if not frame.gso_size:
        return length
    headers = frame.csum_start + (frame.data[frame.csum_start + 12] >> 4) * 4 - ETHERNET_HEADER
    return min(length, headers + frame.gso_size)


def fit(frame: Frame, offloads: Offloads) -> Sequence[Frame]:
    """Return what a receiver with these abilities gets for a checked frame: itself, or completed ones."""
    if not frame.csum_start:
        return (frame,)
    version_6 = frame.data[12:14] == ETHERTYPE_IPV6
    if frame.gso_size:
        if offloads.gso_v6 if version_6 else offloads.gso_v4:
            return (frame,)
        return segments(frame)
    if offloads.csum_v6 if version_6 else offloads.csum_v4:
        return (frame,)
    return (completed(frame),)


def completed(frame: Frame) -> Frame:
    """Return the frame with its missing checksum filled in, over everything from `csum_start` on."""
    data, start = frame.data, frame.csum_start
    found = transport(data)
    end = found.end if found is not None else len(data)
    place = start + frame.csum_offset
    total = checksum(data[start:end])
    return Frame(data[:place] + total.to_bytes(2, "big") + data[place + 2 :], validated=True, hops=frame.hops)


def segments(frame: Frame) -> list[Frame]:
    """Cut a checked GSO frame into frames of at most `gso_size` payload bytes, each with its checksums."""
    data, size = frame.data, frame.gso_size
    found = transport(data)
    if found is None:  # `check` has seen to it
        raise BadOffload("no segment to cut")
    start, end = found.start, found.end
    payload = _payload_start(data, found)
    sequence = int.from_bytes(data[start + 4 : start + 8], "big")
    flags = data[start + 13]
    made = []
    for number, at in enumerate(range(payload, max(end, payload + 1), size)):
        chunk = data[at : min(at + size, end)]
        tcp = bytearray(data[start:payload])
        struct.pack_into("!I", tcp, 4, (sequence + at - payload) & 0xFFFFFFFF)
        last = at + size >= end
        tcp[13] = (flags if last else flags & ~_FIN_PSH) & (~_CWR & 0xFF if number else 0xFF)
        tcp[16:18] = b"\0\0"
        segment = bytes(tcp) + chunk
        addresses = data[26:34] if found.version == 4 else data[22:54]
        tcp_sum = checksum(segment, pseudo_sum(addresses, b"", PROTOCOL_TCP, len(segment)))
        network = _network_header(data[ETHERNET_HEADER:start], found.version, len(segment), number)
        made.append(
            Frame(
                b"".join((data[:14], network, segment[:16], tcp_sum.to_bytes(2, "big"), segment[18:])),
                validated=True,
                hops=frame.hops,
            )
        )
    return made


def _network_header(header: bytes, version: int, length: int, number: int) -> bytes:
    """Return the IP header of the `number`-th segment, which carries `length` bytes."""
    made = bytearray(header)
    if version == 6:
        struct.pack_into("!H", made, 4, len(header) - 40 + length)
        return bytes(made)
    identification = (header[4] << 8 | header[5]) + number
    struct.pack_into("!HH", made, 2, len(header) + length, identification & 0xFFFF)
    made[10:12] = b"\0\0"
    struct.pack_into("!H", made, 10, checksum(bytes(made)))
    return bytes(made)
