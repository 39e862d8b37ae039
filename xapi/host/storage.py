"""The repositories of hosts in this process, behind the `Storage` protocol.

All hosts share them, as they share the machine's file systems. What touches files runs on the pool of threads; a
cancel reaches nothing but copies, for all else is short and must not stop half-way.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.python.failure import Failure

from hypervisor import api
from hypervisor.disks import copying, room
from hypervisor.disks.disk import SECTOR
from hypervisor.storage.attachment import OpenVolume
from hypervisor.storage.errors import Code, StorageError, failing
from hypervisor.storage.iso import IsoRepository
from hypervisor.storage.layout import Layout
from hypervisor.storage.repositories import Repositories, Repository
from hypervisor.storage.repository import FileRepository
from hypervisor.storage.volume import Format, Volume
from xapi.host import cd_image

COPIES = 4
"""Copies that run at a time: each holds a thread as long as it lasts."""
STEP = 0.01
"""Progress that is worth telling."""
_CHUNK = 1 << 20

T = TypeVar("T")
Hear = Callable[[int, int], None]


class _Stopped(Exception):
    """A copy is to end."""


class LocalStorage:
    """What the hosts of one process can reach. `run` runs a function in a thread, `back` on the reactor's."""

    def __init__(
        self, run: Callable[..., Deferred[Any]], back: Callable[..., object], clock: Callable[[], int]
    ) -> None:
        """Begin with nothing attached; `clock` tells nanoseconds since 1970."""
        self.repositories = Repositories()
        self._run = run
        self._back = back
        self._clock = clock
        self._attaching = threading.Lock()
        self._copies = DeferredSemaphore(COPIES)

    def keep_back(self, path: Path, count: int) -> None:
        """Have images leave so many bytes free on the file system of a path."""
        room.keep_back(path, count)

    async def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do work in a thread, to its end."""
        return await _whole(self._run(_told, work, *arguments), lambda: None)

    # Repositories

    async def look(self, path: str) -> str:
        """Tell what a path is: ``repository`` (of disks), ``directory``, or "" for neither."""
        return await self._do(_look, Path(path))

    async def create(self, path: str, kind: str) -> None:
        """Make an empty repository."""
        await self._do(self._create, Path(path), kind)

    def _create(self, path: Path, kind: str) -> None:
        if kind == "disks":
            FileRepository(path, clock=self._clock).create()
            return
        with failing(Code.ISOLocalPath, path):
            os.makedirs(path, mode=0o700, exist_ok=True)

    async def attach(self, path: str, kind: str, uuid: str) -> None:
        """Take a repository into use; harmless when it is."""
        await self._do(self._attach, Path(path), kind, uuid)

    def _attach(self, path: Path, kind: str, uuid: str) -> None:
        with self._attaching:
            with suppress(StorageError):
                self.repositories.at(path)
                return
            disks = kind == "disks"
            self.repositories.attach(
                FileRepository(path, clock=self._clock) if disks else IsoRepository(path, UUID(uuid))
            )

    async def detach(self, path: str) -> None:
        """Let go of a repository, in which nothing may be in use."""
        await self._do(self.repositories.detach, Path(path))

    async def remove(self, path: str, kind: str) -> None:
        """Erase a repository without volumes; it is detached then. The files of one of CDs stay."""
        await self._do(self._remove, Path(path), kind)

    def _remove(self, path: Path, kind: str) -> None:
        with self._attaching:
            if kind == "disks" and _look(path) == "repository":
                try:
                    repository = self.repositories.at(path)
                except StorageError:
                    repository = FileRepository(path, clock=self._clock)
                assert isinstance(repository, FileRepository)
                repository.destroy()
            self.repositories.detach(path)

    async def scan(self, path: str) -> api.Contents:
        """Look at all that there is."""
        return await self._do(self._scan, path)

    def _scan(self, path: str) -> api.Contents:
        repository = self._at(path)
        volumes = tuple(_shown(repository, volume) for volume in repository.scan())
        damaged = repository.damaged() if isinstance(repository, FileRepository) else {}
        return api.Contents(volumes, damaged, _space(repository))

    async def space(self, path: str) -> api.Space:
        """Return how large a repository is, and how full."""
        return await self._do(lambda: _space(self._at(path)))

    def _at(self, path: str) -> Repository:
        return self.repositories.at(Path(path))

    def _disks(self, path: str) -> FileRepository:
        repository = self._at(path)
        if not isinstance(repository, FileRepository):
            raise StorageError(Code.Unimplemented, f"{path} holds CDs")
        return repository

    # Volumes

    async def volume(self, path: str, location: str) -> api.Volume:
        """Look at one volume, also one that was put there just now."""
        return await self._do(self._volume, path, location)

    def _volume(self, path: str, location: str) -> api.Volume:
        repository = self._at(path)
        if isinstance(repository, FileRepository):
            return _shown(repository, repository.introduce(location))
        return _shown(repository, _cd(repository, location))

    async def make(self, path: str, location: str, size: int, format: str, description: api.Description) -> api.Effect:
        """Make an empty sparse volume, of at least `size` bytes."""
        return await self._do(self._make, path, location, size, format, description)

    def _make(self, path: str, location: str, size: int, format: str, description: api.Description) -> api.Effect:
        repository = self._at(path)
        if isinstance(repository, FileRepository):
            repository.create_volume(size, description, format=Format(format), uuid=location)
            return _effect(repository, [location])
        return _made_cd(repository, location, size, b"")

    async def make_cd(self, path: str, name: str, size: int, files: Mapping[str, bytes]) -> api.Effect:
        """Make a CD of at least `size` bytes that holds a few small files."""
        return await self._do(self._make_cd, path, name, size, files)

    def _make_cd(self, path: str, name: str, size: int, files: Mapping[str, bytes]) -> api.Effect:
        repository = self._at(path)
        assert isinstance(repository, IsoRepository)
        return _made_cd(repository, name, size, cd_image.image("TOOLS", files))

    async def delete(self, path: str, location: str) -> api.Effect:
        """Remove a volume, and what was hidden for its sake alone."""
        return await self._do(self._delete, path, location)

    def _delete(self, path: str, location: str) -> api.Effect:
        repository = self._at(path)
        if isinstance(repository, IsoRepository):
            return _delete_cd(repository, location)
        chain = [location, *_parents(repository, location)]
        repository.delete(location)
        return _effect(repository, chain)

    async def resize(self, path: str, location: str, size: int) -> api.Effect:
        """Make a volume larger, also while it is in use."""
        return await self._do(self._resize, path, location, size)

    def _resize(self, path: str, location: str, size: int) -> api.Effect:
        repository = self._disks(path)
        repository.resize(location, size)
        return _effect(repository, [location])

    async def describe(self, path: str, location: str, description: api.Description) -> None:
        """Change a volume's description."""
        await self._do(lambda: self._disks(path).describe(location, description))

    # Copies of all kinds

    async def snapshot(self, path: str, location: str, new: str, description: api.Description) -> api.Effect:
        """Keep what a volume holds as a new one, in no time; the volume may be in use."""
        return await self._do(self._branch, FileRepository.snapshot, path, location, new, description)

    async def clone(self, path: str, location: str, new: str, description: api.Description) -> api.Effect:
        """Make a new volume that holds what another does, in no time."""
        return await self._do(self._branch, FileRepository.clone, path, location, new, description)

    def _branch(
        self, how: Callable[..., Volume], path: str, location: str, new: str, description: api.Description
    ) -> api.Effect:
        repository = self._disks(path)
        how(repository, location, description, new=new)
        return _effect(repository, [new, *_parents(repository, new), location])

    async def freeze(self, path: str, location: str) -> api.Effect:
        """Make what a volume holds that to which `reset` goes back."""
        return await self._do(self._freeze, path, location)

    def _freeze(self, path: str, location: str) -> api.Effect:
        repository = self._disks(path)
        repository.freeze(location)
        return _effect(repository, [location, *_parents(repository, location)])

    async def reset(self, path: str, location: str) -> api.Effect:
        """Drop what was written to a volume since it was frozen."""
        return await self._do(self._reset, path, location)

    def _reset(self, path: str, location: str) -> api.Effect:
        repository = self._disks(path)
        repository.reset(location)
        return _effect(repository, [location])

    async def copy(
        self,
        path: str,
        location: str,
        target: str,
        new: str,
        format: str,
        description: api.Description,
        progress: Callable[[float], None],
    ) -> api.Effect:
        """Write all that a volume holds into a new one, which is there when it is whole."""

        def work(hear: Hear) -> api.Effect:
            return self._copy(path, location, target, new, Format(format), description, hear)

        return await self._copying(work, progress)

    def _copy(
        self, path: str, location: str, target: str, new: str, format: Format, description: api.Description, hear: Hear
    ) -> api.Effect:
        source, into = self._at(path), self._disks(target)
        if isinstance(source, FileRepository):
            source.copy(location, into, description, format=format, new=new, progress=hear)
        else:
            into.create_volume(_cd(source, location).virtual_size, description, format=format, uuid=new)
            try:
                self._pour(path, location, into, new, hear, blank=True)
            except BaseException:
                into.delete(new)
                raise
        return _effect(into, [new])

    async def copy_into(
        self, path: str, location: str, target: str, other: str, progress: Callable[[float], None]
    ) -> api.Effect:
        """Write all that a volume holds over another, at least as large."""

        def work(hear: Hear) -> api.Effect:
            into = self._disks(target)
            self._pour(path, location, into, other, hear, blank=False)
            return _effect(into, [other])

        return await self._copying(work, progress)

    def _pour(self, path: str, location: str, into: FileRepository, other: str, hear: Hear, *, blank: bool) -> None:
        source = self._open(path, location)
        try:
            disk = into.open(other)
            try:
                with failing(Code.EIO, into.path):
                    copying.copy(source, disk, hear, blank=blank)
            finally:
                disk.close()
        finally:
            source.close()

    async def _copying(self, work: Callable[[Hear], T], progress: Callable[[float], None]) -> T:
        """Copy in a thread; a cancel ends it, and is told when it has ended."""
        stopped, told = [False], [0.0]

        def hear(done: int, total: int) -> None:
            if stopped[0]:
                raise _Stopped
            fraction = done / total if total else 1.0
            if fraction - told[0] >= STEP:
                told[0] = fraction
                self._back(progress, fraction)

        def stop() -> None:
            stopped[0] = True

        await self._copies.acquire()
        try:
            return await _whole(self._run(_told, work, hear), stop)
        except _Stopped:
            raise CancelledError from None
        finally:
            self._copies.release()

    def _open(self, path: str, location: str) -> OpenVolume:
        repository = self._at(path)
        if isinstance(repository, FileRepository):
            return repository.open(location, read_only=True)
        return repository.open(_cd(repository, location).uuid)

    async def checksum(self, path: str, location: str) -> str:
        """Return the MD5 of a volume's contents, in hexadecimal digits."""
        return await self._copying(lambda hear: self._checksum(path, location, hear), lambda _: None)

    def _checksum(self, path: str, location: str, hear: Hear) -> str:
        disk, digest = self._open(path, location), hashlib.md5(usedforsecurity=False)
        try:
            with failing(Code.EIO, Path(path)):
                for offset in range(0, disk.size, _CHUNK):
                    hear(offset, disk.size)
                    digest.update(disk.read(offset, min(_CHUNK, disk.size - offset)))
        finally:
            disk.close()
        return digest.hexdigest()


async def _whole(work: Deferred[T], stop: Callable[[], None]) -> T:
    """Return the result of work in a thread when it has ended; `stop` is called if it is cancelled before that."""
    outcome: list[T | Failure] = []
    waiting: list[Deferred[None]] = [Deferred()]

    def end(result: T | Failure) -> None:
        outcome.append(result)
        if not waiting[-1].called:
            waiting[-1].callback(None)

    work.addBoth(end)
    while not outcome:
        try:
            await waiting[-1]
        except CancelledError:
            stop()
            waiting.append(Deferred())
    (result,) = outcome
    if isinstance(result, Failure):
        result.raiseException()
    return result


def _told(work: Callable[..., T], *arguments: Any) -> T:
    """Do work; its errors become those of the protocol."""
    try:
        return work(*arguments)
    except StorageError as error:
        raise api.StorageFailure(int(error.code), str(error)) from error


def _look(path: Path) -> str:
    if not path.is_dir():
        return ""
    return "repository" if Layout(path).is_marked() else "directory"


def _shown(repository: Repository, volume: Volume) -> api.Volume:
    """Return a volume as the protocol has it."""
    if isinstance(repository, FileRepository):
        path = repository.layout.image(volume.uuid, volume.format)
    else:
        path = repository.path / volume.location
    return api.Volume(
        uuid=volume.uuid,
        location=volume.location,
        path=str(path),
        format="vhd" if volume.format is Format.VHD else "raw",
        virtual_size=volume.virtual_size,
        physical_utilisation=volume.physical_utilisation,
        parent=volume.parent or "",
        hidden=volume.hidden,
        description=volume.description,
    )


def _space(repository: Repository) -> api.Space:
    space = repository.space()
    return api.Space(space.physical_size, space.physical_utilisation)


def _parents(repository: FileRepository, location: str) -> list[str]:
    """Return what lies under a volume, nearest first, as far as it can be read."""
    found: list[str] = []
    with suppress(StorageError):
        parent = repository.volume(location).parent
        while parent is not None and parent not in found:
            found.append(parent)
            parent = repository.volume(parent).parent
    return found


def _effect(repository: Repository, locations: Iterable[str]) -> api.Effect:
    """Return what has become of volumes that may have changed."""
    volumes: list[api.Volume] = []
    gone: list[str] = []
    for location in dict.fromkeys(locations):
        try:
            found = repository.volume(location) if isinstance(repository, FileRepository) else _cd(repository, location)
            volumes.append(_shown(repository, found))
        except StorageError as error:
            if error.code is Code.VDIUnavailable:
                gone.append(location)
    return api.Effect(tuple(volumes), tuple(gone), _space(repository))


def _cd(repository: IsoRepository, location: str) -> Volume:
    for volume in repository.scan():
        if volume.location == location:
            return volume
    raise StorageError(Code.VDIUnavailable, f"{repository.path} has no CD {location!r}")


def _made_cd(repository: IsoRepository, name: str, size: int, content: bytes) -> api.Effect:
    """Put a file into a directory of CDs, whole or not at all."""
    path = repository.path / name
    if path.parent != repository.path:
        raise StorageError(Code.VDICreate, f"{name!r} is no file's name")
    size = -(-max(size, len(content), SECTOR) // SECTOR) * SECTOR
    fresh = repository.path / f".{name}.new"
    with failing(Code.VDICreate, path):
        try:
            with fresh.open("wb") as file:
                file.write(content)
                file.truncate(size)
                file.flush()
                os.fsync(file.fileno())
            os.link(fresh, path)
        except FileExistsError as error:
            raise StorageError(Code.VDIExists, f"{path} exists") from error
        finally:
            fresh.unlink(missing_ok=True)
    return _effect(repository, [name])


def _delete_cd(repository: IsoRepository, location: str) -> api.Effect:
    volume = _cd(repository, location)
    if repository.users(volume.uuid).readers:
        raise StorageError(Code.VDIInUse, f"{location} is in use")
    path = repository.path / location
    with failing(Code.VDIDelete, path):
        path.unlink()
    return _effect(repository, [location])
