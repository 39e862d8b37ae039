"""TCP segments as values (RFC 9293 3.1)."""

from __future__ import annotations

import struct
from typing import NamedTuple

FIN = 0x01
SYN = 0x02
RST = 0x04
PSH = 0x08
ACK = 0x10

HEADER = 20
CHECKSUM_OFFSET = 16
SEQUENCE_MASK = 0xFFFFFFFF
MAX_SCALE = 14

_HEADER = struct.Struct("!HHIIBBHHH")
_END, _NOTHING, _MSS, _SCALE = 0, 1, 2, 3


class Segment(NamedTuple):
    source_port: int
    port: int
    sequence: int
    acknowledged: int
    flags: int
    window: int
    payload: bytes = b""
    mss: int | None = None
    scale: int | None = None
    """Options of a SYN: the largest segment the sender takes, and the shift of its windows (RFC 7323)."""

    @property
    def length(self) -> int:
        """Sequence numbers that the segment takes up."""
        return len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)


def parse(data: bytes) -> Segment | None:
    """Return the segment in the payload of an IP packet; None if it is malformed."""
    if len(data) < HEADER:
        return None
    source_port, port, sequence, acknowledged, offset, flags, window, _sum, _urgent = _HEADER.unpack_from(data)
    header = (offset >> 4) * 4
    if not HEADER <= header <= len(data) or source_port == 0 or port == 0:
        return None
    mss = scale = None
    if flags & SYN:
        options = _options(data[HEADER:header])
        mss, scale = options.get(_MSS), options.get(_SCALE)
    return Segment(source_port, port, sequence, acknowledged, flags, window, data[header:], mss, scale)


def _options(data: bytes) -> dict[int, int]:
    """Return the options of a SYN as numbers; broken ones end the list."""
    found: dict[int, int] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _NOTHING:
            at += 1
            continue
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            break
        found[data[at]] = int.from_bytes(data[at + 2 : at + length], "big")
        at += length
    return found


def build(segment: Segment, pseudo: int) -> bytes:
    """Return the bytes of a segment, with `pseudo` (a sum) where the checksum will be."""
    options = b""
    if segment.mss is not None:
        options += struct.pack("!BBH", _MSS, 4, segment.mss)
    if segment.scale is not None:
        options += struct.pack("!BBBB", _NOTHING, _SCALE, 3, segment.scale)
    header = _HEADER.pack(
        segment.source_port,
        segment.port,
        segment.sequence & SEQUENCE_MASK,
        segment.acknowledged & SEQUENCE_MASK,
        (HEADER + len(options)) // 4 << 4,
        segment.flags,
        segment.window,
        pseudo,
        0,
    )
    return b"".join((header, options, segment.payload))


def near(number: int, reference: int) -> int:
    """Return the unbounded sequence number that `number` (32 bits) means beside an unbounded `reference`."""
    difference = (number - reference) & SEQUENCE_MASK
    return reference + (difference if difference < 0x80000000 else difference - 0x100000000)
