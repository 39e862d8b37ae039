"""The repositories of hosts in this process, behind the `Storage` protocol.

All hosts share them, as they share the machine's file systems. What is done is the drivers' affair (`xapi.host.driver`)
and runs on the pool of threads; a cancel reaches nothing but copies, for all else is short and must not stop half-way.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.python.failure import Failure

from hypervisor import api
from hypervisor.api import SR, Contents, Description, Effect, NewVolume, Space, Surroundings, Volume, VolumeHandle
from hypervisor.disks import room
from hypervisor.storage.errors import Code, StorageError, failing
from hypervisor.storage.repositories import Repositories
from xapi.host.driver import Driver, Hear, Repository, walk

COPIES = 4
"""Copies that run at a time: each holds a thread as long as it lasts."""
STEP = 0.01
"""Progress that is worth telling."""
_CHUNK = 1 << 20

T = TypeVar("T")


class _Stopped(Exception):
    """A copy is to end."""


class LocalStorage:
    """What the hosts of one process can reach; SRs that have no other place lie below `directory`.

    `run` runs a function in a thread, `back` on the reactor's; `clock` tells nanoseconds since 1970.
    """

    def __init__(
        self,
        directory: Path,
        run: Callable[..., Deferred[Any]],
        back: Callable[..., object],
        clock: Callable[[], int],
        drivers: Mapping[str, type[Driver]] | None = None,
    ) -> None:
        """Begin with nothing attached, and all drivers that there are unless some are given."""
        self.directory = directory
        self.repositories = Repositories[Repository]()
        self._drivers = {kind: driver(directory, clock) for kind, driver in (drivers or walk()).items()}
        self._run = run
        self._back = back
        self._attaching = threading.Lock()
        self._copies = DeferredSemaphore(COPIES)

    def keep_back(self, path: Path, count: int) -> None:
        """Have images leave so many bytes free on the file system of a path."""
        room.keep_back(path, count)

    async def _do(self, work: Callable[..., T], *arguments: object) -> T:
        """Do work in a thread, to its end."""
        return await _whole(self._run(_told, work, *arguments), lambda: None)

    # Repositories

    def _driver(self, sr: SR) -> Driver:
        driver = self._drivers.get(sr.type)
        if driver is None:
            raise StorageError(Code.SRUnknownType, f"there is no driver of {sr.type!r}")
        return driver

    async def create(self, sr: SR, surroundings: Surroundings) -> None:
        """Make an SR where its device_config says."""
        await self._do(self._create, sr, surroundings)

    def _create(self, sr: SR, surroundings: Surroundings) -> None:
        with self._attaching:
            self._driver(sr).create(sr, surroundings)

    async def attach(self, sr: SR, *, make: bool) -> str:
        """Take an SR into use, harmless when it is; return its handle."""
        return await self._do(self._attach, sr, make)

    def _attach(self, sr: SR, make: bool) -> str:
        driver = self._driver(sr)
        with self._attaching:
            handle = driver.find(sr, make=make)
            if handle not in self.repositories:
                self.repositories.attach(handle, driver.attach(sr, handle))
        return handle

    async def detach(self, repository: str) -> None:
        """Let go of a repository, in which nothing may be in use."""
        await self._do(self._detach, repository)

    def _detach(self, handle: str) -> None:
        with self._attaching:
            if handle in self.repositories:
                self.repositories.at(handle).detach()
                self.repositories.detach(handle)

    async def destroy(self, sr: SR) -> None:
        """Erase an SR without volumes."""
        await self._do(self._destroy, sr)

    def _destroy(self, sr: SR) -> None:
        with self._attaching:
            self._driver(sr).destroy(sr)

    async def scan(self, repository: str) -> Contents:
        """Look at all that there is."""
        return await self._do(lambda: self.repositories.at(repository).scan())

    async def space(self, repository: str) -> Space | None:
        """Return how large a repository is, and how full."""
        return await self._do(lambda: self.repositories.at(repository).space())

    # Volumes

    async def _ask(self, volume: VolumeHandle, ask: Callable[[Repository, str], T]) -> T:
        """Ask the repository of a volume about it."""
        return await self._do(lambda: ask(self.repositories.at(volume.repository), volume.location))

    async def volume(self, volume: VolumeHandle) -> Volume:
        """Look at one volume, also one that was put there just now."""
        return await self._ask(volume, lambda repository, location: repository.volume(location))

    async def make(self, repository: str, new: NewVolume) -> Effect:
        """Make an empty volume."""
        return await self._do(lambda: self.repositories.at(repository).make(new))

    async def provide(self, repository: str, declared: NewVolume) -> Effect:
        """Find a volume that an inventory has declared, or make it."""
        return await self._do(lambda: self.repositories.at(repository).provide(declared))

    async def delete(self, volume: VolumeHandle) -> Effect:
        """Remove a volume, and what was hidden for its sake alone."""
        return await self._ask(volume, lambda repository, location: repository.delete(location))

    async def resize(self, volume: VolumeHandle, size: int) -> Effect:
        """Make a volume larger, also while it is in use."""
        return await self._ask(volume, lambda repository, location: repository.resize(location, size))

    async def describe(self, volume: VolumeHandle, description: Description) -> None:
        """Change a volume's description."""
        await self._ask(volume, lambda repository, location: repository.describe(location, description))

    async def checksum(self, volume: VolumeHandle) -> str:
        """Return the MD5 of a volume's contents, in hexadecimal digits."""
        return await self._copying(lambda hear: self._checksum(volume, hear), lambda _: None)

    def _checksum(self, volume: VolumeHandle, hear: Hear) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        disk = self.repositories.open(volume, read_only=True)
        try:
            with failing(Code.EIO, Path(volume.location)):
                for offset in range(0, disk.size, _CHUNK):
                    hear(offset, disk.size)
                    digest.update(disk.read(offset, min(_CHUNK, disk.size - offset)))
        finally:
            disk.close()
        return digest.hexdigest()

    # Copies of all kinds

    async def snapshot(self, volume: VolumeHandle, new: str, description: Description) -> Effect:
        """Keep what a volume holds as a new one, in no time; the volume may be in use."""
        return await self._ask(volume, lambda repository, location: repository.snapshot(location, new, description))

    async def clone(self, volume: VolumeHandle, new: str, description: Description) -> Effect:
        """Make a new volume that holds what another does, in no time."""
        return await self._ask(volume, lambda repository, location: repository.clone(location, new, description))

    async def freeze(self, volume: VolumeHandle) -> Effect:
        """Make what a volume holds that to which `reset` goes back."""
        return await self._ask(volume, lambda repository, location: repository.freeze(location))

    async def reset(self, volume: VolumeHandle) -> Effect:
        """Drop what was written to a volume since it was frozen."""
        return await self._ask(volume, lambda repository, location: repository.reset(location))

    async def copy(
        self, volume: VolumeHandle, repository: str, new: NewVolume, progress: Callable[[float], None]
    ) -> Effect:
        """Write all that a volume holds into a new one, which is there when it is whole."""

        def copy(hear: Hear) -> Effect:
            source = self.repositories.at(volume.repository)
            return self.repositories.at(repository).copy(source, volume.location, new, hear)

        return await self._copying(copy, progress)

    async def copy_into(self, volume: VolumeHandle, other: VolumeHandle, progress: Callable[[float], None]) -> Effect:
        """Write all that a volume holds over another, at least as large."""

        def copy(hear: Hear) -> Effect:
            source, into = self.repositories.at(volume.repository), self.repositories.at(other.repository)
            into.pour(source, volume.location, other.location, hear, blank=False)
            return into.effect(other.location)

        return await self._copying(copy, progress)

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


def _told(work: Callable[..., T], *arguments: object) -> T:
    """Do work; its errors become those of the protocol."""
    try:
        return work(*arguments)
    except StorageError as error:
        raise api.StorageFailure(int(error.code), str(error)) from error
