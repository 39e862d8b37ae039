"""The shared ring: what a front may do to it."""

from __future__ import annotations

import struct

from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.ring import HEADER, Ring, slots_of

SLOT = 112


def a_ring(pages: int = 1) -> tuple[bytearray, Ring]:
    memory = bytearray(pages * PAGE)
    struct.pack_into("<4I", memory, 0, 0, 1, 0, 1)
    view = memoryview(memory)
    return memory, Ring([view[page * PAGE : (page + 1) * PAGE] for page in range(pages)], SLOT)


def produce(memory: bytearray, index: int) -> None:
    struct.pack_into("<I", memory, 0, index)


def test_slots_are_as_the_headers_macro_counts_them() -> None:
    """32 for the block ring's one page, 512 for sixteen."""
    assert [slots_of(pages, SLOT) for pages in (1, 2, 4, 16)] == [32, 64, 128, 512]


def test_requests_are_copies() -> None:
    """What the front writes afterwards is not seen."""
    memory, ring = a_ring()
    memory[HEADER : HEADER + 3] = b"abc"
    produce(memory, 1)
    [slot] = ring.requests(33)
    memory[HEADER] = 0
    assert slot[:3] == b"abc" and len(slot) == SLOT


def test_taking_all_asks_for_an_event_with_the_next() -> None:
    """req_event is one beyond what was taken."""
    memory, ring = a_ring()
    produce(memory, 5)
    assert len(ring.requests(33)) == 5
    assert struct.unpack_from("<I", memory, 4) == (6,)


def test_more_requests_than_slots_break_the_ring() -> None:
    """Nothing is taken then, now or later."""
    memory, ring = a_ring()
    produce(memory, 33)
    assert ring.requests(33) == [] and ring.broken
    produce(memory, 1)
    assert ring.requests(33) == []


def test_a_producer_that_goes_back_breaks_the_ring() -> None:
    """An index behind what was taken is as wild as one far ahead."""
    memory, ring = a_ring()
    produce(memory, 3)
    ring.requests(33)
    produce(memory, 2)
    assert ring.requests(33) == [] and ring.broken


def test_unanswered_requests_hold_their_slots() -> None:
    """The front may not reuse a slot before its response."""
    memory, ring = a_ring()
    produce(memory, 32)
    assert len(ring.requests(33)) == 32 and ring.unanswered == 32
    produce(memory, 33)
    assert ring.requests(33) == [] and ring.broken


def test_an_event_is_sent_only_when_the_front_asked_for_it() -> None:
    """rsp_event decides, as RING_PUSH_RESPONSES_AND_CHECK_NOTIFY has it."""
    memory, ring = a_ring()
    produce(memory, 4)
    ring.requests(33)
    assert ring.respond([b"x"])
    assert not ring.respond([b"x"])
    struct.pack_into("<I", memory, 12, 4)
    assert ring.respond([b"x", b"x"])
    assert struct.unpack_from("<I", memory, 8) == (4,)


def test_slots_may_straddle_pages() -> None:
    """Slot 72 begins in one page and ends in the next, which need not be its neighbour in memory."""
    memory, ring = a_ring(4)
    at = HEADER + 72 * SLOT
    content = bytes(range(SLOT))
    produce(memory, 72)
    ring.requests(129)
    ring.respond([b""] * 72)
    memory[at : at + SLOT] = content
    produce(memory, 73)
    assert at < 2 * PAGE < at + SLOT
    assert ring.requests(129) == [content]
    ring.respond([content[::-1]])
    assert memory[at : at + SLOT] == content[::-1]


def test_indexes_wrap_round() -> None:
    """They are free-running numbers of 32 bits."""
    memory = bytearray(PAGE)
    struct.pack_into("<4I", memory, 0, 3, 0, 0xFFFFFFFE, 0)
    ring = Ring([memoryview(memory)], SLOT)
    assert len(ring.requests(33)) == 5
    ring.respond([b"r"] * 5)
    assert struct.unpack_from("<I", memory, 8) == (3,)
