"""What a type of storage is on a host: a driver, and the repositories that it attaches.

A driver is a module of `xapi.host.drivers` with one class `Driver`, found by walking. What it says of itself, features
included, is data (`hypervisor.api.StorageType`); from it come the rows of SM, and toolstacks ask nothing else. Names
and errors are those of XCP's storage manager (sm: SR.py, VDI.py).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import ClassVar, NoReturn

from hypervisor.api import (
    SR,
    Contents,
    Description,
    Effect,
    NewVolume,
    Space,
    StorageType,
    Surroundings,
    Volume,
)
from hypervisor.disks import copying
from hypervisor.disks.copying import Source
from hypervisor.storage.errors import Code, StorageError, failing
from xapi.host import drivers

Hear = Callable[[int, int], None]
"""Hears how many bytes are copied, of how many; what it raises ends the copy."""


class Repository:
    """An SR that is attached; this one can do nothing. Any thread may call; raises StorageError."""

    def _refuse(self, feature: str) -> NoReturn:
        raise StorageError(Code.Unimplemented, feature)

    def detach(self) -> None:
        """Let go, of what nothing may use."""

    def scan(self) -> Contents:
        """Look at all that there is."""
        self._refuse("SR_SCAN")

    def space(self) -> Space | None:
        """Return how large it is, and how full; None for what cannot tell."""
        return None

    def volume(self, location: str) -> Volume:
        """Look at one volume, also one that was put there just now."""
        self._refuse("VDI_INTRODUCE")

    def known(self, location: str) -> Volume:
        """Look at one volume again, hidden ones, too, that nobody else has put there."""
        return self.volume(location)

    def open(self, location: str, *, read_only: bool) -> Source:
        """Open a volume as a disk."""
        self._refuse("VDI_ATTACH")

    def file(self, location: str) -> Path:
        """Return where a saved domain of this name lies, or is to be written."""
        self._refuse("VDI_ACTIVATE")

    def make(self, new: NewVolume) -> Effect:
        """Make an empty volume."""
        self._refuse("VDI_CREATE")

    def provide(self, declared: NewVolume) -> Effect:
        """Find a volume that an inventory has declared, or make it; VDIUnavailable where it is lost."""
        raise StorageError(Code.VDIUnavailable, declared.location)

    def delete(self, location: str) -> Effect:
        """Remove a volume, and what was hidden for its sake alone."""
        self._refuse("VDI_DELETE")

    def resize(self, location: str, size: int) -> Effect:
        """Make a volume larger, also while it is in use."""
        self._refuse("VDI_RESIZE")

    def describe(self, location: str, description: Description) -> None:
        """Change a volume's description."""
        self._refuse("VDI_UPDATE")

    def snapshot(self, location: str, new: str, description: Description) -> Effect:
        """Keep what a volume holds as a new one, in no time; the volume may be in use."""
        self._refuse("VDI_SNAPSHOT")

    def clone(self, location: str, new: str, description: Description) -> Effect:
        """Make a new volume that holds what another does, in no time."""
        self._refuse("VDI_CLONE")

    def freeze(self, location: str) -> Effect:
        """Make what a volume holds that to which `reset` goes back."""
        self._refuse("VDI_RESET_ON_BOOT")

    def reset(self, location: str) -> Effect:
        """Drop what was written to a volume since it was frozen."""
        self._refuse("VDI_RESET_ON_BOOT")

    def copy(self, source: Repository, location: str, new: NewVolume, hear: Hear) -> Effect:
        """Make a volume with all that one of any repository holds; it goes again when that fails."""
        size = max(new.size, source.known(location).virtual_size)
        made = self.make(replace(new, size=size))
        try:
            self.pour(source, location, made.volumes[0].location, hear, blank=True)
        except BaseException:
            self.delete(made.volumes[0].location)
            raise
        return self.effect(made.volumes[0].location)

    def pour(self, source: Repository, location: str, other: str, hear: Hear, *, blank: bool) -> None:
        """Write all that a volume of any repository holds over one of this; `blank` if that holds nothing yet."""
        read = source.open(location, read_only=True)
        try:
            written = self.open(other, read_only=False)
            try:
                with failing(Code.EIO, Path(other)):
                    copying.copy(read, written, hear, blank=blank)
            finally:
                written.close()
        finally:
            read.close()

    def effect(self, *locations: str) -> Effect:
        """Return what has become of volumes that may have changed."""
        volumes: list[Volume] = []
        gone: list[str] = []
        for location in dict.fromkeys(locations):
            try:
                volumes.append(self.known(location))
            except StorageError as error:
                if error.code is Code.VDIUnavailable:
                    gone.append(location)
        return Effect(tuple(volumes), tuple(gone), self.space())


class Driver:
    """A type of SR on a host. `directory` is below which SRs lie that have no place of their own.

    Methods block, one at a time, and raise StorageError; `clock` tells nanoseconds since 1970.
    """

    about: ClassVar[StorageType]

    def __init__(self, directory: Path, clock: Callable[[], int]) -> None:
        self.directory = directory
        self.clock = clock

    def create(self, sr: SR, surroundings: Surroundings) -> None:
        """Make an SR where its device_config says."""

    def find(self, sr: SR, *, make: bool) -> str:
        """Return an SR's handle, the same for what is the same storage; with `make` it need not be there."""
        return sr.uuid

    def attach(self, sr: SR, handle: str) -> Repository:
        """Take an SR into use that is there."""
        raise NotImplementedError

    def destroy(self, sr: SR) -> None:
        """Erase an SR without volumes, harmless when it is not there; it is detached."""


def located(sr: SR, *, absolute: bool = False) -> str:
    """Return where a device_config says that an SR lies."""
    location = sr.device_config.get("location", "")
    if not location:
        raise StorageError(Code.ConfigLocationMissing, "")
    if absolute and not location.startswith("/"):
        raise StorageError(Code.ConfigLocationMissing, f"{location!r} is no absolute path")
    return location


@cache
def walk() -> Mapping[str, type[Driver]]:
    """Return all drivers by their types, in the order of these."""
    names = sorted(module.name for module in pkgutil.iter_modules(drivers.__path__))
    found: Iterable[type[Driver]] = [import_module(f"{drivers.__name__}.{name}").Driver for name in names]
    return {driver.about.type: driver for driver in found}


def types() -> Mapping[str, StorageType]:
    """Return what all drivers say of themselves, by their types."""
    return {name: driver.about for name, driver in walk().items()}
