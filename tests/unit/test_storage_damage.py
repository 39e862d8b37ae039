"""A scan of a repository whose files somebody has spoilt: what is whole is shown as it was, all else has a reason."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisor.api import Volume
from hypervisor.disks.vhd import Clock
from hypervisor.storage.errors import Code, StorageError
from hypervisor.storage.repository import FileRepository

MIB = 1 << 20
FOOTER, HEADER = 512, 1024


def clock() -> int:
    return 1_800_000_000 * 10**9


_clock: Clock = clock


def opened(path: Path) -> FileRepository:
    repository = FileRepository(path, clock=_clock)
    repository.create()
    repository.attach()
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> FileRepository:
    return opened(tmp_path / "sr")


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def spoil_footers(path: Path) -> None:
    """Both copies."""
    size = path.stat().st_size
    overwrite(path, 0, bytes(FOOTER))
    overwrite(path, size - FOOTER, bytes(FOOTER))


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else of the same name."""

    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


DAMAGES: dict[str, Callable[[Path], object]] = {
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path: path.write_bytes(b""),
    "another kind of file": lambda path: path.write_bytes(b"QFI\xfb" + bytes(5000)),
    "cut off": lambda path: os.truncate(path, 700),
    "no footers": spoil_footers,
    "no header": lambda path: overwrite(path, FOOTER, bytes(HEADER)),
    "a header of nonsense": lambda path: overwrite(path, FOOTER + 8, b"\xff" * 200),
    "a directory": instead(Path.mkdir),
    "a FIFO": instead(os.mkfifo),
    "a link to itself": instead(lambda path: path.symlink_to(path.name)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_scan_tells_of_an_image_that_was_spoilt_meanwhile(
    repository: FileRepository, damage: Callable[[Path], object]
) -> None:
    """It was known as whole before; the other one stays as it was, and a repaired one is back."""
    good, bad = repository.create_volume(4 * MIB), repository.create_volume(4 * MIB)
    path = repository.image(bad.uuid)
    whole = path.read_bytes()
    damage(path)
    assert [volume.uuid for volume in repository.scan()] == [good.uuid]
    assert list(repository.damaged()) == [bad.uuid]
    assert repository.damaged()[bad.uuid]
    with pytest.raises(StorageError) as caught:
        repository.open(bad.uuid)
    assert caught.value.code is Code.VDILoad
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()
    path.write_bytes(whole)
    assert {volume.uuid for volume in repository.scan()} == {good.uuid, bad.uuid}
    assert repository.damaged() == {}


def test_an_image_that_is_open_is_not_judged(repository: FileRepository) -> None:
    """Its users see the damage where they meet it; when they have closed it, the next scan does."""
    volume = repository.create_volume(4 * MIB)
    disk = repository.open(volume.uuid, read_only=True)
    spoil_footers(repository.image(volume.uuid))
    assert [one.uuid for one in repository.scan()] == [volume.uuid]
    disk.close()
    assert repository.scan() == []


def test_an_image_that_was_replaced_is_shown_as_it_is_now(repository: FileRepository) -> None:
    small, large = repository.create_volume(4 * MIB), repository.create_volume(8 * MIB)
    repository.image(small.uuid).write_bytes(repository.image(large.uuid).read_bytes())
    assert {volume.virtual_size for volume in repository.scan()} == {8 * MIB}


def test_a_file_whose_name_is_no_uuid_is_told_of_and_left(repository: FileRepository) -> None:
    """It may be anybody's, and hinders nothing."""
    volume = repository.create_volume(4 * MIB)
    names = ["disk.vhd", f"{str(uuid4()).upper()}.vhd", f"copy of {volume.uuid}.vhd", "x.raw"]
    for name in names:
        (repository.path / name).write_bytes(repository.image(volume.uuid).read_bytes())
    assert [one.uuid for one in repository.scan()] == [volume.uuid]
    assert repository.damaged() == dict.fromkeys(sorted(names), "its name is no uuid")
    repository.delete(volume.uuid)
    assert sorted(names) == [name for name in sorted(os.listdir(repository.path)) if name in names]


def test_parents_in_a_circle_are_told_of(repository: FileRepository) -> None:
    """A child's file under its parent's name is its own parent."""
    volume = repository.create_volume(4 * MIB)
    repository.snapshot(volume.uuid)
    [base] = [one for one in repository.scan() if one.hidden]
    repository.image(base.uuid).write_bytes(repository.image(volume.uuid).read_bytes())
    assert repository.scan() == []
    assert "its own ancestor" in repository.damaged()[volume.uuid]


def test_what_may_not_be_read_says_so(repository: FileRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that it may not be written: a test runs as root, so the host refuses by a patch."""
    volume = repository.create_volume(4 * MIB)
    path, really = repository.image(volume.uuid), os.open

    def refuse(name: object, *arguments: int) -> int:
        if name == path:
            raise PermissionError(13, "Permission denied")
        return really(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    assert repository.scan() == []
    assert "may not be read" in repository.damaged()[volume.uuid]


def forest(repository: FileRepository) -> list[Volume]:
    """Two trees of a volume with a snapshot and a clone, and a plain one."""
    for _ in range(2):
        volume = repository.create_volume(4 * MIB)
        repository.clone(volume.uuid)
        repository.snapshot(volume.uuid)
    repository.create_volume(2 * MIB)
    return repository.scan()


def spoil(data: st.DataObject, path: Path) -> None:
    """Spoil a file in any way."""
    kind = data.draw(st.sampled_from([*DAMAGES, "bytes", "length", "gone"]), label=path.name)
    if kind in DAMAGES:
        DAMAGES[kind](path)
    elif kind == "gone":
        path.unlink()
    elif kind == "length":
        os.truncate(path, data.draw(st.integers(0, 2 * path.stat().st_size)))
    else:
        size = path.stat().st_size
        start = data.draw(st.one_of(st.integers(0, 2048), st.integers(0, size - 1), st.integers(size - 512, size - 1)))
        overwrite(path, start, data.draw(st.binary(min_size=1, max_size=600)))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_scan_always_succeeds_and_shows_what_is_whole(data: st.DataObject) -> None:
    """Whatever happened to some of the files: those that do not stand on them are as before, after an attach too."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        repository = opened(Path(place) / "sr")
        before = {volume.uuid: volume for volume in forest(repository)}
        victims = data.draw(st.lists(st.sampled_from(sorted(before)), unique=True, max_size=3), label="victims")
        for uuid in victims:
            spoil(data, repository.image(uuid))
        if data.draw(st.booleans(), label="a split was under way"):
            leaf, base = data.draw(st.sampled_from(sorted(before))), data.draw(st.sampled_from(sorted(before)))
            (repository.path / f".split-{leaf}-{base}").touch()
            victims += [leaf, base]

        def stands(uuid: str) -> bool:
            return not uuid or (uuid not in victims and stands(before[uuid].parent))

        for _ in range(2):
            found = {volume.uuid: volume for volume in repository.scan()}
            broken = repository.damaged()
            for uuid in before:
                if stands(uuid) and not (before[uuid].hidden and uuid not in found):
                    assert (found[uuid].virtual_size, found[uuid].parent) == (
                        before[uuid].virtual_size,
                        before[uuid].parent,
                    )
                assert not (uuid in found and uuid in broken)
            assert all(broken.values())
            repository.detach()
            repository.attach()
        for uuid in found:
            with suppress(StorageError):
                repository.open(uuid, read_only=True).close()
