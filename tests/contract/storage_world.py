"""A driver of storage over real files, asked as a toolstack asks a host: through `hypervisor.api.Storage` alone."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from hypervisor.api import SR, Description, NewVolume, StorageFailure, StorageType, Surroundings, Volume, VolumeHandle
from hypervisor.disks.copying import Source
from xapi.host.driver import Driver, walk
from xapi.host.storage import LocalStorage

MIB = 1 << 20
SIZE = 4 * MIB
UNIMPLEMENTED, NO_VOLUME = 38, 46
T = TypeVar("T")


def uuid(number: int) -> str:
    """Return a uuid that is the same in each run."""
    return str(UUID(int=number))


def now(work: Coroutine[Any, Any, T]) -> T:
    """Return what is done at once."""
    ended: list[T | Failure] = []
    Deferred.fromCoroutine(work).addBoth(ended.append)
    (result,) = ended
    if isinstance(result, Failure):
        result.raiseException()
    return result


def refused(work: Coroutine[Any, Any, Any]) -> int:
    """Return the number of the error that a request ends with, 0 for none."""
    try:
        now(work)
    except StorageFailure as failure:
        return failure.number
    return 0


class World:
    """One SR of a type, attached."""

    def __init__(self, home: Path, kind: str, drivers: Mapping[str, type[Driver]] | None = None) -> None:
        self.home = home
        self.named = home / "named"
        self.named.mkdir()
        self.drivers = drivers or walk()
        self.about: StorageType = self.drivers[kind].about
        self.sr = SR(kind, uuid(1 << 100), {"location": str(self.named), "device": "/dev/sdb"})
        self.number = 0
        self.begin()
        if self.about.creatable:
            now(self.storage.create(self.sr, Surroundings(("/dev/sdb",))))
        self.handle = now(self.storage.attach(self.sr, make=not self.about.creatable))

    def begin(self) -> None:
        """Begin as another process does: with nothing attached."""
        self.storage = LocalStorage(
            self.home / "own", maybeDeferred, lambda work, *more: work(*more), lambda: 10**18, self.drivers
        )

    def can(self, feature: str) -> bool:
        return feature in self.about.features

    def new(self, name: str = "", raw: bool = False, size: int = SIZE) -> NewVolume:
        """Describe a volume that is not there yet, with this name where names are kept."""
        self.number += 1
        return NewVolume(uuid(self.number), size, Description(name), {"type": "raw"} if raw else {})

    def make(self, name: str = "", raw: bool = False) -> Volume:
        return now(self.storage.make(self.handle, self.new(name, raw))).volumes[0]

    def at(self, location: str) -> VolumeHandle:
        return VolumeHandle(self.handle, location)

    def open(self, location: str, *, read_only: bool = True) -> Source:
        return self.storage.repositories.at(self.handle).open(location, read_only=read_only)

    def write(self, location: str, data: bytes, offset: int = 0) -> None:
        disk = self.open(location, read_only=False)
        disk.write(offset, data)
        disk.close()

    def read(self, location: str, length: int, offset: int = 0) -> bytes:
        disk = self.open(location)
        try:
            return disk.read(offset, length)
        finally:
            disk.close()
