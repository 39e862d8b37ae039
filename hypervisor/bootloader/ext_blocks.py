"""Where the blocks of an inode are: extent trees, and the block pointers of ext2 and ext3."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.volume import Budget

Run = tuple[int, int, int]
"""First block of the file, first block on the disk, how many."""

_EXTENT_MAGIC, _DEEPEST = 0xF30A, 5
_LONGEST = 32768
"""Most blocks of an extent; a greater length is one that is allocated but not written, and reads as zeros."""
_DIRECT, _LEVELS = 12, 3


class _Blocks(Protocol):
    @property
    def block_size(self) -> int: ...
    @property
    def budget(self) -> Budget: ...
    def block(self, number: int) -> bytes: ...


def extents(files: _Blocks, tree: bytes, count: int) -> Iterator[Run]:
    """Yield the runs of an extent tree below `count` blocks. Raises BootError for one that is no good."""
    if not count:
        return
    depth = struct.unpack_from("<H", tree, 6)[0]
    if depth > _DEEPEST:
        raise BootError("an extent tree is too deep")
    yield from _extents(files, tree, count, depth)


def _extents(files: _Blocks, node: bytes, count: int, depth: int) -> Iterator[Run]:
    magic, entries, _, level = struct.unpack_from("<HHHH", node, 0)
    if magic != _EXTENT_MAGIC or level != depth or 12 + 12 * entries > len(node):
        raise BootError("an extent tree is damaged")
    for at in range(12, 12 + 12 * entries, 12):
        files.budget.step()
        if depth:
            _, low, high = struct.unpack_from("<IIH", node, at)
            yield from _extents(files, files.block(high << 32 | low), count, depth - 1)
            continue
        logical, length, high, low = struct.unpack_from("<IHHI", node, at)
        if length <= _LONGEST and logical < count:
            yield logical, high << 32 | low, min(length, count - logical)


def pointers(files: _Blocks, table: bytes, count: int) -> Iterator[Run]:
    """Yield the runs of a map of pointers, direct and up to three times indirect. Raises BootError."""
    run = (0, 0, 0)
    for logical, physical in _pointers(files, table, count):
        start, first, length = run
        if length and logical == start + length and physical == first + length:
            run = (start, first, length + 1)
        else:
            if length:
                yield run
            run = (logical, physical, 1)
    if run[2]:
        yield run


def _pointers(files: _Blocks, table: bytes, count: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of blocks that are not holes."""
    numbers = struct.unpack("<15I", table)
    for logical, physical in enumerate(numbers[: min(_DIRECT, count)]):
        if physical:
            yield logical, physical
    start, each = _DIRECT, files.block_size // 4
    for level in range(1, _LEVELS + 1):
        if start < count and numbers[_DIRECT + level - 1]:
            yield from _indirect(files, numbers[_DIRECT + level - 1], start, count, level)
        start += each**level


def _indirect(files: _Blocks, block: int, start: int, count: int, level: int) -> Iterator[tuple[int, int]]:
    each = files.block_size // 4
    covers = each ** (level - 1)
    for index, physical in enumerate(struct.unpack(f"<{each}I", files.block(block))):
        logical = start + index * covers
        if logical >= count:
            return
        files.budget.step()
        if not physical:
            continue
        if level == 1:
            yield logical, physical
        else:
            yield from _indirect(files, physical, logical, count, level - 1)
