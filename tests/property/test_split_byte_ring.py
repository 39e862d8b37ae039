"""A ring of bytes carries a stream whole and in order, and whatever its indexes say, nothing beside it is touched."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.split.byte_ring import ByteRing

AT, SIZE, AT_INDEXES = 16, 32, 64
INDEXES = st.integers(0, 0xFFFF_FFFF)


def a_ring(consumer: int, producer: int) -> tuple[bytearray, ByteRing]:
    page = bytearray(b"\xee" * 96)
    struct.pack_into("<II", page, AT_INDEXES, consumer, producer)
    return page, ByteRing(memoryview(page), AT, SIZE, AT_INDEXES)


@given(start=INDEXES, moves=st.lists(st.binary(max_size=40) | st.integers(0, 40), max_size=30))
def test_what_is_put_is_taken_in_order(start: int, moves: list[bytes | int]) -> None:
    """Over the end of the ring, and over the end of the numbers."""
    page, ring = a_ring(start, start)
    inside = b""
    for move in moves:
        if isinstance(move, bytes):
            room = ring.room
            count = ring.put(move)
            assert room == SIZE - len(inside) and count == min(len(move), room)
            inside += move[:count]
        else:
            taken = ring.take(move)
            assert taken == inside[:move]
            inside = inside[len(taken) :]
    assert not ring.wild and ring.take() == inside
    assert page[:AT] == b"\xee" * AT and page[AT + SIZE : AT_INDEXES] == b"\xee" * (AT_INDEXES - AT - SIZE)


@given(consumer=INDEXES, producer=INDEXES, data=st.binary(min_size=1, max_size=40))
def test_wild_indexes_give_and_take_nothing(consumer: int, producer: int, data: bytes) -> None:
    """The page stays as the guest made it."""
    page, ring = a_ring(consumer, producer)
    before = bytes(page)
    wild = producer - consumer & 0xFFFF_FFFF > SIZE
    assert ring.wild is wild
    if wild:
        assert ring.take() == b"" and ring.room == 0 and ring.put(data) == 0 and page == before
