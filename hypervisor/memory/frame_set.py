"""A set of frame numbers that costs little: a bit a frame, where there are any.

A Python set of a guest's ballooned frames would cost some 60 bytes each, 16 GB for 1 TiB; this costs at most
38 MB for that, whatever pattern a guest chooses, and nothing for parts of the memory that hold none.
"""

from __future__ import annotations

from collections.abc import Iterator

_PART = 4096
"""Frames of a part: small enough that the work on one is quick, large enough that parts are few."""


class FrameSet:
    """Frames, added and taken away by runs. A call takes time by its parts of 4096 frames, not by its frames."""

    def __init__(self) -> None:
        self._parts: dict[int, int] = {}
        """Number of a part to a bit for each of its frames; never 0."""

    def __contains__(self, frame: int) -> bool:
        number, at = divmod(frame, _PART)
        return bool(self._parts.get(number, 0) >> at & 1)

    def __len__(self) -> int:
        return sum(part.bit_count() for part in self._parts.values())

    def add(self, first: int, count: int) -> int:
        """Put frames in; return how many were not there before."""
        added = 0
        for number, mask in _masks(first, count):
            before = self._parts.get(number, 0)
            self._parts[number] = before | mask
            added += (mask & ~before).bit_count()
        return added

    def remove(self, first: int, count: int) -> int:
        """Take frames out; return how many were there."""
        removed = 0
        for number, mask in _masks(first, count):
            before = self._parts.get(number, 0)
            if after := before & ~mask:
                self._parts[number] = after
            else:
                self._parts.pop(number, None)
            removed += (mask & before).bit_count()
        return removed

    def count(self, first: int, count: int) -> int:
        """Return how many of these frames are there."""
        return sum((self._parts.get(number, 0) & mask).bit_count() for number, mask in _masks(first, count))

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield first frame and length of each row of neighbours, in order; nothing may change meanwhile."""
        first = length = 0
        for number in sorted(self._parts):
            part, at = self._parts[number], number * _PART
            while part:
                gap = (part & -part).bit_length() - 1
                part >>= gap
                size = (~part & part + 1).bit_length() - 1
                part >>= size
                at += gap
                if first + length != at and length:
                    yield first, length
                    length = 0
                first, length = (first, length + size) if length else (at, size)
                at += size
        if length:
            yield first, length


def _masks(first: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the parts that a run touches, each with the bits of the run's frames in it."""
    end = first + count
    while first < end:
        number, at = divmod(first, _PART)
        here = min(end - first, _PART - at)
        yield number, (1 << here) - 1 << at
        first += here
