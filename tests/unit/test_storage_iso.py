"""Repositories of CD images."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest

from hypervisor.disks.disk import DiskError
from hypervisor.storage.errors import Code, StorageError
from hypervisor.storage.iso import IsoRepository
from hypervisor.storage.volume import Users

UUID_OF_REPOSITORY = UUID("11111111-2222-4333-8444-555555555555")
NAMED = "01234567-89ab-4def-8123-456789abcdef"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("debian.iso", "TOOLS.ISO", "disk.img", f"{NAMED}.iso", "readme.txt", ".iso"):
        (tmp_path / name).write_bytes(name.encode().ljust(4096, b"."))
    (tmp_path / "empty.iso").touch()
    (tmp_path / "folder.iso").mkdir()
    (tmp_path / "broken.iso").symlink_to("nowhere")
    (tmp_path / "link.iso").symlink_to("debian.iso")
    with open(os.fsencode(tmp_path) + b"/\xff.iso", "wb") as file:
        file.write(bytes(4096))
    os.mkfifo(tmp_path / "pipe.iso")
    return tmp_path


def attached(path: Path) -> IsoRepository:
    repository = IsoRepository(path, UUID_OF_REPOSITORY)
    repository.attach()
    return repository


def test_images_are_found_by_their_names(directory: Path) -> None:
    """Whatever the case; not folders, pipes, dead links, empty files, or what is no text."""
    volumes = attached(directory).scan()
    assert [one.location for one in volumes] == [f"{NAMED}.iso", "TOOLS.ISO", "debian.iso", "disk.img", "link.iso"]
    assert {one.description.name_label for one in volumes} == {one.location for one in volumes}
    assert all(one.description.read_only and one.format == "raw" and one.virtual_size == 4096 for one in volumes)


def test_uuids_are_the_same_after_any_scan(directory: Path) -> None:
    """Others in another repository; a file named by a uuid has that."""
    first = {one.location: one.uuid for one in attached(directory).scan()}
    (directory / "a.iso").write_bytes(bytes(4096))
    second = {one.location: one.uuid for one in attached(directory).scan()}
    assert first == {name: uuid for name, uuid in second.items() if name != "a.iso"}
    assert first[f"{NAMED}.iso"] == NAMED
    other = IsoRepository(directory, UUID(int=1))
    other.attach()
    assert {one.uuid for one in other.scan()} & set(second.values()) == {NAMED}


def test_a_cd_is_read_by_many_and_written_by_nobody(directory: Path) -> None:
    """While one is open the repository stays attached."""
    repository = attached(directory)
    name = "debian.iso"
    disks = [repository.open(name) for _ in range(2)]
    assert disks[0].read(0, 10) == disks[1].read(0, 10) == b"debian.iso"
    assert repository.users(name) == Users(2, 0)
    with pytest.raises(StorageError) as caught:
        repository.open(name, read_only=False)
    assert caught.value.code is Code.VDIUnavailable
    with pytest.raises(DiskError):
        disks[0].write(0, b"x")
    with pytest.raises(StorageError) as caught:
        repository.detach()
    assert caught.value.code is Code.SRInUse
    for disk in disks:
        disk.close()
    repository.detach()


def test_a_cd_that_went_is_unavailable(directory: Path) -> None:
    """And one that came is there without a scan."""
    repository = attached(directory)
    (directory / "debian.iso").rename(directory / "other.iso")
    with pytest.raises(StorageError) as caught:
        repository.open("debian.iso")
    assert caught.value.code is Code.VDIUnavailable
    (directory / "other.iso").rename(directory / "debian.iso")
    repository.open("debian.iso").close()


def test_a_directory_that_is_not_there_is_not_attached(tmp_path: Path) -> None:
    """ISOLocalPath; and detached, nothing works."""
    repository = IsoRepository(tmp_path / "none", UUID_OF_REPOSITORY)
    with pytest.raises(StorageError) as caught:
        repository.attach()
    assert caught.value.code is Code.ISOLocalPath
    with pytest.raises(StorageError) as caught:
        repository.scan()
    assert caught.value.code is Code.SRUnavailable


def test_space_is_that_of_the_file_system(directory: Path) -> None:
    status = os.statvfs(directory)
    assert attached(directory).space().physical_size == status.f_blocks * status.f_frsize
