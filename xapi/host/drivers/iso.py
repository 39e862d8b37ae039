"""CD images: the files of a directory of the host that device_config:location names, with iso_path below it.

One that is not there, such as a file server's, is a directory of our own, whose CDs are made up when they are first
used: an inventory has declared them.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

from hypervisor import api
from hypervisor.api import SR, StorageType, Surroundings
from hypervisor.disks.disk import SECTOR
from hypervisor.storage.attachment import OpenVolume
from hypervisor.storage.errors import Code, StorageError, failing
from hypervisor.storage.iso import IsoRepository
from xapi.host import cd_image, driver
from xapi.host.driver import Repository, located

_CD_NAME = re.compile(r"[^/\0\ud800-\udfff]+\.(iso|img)", re.IGNORECASE | re.DOTALL)
"""A file's name that is shown as a CD."""


class Driver(driver.Driver):
    about = StorageType(
        "iso", "ISO", "CD images in a folder or on a file server",
        dict.fromkeys(("SR_SCAN", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH"), 1),
        ("location", "type", "username", "cifspassword"), content_type="iso", named=True,
    )  # fmt: skip

    def create(self, sr: SR, surroundings: Surroundings) -> None:
        """Refuse a directory that is not there."""
        location, named = located(sr), _named(sr)
        if named is None or not named.is_dir():
            raise StorageError(_missing(sr), location)

    def find(self, sr: SR, *, make: bool) -> str:
        named, own = _named(sr), self.directory / sr.uuid
        if named is not None and named.is_dir():
            return str(named)
        if not own.is_dir():
            if not make:
                raise StorageError(_missing(sr), sr.device_config.get("location", ""))
            with failing(Code.ISOLocalPath, own):
                os.makedirs(own, mode=0o700, exist_ok=True)
        return str(own)

    def attach(self, sr: SR, handle: str) -> Repository:
        files = IsoRepository(Path(handle), UUID(sr.uuid))
        files.attach()
        return CdRepository(files, own=files.path.parent == self.directory)


def _named(sr: SR) -> Path | None:
    """Return the directory that a device_config names."""
    location, below = sr.device_config.get("location", ""), sr.device_config.get("iso_path", "")
    return Path(location, below.lstrip("/")) if location.startswith("/") else None


def _missing(sr: SR) -> Code:
    return Code.ISOLocalPath if "legacy_mode" in sr.device_config else Code.ISOMountFailure


class CdRepository(Repository):
    """A directory of CDs, each known by its file's name; `own` for one of ours, not of a user."""

    def __init__(self, files: IsoRepository, *, own: bool) -> None:
        self.files = files
        self._own = own

    def detach(self) -> None:
        self.files.detach()

    def scan(self) -> api.Contents:
        return api.Contents(tuple(self.files.scan()), {}, self.space())

    def space(self) -> api.Space:
        return self.files.space()

    def volume(self, location: str) -> api.Volume:
        return self.files.volume(location)

    def open(self, location: str, *, read_only: bool) -> OpenVolume:
        return self.files.open(location, read_only=read_only)

    def make(self, new: api.NewVolume) -> api.Effect:
        """Put a file there, whole or not at all."""
        name = new.location or new.sm_config.get("path", f"{new.uuid}.img")
        if _CD_NAME.fullmatch(name) is None:
            raise StorageError(Code.VDICreate, f"{name!r} is no name of a CD's file")
        path = self.files.path / name
        content = cd_image.image("TOOLS", new.files) if new.files else b""
        size = -(-max(new.size, len(content), SECTOR) // SECTOR) * SECTOR
        fresh = self.files.path / f".{uuid4()}.new"  # whoever makes the same beside us has another
        with failing(Code.VDICreate, path):
            try:
                with fresh.open("xb") as file:
                    file.write(content)
                    file.truncate(size)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(fresh, path)
            except FileExistsError as error:
                raise StorageError(Code.VDIExists, f"{path} exists") from error
            finally:
                fresh.unlink(missing_ok=True)
        return self.effect(name)

    def provide(self, declared: api.NewVolume) -> api.Effect:
        """Find a CD, or make it unless another is quicker, but in nobody's directory but our own."""
        with suppress(StorageError):
            return api.Effect((self.volume(declared.location),), (), self.space())
        if not self._own:
            raise StorageError(Code.VDIUnavailable, declared.location)
        named = _CD_NAME.fullmatch(declared.location) is not None
        location = declared.location if named else f"{declared.uuid}.iso"
        try:
            return self.make(replace(declared, location=location))
        except StorageError as error:
            if error.code is not Code.VDIExists:
                raise
        return api.Effect((self.volume(location),), (), self.space())

    def delete(self, location: str) -> api.Effect:
        self.files.volume(location)
        if self.files.users(location).readers:
            raise StorageError(Code.VDIInUse, f"{location} is in use")
        path = self.files.path / location
        with failing(Code.VDIDelete, path):
            path.unlink()
        return self.effect(location)
