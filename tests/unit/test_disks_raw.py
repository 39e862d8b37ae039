"""Raw images and disks in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hypervisor.disks import copying, raw
from hypervisor.disks.anonymous import CHUNK, AnonymousDisk
from hypervisor.disks.disk import SECTOR, Disk, DiskError, Kind
from hypervisor.disks.image_file import ImageFile

SIZE = 1 << 20


@pytest.fixture(params=["raw", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return raw.create(tmp_path / "disk", SIZE) if request.param == "raw" else AnonymousDisk(SIZE)


def test_what_is_written_is_read(disk: Disk) -> None:
    """At any byte; the rest is zeros."""
    disk.write(1000, b"hello")
    disk.flush()
    assert disk.read(998, 9) == b"\0\0hello\0\0"
    disk.close()


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (-1, 1), (0, SIZE + 1), (2**70, 1), (0, -1)])
def test_nothing_outside_is_touched(disk: Disk, offset: int, length: int) -> None:
    """Reads, discards and writes alike."""
    for call in (disk.read, disk.discard):
        with pytest.raises(DiskError) as caught:
            call(offset, length)
        assert caught.value.kind is Kind.OUT_OF_RANGE
    disk.close()


def test_discarded_sectors_read_as_zeros(disk: Disk) -> None:
    """Only whole ones."""
    disk.write(0, b"x" * 4096)
    disk.discard(100, 2000)
    assert disk.read(0, 4096) == b"x" * SECTOR + bytes(3 * SECTOR) + b"x" * (4 * SECTOR)
    disk.close()


def test_closing_twice_is_harmless_and_use_after_is_refused(disk: Disk) -> None:
    """CLOSED, not an error of the host."""
    disk.close()
    disk.close()
    with pytest.raises(DiskError) as caught:
        disk.read(0, 1)
    assert caught.value.kind is Kind.CLOSED


def test_a_disk_in_memory_keeps_to_its_limit() -> None:
    """And what was there stays."""
    disk = AnonymousDisk(SIZE, limit=2 * CHUNK)
    disk.write(0, b"x" * 2 * CHUNK)
    with pytest.raises(DiskError) as caught:
        disk.write(2 * CHUNK, b"y")
    assert caught.value.kind is Kind.NO_SPACE
    assert disk.read(0, 2 * CHUNK) == b"x" * 2 * CHUNK


def test_a_raw_image_opened_for_reading_is_not_written(tmp_path: Path) -> None:
    """Readers share it."""
    raw.create(tmp_path / "disk", SIZE).close()
    one, two = (raw.open(tmp_path / "disk", read_only=True) for _ in range(2))
    with pytest.raises(DiskError) as caught:
        one.write(0, b"x")
    assert caught.value.kind is Kind.READ_ONLY
    one.close()
    two.close()


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    """An image's parent may be named anything."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DiskError) as caught:
        ImageFile.open(tmp_path / "fifo", writable=False)
    assert caught.value.kind is Kind.REFUSED


def test_a_flush_that_failed_stays_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would report success over lost pages."""
    disk = raw.create(tmp_path / "disk", SIZE)

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(DiskError):
            disk.flush()
    with pytest.raises(DiskError, match="earlier flush"):
        disk.flush()
    disk.file.close()


def test_a_raw_image_grows_and_does_not_shrink(tmp_path: Path) -> None:
    """What is new reads as zeros."""
    disk = raw.create(tmp_path / "disk", SIZE)
    disk.write(SIZE - SECTOR, b"x" * SECTOR)
    disk.resize(2 * SIZE)
    assert disk.read(SIZE - SECTOR, 2 * SECTOR) == b"x" * SECTOR + bytes(SECTOR)
    for size in (SIZE, 2 * SIZE + 1):
        with pytest.raises(DiskError) as caught:
            disk.resize(size)
        assert caught.value.kind is Kind.REFUSED
    disk.close()
    assert (tmp_path / "disk").stat().st_size == 2 * SIZE


@pytest.mark.parametrize("blank", [True, False])
def test_a_copy_holds_the_same_and_stays_sparse(blank: bool) -> None:
    """Zeros are left out where the target is blank; what else a used target held goes."""
    source, target = AnonymousDisk(8 * SIZE), AnonymousDisk(9 * SIZE)
    source.write(SIZE, b"x" * SIZE)
    source.write(3 * SIZE, bytes(SIZE))
    if not blank:
        target.write(2 * SIZE - SECTOR, b"y" * SIZE)
        target.write(8 * SIZE, b"y" * SIZE)
    heard: list[tuple[int, int]] = []
    copying.copy(source, target, lambda done, total: heard.append((done, total)), blank=blank)
    assert target.read(0, 9 * SIZE) == source.read(0, 8 * SIZE) + bytes(SIZE)
    assert heard[0] == (0, 2 * SIZE)
    assert heard[-1] == (2 * SIZE, 2 * SIZE)
    assert target.utilisation == SIZE if blank else target.utilisation < 4 * SIZE
