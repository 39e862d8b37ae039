"""A driver of storage over real files, asked as a toolstack asks a host: through `hypervisor.api.Storage` alone."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from hypervisor.api import (
    SR,
    Backend,
    Description,
    NewVolume,
    Storage,
    StorageFailure,
    StorageType,
    Surroundings,
    Volume,
    VolumeHandle,
)
from hypervisor.disks.copying import Source
from tests.contract.hosts import Heard
from tests.fakes import storage_at_once
from tests.wires import InMemory
from xapi.host.driver import walk
from xapi.host.guestless import GuestlessBackend
from xapi.host.remote import RemoteBackend
from xapi.host.served import Served

MIB = 1 << 20
SIZE = 4 * MIB
UNIMPLEMENTED, NO_VOLUME = 38, 46
T = TypeVar("T")


def uuid(number: int) -> str:
    """Return a uuid that is the same in each run."""
    return str(UUID(int=number))


class World:
    """One SR of a type, attached; `remote` for a host behind a connection."""

    def __init__(self, home: Path, kind: str, *, remote: bool = False) -> None:
        self.home, self._remote = home, remote
        self.named = home / "named"
        self.named.mkdir()
        self.about: StorageType = walk()[kind].about
        self.sr = SR(kind, uuid(1 << 100), {"location": str(self.named), "device": "/dev/sdb"})
        self.number = 0
        self.begin()
        if self.about.creatable:
            self.now(self.storage.create(self.sr, Surroundings(("/dev/sdb",))))
        self.handle = self.now(self.storage.attach(self.sr, make=not self.about.creatable))

    def begin(self) -> None:
        """Begin as another process does: with nothing attached."""
        self.local = storage_at_once(self.home / "own")
        self.repositories = self.local.repositories
        self.storage: Storage = self.local
        self._turn: Callable[[], object] = lambda: None
        if self._remote:
            clock = Clock()
            endpoint = InMemory(Served(GuestlessBackend(1 << 30, self.local, "a test"), clock, "a life", print), clock)
            backend = cast("Backend", RemoteBackend(endpoint, clock))
            self.storage, self._turn = backend.storage, endpoint.turn
            self.now(backend.start(Heard()))

    def now(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what is done at once."""
        ended: list[T | Failure] = []
        Deferred.fromCoroutine(work).addBoth(ended.append)
        self._turn()
        (result,) = ended
        if isinstance(result, Failure):
            result.raiseException()
        return result

    def refused(self, work: Coroutine[Any, Any, Any]) -> int:
        """Return the number of the error that a request ends with, 0 for none."""
        try:
            self.now(work)
        except StorageFailure as failure:
            return failure.number
        return 0

    def can(self, feature: str) -> bool:
        return feature in self.about.features

    def new(self, name: str = "", raw: bool = False, size: int = SIZE) -> NewVolume:
        """Describe a volume that is not there yet, with this name where names are kept."""
        self.number += 1
        return NewVolume(uuid(self.number), size, Description(name), {"type": "raw"} if raw else {})

    def make(self, name: str = "", raw: bool = False) -> Volume:
        return self.now(self.storage.make(self.handle, self.new(name, raw))).volumes[0]

    def at(self, location: str) -> VolumeHandle:
        return VolumeHandle(self.handle, location)

    def open(self, location: str, *, read_only: bool = True) -> Source:
        return self.repositories.at(self.handle).open(location, read_only=read_only)

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
