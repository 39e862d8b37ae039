"""Prove of the disks, for any order of operations, crash and damage, what the unit tests prove for some."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.disks import vhd_format as form
from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.disks.disk import SECTOR, DiskError, Kind
from hypervisor.disks.image_file import ImageFile
from hypervisor.disks.raw import RawDisk
from hypervisor.disks.vhd import VhdDisk
from hypervisor.disks.vhd_format import DIFFERENCING, DYNAMIC, Footer, Header
from hypervisor.disks.vhd_image import VhdImage
from hypervisor.disks.vhd_layout import BAT_PLACE, DATA_PLACE, write_empty

BLOCK = 64 * 1024  # not our images' 2 MiB, to be fast; 128 sectors, so bitmaps are padded
SIZE = 3 * BLOCK
UUID_OF_PARENT, UUID_OF_CHILD = UUID(int=1), UUID(int=2)


class MemoryFile(ImageFile):
    """A file in memory that logs what would reach the disk, and can be full."""

    def __init__(self, data: bytes = b"", writable: bool = True) -> None:
        super().__init__(Path("memory"), 0, writable)
        self.data = bytearray(data)
        self.log: list[tuple[str, int, bytes | int]] = []
        self.left: int | None = None  # writes until the host is full

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > len(self.data):
            raise DiskError(Kind.IO, "end")
        return bytes(self.data[offset : offset + length])

    def readinto(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0 and offset + len(data) > len(self.data):
                raise DiskError(Kind.NO_SPACE, "full")
        self.apply("write", offset, bytes(data))

    def sync(self) -> None:
        self.apply("sync", 0, 0)

    def truncate(self, size: int) -> None:
        self.apply("truncate", size, 0)

    def zero(self, offset: int, length: int) -> None:
        self.apply("zero", offset, length)

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        yield start, end - start

    def close(self) -> None:
        pass

    def apply(self, what: str, offset: int, argument: bytes | int) -> None:
        self.log.append((what, offset, argument))
        if what == "write":
            assert isinstance(argument, bytes)
            if len(self.data) < offset:
                self.data.extend(bytes(offset - len(self.data)))
            self.data[offset : offset + len(argument)] = argument
        elif what == "zero":
            assert isinstance(argument, int)
            end = min(offset + argument, len(self.data))
            self.data[offset:end] = bytes(max(end - offset, 0))
        elif what == "truncate":
            del self.data[offset:]
            self.data.extend(bytes(offset - len(self.data)))


def empty(kind: int = DYNAMIC) -> MemoryFile:
    file = MemoryFile()
    parent = UUID_OF_PARENT if kind == DIFFERENCING else form.NO_UUID
    write_empty(file, Footer(kind, SIZE, UUID_OF_CHILD), Header(SIZE // BLOCK, 0, BLOCK, parent_uuid=parent), [])
    return file


PARENT = b"".join(b"parent%10d" % (at // 16) for at in range(0, SIZE, 16))


def disk_on(file: MemoryFile, kind: int = DYNAMIC) -> VhdDisk:
    image = VhdImage(file)
    return VhdDisk([image, RawDisk(MemoryFile(PARENT, writable=False))] if kind == DIFFERENCING else [image])


# Near the edges of blocks and of the bytes of bitmaps.
SECTORS = st.one_of(st.integers(0, SIZE // SECTOR - 1), st.sampled_from([0, 1, 7, 8, 120, 127, 128, 255, 256, 383]))
COUNTS = st.one_of(st.integers(1, 40), st.sampled_from([128, 129, 256, 384]))
ONES = st.tuples(st.sampled_from(["write", "write", "discard", "flush", "reopen"]), SECTORS, COUNTS)
WHOLE_BLOCKS = st.tuples(st.sampled_from(["write", "discard"]), st.sampled_from([0, 128, 256]), st.just(128))
OPERATIONS = st.lists(ONES | WHOLE_BLOCKS, max_size=12)


def clipped(sector: int, count: int) -> tuple[int, int]:
    return sector * SECTOR, min(count, SIZE // SECTOR - sector) * SECTOR


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.sampled_from([DYNAMIC, DIFFERENCING]))
def test_a_vhd_reads_as_a_plain_row_of_bytes_would(operations: list[tuple[str, int, int]], kind: int) -> None:
    """Any writes, discards, flushes and reopenings agree with a bytearray."""
    file = empty(kind)
    disk = disk_on(file, kind)
    model = bytearray(PARENT if kind == DIFFERENCING else SIZE)
    for number, (name, sector, count) in enumerate(operations):
        offset, length = clipped(sector, count)
        if name == "write":
            data = bytes([number + 1]) * length
            disk.write(offset, data)
            model[offset : offset + length] = data
        elif name == "discard":
            disk.discard(offset, length)
            now = disk.read(offset, length)
            was = model[offset : offset + length]
            assert kind == DIFFERENCING or now == bytes(length)
            assert all(
                now[at : at + SECTOR] in (bytes(SECTOR), was[at : at + SECTOR]) for at in range(0, length, SECTOR)
            )
            model[offset : offset + length] = now
        elif name == "flush":
            disk.flush()
        else:
            disk.flush()
            disk = disk_on(file, kind)
    assert disk.read(0, SIZE) == model
    target = bytearray(b"x" * SIZE)
    disk.readinto(0, target)
    assert target == model


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 300_000), st.integers(0, 150_000)), max_size=15),
)
def test_a_disk_in_memory_reads_as_a_plain_row_of_bytes_would(operations: list[tuple[bool, int, int]]) -> None:
    """Writes and discards at any byte agree with a bytearray."""
    size = 300_032
    disk, model = AnonymousDisk(size), bytearray(size)
    for number, (write, offset, length) in enumerate(operations):
        offset = min(offset, size)
        length = min(length, size - offset)
        if write:
            disk.write(offset, bytes([number + 1]) * length)
            model[offset : offset + length] = bytes([number + 1]) * length
        else:
            disk.discard(offset, length)
            first, end = -(-offset // SECTOR) * SECTOR, (offset + length) // SECTOR * SECTOR
            model[first : max(end, first)] = bytes(max(end - first, 0))
    assert disk.read(0, size) == model


def after_power_cut(start: bytes, log: list[tuple[str, int, bytes | int]], cut: int, rng: random.Random) -> bytes:
    """Return the file when, of what was not yet synced at the cut, each sector made it or not."""
    synced = max((index for index in range(cut) if log[index][0] == "sync"), default=-1)
    file = MemoryFile(start)
    mood = rng.choice([0.1, 0.3, 0.5, 0.9, 1.0])  # 1.0: the process was killed, the host lives
    for index, (what, offset, argument) in enumerate(log[:cut]):
        if index < synced or rng.random() < mood:
            file.apply(what, offset, argument)
        elif what == "write":
            assert isinstance(argument, bytes)
            for at in range(0, len(argument), SECTOR):
                if rng.random() < mood:
                    file.apply("write", offset + at, argument[at : at + SECTOR])
    return bytes(file.data)


def check_power_cut(operations: list[tuple[str, int, int]], kind: int, seed: int, cut: int) -> None:
    """Cut somewhere, reopen, and compare each sector with its flushed content and those written since."""
    file = empty(kind)
    start, log_of_reopening = bytes(file.data), len(file.log)
    disk = disk_on(file, kind)
    first = bytearray(PARENT if kind == DIFFERENCING else SIZE)
    # What each sector may read as at each moment of the log; a change is in force before its first write.
    moments: list[tuple[int, int, dict[int, bytes] | None]] = []
    for number, (name, sector, count) in enumerate([*operations, ("flush", 0, 1)]):
        offset, length = clipped(sector, count)
        begun = len(file.log)
        if name in ("flush", "reopen"):
            disk.flush()
            if name == "reopen":
                disk = disk_on(file, kind)
            moments.append((begun, len(file.log), None))
            continue
        if name == "write":
            disk.write(offset, bytes([number + 1]) * length)
            change = bytes([number + 1]) * SECTOR
            moments.append((begun, len(file.log), dict.fromkeys(range(offset, offset + length, SECTOR), change)))
        else:
            disk.discard(offset, length)
            now = disk.read(offset, length)
            values = {offset + at: now[at : at + SECTOR] for at in range(0, length, SECTOR)}
            moments.append((begun, len(file.log), values))
    log = file.log[log_of_reopening:]
    # Just before a sync most is at stake; elsewhere, too, but seldom.
    edges = [index for index, entry in enumerate(log) if entry[0] == "sync"]
    cut = edges[cut // 4 % len(edges)] if cut % 4 and edges else cut % (len(log) + 1)
    data = after_power_cut(start, log, cut, random.Random(seed))

    flushed, since = first, dict[int, set[bytes]]()
    pending: dict[int, bytes] = {}
    for begun, ended, values_or_flush in moments:
        if begun - log_of_reopening > cut:
            break
        if values_or_flush is None and ended - log_of_reopening <= cut:
            for at, value in pending.items():
                flushed[at : at + SECTOR] = value
            pending, since = {}, {}
        elif values_or_flush is not None:
            pending.update(values_or_flush)
            for at, value in values_or_flush.items():
                since.setdefault(at, set()).update([value, bytes(SECTOR)] if value == bytes(SECTOR) else [value])

    survivor = disk_on(MemoryFile(data), kind).read(0, SIZE)
    for at in range(0, SIZE, SECTOR):
        found = survivor[at : at + SECTOR]
        if found != flushed[at : at + SECTOR]:
            assert found in since.get(at, set()), f"sector at {at}: {found[:16]!r}"


@settings(max_examples=120, deadline=None)
@given(
    OPERATIONS.filter(lambda all: any(name == "write" for name, *_ in all)),
    st.sampled_from([DYNAMIC, DIFFERENCING]),
    st.integers(0, 2**32),
    st.integers(0, 10_000),
)
def test_a_power_cut_loses_nothing_flushed_and_mixes_nothing_up(
    operations: list[tuple[str, int, int]], kind: int, seed: int, cut: int
) -> None:
    """Each sector has its flushed content or one written, or discarded, since."""
    check_power_cut(operations, kind, seed, cut)


@pytest.mark.parametrize("seed", range(24))
def test_a_dropped_blocks_place_is_not_reused_before_the_drop_is_durable(seed: int) -> None:
    """Else, after a power cut at any sync, the dropped block would read as another's data."""
    for cut in range(1, 32):
        check_power_cut(
            [("write", 0, 128), ("flush", 0, 1), ("discard", 0, 128), ("write", 128, 128)], DYNAMIC, seed, cut
        )


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.integers(0, 30), st.sampled_from([DYNAMIC, DIFFERENCING]))
def test_a_full_host_fails_the_write_and_nothing_else(
    operations: list[tuple[str, int, int]], room: int, kind: int
) -> None:
    """What was written before the host was full is there, also after reopening; flushing still works."""
    file = empty(kind)
    disk = disk_on(file, kind)
    model = bytearray(PARENT if kind == DIFFERENCING else SIZE)
    file.left = room
    for number, (_, sector, count) in enumerate(operations):
        offset, length = clipped(sector, count)
        try:
            disk.write(offset, bytes([number + 1]) * length)
        except DiskError as error:
            assert error.kind is Kind.NO_SPACE
            model[offset : offset + length] = disk.read(offset, length)
        else:
            model[offset : offset + length] = bytes([number + 1]) * length
    disk.flush()
    file.left = None
    assert disk_on(file, kind).read(0, SIZE) == model


def small_image() -> bytes:
    file = empty(DIFFERENCING)
    disk = disk_on(file, DIFFERENCING)
    disk.write(BLOCK - 4096, b"a" * 8192)
    disk.flush()
    return bytes(file.data)


IMAGE = small_image()
PLACES = st.one_of(
    st.integers(0, 1536), st.integers(BAT_PLACE, BAT_PLACE + 64), st.integers(DATA_PLACE, DATA_PLACE + 8192),
    st.integers(len(IMAGE) - SECTOR, len(IMAGE) - 1), st.integers(0, len(IMAGE) - 1),
)  # fmt: skip


def use(data: bytes) -> None:
    """Open, read, write, grow: nothing but a DiskError may come out."""
    try:
        disk = disk_on(MemoryFile(data), DIFFERENCING)
        for at in range(0, min(disk.size, 4 * SIZE), BLOCK):
            disk.read(at, min(BLOCK, disk.size - at))
        disk.write(0, b"b" * 4096)
        disk.discard(0, min(disk.size, BLOCK))
        disk.resize(disk.size + 1)
        disk.flush()
    except DiskError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(PLACES, st.integers(1, 255)), max_size=6), st.none() | st.integers(0, len(IMAGE)))
def test_a_damaged_file_gives_a_disk_error_or_a_disk(flips: list[tuple[int, int]], length: int | None) -> None:
    """Flipped bits and a lost end are found out or harmless."""
    data = bytearray(IMAGE)
    for place, mask in flips:
        data[place] ^= mask
    use(bytes(data[:length]))


NUMBERS = st.one_of(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3, 511, 512, 1536, BLOCK, 2**21, 2**31, 2**32 - 1])
)


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries({}, optional={"size": NUMBERS, "data_offset": NUMBERS, "kind": st.integers(0, 6)}),
    st.fixed_dictionaries({}, optional={"entries": NUMBERS, "table_offset": NUMBERS, "block_size": NUMBERS}),
    st.lists(st.tuples(st.integers(0, 2), NUMBERS), max_size=3),
)
def test_lies_under_right_checksums_give_a_disk_error_or_a_disk(
    footer: dict[str, int], header: dict[str, int], entries: list[tuple[int, int]]
) -> None:
    """No field is believed for its checksum."""
    data = bytearray(IMAGE)
    data[:SECTOR] = replace(Footer.decode(IMAGE[:SECTOR]), **footer).encode()  # type: ignore[arg-type]
    data[512:1536] = replace(Header.decode(IMAGE[512:1536]), **header).encode()  # type: ignore[arg-type]
    for number, value in entries:
        data[BAT_PLACE + number * 4 : BAT_PLACE + number * 4 + 4] = value.to_bytes(4, "big")
    use(bytes(data))


@given(st.integers(1, form.MAX_SIZE // SECTOR))
def test_the_geometry_never_exceeds_the_disk(sectors: int) -> None:
    """Cylinders, heads and sectors fit their fields and multiply to no more than the size."""
    packed = form.geometry(sectors * SECTOR)
    cylinders, heads, track = packed >> 16, packed >> 8 & 0xFF, packed & 0xFF
    assert cylinders <= 65535
    assert cylinders * heads * track <= sectors
