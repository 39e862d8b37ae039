"""Packets in the rings of a network front: their layouts, what they say, and the guest's memory that they name.

Layouts are those of public/io/netif.h, the same for 32-bit and 64-bit fronts. A packet to send is a chain of
slots: the first tells the size of the whole and what its checksum needs, then come extra slots (how to cut it),
then the slots of the other pieces. Slots are copies by the time they come here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from hypervisor.domains.grant_table import GrantError, GrantTable
from hypervisor.memory.guest_memory import PAGE
from hypervisor.network.frame import ETHERNET_HEADER, GSO_NONE, GSO_TCPV4, GSO_TCPV6, Frame
from hypervisor.network.offload import MIN_SEGMENT, BadOffload, with_blank_checksum, with_pseudo_sum

TX_SLOT, RX_SLOT = 12, 8
"""Bytes of a slot of either ring: the larger of request and response."""
MAX_PIECES = 18
"""Slots of data that one packet may have (XEN_NETIF_NR_SLOTS_MIN)."""

OKAY, NULL, ERROR = 0, 1, -1
"""XEN_NETIF_RSP_*; NULL is the answer to an extra slot."""

TX_CSUM_BLANK, TX_DATA_VALIDATED, TX_MORE_DATA, TX_EXTRA_INFO = 1, 2, 4, 8
RX_DATA_VALIDATED, RX_CSUM_BLANK, RX_MORE_DATA, RX_EXTRA_INFO = 1, 2, 4, 8
_EXTRA_GSO, _EXTRA_MORE = 1, 1

_TX_REQUEST = struct.Struct("<IHHHH")  # reference, offset, flags, id, size
_EXTRA = struct.Struct("<BBHBxH")  # type, flags, segment size, segment type, features
_TX_ANSWER = struct.Struct("<Hh")  # id, status
RX_REQUEST = struct.Struct("<HxxI")  # id, reference
RX_ANSWER = struct.Struct("<HHHh")  # id, offset, flags, size or status

Piece = tuple[int, int, int]
"""Grant reference, offset in its frame, bytes."""


class BrokenChain(Exception):
    """The slots in the ring do not end with the end of a packet: nobody can tell where the next one begins."""


class BadPacket(Exception):
    """A packet that must be answered with an error and has no effect."""


@dataclass(slots=True)
class Packet:
    """A packet that the guest wants sent; nothing in it is judged yet but its form."""

    pieces: list[Piece]
    flags: int
    numbers: list[int | None]
    """The id of each of its slots, in their order, None for an extra one: what must be answered."""
    size: int
    """Of the whole, as its first slot says."""
    bad: bool = False
    """An extra slot asks for what was not offered."""
    segment_size: int = 0
    segment_type: int = GSO_NONE

    def answers(self, status: int) -> list[bytes]:
        """Return the responses for its slots."""
        pack = _TX_ANSWER.pack
        return [pack(0, NULL) if number is None else pack(number, status) for number in self.numbers]


def packets(slots: Sequence[bytes]) -> list[Packet]:
    """Return the packets that a stretch of the ring holds. Raises BrokenChain."""
    made, at, unpack = [], 0, _TX_REQUEST.unpack
    while at < len(slots):
        ref, offset, flags, number, size = unpack(slots[at])
        packet = Packet([(ref, offset, size)], flags, [number], size)
        made.append(packet)
        at += 1
        if flags & TX_EXTRA_INFO:
            at = _extras(packet, slots, at)
        if flags & TX_MORE_DATA:
            at = _pieces(packet, slots, at)
    return made


def _extras(packet: Packet, slots: Sequence[bytes], at: int) -> int:
    """Read a packet's extra slots from `at` on and return where they end. Raises BrokenChain."""
    while at < len(slots):
        kind, flags, size, segment, _ = _EXTRA.unpack_from(slots[at])
        at += 1
        packet.numbers.append(None)
        if kind == _EXTRA_GSO:
            packet.segment_size, packet.segment_type = size, segment
            packet.bad |= segment not in (GSO_TCPV4, GSO_TCPV6) or size < MIN_SEGMENT
        else:  # multicast lists, hashes, XDP: all of them have to be agreed upon first
            packet.bad = True
        if not flags & _EXTRA_MORE:
            return at
    raise BrokenChain


def _pieces(packet: Packet, slots: Sequence[bytes], at: int) -> int:
    """Read the other pieces of a packet from `at` on and return where they end. Raises BrokenChain."""
    rest = 0
    while at < len(slots):
        ref, offset, flags, number, size = _TX_REQUEST.unpack(slots[at])
        at += 1
        rest += size
        packet.pieces.append((ref, offset, size))
        packet.numbers.append(number)
        if not flags & TX_MORE_DATA:
            # The size in the first slot is that of the whole: what the others leave of it lies there.
            ref, offset, size = packet.pieces[0]
            packet.pieces[0] = ref, offset, size - rest
            return at
    raise BrokenChain


def gather(packet: Packet, grants: GrantTable, memory: memoryview) -> bytes:
    """Return a copy of a packet's bytes; on the domain's own thread, so that the grants hold. Raises BadPacket."""
    if packet.bad or packet.size < ETHERNET_HEADER or len(packet.pieces) > MAX_PIECES:
        raise BadPacket
    views = []
    try:
        for ref, offset, size in packet.pieces:
            frame, start, length = grants.look(ref, 0, False)
            if size <= 0 or offset < start or offset + size > start + length:
                raise BadPacket
            at = frame * PAGE + offset
            views.append(memory[at : at + size])
    except GrantError:
        raise BadPacket from None
    return bytes(views[0]) if len(views) == 1 else b"".join(views)


def frame_of(packet: Packet, data: bytes) -> Frame:
    """Return a packet as the switch takes it. Raises BadPacket."""
    flags, cut = packet.flags, packet.segment_size
    if not cut and not flags & TX_CSUM_BLANK:
        return Frame(data, validated=bool(flags & TX_DATA_VALIDATED))
    try:
        frame = with_blank_checksum(data, cut, packet.segment_type)
    except BadOffload:
        raise BadPacket from None
    # What is to be cut has no checksum yet. Some fronts forget to say so, and then have not begun it either.
    return frame if flags & TX_CSUM_BLANK else with_pseudo_sum(frame)


def pages_of(length: int) -> int:
    """Return how many slots of the guest's a frame of so many bytes fills."""
    return (length + PAGE - 1) // PAGE


def answers_for(frame: Frame, numbers: Sequence[int]) -> list[bytes]:
    """Return the responses that hand a frame over, in slots with these ids: one for each page, one to cut it."""
    left = len(frame.data)
    flags = RX_CSUM_BLANK | RX_DATA_VALIDATED if frame.csum_start else RX_DATA_VALIDATED if frame.validated else 0
    if left <= PAGE and not frame.gso_size:
        return [RX_ANSWER.pack(numbers[0], 0, flags, left)]
    made = []
    if frame.gso_size:
        flags |= RX_EXTRA_INFO
    for number in (numbers[0], *numbers[1 + bool(frame.gso_size) :]):
        more = RX_MORE_DATA if left > PAGE else 0
        made.append(RX_ANSWER.pack(number, 0, flags | more, min(left, PAGE)))
        left -= PAGE
        flags = 0
    if frame.gso_size:
        made.insert(1, _EXTRA.pack(_EXTRA_GSO, 0, frame.gso_size, frame.gso_type, 0))
    return made
