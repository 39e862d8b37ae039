"""Copy what one disk holds into another, leaving out what is zero anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from hypervisor.disks.disk import ZEROS, Disk, DiskError, Kind

CHUNK = len(ZEROS)
"""Bytes that are copied at a time: a block of a VHD."""

Progress = Callable[[int, int], None]
"""Hears (bytes done, bytes in all). What it raises ends the work and reaches the caller: the way to cancel."""


class Source(Disk, Protocol):
    """A disk that knows which parts it holds."""

    def allocated_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]: ...


def copy(source: Source, target: Disk, progress: Progress, *, blank: bool) -> None:
    """Copy all of `source` into `target`, which is as large or larger, and flush it.

    `blank` promises that the target reads as zeros now; otherwise its other contents are zeroed.
    """
    if target.size < source.size:
        raise DiskError(Kind.OUT_OF_RANGE, f"{source.size} bytes into a disk of {target.size}")
    ranges = list(source.allocated_ranges())
    total, done, behind = sum(length for _, length in ranges), 0, 0
    for start, length in ranges:
        if not blank:
            _zero(target, behind, start - behind)
        behind = start + length
        offset = start
        while offset < behind:
            count = min(CHUNK - offset % CHUNK, behind - offset)
            progress(done, total)
            data = source.read(offset, count)
            if not blank or data != bytes(count):
                target.write(offset, data)
            done += count
            offset += count
    if not blank:
        _zero(target, behind, target.size - behind)
    target.flush()
    progress(total, total)


def _zero(disk: Disk, offset: int, length: int) -> None:
    """Zero a range, by giving it back where that makes zeros of it."""
    disk.discard(offset, length)
    end = offset + length
    while offset < end:
        count = min(CHUNK, end - offset)
        if disk.read(offset, count) != bytes(count):
            disk.write(offset, ZEROS[:count])
        offset += count
