"""A type of SR that a test makes known: each volume a raw file of a directory, and a snapshot a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from hypervisor.api import SR, Contents, Description, Effect, NewVolume, StorageType, Surroundings, Volume
from hypervisor.disks import raw
from hypervisor.disks.raw import RawDisk
from hypervisor.storage.errors import Code, StorageError
from xapi.host import driver
from xapi.host.driver import Repository, located


class Driver(driver.Driver):
    features = ["SR_SCAN", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_SNAPSHOT"]
    about = StorageType("plain", "Plain", "Raw files", dict.fromkeys(features, 1), ("location",))

    def create(self, sr: SR, surroundings: Surroundings) -> None:
        Path(located(sr, absolute=True)).mkdir()

    def find(self, sr: SR, *, make: bool) -> str:
        return located(sr)

    def attach(self, sr: SR, handle: str) -> Repository:
        return Plain(Path(handle))


class Plain(Repository):
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def file(self, location: str) -> Path:
        if not (self.directory / location).is_file():
            raise StorageError(Code.VDIUnavailable, location)
        return self.directory / location

    def scan(self) -> Contents:
        return Contents(tuple(self.volume(path.name) for path in self.directory.iterdir()), {}, self.space())

    def volume(self, location: str) -> Volume:
        found = self.file(location).stat()
        return Volume(location, location, "raw", found.st_size, found.st_blocks * 512)

    def open(self, location: str, *, read_only: bool) -> RawDisk:
        return raw.open(self.file(location), read_only=read_only)

    def make(self, new: NewVolume) -> Effect:
        raw.create(self.directory / new.uuid, new.size).close()
        return self.effect(new.uuid)

    def delete(self, location: str) -> Effect:
        self.file(location).unlink()
        return self.effect(location)

    def snapshot(self, location: str, new: str, description: Description) -> Effect:
        shutil.copyfile(self.file(location), self.directory / new)
        return self.effect(new, location)
