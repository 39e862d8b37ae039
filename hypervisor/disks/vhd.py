"""VHD disks: a leaf, which may be written, over a chain of parents, which are only read."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

from hypervisor.disks import vhd_format as form
from hypervisor.disks.chain import Layer, open_layers
from hypervisor.disks.disk import SECTOR, DiskError, Kind, check_range, fill_zeros, whole_sectors
from hypervisor.disks.image_file import ImageFile, sync_directory
from hypervisor.disks.raw import RawDisk
from hypervisor.disks.vhd_format import Footer, Header
from hypervisor.disks.vhd_image import VhdImage
from hypervisor.disks.vhd_layout import find_footer, read_header, write_empty

Clock = Callable[[], int]
"""Nanoseconds of Unix time."""


class VhdDisk:
    """A chain of images as one disk; see `open` and `create`."""

    sector_size = SECTOR

    def __init__(self, layers: list[Layer]) -> None:
        """Take over open layers, the leaf (a dynamic or differencing image) first."""
        leaf = layers[0]
        if not isinstance(leaf, VhdImage):
            raise DiskError(Kind.REFUSED, f"{leaf.file.path}: neither dynamic nor differencing")
        self.leaf = leaf
        self._layers = layers
        self._sizes = [layer.footer.size if isinstance(layer, VhdImage) else layer.size for layer in layers]

    @property
    def size(self) -> int:
        return self._sizes[0]

    @property
    def read_only(self) -> bool:
        return not self.leaf.file.writable

    @property
    def uuid(self) -> UUID:
        return self.leaf.footer.uuid

    @property
    def depth(self) -> int:
        """Return the number of files, this one included."""
        return len(self._layers)

    @property
    def utilisation(self) -> int:
        """Return the bytes that the leaf's file occupies on the host, without its parents'."""
        return self.leaf.file.physical

    # -- reading

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        check_range(self.size, offset, length)
        if length:
            place = self.leaf.place(offset, length)
            if place >= 0:
                return self.leaf.file.read(place, length)
        buffer = bytearray(length)
        self._fill(0, offset, memoryview(buffer), zeroed=True)
        return bytes(buffer)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill a writable buffer."""
        view = memoryview(buffer).cast("B")
        check_range(self.size, offset, len(view))
        self._fill(0, offset, view)

    def _fill(self, depth: int, offset: int, view: memoryview, zeroed: bool = False) -> None:
        """Read from a layer and, for what it does not hold, from those under it; the recursion ends at MAX_DEPTH."""
        while depth < len(self._layers):
            left = self._sizes[depth] - offset  # a parent may be shorter than its child
            if left < len(view):
                if not zeroed:
                    fill_zeros(view[max(left, 0) :])
                view = view[: max(left, 0)]
            layer = self._layers[depth]
            if not len(view):
                return
            if isinstance(layer, RawDisk):
                layer.readinto(offset, view)
                return
            depth += 1
            if not layer.absent(offset, len(view)):
                for at, count, place in layer.locate(offset, len(view)):
                    piece = view[at : at + count]
                    if place >= 0:
                        layer.file.readinto(place, piece)
                    else:
                        self._fill(depth, offset + at, piece, zeroed)
                return
        if not zeroed:
            fill_zeros(view)

    def allocated_ranges(
        self, offset: int = 0, length: int | None = None, *, leaf_only: bool = False
    ) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what the chain, or only its leaf, holds: in order, apart, by whole sectors."""
        length = self.size - offset if length is None else length
        check_range(self.size, offset, length)
        return merged(self._ranges(depth, offset, length) for depth in range(1 if leaf_only else self.depth))

    def _ranges(self, depth: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
        layer = self._layers[depth]
        length = min(length, self._sizes[depth] - offset)
        if length <= 0:
            return
        if isinstance(layer, RawDisk):
            yield from layer.allocated_ranges(offset, length)
            return
        for at, count, place in layer.locate(offset, length):
            if place >= 0:
                yield offset + at, count

    # -- writing

    def _writable(self) -> VhdImage:
        if self.read_only:
            raise DiskError(Kind.READ_ONLY, str(self.leaf.file.path))
        return self.leaf

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`; parts of sectors are filled up with what is there."""
        view = memoryview(data).cast("B")
        check_range(self.size, offset, len(view))
        leaf = self._writable()
        if offset % SECTOR or len(view) % SECTOR:
            start, end = offset // SECTOR * SECTOR, -(-(offset + len(view)) // SECTOR) * SECTOR
            whole = bytearray(self.read(start, end - start))
            whole[offset - start : offset - start + len(view)] = view
            offset, view = start, memoryview(whole)
        leaf.write(offset, view)

    def flush(self) -> None:
        """Make all writes durable."""
        if not self.read_only:
            self.leaf.commit()

    def discard(self, offset: int, length: int) -> None:
        """Give back the space of whole sectors.

        They then read as zeros, but for those that only a parent holds, which stay.
        """
        check_range(self.size, offset, length)
        leaf = self._writable()
        start, end = whole_sectors(offset, length)
        while start < end:
            stop = min(end, (start // leaf.block_size + 1) * leaf.block_size)
            if not leaf.absent(start, stop - start):
                shadows = any(True for depth in range(1, self.depth) for _ in self._ranges(depth, start, stop - start))
                whole = start % leaf.block_size == 0 and (stop % leaf.block_size == 0 or stop == self.size)
                if whole and not shadows:
                    leaf.drop(start // leaf.block_size)
                else:
                    leaf.zero(start, stop - start, forget=not shadows)
            start = stop

    def resize(self, size: int) -> None:
        """Grow to `size` bytes, rounded up to 2 MiB; shrinking is refused."""
        self._writable().grow(size)
        self._sizes[0] = self.leaf.footer.size

    def push(self, leaf: VhdImage) -> None:
        """Go on in a child of the present leaf, as `snapshot.split` makes one; the files stay open."""
        self.leaf = leaf
        self._layers.insert(0, leaf)
        self._sizes.insert(0, leaf.footer.size)

    # -- metadata

    def set_uuid(self, uuid: UUID) -> None:
        """Give the image another identity; children made before would no longer accept it."""
        self._writable().change_footer(replace(self.leaf.footer, uuid=uuid))

    def set_hidden(self, hidden: bool) -> None:
        """Mark as one that has children: such an image is not opened for writing."""
        self._writable().change_footer(replace(self.leaf.footer, hidden=hidden))

    def set_parent(self, parent: Path) -> None:
        """Tell where the same parent, moved or renamed, now lies; another image is refused."""
        leaf = self._writable()
        if leaf.footer.kind != form.DIFFERENCING:
            raise DiskError(Kind.REFUSED, f"{leaf.file.path}: has no parent")
        header, hints = parent_header(leaf.file.path, parent, leaf.header)
        if header.parent_uuid != leaf.header.parent_uuid:
            raise DiskError(Kind.MISMATCH, f"{leaf.file.path}: {parent} is not {leaf.header.parent_uuid}")
        leaf.change_header(header, hints, leaf.footer)

    def close(self) -> None:
        """Flush and close all files of the chain."""
        try:
            if not self.read_only and not self.leaf.file.closed:
                self.leaf.commit()
        finally:
            for layer in self._layers:
                layer.file.close()


def merged(sources: Iterator[Iterator[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    """Join several rows of (offset, length), each in order, into one whose parts do not touch."""
    low = high = -1
    for offset, length in heapq.merge(*sources):
        if offset > high:
            if high > low:
                yield low, high - low
            low = offset
        high = max(high, offset + length)
    if high > low:
        yield low, high - low


@dataclass(frozen=True, slots=True)
class Information:
    """What a glance at an image tells; sizes in bytes."""

    kind: int
    size: int
    uuid: UUID
    hidden: bool
    utilisation: int
    parent_uuid: UUID | None
    parent_name: str


def inspect(path: Path) -> Information:
    """Read an image's metadata without its lock: a running guest may use it meanwhile."""
    file = ImageFile.open(path, writable=False, lock=False)
    try:
        footer, _ = find_footer(file)
        uuid, name = None, ""
        if footer.kind != form.FIXED:
            header = read_header(file, footer)
            if footer.kind == form.DIFFERENCING:
                uuid, name = header.parent_uuid, header.parent_name
        return Information(footer.kind, footer.size, footer.uuid, footer.hidden, file.physical, uuid, name)
    finally:
        file.close()


def parent_header(child: Path, parent: Path, header: Header) -> tuple[Header, list[tuple[bytes, bytes]]]:
    """Return a header, and hints, that name `parent`."""
    file = ImageFile.open(parent, writable=False, lock=False)
    try:
        footer, _ = find_footer(file)
        modified = form.timestamp(file.modified)
    finally:
        file.close()
    changed = replace(header, parent_uuid=footer.uuid, parent_time=modified, parent_name=parent.resolve().name)
    return changed, form.encode_locators(child, parent)


def create(
    path: Path, size: int | None = None, parent: Path | None = None, *, clock: Clock, uuid: UUID | None = None
) -> None:
    """Make an empty image, dynamic or, over a parent, differencing; an existing file is refused.

    `size` in bytes is rounded up to 2 MiB; over a parent it may be left out, or be larger than the parent's.
    """
    base = inspect(parent).size if parent else 0
    size = -(-(base if size is None else size) // form.BLOCK) * form.BLOCK
    if not max(base, 1) <= size <= form.MAX_SIZE:
        raise DiskError(Kind.REFUSED, f"{path}: {size} bytes, over a parent of {base}")
    created = form.timestamp(clock() // 1_000_000_000)
    kind = form.DIFFERENCING if parent else form.DYNAMIC
    footer = Footer(kind, size, uuid or uuid4(), created, original_size=size).resized(size)
    header, hints = Header(size // form.BLOCK, 0), list[tuple[bytes, bytes]]()
    if parent:
        header, hints = parent_header(path, parent, header)
    file = ImageFile.create(path)
    try:
        write_empty(file, footer, header, hints)
        sync_directory(path.absolute().parent)
    except BaseException:
        path.unlink()
        raise
    finally:
        file.close()


def open(path: Path, *, read_only: bool = False, directories: Sequence[Path] = ()) -> VhdDisk | RawDisk:
    """Open an image over its parents; fixed ones come as a RawDisk.

    Parents are looked for in the image's own directory and below `directories`, nowhere else.
    """
    layers = open_layers(path, writable=not read_only, directories=directories)
    return layers[0] if isinstance(layers[0], RawDisk) else VhdDisk(layers)
