"""One dynamic or differencing VHD file: which sectors it holds and where; allocation that survives any crash.

**What a power cut may do**: of everything written since the last fdatasync, any part may be there, sector by sector,
in no order. What must hold: flushed data stays, and a sector written since has its old or its new content. So no
pointer may reach the disk before what it points to:

- A write puts data into place and notes bitmap and BAT changes in memory only. Data in a sector whose bit is not set
  on disk cannot be seen; in one whose bit is set it replaces the sector's own older content, as it should.
- A new block lies behind the last one (or in a slot that nothing on disk refers to). First the footer is written
  behind it, then its bitmap, zeroed, which takes the place of the old footer, then data. Until the BAT entry is on
  disk the block does not exist; the footer, if lost, is found in its copy at offset 0.
- `commit` (flush) writes the bitmaps of new blocks, unreachable as yet; **fdatasync**; then BAT entries and bitmaps
  of older blocks, whose data are now durable; **fdatasync**. Each bitmap is one sector and each entry lies in one, so
  they are old or new, never torn, and each alone is right: they need no order among each other.
- A dropped block's slot is reused only after the commit that made the drop durable.
- Header changes (parent, size) go to the spare of two header places; the footer that points there is one sector:
  fdatasync; footer at the end; fdatasync; copy at offset 0; fdatasync. Opening for writing first makes the two equal.

`kill -9` is the milder case: the kernel keeps all that was written, in order. The number of notes in memory is
bounded: past it a write commits. When the host is full, the write that would allocate fails, since every place that
a commit will write has been written once before; the file is cut back to its former end.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

from hypervisor.disks import bitmap
from hypervisor.disks import vhd_format as form
from hypervisor.disks.disk import SECTOR, DiskError, Kind
from hypervisor.disks.image_file import ImageFile
from hypervisor.disks.vhd_format import UNUSED, Footer, Header, Locator
from hypervisor.disks.vhd_layout import (
    BAT_PLACE,
    DATA_PLACE,
    HEADER_PLACES,
    LOCATOR_PLACES,
    aligned,
    extent,
    find_footer,
    gaps,
    read_header,
    write_batmap,
    write_header,
)

_NOTES = 1024  # bitmaps that may wait in memory
_CACHED = 8192  # bitmaps kept for reading: 16 GiB of usual blocks


class VhdImage:
    """The sectors that one file holds, without regard to its parent."""

    def __init__(self, file: ImageFile) -> None:
        """Read and check footer, header and BAT of an open file; raise DiskError(DAMAGED)."""
        self.file = file
        self.footer, at_end = find_footer(file)
        self.header = read_header(file, self.footer)
        self.block_size = self.header.block_size
        self.sectors = self.block_size // SECTOR
        self._bitmap_sectors = -(-self.sectors // (8 * SECTOR))
        self._span = self._bitmap_sectors + self.sectors
        self._full = (1 << self.sectors) - 1
        self._bat = self._read_bat()
        self._bitmaps: dict[int, int] = {}  # as on disk, most recently read last
        self._dirty: dict[int, int] = {}  # newer than on disk
        self._fresh: set[int] = set()  # blocks whose BAT entry is newer than on disk
        self._dropped: list[int] = []  # slots to free at the next commit
        self._cleared: set[int] = set()  # blocks whose BAT entry is to be cleared on disk
        self._free: list[int] = []
        self._written = False
        self._end = self._check_layout(at_end)
        if file.writable:
            self._repair(at_end)

    def _read_bat(self) -> array[int]:
        entries = array("I")
        if entries.itemsize != 4:
            raise DiskError(Kind.REFUSED, "a platform without 32-bit integers")
        entries.frombytes(self.file.read(self.header.table_offset, self.header.entries * 4))
        if sys.byteorder == "little":
            entries.byteswap()
        return entries

    def _check_layout(self, at_end: bool) -> int:
        """Refuse parts that overlap or lie outside the file; return the sector behind the last, and note gaps."""
        size = self.file.size
        used = sorted([slot for slot in self._bat if slot != UNUSED])
        self.roomy = (
            self.header.table_offset == BAT_PLACE
            and self.block_size == form.BLOCK
            and self.footer.data_offset in HEADER_PLACES
            and size >= DATA_PLACE
            and (not used or used[0] * SECTOR >= DATA_PLACE)
        )  # our layout, with room for a second header and for a larger BAT
        places = [(0, 1), extent(self.footer.data_offset, form.HEADER_SIZE)]
        places.append(extent(self.header.table_offset, self.header.table_size))
        places += [extent(one.offset, one.length) for one in self._hints()]
        places += [(slot, slot + self._span) for slot in used]
        end = max(max(end for _, end in places), (size - SECTOR if at_end else form.padded(size)) // SECTOR)
        # Some writers cut the last block off where the disk ends.
        last = (self.footer.size - 1) // self.block_size
        tail = self._bitmap_sectors + (self.footer.size - last * self.block_size) // SECTOR
        if used and self._bat[last] == used[-1]:
            places[-1] = (used[-1], used[-1] + tail)
        places.sort()
        if places[-1][1] * SECTOR > (size - SECTOR if at_end else size):
            raise self._damaged("one of its parts lies behind its end")
        for (_, stop), (start, _) in pairwise(places):
            if start < stop:
                raise self._damaged("two of its parts overlap")
        first = DATA_PLACE // SECTOR if self.roomy else used[0] if used else end
        self._free = gaps([*places, (end, end)], first, self._bitmap_sectors, self._span)
        return end

    def _hints(self) -> list[Locator]:
        """Return the parent locators that lie inside the file; the others tell nothing."""
        size = self.file.size
        return [one for one in self.header.locators if one.length and one.offset + one.length <= size]

    def hints(self) -> list[tuple[bytes, bytes]]:
        """Return (platform code, data) of the parent locators."""
        return [(one.code, self.file.read(one.offset, one.length)) for one in self._hints()]

    def _damaged(self, what: str) -> DiskError:
        return DiskError(Kind.DAMAGED, f"{self.file.path}: {what}")

    def _repair(self, at_end: bool) -> None:
        """Make footer and copy equal, and blank the batmap, whose hints our writes would make false."""
        if not at_end or self.file.size != (self._end + 1) * SECTOR:
            self._write_footer()
        start, length = self.header.table_offset + self.header.table_size, form.batmap_size(self.header)
        first, end = extent(start, length)
        if self.footer.creator != b"tap\0" or self.footer.creator_version < 0x00010002 or end > self._end:
            return
        if any(slot < end and slot + self._span > first for slot in self._bat):
            return  # there is none, whatever the creator says
        if self.file.read(start, length) != form.batmap(self.header).ljust(length, b"\0"):
            write_batmap(self.file, self.header)

    def _write_footer(self) -> None:
        encoded = self.footer.encode()
        self.file.truncate((self._end + 1) * SECTOR)
        self.file.write(self._end * SECTOR, encoded)
        self.file.sync()
        self.file.write(0, encoded)
        self.file.sync()

    # -- changing footer and header

    def change_footer(self, footer: Footer) -> None:
        """Replace the footer, durably."""
        self.commit()
        self.footer = footer
        self._write_footer()

    def change_header(self, header: Header, hints: list[tuple[bytes, bytes]], footer: Footer) -> None:
        """Replace header, parent locators and footer, durably and at once."""
        self.commit()
        if self.roomy:
            spare = 1 - HEADER_PLACES.index(self.footer.data_offset)
            place, at = HEADER_PLACES[spare], LOCATOR_PLACES[spare]
        else:
            place = self._end * SECTOR
            at = place + form.HEADER_SIZE
            self._end += form.HEADER_SIZE // SECTOR + sum(form.padded(len(data)) for _, data in hints) // SECTOR
        self.header = write_header(self.file, header, hints, place, at)
        self.file.sync()
        self.change_footer(replace(footer, data_offset=place))

    def grow(self, size: int) -> None:
        """Make the disk larger, to `size` bytes rounded up to whole blocks of 2 MiB."""
        size = -(-size // form.BLOCK) * form.BLOCK
        entries = -(-size // self.block_size)
        if not self.footer.size <= size <= form.MAX_SIZE or entries > form.MAX_ENTRIES:
            raise DiskError(Kind.REFUSED, f"{self.file.path}: from {self.footer.size} to {size} bytes")
        footer = self.footer.resized(size)
        over = -self.footer.size % self.block_size
        if over:  # what lies in the last block behind the disk's end may be anything
            self.zero(self.footer.size, over, forget=True)
        if entries <= self.header.entries:
            self.change_footer(footer)
            return
        self.commit()
        header = replace(self.header, entries=entries)
        hints = self.hints()
        if self.roomy:
            write_batmap(self.file, header)
            start = self.header.entries
        else:  # a BAT that cannot grow in its place
            header = replace(header, table_offset=self._end * SECTOR)
            self._end += (header.table_size + form.batmap_size(header)) // SECTOR
            self.file.truncate((self._end + 1) * SECTOR)
            write_batmap(self.file, header)
            start = 0
        self._bat.extend([UNUSED] * (entries - self.header.entries))
        self._write_row(header.table_offset, start, entries)
        self.file.write(header.table_offset + entries * 4, b"\xff" * (header.table_size - entries * 4))
        self.change_header(header, hints, footer)

    # -- reading

    @property
    def empty(self) -> bool:
        """Tell whether no block is here: the disk reads as its parent does, or as zeros."""
        return self._bat.count(UNUSED) == len(self._bat)

    def place(self, offset: int, length: int) -> int:
        """Return where in the file a range lies that one block holds wholly; -1 if it is not so simple."""
        block, start = divmod(offset, self.block_size)
        slot = self._bat[block]
        if slot == UNUSED or start + length > self.block_size:
            return -1
        bits = self._bits(block, slot)
        if bits != self._full:
            first, end = start // SECTOR, -(-(start + length) // SECTOR)
            mask = bitmap.span(first, end - first, self.sectors)
            if bits & mask != mask:
                return -1
        return (slot + self._bitmap_sectors) * SECTOR + start

    def absent(self, offset: int, length: int) -> bool:
        """Tell whether a range lies in one block, and that block is not here at all."""
        block = offset // self.block_size
        return self._bat[block] == UNUSED and offset + length <= (block + 1) * self.block_size

    def locate(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (start in the range, length, place in the file or -1) of the runs that a range consists of."""
        done = 0
        while done < length:
            block, start = divmod(offset + done, self.block_size)
            count = min(self.block_size - start, length - done)
            slot = self._bat[block]
            if slot == UNUSED:
                yield done, count, -1
            else:
                base = (slot + self._bitmap_sectors) * SECTOR
                first, end = start // SECTOR, -(-(start + count) // SECTOR)
                at = first * SECTOR
                for held, sectors in bitmap.runs(self._bits(block, slot), first, end - first, self.sectors):
                    low, high = max(at, start), min(at + sectors * SECTOR, start + count)
                    yield done + low - start, high - low, base + low if held else -1
                    at += sectors * SECTOR
            done += count

    def _bits(self, block: int, slot: int) -> int:
        """Return the newest bitmap of an allocated block."""
        bits = self._dirty.get(block)
        if bits is None:
            bits = self._bitmaps.get(block)
        if bits is None:
            raw = self.file.read(slot * SECTOR, self.sectors // 8)
            bits = int.from_bytes(raw, "big")
            if len(self._bitmaps) >= _CACHED:
                del self._bitmaps[next(iter(self._bitmaps))]
            self._bitmaps[block] = bits
        return bits

    # -- writing

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors; blocks are allocated as needed."""
        self._written = True
        done = 0
        while done < len(data):
            block, start = divmod(offset + done, self.block_size)
            count = min(self.block_size - start, len(data) - done)
            slot = self._bat[block]
            if slot == UNUSED:
                slot = self._allocate(block)
            self.file.write((slot + self._bitmap_sectors) * SECTOR + start, data[done : done + count])
            bits = self._bits(block, slot)
            if bits != self._full:
                newer = bits | bitmap.span(start // SECTOR, count // SECTOR, self.sectors)
                if newer != bits:
                    self._dirty[block] = newer
            done += count
            if len(self._dirty) > _NOTES:
                self.commit()

    def _allocate(self, block: int) -> int:
        """Give a block a slot whose bitmap is zero; on failure the file is as before."""
        if self._free:
            slot = self._free[-1]
            self.file.zero(slot * SECTOR, self._span * SECTOR)
            self.file.write(slot * SECTOR, bytes(self._bitmap_sectors * SECTOR))
            self._free.pop()
        else:
            slot = aligned(self._end, self._bitmap_sectors)
            self._append(slot)
        self._bat[block] = slot
        self._fresh.add(block)
        self._dirty[block] = 0
        return slot

    def _append(self, slot: int) -> None:
        end = slot + self._span
        if end >= UNUSED:
            raise DiskError(Kind.NO_SPACE, f"{self.file.path}: a VHD file reaches no further than 2 TiB")
        try:
            self.file.write(end * SECTOR, self.footer.encode())
            self.file.write(slot * SECTOR, bytes(self._bitmap_sectors * SECTOR))
        except DiskError:
            self.file.truncate((self._end + 1) * SECTOR)
            self.file.write(self._end * SECTOR, self.footer.encode())
            raise
        self._end = end

    def drop(self, block: int) -> None:
        """Forget a block wholly, giving its space back at the next commit."""
        slot = self._bat[block]
        if slot == UNUSED:
            return
        self._bat[block] = UNUSED
        self._dirty.pop(block, None)
        self._bitmaps.pop(block, None)
        self._fresh.discard(block)
        self._cleared.add(block)
        self._dropped.append(slot)
        self._written = True

    def zero(self, offset: int, length: int, forget: bool) -> None:
        """Zero whole sectors of one block as far as it holds them; `forget` clears their bits, too."""
        block, start = divmod(offset, self.block_size)
        slot = self._bat[block]
        if slot == UNUSED:
            return
        for at, count, place in self.locate(offset, length):
            if place >= 0:
                self._written = True
                self.file.zero(place, count)
                if forget:
                    span = bitmap.span((start + at) // SECTOR, count // SECTOR, self.sectors)
                    self._dirty[block] = self._bits(block, slot) & ~span
        if len(self._dirty) > _NOTES:
            self.commit()

    def commit(self) -> None:
        """Make durable all that was written; the module's text tells why in this order."""
        if not self._written:
            return
        for block in self._fresh:
            self._write_bitmap(block)
        self.file.sync()
        changed = self._fresh | self._cleared
        if changed or self._dirty:
            for block in self._dirty.keys() - self._fresh:
                self._write_bitmap(block)
            self._write_entries(sorted(changed))
            self.file.sync()
        self._bitmaps.update(self._dirty)
        while len(self._bitmaps) > _CACHED:
            del self._bitmaps[next(iter(self._bitmaps))]
        dropped, self._dropped = self._dropped, []
        for table in (self._dirty, self._fresh, self._cleared):
            table.clear()
        self._written = False
        self._free += dropped
        with suppress(DiskError):  # a slot is zeroed again before it is used
            for slot in dropped:
                self.file.zero(slot * SECTOR, self._span * SECTOR)

    def _write_bitmap(self, block: int) -> None:
        raw = self._dirty[block].to_bytes(self.sectors // 8, "big")
        self.file.write(self._bat[block] * SECTOR, raw.ljust(self._bitmap_sectors * SECTOR, b"\0"))

    def _write_entries(self, blocks: list[int]) -> None:
        """Write the BAT entries of blocks, each row of neighbours at once."""
        first = 0
        for index in range(len(blocks)):
            if index + 1 == len(blocks) or blocks[index + 1] != blocks[index] + 1:
                self._write_row(self.header.table_offset, blocks[first], blocks[index] + 1)
                first = index + 1

    def _write_row(self, table: int, first: int, end: int) -> None:
        row = self._bat[first:end]
        if sys.byteorder == "little":
            row.byteswap()
        self.file.write(table + first * 4, row.tobytes())
