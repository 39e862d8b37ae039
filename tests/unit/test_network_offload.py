"""Checksums and segments that a sender left to its device."""

from __future__ import annotations

import struct

import pytest

from hypervisor.network.checksum import checksum, is_valid, pseudo_sum
from hypervisor.network.frame import EVERY_OFFLOAD, GSO_TCPV4, GSO_TCPV6, PLAIN, Frame, Offloads
from hypervisor.network.offload import BadOffload, check, fit, wire_length, with_blank_checksum, with_pseudo_sum
from hypervisor.network.packets import ipv4_header

MACS = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01"
ONE, TWO = b"\x0a\0\0\x01", b"\x0a\0\0\x02"
ONE_6, TWO_6 = bytes.fromhex("fd000000000000000000000000000001fd000000000000000000000000000002")[:16], bytes(15) + b"\2"
FIN_PSH_ACK = 0x19


def tcp(data: bytes, pseudo: int, sequence: int = 1000, flags: int = FIN_PSH_ACK) -> bytes:
    return struct.pack("!HHIIBBHHH", 1, 2, sequence, 7, 0x50, flags, 100, pseudo, 0) + data


def tcp_v4(data: bytes, **fields: int) -> bytes:
    segment = tcp(data, pseudo_sum(ONE, TWO, 6, 20 + len(data)), **fields)
    return MACS + b"\x08\x00" + ipv4_header(ONE, TWO, 6, len(segment), 0xFFFF) + segment


def tcp_v6(data: bytes) -> bytes:
    """With a destination options header of eight bytes between."""
    segment = tcp(data, pseudo_sum(ONE_6, TWO_6, 6, 20 + len(data)))
    header = struct.pack("!IHBB", 0x60000000, 8 + len(segment), 60, 64) + ONE_6 + TWO_6
    return MACS + b"\x86\xdd" + header + b"\x06\x00\x01\x04\0\0\0\0" + segment


def test_the_checksum_of_the_rfc_s_example() -> None:
    """RFC 1071, section 3."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


@pytest.mark.parametrize("length", [0, 1, 2, 3, 1459, 2047, 2048, 2049, 4097, 65000, 65001])
def test_the_checksum_equals_a_plain_sum_of_words(length: int) -> None:
    """Folded and not folded, odd and even."""
    data = bytes((index * 197 + 13) & 0xFF for index in range(length))
    padded = data + b"\0" * (length & 1)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    assert checksum(data) % 0xFFFF == (0xFFFF - total % 0xFFFF) % 0xFFFF


def test_a_partial_checksum_is_filled_in_for_a_receiver_that_needs_it() -> None:
    (frame,) = fit(with_blank_checksum(tcp_v4(b"data!") + b"\xee\xee"), PLAIN)
    assert is_valid(frame.data[34:-2], pseudo_sum(ONE, TWO, 6, 25))
    assert (frame.csum_start, frame.validated) == (0, True)


def test_a_checksum_that_was_never_begun_is_begun() -> None:
    """Whatever stood in its place, in IPv4 and IPv6."""
    for data, place in ((tcp_v4(b"data"), 50), (tcp_v6(b"data"), 78)):
        spoilt = data[:place] + b"\xab\xcd" + data[place + 2 :]
        assert with_pseudo_sum(with_blank_checksum(spoilt)).data == data
    with pytest.raises(BadOffload):
        with_pseudo_sum(Frame(MACS + b"\x88\xb5" + bytes(60)))


def test_offloads_are_told_apart_by_the_family_of_addresses() -> None:
    frame = with_blank_checksum(tcp_v6(b"data"))
    assert fit(frame, Offloads(csum_v6=True)) == (frame,)
    assert fit(frame, Offloads(csum_v4=True)) != (frame,)


def test_a_large_segment_is_cut_with_everything_that_changes() -> None:
    """Sequence, identification (wrapping), lengths, flags and both checksums."""
    data = bytes(range(256)) * 12
    frame = with_blank_checksum(tcp_v4(data, sequence=0xFFFFFFF0, flags=0x80 | FIN_PSH_ACK), 1448, GSO_TCPV4)
    check(frame)
    cut = [each.data for each in fit(frame, PLAIN)]
    assert b"".join(each[54:] for each in cut) == data
    assert [len(each) - 54 for each in cut] == [1448, 1448, 176]
    assert [struct.unpack_from("!I", each, 38)[0] for each in cut] == [0xFFFFFFF0, 0xFFFFFFF0 + 1448 - 2**32, 2880]
    assert [each[47] for each in cut] == [0x90, 0x10, 0x19]
    assert [each[18:20] for each in cut] == [b"\xff\xff", b"\0\0", b"\0\x01"]
    assert all(is_valid(each[14:34]) for each in cut)
    assert all(is_valid(each[34:], pseudo_sum(ONE, TWO, 6, len(each) - 34)) for each in cut)


def test_a_large_segment_over_ipv6_is_cut() -> None:
    frame = with_blank_checksum(tcp_v6(bytes(3000)), 1400, GSO_TCPV6)
    check(frame)
    cut = [each.data for each in fit(frame, PLAIN)]
    assert [struct.unpack_from("!H", each, 18)[0] for each in cut] == [1428, 1428, 228]
    assert all(is_valid(each[62:], pseudo_sum(ONE_6, TWO_6, 6, len(each) - 62)) for each in cut)


def test_the_size_on_the_wire_of_a_segment_to_be_cut_is_that_of_its_pieces() -> None:
    assert wire_length(with_blank_checksum(tcp_v4(bytes(60000)), 1460, GSO_TCPV4)) == 1500
    assert fit(with_blank_checksum(tcp_v4(bytes(60000)), 1460, GSO_TCPV4), EVERY_OFFLOAD)[0].gso_size == 1460


@pytest.mark.parametrize(
    "frame",
    [
        Frame(tcp_v4(b""), 26, 0),
        Frame(tcp_v4(b""), 34, 4000),
        Frame(tcp_v4(b""), 34, -8),
        Frame(tcp_v4(b"x" * 100), 34, 16, 1, GSO_TCPV4),
        Frame(tcp_v4(b"x" * 100), 34, 16, 1448, GSO_TCPV6),
        Frame(tcp_v4(b"x" * 100), 34, 16, 1448, 9),
        Frame(tcp_v4(b"x" * 100), 34, 16, 1448, 0),
        Frame(tcp_v4(b"x" * 100), 0, 0, 1448, GSO_TCPV4),
        Frame(tcp_v4(b"")[:46] + b"\xf0" + tcp_v4(b"")[47:], 34, 16, 1448, GSO_TCPV4),
        Frame(tcp_v4(b"")[:40], 34, 16, 1448, GSO_TCPV4),
        Frame(MACS + b"\x08\x06" + bytes(46), 34, 16),
    ],
    ids=[
        "over the source address",
        "beyond the frame",
        "negative",
        "one-byte segments",
        "wrong family",
        "unknown kind",
        "no kind",
        "no checksum",
        "header beyond the packet",
        "cut off",
        "ARP",
    ],
)
def test_metadata_that_does_not_fit_is_refused(frame: Frame) -> None:
    with pytest.raises(BadOffload):
        check(frame)


def test_a_blank_checksum_needs_tcp_or_udp() -> None:
    with pytest.raises(BadOffload):
        with_blank_checksum(MACS + b"\x08\x00" + ipv4_header(ONE, TWO, 1, 8) + bytes(8))
