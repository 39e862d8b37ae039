"""Repositories whose process dies, or whose host fails, at each single change of the file system."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hypervisor.api import Description
from hypervisor.disks.disk import DiskError
from hypervisor.storage.attachment import OpenVolume
from hypervisor.storage.errors import Code, StorageError
from hypervisor.storage.repository import FileRepository
from hypervisor.storage.volume import Format
from tests.unit.failing_host import BROKEN, FULL, FailingHost, host, memory

__all__ = ["host", "memory"]
MIB = 1 << 20
A, B, C, NEW = (f"0000000{digit}-0000-4000-8000-000000000000" for digit in "abc1")
Content = dict[str, bytes]


def clock() -> int:
    return 1_800_000_000 * 10**9


def attached(path: Path) -> FileRepository:
    repository = FileRepository(path, clock=clock)
    repository.attach()
    return repository


def put(disk: OpenVolume, data: bytes) -> None:
    """Write over a block's end, and what lets a chain be told from its parts."""
    disk.write(2 * MIB - 512, data * 1024)
    disk.flush()


def probe(disk: OpenVolume) -> bytes:
    return disk.read(0, 512) + disk.read(2 * MIB - 1024, 2048)


def content(repository: FileRepository) -> Content:
    """Return what each visible volume holds, as far as `put` may have changed it, with its name."""
    found = Content()
    for volume in repository.scan():
        if not volume.hidden:
            disk = repository.open(volume.uuid, read_only=True)
            found[volume.uuid] = volume.description.name_label.encode() + str(disk.size).encode() + probe(disk)
            disk.close()
    return found


@dataclass
class World:
    """A repository with a chain: A (written, snapshotted as B, written again), and a raw C."""

    path: Path
    repository: FileRepository
    handles: dict[str, OpenVolume] = field(default_factory=dict)

    @classmethod
    def make(cls, path: Path) -> World:
        repository = FileRepository(path, clock=clock)
        repository.create()
        repository.attach()
        repository.create_volume(4 * MIB, Description("a"), uuid=A)
        repository.create_volume(4 * MIB, Description("c"), format=Format.RAW, uuid=C)
        for uuid, data in ((A, b"a"), (C, b"c")):
            cls.write(repository, uuid, data)
        repository.snapshot(A, Description("b", is_a_snapshot=True), new=B)
        cls.write(repository, A, b"A")
        return cls(path, repository)

    @staticmethod
    def write(repository: FileRepository, uuid: str, data: bytes) -> None:
        disk = repository.open(uuid)
        put(disk, data)
        disk.close()


Actions = list[Callable[[World], object]]
ACTIONS: dict[str, Actions] = {
    "create": [lambda world: world.repository.create_volume(4 * MIB, Description("n"), uuid=NEW)],
    "create-raw": [lambda world: world.repository.create_volume(4 * MIB, format=Format.RAW, uuid=NEW)],
    "snapshot": [lambda world: world.repository.snapshot(A, new=NEW)],
    "snapshot-of-unchanged": [lambda world: world.repository.snapshot(B, new=NEW)],
    "clone": [lambda world: world.repository.clone(A, Description("n"), new=NEW)],
    "freeze": [lambda world: world.repository.freeze(A)],
    "reset": [lambda world: world.repository.reset(A)],
    "delete": [lambda world: world.repository.delete(A)],
    "delete-chain": [lambda world: world.repository.delete(B), lambda world: world.repository.delete(A)],
    "delete-raw": [lambda world: world.repository.delete(C)],
    "resize": [lambda world: world.repository.resize(A, 8 * MIB)],
    "resize-raw": [lambda world: world.repository.resize(C, 8 * MIB)],
    "describe": [lambda world: world.repository.describe(A, Description("other"))],
    "copy": [lambda world: world.repository.copy(A, world.repository, Description("n"), new=NEW)],
    "copy-raw": [lambda world: world.repository.copy(A, world.repository, format=Format.RAW, new=NEW)],
}


def run(world: World, actions: Actions) -> None:
    """Do them; a guest that has A open goes on after."""
    for action in actions:
        action(world)
    if A in world.handles:
        put(world.handles[A], b"2")


def use(world: World) -> None:
    """Let a guest have A open for writing, and have written more."""
    world.handles[A] = world.repository.open(A)
    put(world.handles[A], b"1")


def check_directory(repository: FileRepository) -> None:
    """Nothing lies about that no volume needs."""
    volumes = repository.scan()
    expected = {"repository.json", "lock"}
    for volume in volumes:
        expected.add(f"{volume.uuid}.{volume.format}")
        if not volume.hidden and (repository.path / f"{volume.uuid}.json").exists():
            expected.add(f"{volume.uuid}.json")
        if volume.hidden:
            assert any(one.parent == volume.uuid for one in volumes)
    assert set(os.listdir(repository.path)) == expected
    assert repository.damaged() == {}


def outcomes(path: Path, actions: Actions, used: bool) -> list[Content]:
    """Return what may be found: the content before and after the actions and, in use, after the guest's next write."""
    world = World.make(path)
    if used:
        World.write(world.repository, A, b"1")
    found = [content(world.repository)]
    for action in actions:
        action(world)
        found.append(content(world.repository))
    if used:
        disk = world.repository.open(A)
        for sector in range(2):  # what is not flushed may be there or not, each sector for itself
            disk.write(2 * MIB - 512 + sector * 512, b"2" * 512)
            disk.flush()
            disk.close()
            found.append(content(world.repository))
            disk = world.repository.open(A)
        disk.close()
    return found


CASES = [pytest.param(actions, False, id=name) for name, actions in ACTIONS.items()]
CASES += [pytest.param(ACTIONS[name], True, id=f"{name}-in-use") for name in ("snapshot", "clone", "freeze", "resize")]


@pytest.mark.parametrize(("actions", "used"), CASES)
def test_a_process_killed_anywhere_leaves_all_or_nothing(
    memory: Path, host: FailingHost, actions: Actions, used: bool
) -> None:
    """And nothing that was flushed is lost, nothing is left over, and the volumes can be removed."""
    allowed = outcomes(memory / "expected", actions, used)
    seen = set[int]()
    for at in range(1, 400):
        world = World.make(memory / f"{at}")
        if used:
            use(world)
        with host.failing(at):
            run(world, actions)
        finished = not host.dead
        host.restart()
        repository = attached(world.path)
        found = content(repository)
        assert found in allowed, at
        seen.add(allowed.index(found))
        check_directory(repository)
        for uuid in found:
            World.write(repository, uuid, b"x")  # the chain can still be used
            repository.delete(uuid)
        repository.destroy()
        assert not world.path.exists()
        if finished:
            break
    assert finished
    assert seen >= {0, allowed.index(allowed[-1])}


@pytest.mark.parametrize("name", ["snapshot", "delete-chain", "reset"])
def test_a_recovery_that_is_killed_is_done_by_the_next(memory: Path, host: FailingHost, name: str) -> None:
    """For each moment of the first death and each of the second."""
    allowed = outcomes(memory / "expected", ACTIONS[name], False)
    deaths = 0
    for at in range(1, 400):
        for again in range(1, 400):
            world = World.make(memory / f"{at}-{again}")
            with host.failing(at):
                run(world, ACTIONS[name])
            finished = not host.dead
            host.restart()
            with host.failing(again):
                attached(world.path)
            recovered = not host.dead
            host.restart()
            deaths += not recovered
            repository = attached(world.path)
            assert content(repository) in allowed, (at, again)
            check_directory(repository)
            host.restart()
            if recovered:
                break
        if finished:
            break
    assert deaths >= 10


def test_a_process_that_dies_while_it_undoes_leaves_all_or_nothing(memory: Path, host: FailingHost) -> None:
    """A snapshot is told of an error, at each change of the file system, and then killed at each later one."""
    allowed = outcomes(memory / "expected", ACTIONS["snapshot"], False)
    deaths = 0
    for at in range(1, 400):
        for later in range(at + 1, 400):
            world = World.make(memory / f"{at}-{later}")
            with host.failing(at, BROKEN, later), suppress(StorageError):
                run(world, ACTIONS["snapshot"])
            finished, dead = host.calls < at, host.dead
            host.restart()
            repository = attached(world.path)
            assert content(repository) in allowed, (at, later)
            check_directory(repository)
            host.restart()
            shutil.rmtree(world.path)
            deaths += dead
            if not dead:
                break
        if finished:
            break
    assert deaths > 100


@pytest.mark.parametrize("error", [FULL, BROKEN])
@pytest.mark.parametrize(("actions", "used"), CASES)
def test_a_host_that_fails_anywhere_leaves_all_or_nothing(
    memory: Path, host: FailingHost, actions: Actions, used: bool, error: int
) -> None:
    """Told by an error of the right code; the guest goes on, and what a later attach finds is whole."""
    allowed = outcomes(memory / "expected", actions, used) + outcomes(memory / "other", [], used)
    went_on = 0
    for at in range(1, 400):
        world = World.make(memory / f"{at}")
        if used:
            use(world)
        told = None
        with host.failing(at, error):
            try:
                run(world, actions)
            except StorageError as caught:
                told = caught.code
            except DiskError:
                assert used  # the guest's write
        finished = host.calls < at
        assert told in (None, Code.EIO, Code.SRNoSpace), at
        if used:
            disk = world.handles.pop(A)
            assert probe(disk) in [one[A][-2560:] for one in allowed], at
            with suppress(DiskError):  # once a flush has failed, it fails until the disk is opened anew
                put(disk, b"2")
                went_on += told is not None
            with suppress(DiskError):
                disk.close()
        assert content(world.repository) in allowed, at
        if used:
            use(world)  # it can be opened for writing again, at once
            world.handles.pop(A).close()
            World.write(world.repository, A, b"2")
        host.restart()
        repository = attached(world.path)
        assert content(repository) in allowed, at
        check_directory(repository)
        host.restart()
        if finished:
            break
    assert finished
    assert went_on or not used
