"""Where a grant table's parts are placed, by guests that resume in particular."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from hypervisor.domains.grant_table import GNTST_BAD_GNTREF, MAX_FRAMES, GrantError, GrantTable
from hypervisor.errors import XenError
from hypervisor.memory.guest_memory import PAGE, Memory

PER_FRAME = PAGE // 8


@pytest.fixture
def table() -> Iterator[GrantTable]:
    memory = Memory(1 << 20)
    yield GrantTable(memory)
    memory.close()


def grant(table: GrantTable, ref: int, frame: int) -> None:
    """Write an entry as the guest does: access for domain 0."""
    at = table.frames[ref // PER_FRAME] + ref % PER_FRAME * 8
    struct.pack_into("<HHI", table.memory.bytes, at, 1, 0, frame)


def test_the_last_part_may_be_placed_first(table: GrantTable) -> None:
    """As Linux does when it resumes; what is below has no entries until it is placed."""
    table.place(2, 0x1002)
    grant(table, 2 * PER_FRAME, 7)
    assert table.access(2 * PER_FRAME, 0, True).frame == 7
    with pytest.raises(GrantError) as refused:
        table.access(5, 0, True)
    assert refused.value.status == GNTST_BAD_GNTREF
    table.place(0, 0x1000)
    grant(table, 5, 9)
    assert table.access(5, 0, True).frame == 9


def test_a_part_keeps_its_entries_when_it_is_placed_again(table: GrantTable) -> None:
    """At the same frame, as Linux does after a cancelled suspend, or at another."""
    table.place(0, 0x1000)
    grant(table, 5, 9)
    access = table.access(5, 0, False)
    for frame in (0x1000, 0x1001, 3):
        table.place(0, frame)
        assert table.access(5, 0, True).frame == 9
    access.end()


def test_a_new_part_is_empty(table: GrantTable) -> None:
    """Whatever stood in the frame."""
    table.memory.write(3 * PAGE, b"\1\0\0\0" * 1024)
    table.place(0, 3)
    assert not any(table.memory.read(3 * PAGE, PAGE))


def test_a_table_has_an_end(table: GrantTable) -> None:
    """At Xen's default maximum."""
    table.place(MAX_FRAMES - 1, 0x1000)
    for number in (MAX_FRAMES, -1):
        with pytest.raises(XenError):
            table.place(number, 0x1001)


def test_what_is_forgotten_is_not_marked(table: GrantTable) -> None:
    """A grant that ends after its guest has resumed as a new domain leaves the new table alone."""
    table.place(0, 0x1000)
    grant(table, 5, 9)
    access = table.access(5, 0, True)
    table.forget()
    fresh = GrantTable(table.memory)
    fresh.place(0, 0x1000)
    access.end()
    assert not any(table.memory.frame(0x1000))
