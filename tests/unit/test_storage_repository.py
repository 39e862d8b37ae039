"""Repositories of files: volumes and what becomes of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest

from hypervisor.api import Description, Volume
from hypervisor.disks import vhd
from hypervisor.disks.disk import DiskError, Kind
from hypervisor.storage.errors import Code, StorageError
from hypervisor.storage.repository import FileRepository
from hypervisor.storage.volume import MAX_DESCRIPTION, Format, Users

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def clock() -> int:
    return 1_800_000_000 * 10**9


def opened(path: Path) -> FileRepository:
    repository = FileRepository(path, clock=clock)
    repository.create()
    repository.attach()
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[FileRepository]:
    yield opened(tmp_path / "sr")


def refused(code: Code, call: object, *arguments: object, **named: object) -> str:
    assert callable(call)
    with pytest.raises(StorageError) as caught:
        call(*arguments, **named)
    assert caught.value.code is code
    return str(caught.value)


def put(repository: FileRepository, volume: Volume, data: bytes, offset: int = 0) -> None:
    disk = repository.open(volume.uuid)
    disk.write(offset, data)
    disk.close()


def head(repository: FileRepository, volume: Volume, length: int = 4) -> bytes:
    disk = repository.open(volume.uuid, read_only=True)
    try:
        return disk.read(0, length)
    finally:
        disk.close()


def hidden(repository: FileRepository) -> list[Volume]:
    return [volume for volume in repository.scan() if volume.hidden]


# -- the repository


def test_a_directory_with_other_files_is_not_taken(tmp_path: Path) -> None:
    """Nothing in it is touched."""
    (tmp_path / "letter").write_text("dear")
    assert "letter" in refused(Code.SRExists, FileRepository(tmp_path, clock=clock).create)
    assert os.listdir(tmp_path) == ["letter"]


def test_creating_again_is_harmless_until_there_are_volumes(repository: FileRepository) -> None:
    """A toolstack that died in between may repeat itself."""
    repository.create()
    repository.create_volume(MIB)
    refused(Code.SRExists, repository.create)


def test_a_directory_that_is_no_repository_is_not_attached(tmp_path: Path) -> None:
    """An unmounted disk must not look like an empty repository."""
    refused(Code.SRUnavailable, FileRepository(tmp_path, clock=clock).attach)
    refused(Code.SRUnavailable, FileRepository(tmp_path / "none", clock=clock).attach)


def test_one_process_at_a_time_has_a_repository(repository: FileRepository) -> None:
    """Also one object at a time within a process; attaching twice is harmless."""
    other = FileRepository(repository.path, clock=clock)
    refused(Code.SRInUse, other.attach)
    repository.attach()
    repository.detach()
    other.attach()
    other.detach()


def test_nothing_works_while_detached(repository: FileRepository) -> None:
    """SRUnavailable."""
    volume = repository.create_volume(MIB)
    repository.detach()
    for call in (repository.scan, repository.space, lambda: repository.create_volume(MIB)):
        refused(Code.SRUnavailable, call)
    for method in (repository.open, repository.delete, repository.snapshot, repository.volume):
        refused(Code.SRUnavailable, method, volume.uuid)


def test_a_repository_with_an_open_volume_is_not_detached(repository: FileRepository) -> None:
    """Nor destroyed."""
    disk = repository.open(repository.create_volume(MIB).uuid)
    refused(Code.SRInUse, repository.detach)
    refused(Code.SRNotEmpty, repository.destroy)
    disk.close()
    repository.detach()


def test_destroying_wants_an_empty_repository(repository: FileRepository) -> None:
    """Then the directory goes; it need not be attached."""
    volume = repository.create_volume(MIB)
    refused(Code.SRNotEmpty, repository.destroy)
    repository.delete(volume.uuid)
    repository.detach()
    repository.destroy()
    assert not repository.path.exists()


def test_space_is_the_file_systems(repository: FileRepository) -> None:
    """What images take is not to be had any more."""
    space, status = repository.space(), os.statvfs(repository.path)
    assert space.physical_size == status.f_blocks * status.f_frsize
    assert 0 < space.physical_utilisation < space.physical_size


def test_names_survive_the_loss_of_any_database(repository: FileRepository) -> None:
    """Another process that only has the directory finds all that was said."""
    description = Description("näme", "text", "system", sharable=True, snapshot_time="20260101T00:00:00Z")
    volume = repository.create_volume(MIB, description)
    repository.snapshot(volume.uuid)
    expected = {one.uuid: one for one in repository.scan()}
    repository.detach()
    other = FileRepository(repository.path, clock=clock)
    other.attach()
    assert {one.uuid: one for one in other.scan()} == expected
    assert other.volume(volume.uuid).description == description


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"name_label": 3, "nonsense": 1}', b"[" * 100_000])
def test_a_damaged_description_is_an_empty_one(repository: FileRepository, data: bytes) -> None:
    """The disk is what counts."""
    volume = repository.create_volume(MIB, Description("name"))
    (repository.path / f"{volume.uuid}.json").write_bytes(data)
    repository.detach()
    repository.attach()
    assert repository.volume(volume.uuid).description == Description()


# -- volumes


@pytest.mark.parametrize(("asked", "given"), [(0, 2), (1, 2), (2 * MIB, 2), (2 * MIB + 1, 4), (2040 << 30, 2040 << 10)])
def test_sizes_are_rounded_as_xcp_does(repository: FileRepository, asked: int, given: int) -> None:
    """Up to 2 MiB; the file is sparse."""
    volume = repository.create_volume(asked)
    assert volume.virtual_size == given * MIB
    assert volume.physical_utilisation < 5 * MIB
    assert volume.location == volume.uuid


@pytest.mark.parametrize("size", [-1, (2040 << 30) + 1])
@pytest.mark.parametrize("format", [Format.VHD, Format.RAW])
def test_impossible_sizes_are_refused(repository: FileRepository, size: int, format: Format) -> None:
    """Nothing is left."""
    refused(Code.VDISize, repository.create_volume, size, format=format)
    assert repository.scan() == []


def test_a_uuid_is_used_once_and_is_one(repository: FileRepository) -> None:
    """It becomes a file's name."""
    volume = repository.create_volume(MIB, Description("first"))
    refused(Code.VDIExists, repository.create_volume, MIB, uuid=volume.uuid)
    for bad in ("../../etc/passwd", "", "x", volume.uuid.upper() + "\n"):
        refused(Code.VDICreate, repository.create_volume, MIB, uuid=bad)
    assert [one.description.name_label for one in repository.scan()] == ["first"]


def test_a_raw_volume_is_a_plain_file(repository: FileRepository) -> None:
    """It can be grown, not snapshotted."""
    volume = repository.create_volume(1000, format=Format.RAW)
    put(repository, volume, b"raw!")
    assert repository.resize(volume.uuid, 2000).virtual_size == 2048
    assert repository.image(volume.uuid).read_bytes() == b"raw!" + bytes(2044)
    for method in (repository.snapshot, repository.clone, repository.freeze, repository.reset):
        refused(Code.Unimplemented, method, volume.uuid)


def test_utilisation_is_what_the_file_occupies(repository: FileRepository) -> None:
    """It grows by what is written."""
    volume = repository.create_volume(16 * MIB)
    put(repository, volume, os.urandom(4 * MIB))
    now = repository.volume(volume.uuid).physical_utilisation
    assert 4 * MIB <= now - volume.physical_utilisation < 5 * MIB


def test_a_description_changes_while_the_volume_is_in_use(repository: FileRepository) -> None:
    """But for what decides on its use; one that is too long is refused."""
    volume = repository.create_volume(MIB)
    disk = repository.open(volume.uuid)
    assert repository.describe(volume.uuid, Description("new")).description == Description("new")
    for description in (Description(sharable=True), Description(read_only=True)):
        refused(Code.VDIInUse, repository.describe, volume.uuid, description)
    disk.close()
    refused(Code.InvalidArg, repository.describe, volume.uuid, Description("x" * MAX_DESCRIPTION))
    assert repository.describe(volume.uuid, Description(read_only=True)).description.read_only
    refused(Code.VDIUnavailable, repository.open, volume.uuid)


def test_a_deleted_volume_is_gone(repository: FileRepository) -> None:
    """With its description; others' names for it mean nothing."""
    volume = repository.create_volume(MIB)
    repository.delete(volume.uuid)
    refused(Code.VDIUnavailable, repository.delete, volume.uuid)
    assert sorted(os.listdir(repository.path)) == ["lock", "repository.json"]


def test_a_file_put_there_is_found_and_introduced(repository: FileRepository, tmp_path: Path) -> None:
    """By its name, which must be a uuid; other files are left alone."""
    uuid = str(uuid4())
    refused(Code.VDIUnavailable, repository.introduce, uuid)
    vhd.create(repository.path / f"{uuid}.vhd", 4 * MIB, clock=clock)
    (repository.path / "notes.txt").write_text("mine")
    assert repository.introduce(uuid).virtual_size == 4 * MIB
    assert [one.uuid for one in repository.scan()] == [uuid]
    (repository.path / f"{uuid}.vhd").unlink()
    assert repository.scan() == []
    assert (repository.path / "notes.txt").exists()


# -- opening


def test_a_writer_shuts_out_all_others(repository: FileRepository) -> None:
    """Readers are many."""
    uuid = repository.create_volume(MIB).uuid
    writer = repository.open(uuid)
    refused(Code.VDIInUse, repository.open, uuid)
    refused(Code.VDIInUse, repository.open, uuid, read_only=True)
    assert repository.users(uuid) == Users(0, 1)
    writer.close()
    writer.close()
    readers = [repository.open(uuid, read_only=True) for _ in range(3)]
    refused(Code.VDIInUse, repository.open, uuid)
    assert repository.users(uuid) == Users(3, 0)
    for reader in readers:
        with pytest.raises(DiskError) as caught:
            reader.write(0, b"x")
        assert caught.value.kind is Kind.READ_ONLY
        reader.close()
        with pytest.raises(DiskError):
            reader.read(0, 1)
    repository.open(uuid).close()


@pytest.mark.parametrize("format", [Format.VHD, Format.RAW])
def test_writers_of_a_sharable_volume_see_each_other(repository: FileRepository, format: Format) -> None:
    """As on one disk, whoever opened first."""
    uuid = repository.create_volume(4 * MIB, Description(sharable=True), format=format).uuid
    reader = repository.open(uuid, read_only=True)
    one, two = repository.open(uuid), repository.open(uuid)
    one.write(0, b"1" * 512)
    two.write(2 * MIB, b"2" * 512)
    assert reader.read(0, 1) + one.read(2 * MIB, 1) + two.read(0, 1) == b"121"
    one.close()
    two.write(1024, b"3")
    two.close()
    assert reader.read(1024, 1) == b"3"
    reader.close()


def test_what_is_open_stays(repository: FileRepository) -> None:
    """No delete, no reset; growing only for its writer."""
    uuid = repository.create_volume(MIB).uuid
    for read_only in (False, True):
        disk = repository.open(uuid, read_only=read_only)
        refused(Code.VDIInUse, repository.delete, uuid)
        disk.close()
    disk = repository.open(uuid, read_only=True)
    refused(Code.VDIInUse, repository.resize, uuid, 8 * MIB)
    disk.close()


def test_a_volume_grows_under_its_user(repository: FileRepository) -> None:
    """And does not shrink."""
    uuid = repository.create_volume(2 * MIB).uuid
    disk = repository.open(uuid)
    assert repository.resize(uuid, 9 * MIB).virtual_size == disk.size == 10 * MIB
    disk.write(9 * MIB, b"end")
    refused(Code.VDISize, repository.resize, uuid, 2 * MIB)
    refused(Code.VDISize, repository.resize, uuid, 2041 << 30)
    disk.close()
    assert repository.resize(uuid, 12 * MIB).virtual_size == 12 * MIB
    disk = repository.open(uuid)
    assert disk.read(9 * MIB, 4) == b"end\0"
    disk.close()


# -- chains


def test_a_snapshot_keeps_what_was_and_the_volume_goes_on(repository: FileRepository) -> None:
    """Its writer notices nothing; there is one hidden base."""
    volume = repository.create_volume(4 * MIB, Description("disk", type="system"))
    disk = repository.open(volume.uuid)
    disk.write(0, b"old!")
    snapshot = repository.snapshot(volume.uuid)
    disk.write(0, b"new!")
    assert head(repository, snapshot) == b"old!"
    assert disk.read(0, 4) == b"new!"
    disk.close()
    assert head(repository, volume) == b"new!"
    [base] = hidden(repository)
    assert base.description.name_label == "base copy"
    assert base.description.read_only
    assert {snapshot.parent, repository.volume(volume.uuid).parent} == {base.uuid}
    about = snapshot.description
    assert (about.is_a_snapshot, about.snapshot_of, about.type) == (True, volume.uuid, "system")
    refused(Code.VDIUnavailable, repository.open, base.uuid)
    refused(Code.VDIUnavailable, repository.delete, base.uuid)
    refused(Code.VDIUnavailable, repository.snapshot, base.uuid)


def test_readers_do_not_hinder_a_clone(repository: FileRepository) -> None:
    """A template's disk may be attached, to be read, to many."""
    volume = repository.create_volume(4 * MIB)
    put(repository, volume, b"data")
    reader = repository.open(volume.uuid, read_only=True)
    clone = repository.clone(volume.uuid)
    put(repository, clone, b"mine")
    assert reader.read(0, 4) == b"data"
    reader.close()
    put(repository, volume, b"next")
    assert head(repository, clone) == b"mine"


def test_what_was_not_written_to_does_not_grow_the_chain(repository: FileRepository) -> None:
    """A hundred clones and snapshots of it are siblings on one base, in use or not."""
    volume = repository.create_volume(4 * MIB)
    put(repository, volume, b"data")
    snapshot = repository.snapshot(volume.uuid)
    disk = repository.open(volume.uuid)
    clones = [repository.clone(snapshot.uuid) for _ in range(50)] + [
        repository.snapshot(volume.uuid) for _ in range(50)
    ]
    disk.close()
    [base] = hidden(repository)
    assert {clone.parent for clone in clones} == {base.uuid}
    assert head(repository, clones[-1]) == b"data"


def test_a_chain_of_thirty_is_the_longest(repository: FileRepository) -> None:
    """Error 109; the volume can still be used, and a clone of what was not written to is no longer one."""
    volume = repository.create_volume(4 * MIB)
    for number in range(29):
        put(repository, volume, b"%d" % number)
        repository.delete(repository.snapshot(volume.uuid).uuid)
    put(repository, volume, b"last")
    refused(Code.SnapshotChainTooLong, repository.snapshot, volume.uuid)
    refused(Code.SnapshotChainTooLong, repository.clone, volume.uuid)
    assert len(hidden(repository)) == 29
    assert head(repository, volume) == b"last"
    whole = repository.copy(volume.uuid, repository)
    assert whole.parent == ""
    repository.delete(volume.uuid)
    assert hidden(repository) == []


def test_parents_go_with_the_last_that_needs_them(repository: FileRepository) -> None:
    """Not earlier; in any order of deletes."""
    volume = repository.create_volume(4 * MIB)
    leaves = []
    for number in range(3):
        put(repository, volume, b"%d" % number)
        leaves.append(repository.snapshot(volume.uuid))
    assert len(hidden(repository)) == 3
    repository.delete(leaves[1].uuid)
    repository.delete(volume.uuid)
    assert [head(repository, leaves[0], 1), head(repository, leaves[2], 1)] == [b"0", b"2"]
    repository.delete(leaves[2].uuid)
    assert len(hidden(repository)) == 1
    repository.delete(leaves[0].uuid)
    assert repository.scan() == []


def test_nothing_hidden_goes_while_an_image_cannot_be_read(repository: FileRepository) -> None:
    """It may be the parent of just that one; the damaged image can be deleted, and then all goes."""
    volume = repository.create_volume(4 * MIB)
    put(repository, volume, b"data")
    snapshot = repository.snapshot(volume.uuid)
    repository.detach()
    path = repository.path / f"{snapshot.uuid}.vhd"
    whole = path.read_bytes()
    path.write_bytes(b"damaged" + whole[7:1000])
    repository.attach()
    assert list(repository.damaged()) == [snapshot.uuid]
    refused(Code.VDILoad, repository.open, snapshot.uuid)
    repository.delete(volume.uuid)
    assert len(hidden(repository)) == 1
    repository.delete(snapshot.uuid)
    repository.detach()
    repository.attach()
    assert repository.scan() == []


def test_a_volume_whose_parent_is_missing_is_damaged_not_lost(repository: FileRepository) -> None:
    """It is back when its parent is."""
    volume = repository.create_volume(4 * MIB)
    put(repository, volume, b"data")
    repository.snapshot(volume.uuid)
    [base] = hidden(repository)
    image = repository.image(base.uuid)
    image.rename(repository.path / "away")
    assert repository.scan() == []
    refused(Code.VDILoad, repository.open, volume.uuid)
    (repository.path / "away").rename(image)
    assert len(repository.scan()) == 3
    assert head(repository, volume) == b"data"


def test_a_visible_parent_put_there_by_hand_is_kept_for_its_child(repository: FileRepository) -> None:
    """It is not written any more; deleted, it hides until its child goes."""
    parent, child = repository.create_volume(4 * MIB), str(uuid4())
    put(repository, parent, b"data")
    vhd.create(repository.path / f"{child}.vhd", None, repository.image(parent.uuid), clock=clock)
    repository.introduce(child)
    refused(Code.VDIUnavailable, repository.open, parent.uuid)
    for method in (repository.freeze, repository.reset):
        refused(Code.VDIUnavailable, method, parent.uuid)
    sibling = repository.clone(parent.uuid)
    assert sibling.parent == parent.uuid
    disk = repository.open(child)
    repository.delete(parent.uuid)
    assert disk.read(0, 4) == b"data"
    disk.close()
    repository.delete(child)
    assert [one.uuid for one in hidden(repository)] == [parent.uuid]
    repository.delete(sibling.uuid)
    assert repository.scan() == []


def test_a_reset_goes_back_to_the_freeze(repository: FileRepository) -> None:
    """As often as one likes; the size stays, and without a freeze there is nothing to go back to."""
    volume = repository.create_volume(4 * MIB)
    refused(Code.Unimplemented, repository.reset, volume.uuid)
    put(repository, volume, b"good")
    disk = repository.open(volume.uuid)
    repository.freeze(volume.uuid)
    disk.close()
    for _ in range(2):
        put(repository, volume, b"evil")
        repository.resize(volume.uuid, 8 * MIB)
        assert repository.reset(volume.uuid).virtual_size == 8 * MIB
        assert head(repository, volume) == b"good"
    repository.freeze(volume.uuid)
    assert len(hidden(repository)) == 1


# -- copies


@pytest.mark.parametrize("format", [Format.VHD, Format.RAW])
def test_a_copy_is_whole_and_sparse(repository: FileRepository, tmp_path: Path, format: Format) -> None:
    """In another repository, of another format; the source may be a chain."""
    target = opened(tmp_path / "other")
    volume = repository.create_volume(64 * MIB, Description("disk"))
    put(repository, volume, b"low!", 0)
    snapshot = repository.snapshot(volume.uuid)
    put(repository, snapshot, b"high", 63 * MIB)
    heard: list[tuple[int, int]] = []
    copied = repository.copy(
        snapshot.uuid, target, format=format, progress=lambda done, total: heard.append((done, total))
    )
    disk = target.open(copied.uuid, read_only=True)
    assert disk.read(0, 4) + disk.read(63 * MIB, 4) == b"low!high"
    assert next(disk.allocated_ranges())[0] == 0
    disk.close()
    assert (copied.virtual_size, copied.parent, copied.format) == (64 * MIB, "", format.value)
    assert copied.physical_utilisation < 8 * MIB
    assert copied.description == Description("disk", snapshot_of="")
    assert heard[0] == (0, 1024)
    assert heard[-1] == (1024, 1024)
    assert repository.users(snapshot.uuid) == Users(0, 0)


class Cancelled(Exception):
    """A toolstack's own."""


def test_a_cancelled_copy_leaves_nothing(repository: FileRepository) -> None:
    """The caller hears its own exception."""
    volume = repository.create_volume(16 * MIB)
    put(repository, volume, b"x" * 16 * MIB)

    def progress(done: int, total: int) -> None:
        if done >= total // 2:
            raise Cancelled

    names = set(os.listdir(repository.path))
    with pytest.raises(Cancelled):
        repository.copy(volume.uuid, repository, progress=progress)
    assert set(os.listdir(repository.path)) == names
    repository.delete(volume.uuid)


def test_a_volume_that_is_being_copied_is_in_use(repository: FileRepository) -> None:
    """Its source is not written, its target not seen."""
    volume = repository.create_volume(16 * MIB)
    put(repository, volume, b"x" * 4 * MIB)

    def progress(done: int, total: int) -> None:
        refused(Code.VDIInUse, repository.open, volume.uuid)
        refused(Code.VDIInUse, repository.delete, volume.uuid)
        refused(Code.SRInUse, repository.detach)
        assert len(repository.scan()) == 1

    repository.copy(volume.uuid, repository, progress=progress)


# -- threads


def test_requests_run_side_by_side(repository: FileRepository) -> None:
    """Clones, snapshots, writes and deletes of eight threads leave what each made."""
    volume = repository.create_volume(4 * MIB)
    put(repository, volume, b"base")
    template = repository.clone(volume.uuid)
    guest = repository.open(volume.uuid)
    failures: list[BaseException] = []
    kept: list[tuple[Volume, bytes]] = []

    def work(number: int) -> None:
        try:
            for turn in range(6):
                mine = repository.clone(template.uuid)
                put(repository, mine, b"%02d%02d" % (number, turn))
                other = repository.clone(mine.uuid)
                live = repository.snapshot(volume.uuid)
                guest.write(number * 4096, b"%02d" % turn)
                repository.delete(mine.uuid if turn % 2 else other.uuid)
                repository.delete(live.uuid)
                kept.append((other if turn % 2 else mine, b"%02d%02d" % (number, turn)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Snapshots of a disk that is written all the time make its chain as long as it may be.
    assert all(isinstance(one, StorageError) and one.code is Code.SnapshotChainTooLong for one in failures)
    guest.close()
    assert len(kept) > 10
    for made, data in kept:
        assert head(repository, made) == data
    for one in repository.scan():
        if not one.hidden:
            repository.delete(one.uuid)
    assert sorted(os.listdir(repository.path)) == ["lock", "repository.json"]


def test_a_snapshot_is_one_moment_of_a_busy_disk(repository: FileRepository) -> None:
    """A guest counts in one sector and then in another: no snapshot sees the second ahead, nor changes any more."""
    volume = repository.create_volume(4 * MIB)
    guest = repository.open(volume.uuid)
    stop = threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for place in (0, 2 * MIB):
                guest.write(place, number.to_bytes(8, "big") * 64)

    thread = threading.Thread(target=count)
    thread.start()
    seen: list[tuple[Volume, int, int]] = []
    try:
        for _ in range(25):
            snapshot = repository.snapshot(volume.uuid)
            disk = repository.open(snapshot.uuid, read_only=True)
            first, second = (int.from_bytes(disk.read(place, 8), "big") for place in (0, 2 * MIB))
            disk.close()
            seen.append((snapshot, first, second))
    finally:
        stop.set()
        thread.join()
    guest.close()
    assert all(first - second in (0, 1) for _, first, second in seen)
    assert [first for _, first, _ in seen] == sorted(first for _, first, _ in seen)
    assert seen[0][1] < seen[-1][1]
    for snapshot, first, _ in seen:
        assert head(repository, snapshot, 8) == first.to_bytes(8, "big")


# -- a full file system


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(path)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_file_system_fails_requests_and_writes_and_nothing_else(small: Path) -> None:
    """Error 44, nothing half; the guest's write fails, what it wrote before is there, and with room it goes on."""
    repository = opened(small)
    volume = repository.create_volume(64 * MIB)
    disk = repository.open(volume.uuid)
    written = 0
    with pytest.raises(DiskError) as caught:
        while True:
            disk.write(written, b"%05d" % (written // 65536) * 13107 + b".")
            disk.flush()
            written += 65536
    assert caught.value.kind is Kind.NO_SPACE
    assert written > 0
    ballast = small / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    names = set(os.listdir(small))
    for request in (
        lambda: repository.create_volume(8 * MIB),
        lambda: repository.snapshot(volume.uuid),
        lambda: repository.clone(volume.uuid),
    ):
        refused(Code.SRNoSpace, request)
        assert set(os.listdir(small)) == names
    for at in range(0, written, 65536):
        assert disk.read(at, 5) == b"%05d" % (at // 65536)
    ballast.unlink()
    disk.write(written, b"more")
    disk.close()
    repository.detach()
    repository.attach()
    disk = repository.open(volume.uuid)
    assert disk.read(written, 4) == b"more"
    assert disk.read(written - 65536, 5) == b"%05d" % (written // 65536 - 1)
    disk.close()
    repository.detach()


# -- other readers


needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img (Debian qemu-utils)")


@needs_qemu
def test_qemu_finds_nothing_wrong_with_any_file(repository: FileRepository, tmp_path: Path) -> None:
    """It does not follow parents: a copy it reads whole."""
    volume = repository.create_volume(8 * MIB)
    put(repository, volume, os.urandom(3 * MIB), MIB)
    repository.snapshot(volume.uuid)
    put(repository, volume, os.urandom(MIB), 2 * MIB)
    repository.resize(volume.uuid, 12 * MIB)
    copied = repository.copy(volume.uuid, repository)
    for one in repository.scan():
        path = repository.image(one.uuid)
        told = subprocess.run(["qemu-img", "info", "-f", "vpc", path], capture_output=True, text=True, check=True)
        assert f"({one.virtual_size} bytes)" in told.stdout
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", repository.image(copied.uuid), raw], check=True)
    assert raw.read_bytes() == head(repository, volume, 12 * MIB)


def test_libvhdi_reads_our_chains_by_their_locators(repository: FileRepository) -> None:
    """An independent reader (PyPI: libvhdi-python), which is told by each file the name and identity of its parent.

    It takes a byte of a sector bitmap, 4 KiB of the disk, as all or nothing, so that is what we write here.
    """
    pyvhdi = pytest.importorskip("pyvhdi", reason="needs libvhdi-python")
    volume = repository.create_volume(8 * MIB)
    for turn in range(4):
        put(repository, volume, os.urandom(MIB), turn * MIB + 4096 * turn)
        repository.snapshot(volume.uuid)
    put(repository, volume, b"leaf" * 1024)
    files = []
    path: Path | None = repository.image(volume.uuid)
    while path is not None:
        files.append(pyvhdi.file())
        files[-1].open(str(path))
        name = files[-1].get_parent_filename()
        path = repository.path / name.replace("\\", "/").split("/")[-1] if name else None
    assert len(files) == 5
    for child, parent in pairwise(files):
        assert child.get_parent_identifier() == parent.get_identifier()
    for child, parent in reversed(list(pairwise(files))):
        child.set_parent(parent)
    assert files[0].read_buffer_at_offset(8 * MIB, 0) == head(repository, volume, 8 * MIB)
    for file in files:
        file.close()


def test_a_killed_process_lets_go_of_the_repository(repository: FileRepository) -> None:
    """The kernel drops its lock; what its guest flushed is there, and the snapshot that it had made."""
    volume = repository.create_volume(4 * MIB)
    repository.detach()
    program = (
        "import sys, time; from pathlib import Path; from hypervisor.storage.repository import FileRepository\n"
        "r = FileRepository(Path(sys.argv[1]), clock=time.time_ns); r.attach(); d = r.open(sys.argv[2])\n"
        "d.write(0, b'one!'); s = r.snapshot(sys.argv[2]); d.write(0, b'two!'); d.flush(); print(s.uuid, flush=True)\n"
        "while True: d.write(4096, b'more' * 1024)\n"
    )
    command = [sys.executable, "-c", program, str(repository.path), volume.uuid]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        snapshot = process.stdout.readline().decode().strip()
        refused(Code.SRInUse, repository.attach)
        process.kill()
    repository.attach()
    assert head(repository, volume) == b"two!"
    assert head(repository, repository.volume(snapshot)) == b"one!"
