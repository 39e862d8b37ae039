"""Sector bitmaps as whole numbers: sector 0 is the highest bit, as in the file, so runs are found by bit length."""

from __future__ import annotations

from collections.abc import Iterator


def span(start: int, count: int, sectors: int) -> int:
    """Return the bitmap, of a block of so many sectors, that has just these set."""
    return ((1 << count) - 1) << (sectors - start - count)


def runs(bits: int, start: int, count: int, sectors: int) -> Iterator[tuple[bool, int]]:
    """Yield (set, length) of the runs of equal bits in a part of a bitmap, in order."""
    part = bits >> (sectors - start - count) & ((1 << count) - 1)
    while count:
        if part >> (count - 1):
            length = count - (part ^ ((1 << count) - 1)).bit_length()
            yield True, length
        else:
            length = count - part.bit_length()
            yield False, length
        count -= length
        part &= (1 << count) - 1
