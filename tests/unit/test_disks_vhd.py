"""VHD images: chains, locks, metadata, growth, damage, and what other readers make of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from hypervisor.disks import raw, snapshot, vhd
from hypervisor.disks import vhd_format as form
from hypervisor.disks.chain import layer_of
from hypervisor.disks.disk import SECTOR, DiskError, Kind
from hypervisor.disks.image_file import ImageFile
from hypervisor.disks.vhd import VhdDisk
from hypervisor.disks.vhd_format import Footer, Header
from hypervisor.disks.vhd_image import VhdImage

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def clock() -> int:
    return 1_800_000_000 * 10**9


def create(path: Path, size: int | None = None, parent: Path | None = None, uuid: UUID | None = None) -> Path:
    vhd.create(path, size, parent, clock=clock, uuid=uuid)
    return path


def opened(path: Path, read_only: bool = False) -> VhdDisk:
    disk = vhd.open(path, read_only=read_only)
    assert isinstance(disk, VhdDisk)
    return disk


def put(path: Path, offset: int, data: bytes) -> None:
    disk = opened(path)
    disk.write(offset, data)
    disk.close()


def split(leaf: Path, base: Path, copy: Path) -> None:
    image = snapshot.open_leaf(leaf)
    try:
        snapshot.split(image, base, [copy], clock=clock).file.close()
    finally:
        image.file.close()


def content(path: Path) -> bytes:
    disk = vhd.open(path, read_only=True)
    try:
        return disk.read(0, disk.size)
    finally:
        disk.close()


def kind_of_failure(path: Path, read_only: bool = False) -> Kind:
    with pytest.raises(DiskError) as caught:
        vhd.open(path, read_only=read_only)
    return caught.value.kind


def test_the_size_is_rounded_up_to_blocks(tmp_path: Path) -> None:
    """As VHD SRs do."""
    assert vhd.inspect(create(tmp_path / "a.vhd", 3 * MIB + 1)).size == 4 * MIB


def test_an_empty_image_of_the_largest_size_is_thin(tmp_path: Path) -> None:
    """The BAT is all that a disk of 2040 GiB costs."""
    assert vhd.inspect(create(tmp_path / "a.vhd", form.MAX_SIZE)).utilisation < 5 * MIB


def test_a_disk_larger_than_the_format_is_refused(tmp_path: Path) -> None:
    """And leaves no file behind."""
    with pytest.raises(DiskError) as caught:
        create(tmp_path / "a.vhd", form.MAX_SIZE + 1)
    assert caught.value.kind is Kind.REFUSED
    assert list(tmp_path.iterdir()) == []


def test_a_chain_of_forty_reads_through(tmp_path: Path) -> None:
    """Each layer adds one sector; the leaf shows all."""
    path = create(tmp_path / "0.vhd", 2 * MIB)
    put(path, 0, bytes([1]) * SECTOR)
    for number in range(1, 40):
        path = create(tmp_path / f"{number}.vhd", parent=path)
        put(path, number * SECTOR, bytes([number + 1]) * SECTOR)
    expected = b"".join(bytes([number + 1]) * SECTOR for number in range(40))
    assert content(path)[: len(expected)] == expected


def test_a_chain_too_deep_is_refused(tmp_path: Path) -> None:
    """Depth is bounded."""
    path = create(tmp_path / "0.vhd", 2 * MIB)
    for number in range(1, 66):
        path = create(tmp_path / f"{number}.vhd", parent=path)
    assert kind_of_failure(path) is Kind.DAMAGED


def test_an_image_that_is_its_own_ancestor_is_refused(tmp_path: Path) -> None:
    """A ring of parents ends in an error, not in a loop."""
    base = create(tmp_path / "base.vhd", 2 * MIB, uuid=UUID(int=7))
    child = create(tmp_path / "child.vhd", parent=base, uuid=UUID(int=7))
    base.unlink()
    os.link(child, base)
    assert kind_of_failure(child) is Kind.DAMAGED


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    """The error says which file lacks which."""
    base = create(tmp_path / "base.vhd", 2 * MIB)
    child = create(tmp_path / "child.vhd", parent=base)
    base.unlink()
    with pytest.raises(DiskError, match=r"child\.vhd.*'base\.vhd' is missing"):
        vhd.open(child)


def test_another_image_in_the_parents_place_is_refused(tmp_path: Path) -> None:
    """The uuid decides."""
    base = create(tmp_path / "base.vhd", 2 * MIB)
    child = create(tmp_path / "child.vhd", parent=base)
    base.unlink()
    create(base, 2 * MIB)
    assert kind_of_failure(child) is Kind.MISMATCH


def test_a_parent_outside_the_directory_needs_leave(tmp_path: Path) -> None:
    """An uploaded image cannot reach other files of the host."""
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    base = create(tmp_path / "theirs" / "base.vhd", 2 * MIB)
    child = create(tmp_path / "mine" / "child.vhd", parent=base)
    assert kind_of_failure(child) is Kind.NOT_FOUND
    vhd.open(child, directories=[tmp_path / "theirs"]).close()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    """Also within one process."""
    path = create(tmp_path / "a.vhd", 2 * MIB)
    first = opened(path)
    assert kind_of_failure(path) is Kind.BUSY
    first.close()
    opened(path).close()


def test_a_parent_in_use_is_not_written(tmp_path: Path) -> None:
    """Two children share a parent; nobody changes it under them."""
    base = create(tmp_path / "base.vhd", 2 * MIB)
    one, two = (opened(create(tmp_path / name, parent=base)) for name in ("1.vhd", "2.vhd"))
    assert kind_of_failure(base) is Kind.BUSY
    one.close()
    two.close()


def test_a_snapshot_makes_a_hidden_base_and_two_children(tmp_path: Path) -> None:
    """Both read as before, then part; the base is not written any more."""
    leaf, base, copy = (tmp_path / name for name in ("leaf.vhd", "base.vhd", "copy.vhd"))
    create(leaf, 4 * MIB)
    put(leaf, MIB, b"before" + bytes(506))
    split(leaf, base, copy)
    put(leaf, MIB, b"after!" + bytes(506))
    assert content(copy)[MIB : MIB + 6] == content(base)[MIB : MIB + 6] == b"before"
    assert content(leaf)[MIB : MIB + 6] == b"after!"
    assert kind_of_failure(base) is Kind.READ_ONLY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.vhd", "copy.vhd", "leaf.vhd"]


def test_a_failed_snapshot_leaves_the_leaf_as_it_was(tmp_path: Path) -> None:
    """What was made before the failure goes."""
    leaf = create(tmp_path / "leaf.vhd", 4 * MIB)
    create(tmp_path / "copy.vhd", 2 * MIB)
    with pytest.raises(DiskError):
        split(leaf, tmp_path / "base.vhd", tmp_path / "copy.vhd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.vhd", "leaf.vhd"]
    opened(leaf).close()


def test_an_open_disk_goes_on_in_the_child(tmp_path: Path) -> None:
    """What was written before the split, flushed or not, is the copy's, too; what comes after is not."""
    leaf, copy = create(tmp_path / "leaf.vhd", 4 * MIB), tmp_path / "copy.vhd"
    disk = opened(leaf)
    disk.write(0, b"b" * 4 * SECTOR)
    disk.push(snapshot.split(disk.leaf, tmp_path / "base.vhd", [copy], clock=clock))
    disk.write(0, b"a" * SECTOR)
    assert disk.read(0, 4 * SECTOR) == b"a" * SECTOR + b"b" * 3 * SECTOR
    assert disk.depth == 2
    assert content(copy)[: 4 * SECTOR] == b"b" * 4 * SECTOR
    assert kind_of_failure(leaf) is Kind.BUSY
    disk.close()
    assert content(leaf)[: 4 * SECTOR] == b"a" * SECTOR + b"b" * 3 * SECTOR


def test_a_moved_parent_is_found_after_set_parent(tmp_path: Path) -> None:
    """Twice, since the header has two places; the data stay."""
    base = create(tmp_path / "base.vhd", 2 * MIB)
    put(base, 0, b"x" * SECTOR)
    child = create(tmp_path / "child.vhd", parent=base)
    for name in ("second.vhd", "third.vhd"):
        disk = opened(child)
        base = base.rename(tmp_path / name)
        disk.set_parent(base)
        disk.close()
        assert content(child)[:SECTOR] == b"x" * SECTOR


@pytest.mark.parametrize("uuid", [None, UUID(int=5)])
def test_growing_keeps_the_data_and_adds_zeros(tmp_path: Path, uuid: UUID | None) -> None:
    """Alike for an image and for a child that becomes larger than its parent."""
    base = create(tmp_path / "base.vhd", 2 * MIB)
    put(base, 0, b"x" * 2 * MIB)
    path = create(tmp_path / "child.vhd", parent=base) if uuid else base
    disk = opened(path)
    disk.resize(600 * MIB + 1)
    assert disk.size == 602 * MIB
    disk.write(600 * MIB, b"y" * SECTOR)
    disk.close()
    disk = opened(path, read_only=True)
    assert disk.read(0, 2 * MIB + SECTOR) == b"x" * 2 * MIB + bytes(SECTOR)
    assert disk.read(600 * MIB, SECTOR) == b"y" * SECTOR
    disk.close()


def test_shrinking_is_refused(tmp_path: Path) -> None:
    """It would lose data."""
    disk = opened(create(tmp_path / "a.vhd", 8 * MIB))
    with pytest.raises(DiskError) as caught:
        disk.resize(4 * MIB)
    assert caught.value.kind is Kind.REFUSED
    disk.close()


def test_discarded_blocks_give_their_space_back_and_are_used_again(tmp_path: Path) -> None:
    """The file neither occupies nor grows more for rewriting."""
    path = create(tmp_path / "a.vhd", 8 * MIB)
    put(path, 0, b"x" * 8 * MIB)
    length = path.stat().st_size
    disk = opened(path)
    full = disk.utilisation
    disk.discard(0, 4 * MIB)
    disk.flush()
    # A block's bitmap and its end share pages of the host with their neighbours.
    assert disk.utilisation <= full - 4 * MIB + 2 * 4096
    disk.write(0, b"y" * 4 * MIB)
    disk.close()
    assert path.stat().st_size == length


def test_ranges_are_told_for_the_leaf_and_for_the_chain(tmp_path: Path) -> None:
    """By sectors, joined across layers."""
    base = create(tmp_path / "base.vhd", 8 * MIB)
    put(base, 0, b"x" * 4096)
    child = create(tmp_path / "child.vhd", parent=base)
    put(child, 4096, b"y" * SECTOR)
    disk = opened(child)
    assert list(disk.allocated_ranges(leaf_only=True)) == [(4096, SECTOR)]
    assert list(disk.allocated_ranges()) == [(0, 4096 + SECTOR)]
    disk.close()


def test_a_write_inside_a_sector_keeps_the_rest_of_it(tmp_path: Path) -> None:
    """The rest comes from the parent."""
    base = create(tmp_path / "base.vhd", 2 * MIB)
    put(base, 0, b"x" * SECTOR)
    child = create(tmp_path / "child.vhd", parent=base)
    put(child, 100, b"yy")
    assert content(child)[:SECTOR] == b"x" * 100 + b"yy" + b"x" * 410


def test_a_write_on_a_full_host_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_SPACE, the former length, and a footer at the end."""
    path = create(tmp_path / "a.vhd", 8 * MIB)
    put(path, 0, b"x" * SECTOR)
    length, disk, write = path.stat().st_size, opened(path), ImageFile.write

    def full(self: ImageFile, offset: int, data: bytes | bytearray | memoryview) -> None:
        if len(data) == SECTOR and not any(data):  # the new block's bitmap
            raise DiskError(Kind.NO_SPACE, "full")
        write(self, offset, data)

    monkeypatch.setattr(ImageFile, "write", full)
    with pytest.raises(DiskError) as caught:
        disk.write(4 * MIB, b"y" * SECTOR)
    assert caught.value.kind is Kind.NO_SPACE
    assert path.stat().st_size == length
    assert Footer.decode(path.read_bytes()[-SECTOR:]).size == 8 * MIB
    disk.close()


def test_two_blocks_in_one_place_are_damage(tmp_path: Path) -> None:
    """A write to one would change the other."""
    path = create(tmp_path / "a.vhd", 4 * MIB)
    put(path, 0, b"x" * 4 * MIB)
    data = bytearray(path.read_bytes())
    data[65540:65544] = data[65536:65540]
    path.write_bytes(data)
    assert kind_of_failure(path) is Kind.DAMAGED


def test_a_lost_footer_is_made_anew(tmp_path: Path) -> None:
    """From its copy at offset 0."""
    path = create(tmp_path / "a.vhd", 4 * MIB)
    put(path, 0, b"x" * SECTOR)
    os.truncate(path, path.stat().st_size - SECTOR)
    opened(path).close()
    assert Footer.decode(path.read_bytes()[-SECTOR:]) == Footer.decode(path.read_bytes()[:SECTOR])


def test_guest_data_that_looks_like_a_footer_is_not_believed(tmp_path: Path) -> None:
    """Not even where a power cut made it the end of the file."""
    path = create(tmp_path / "a.vhd", 4 * MIB)
    forged = replace(Footer.decode(path.read_bytes()[:SECTOR]), uuid=UUID(int=666)).encode()
    put(path, 0, forged * (2 * MIB // SECTOR))
    os.truncate(path, path.stat().st_size - SECTOR)
    disk = opened(path)
    assert disk.uuid != UUID(int=666)
    disk.close()


def test_flushed_data_survive_the_killing_of_the_writer(tmp_path: Path) -> None:
    """kill -9 after a flush, with further writes under way."""
    path = create(tmp_path / "a.vhd", 64 * MIB)
    program = (
        "import sys; from pathlib import Path; from hypervisor.disks import vhd\n"
        "d = vhd.open(Path(sys.argv[1])); d.write(0, b'f' * (4 << 20)); d.flush(); print('flushed', flush=True)\n"
        "while True:\n    for at in range(8 << 20, 64 << 20, 1 << 20): d.write(at, b'w' * (1 << 20))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout and process.stdout.readline() == b"flushed\n"
        process.send_signal(signal.SIGKILL)
    disk = opened(path)
    assert disk.read(0, 4 * MIB) == b"f" * 4 * MIB
    assert set(disk.read(8 * MIB, 56 * MIB)) <= {0, ord("w")}
    disk.close()


def test_a_fixed_image_is_read(tmp_path: Path) -> None:
    """Its data come first, its footer last."""
    path = tmp_path / "fixed.vhd"
    path.write_bytes(b"x" * MIB + Footer(form.FIXED, MIB, UUID(int=1)).encode())
    assert content(path) == b"x" * MIB


def test_the_structures_hold_what_xenserver_writes(tmp_path: Path) -> None:
    """Creator, locators in their order, the batmap behind the BAT."""
    base = create(tmp_path / "base.vhd", 4 * MIB)
    data = create(tmp_path / "child.vhd", parent=base).read_bytes()
    header = Header.decode(data[512:1536])
    assert data[28:32] == b"tap\0"
    assert [one.code for one in header.locators] == [b"MacX", b"W2ku", b"W2ru"]
    first = header.locators[0]
    assert data[first.offset : first.offset + first.length] == b"file://./base.vhd"
    assert data[65536 + SECTOR : 65536 + SECTOR + 8] == b"tdbatmap"


needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img (Debian qemu-utils)")
needs_7z = pytest.mark.skipif(not shutil.which("7z"), reason="needs 7z (Debian p7zip-full)")
SAMPLE = [(0, 5120), (2 * MIB - 1024, 4096), (7 * MIB, MIB)]


@needs_qemu
def test_qemu_reads_what_we_write(tmp_path: Path) -> None:
    """Also after growing."""
    path = create(tmp_path / "a.vhd", 8 * MIB)
    for number, (offset, length) in enumerate(SAMPLE):
        put(path, offset, bytes([number + 1]) * length)
    disk = opened(path)
    disk.resize(10 * MIB)
    disk.close()
    subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", path, tmp_path / "raw"], check=True)
    assert (tmp_path / "raw").read_bytes() == content(path)


@needs_qemu
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_we_read_what_qemu_writes(tmp_path: Path, subformat: str) -> None:
    """Dynamic and fixed."""
    data = b"".join(bytes([number % 251]) * 4096 for number in range(2048))
    (tmp_path / "raw").write_bytes(data)
    options = f"subformat={subformat},force_size=on"
    files = tmp_path / "raw", tmp_path / "q.vhd"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, *files], check=True)
    assert content(tmp_path / "q.vhd") == data


@needs_qemu
def test_an_image_of_qemu_can_be_written_and_grown(tmp_path: Path) -> None:
    """Its BAT has no room to grow, so it moves; qemu still reads the result."""
    path = tmp_path / "q.vhd"
    create_options = ["-o", "subformat=dynamic,force_size=on", str(path), "8M"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", *create_options], check=True)
    put(path, MIB, b"x" * MIB)
    disk = opened(path)
    disk.resize(600 * MIB)
    disk.write(500 * MIB, b"y" * MIB)
    disk.close()
    subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", path, tmp_path / "raw"], check=True)
    for copy in (opened(path, read_only=True), raw.open(tmp_path / "raw", read_only=True)):
        assert (copy.read(MIB, MIB), copy.read(500 * MIB, MIB)) == (b"x" * MIB, b"y" * MIB)
        copy.close()


@needs_7z
def test_7zip_reads_a_chain_that_we_write(tmp_path: Path) -> None:
    """Through the parent locators; 7-Zip wants the hidden byte zero."""
    base = create(tmp_path / "base.vhd", 8 * MIB)
    for number, (offset, length) in enumerate(SAMPLE):
        put(base, offset, bytes([number + 1]) * length)
    child = create(tmp_path / "child.vhd", parent=base)
    put(child, MIB + 512, b"c" * 1024)
    result = subprocess.run(["7z", "x", "-so", "child.vhd"], cwd=tmp_path, capture_output=True, check=True)
    assert result.stdout == content(child)


def test_layers_can_be_opened_alone(tmp_path: Path) -> None:
    """What coalescing will need: a child's own sectors without its parent."""
    base = create(tmp_path / "base.vhd", 4 * MIB)
    child = create(tmp_path / "child.vhd", parent=base)
    put(child, 0, b"c" * SECTOR)
    layer = layer_of(ImageFile.open(child, writable=False))
    assert isinstance(layer, VhdImage)
    assert [part[:2] for part in layer.locate(0, MIB) if part[2] >= 0] == [(0, SECTOR)]
    layer.file.close()
