"""SRs whose volumes are VHD and raw files in a directory: what the types of disks have in common."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hypervisor import api
from hypervisor.storage.attachment import OpenVolume
from hypervisor.storage.errors import Code, StorageError
from hypervisor.storage.layout import Layout
from hypervisor.storage.repository import FileRepository
from hypervisor.storage.volume import Format
from xapi.host.driver import Driver, Hear, Repository

BLOCK = {
    **dict.fromkeys((
        "SR_SCAN", "SR_UPDATE", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE",
        "VDI_DEACTIVATE", "VDI_UPDATE", "VDI_INTRODUCE", "VDI_RESIZE", "VDI_CLONE", "VDI_SNAPSHOT",
    ), 1),
    "VDI_RESET_ON_BOOT": 2,
}  # fmt: skip
"""What is done for disks, whatever the type; each feature has a message that does something."""
FILES = {**BLOCK, "THIN_PROVISIONING": 1}


class DiskRepository(Repository):
    """A directory of volumes, each known by its uuid."""

    def __init__(self, files: FileRepository) -> None:
        self.files = files

    def detach(self) -> None:
        self.files.detach()

    def scan(self) -> api.Contents:
        return api.Contents(tuple(self.files.scan()), self.files.damaged(), self.space())

    def space(self) -> api.Space:
        return self.files.space()

    def volume(self, location: str) -> api.Volume:
        return self.files.introduce(location)

    def known(self, location: str) -> api.Volume:
        return self.files.volume(location)

    def open(self, location: str, *, read_only: bool) -> OpenVolume:
        return self.files.open(location, read_only=read_only)

    def file(self, location: str) -> Path:
        return self.files.file(location)

    def make(self, new: api.NewVolume) -> api.Effect:
        self.files.create_volume(new.size, new.description, format=_format(new), uuid=new.uuid)
        return self.effect(new.uuid)

    def provide(self, declared: api.NewVolume) -> api.Effect:
        """Make it, unless another is quicker, or a crash came before its row was written."""
        if declared.location != declared.uuid or declared.description.type == "suspend":
            raise StorageError(Code.VDIUnavailable, declared.location)
        try:
            return self.make(declared)
        except StorageError as error:
            if error.code is not Code.VDIExists:
                raise
        return api.Effect((self.volume(declared.location),), (), self.space())

    def delete(self, location: str) -> api.Effect:
        chain = [location, *self._parents(location)]
        self.files.delete(location)
        return self.effect(*chain)

    def resize(self, location: str, size: int) -> api.Effect:
        self.files.resize(location, size)
        return self.effect(location)

    def describe(self, location: str, description: api.Description) -> None:
        self.files.describe(location, description)

    def snapshot(self, location: str, new: str, description: api.Description) -> api.Effect:
        self.files.snapshot(location, description, new=new)
        return self.effect(new, *self._parents(new), location)

    def clone(self, location: str, new: str, description: api.Description) -> api.Effect:
        self.files.clone(location, description, new=new)
        return self.effect(new, *self._parents(new), location)

    def freeze(self, location: str) -> api.Effect:
        self.files.freeze(location)
        return self.effect(location, *self._parents(location))

    def reset(self, location: str) -> api.Effect:
        self.files.reset(location)
        return self.effect(location)

    def copy(self, source: Repository, location: str, new: api.NewVolume, hear: Hear) -> api.Effect:
        """Read one file and write another, which has its name when it is whole; from elsewhere, as any disk."""
        if not isinstance(source, DiskRepository):
            return super().copy(source, location, new, hear)
        form = _format(new)
        source.files.copy(location, self.files, new.description, format=form, new=new.uuid, progress=hear)
        return self.effect(new.uuid)

    def _parents(self, location: str) -> list[str]:
        """Return what lies under a volume, nearest first, as far as it can be read."""
        found: list[str] = []
        with suppress(StorageError):
            parent = self.files.volume(location).parent
            while parent and parent not in found:
                found.append(parent)
                parent = self.files.volume(parent).parent
        return found


def _format(new: api.NewVolume) -> Format:
    """Return the format that a volume is to have, by its sm_config as on XCP."""
    form = new.sm_config.get("type", "vhd")
    if form not in ("vhd", "raw"):
        raise StorageError(Code.VDIType, f"Invalid VDI type {form}")
    return Format(form)


class DirectoryDriver(Driver):
    """SRs that are directories of the storage directory, named by their uuids: no other place is there on this host."""

    def place(self, sr: api.SR) -> Path:
        """Return where an SR lies."""
        return self.directory / sr.uuid

    def create(self, sr: api.SR, surroundings: api.Surroundings) -> None:
        self._repository(self.place(sr)).create()

    def find(self, sr: api.SR, *, make: bool) -> str:
        place = self.place(sr)
        if not Layout(place).is_marked():
            if not make:
                raise StorageError(Code.SRUnavailable, f"no such directory {place}")
            self._repository(place).create()
        return str(place)

    def attach(self, sr: api.SR, handle: str) -> Repository:
        files = self._repository(Path(handle))
        files.attach()
        return DiskRepository(files)

    def destroy(self, sr: api.SR) -> None:
        place = self.place(sr)
        if Layout(place).is_marked():
            self._repository(place).destroy()

    def _repository(self, place: Path) -> FileRepository:
        return FileRepository(place, clock=self.clock)


class RemoteDriver(DirectoryDriver):
    """SRs on a server or on disks of a storage network, of which this host reaches none: they can only be declared.

    `needed` are the keys without which a device_config is refused, each with the error; `unreachable` is what a driver
    says that finds nothing.
    """

    needed: tuple[tuple[str, Code], ...] = ()
    unreachable: Code

    def create(self, sr: api.SR, surroundings: api.Surroundings) -> None:
        missing = (code for key, code in self.needed if not sr.device_config.get(key))
        raise StorageError(next(missing, self.unreachable), "")
