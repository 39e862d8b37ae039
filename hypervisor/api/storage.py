"""Storage: types of SRs, repositories, which are SRs attached to a host, and their volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class VolumeHandle:
    """Names a volume to the host that has said both: the handle of a repository, and a location in it."""

    repository: str
    location: str


@dataclass(frozen=True, slots=True)
class StorageType:
    """What the driver of a type of SR says of it; names of features are those of XenAPI's SM.features."""

    type: str
    name: str
    description: str
    features: Mapping[str, int]
    """What can be asked of SRs of this type, each with its version."""
    device_config: tuple[str, ...] = ()
    """The keys that the driver looks at."""
    image_formats: tuple[str, ...] = ()
    creatable: bool = True
    """Whether SRs can be made; if not, they can be declared by an inventory all the same."""
    content_type: str = "user"
    """That of an SR for which nobody says another."""
    named: bool = False
    """Whether volumes are known by names of users' making, not by uuids."""
    local: Mapping[str, str] | None = None
    """The device_config of the SR that a host is installed with, None for a type that this cannot be."""


@dataclass(frozen=True, slots=True)
class SR:
    """A storage repository as the rows of an SR and of its PBD on the host tell of it."""

    type: str
    uuid: str
    device_config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a host has besides an SR that is to be made: disks, by their paths, and other SRs' device_configs."""

    disks: tuple[str, ...] = ()
    device_configs: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """What users say of a volume, kept beside it; the fields are those of XenAPI's VDI, but for uuids."""

    name_label: str = ""
    name_description: str = ""
    type: str = "user"
    is_a_snapshot: bool = False
    snapshot_of: str = ""
    snapshot_time: str = ""
    read_only: bool = False
    sharable: bool = False


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume to be made, of at least `size` bytes; the driver rounds, and obeys what it knows of sm_config."""

    uuid: str
    size: int
    description: Description = Description()
    sm_config: Mapping[str, str] = field(default_factory=dict)
    location: str = ""
    """What it is known by in its repository; "" leaves that to the driver."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What a CD holds, by names of the form README.TXT."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it is now; sizes are in bytes.

    `location` is what its repository knows it by. `format` is ``raw`` or ``vhd``; `parent` is the location of the
    volume under it, "" for none. A hidden one is there for its children alone.
    """

    uuid: str
    location: str
    format: str
    virtual_size: int
    physical_utilisation: int
    parent: str = ""
    hidden: bool = False
    description: Description = Description()


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of what is below a repository, and those used or not to be had there."""

    physical_size: int
    physical_utilisation: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A whole repository: its volumes, and why others in it cannot be used, by location."""

    volumes: tuple[Volume, ...]
    damaged: Mapping[str, str]
    space: Space | None


@dataclass(frozen=True, slots=True)
class Effect:
    """What a request has done: volumes that are new or other than before, the wanted one first; those that are gone."""

    volumes: tuple[Volume, ...] = ()
    gone: tuple[str, ...] = ()
    space: Space | None = None


class Storage(Protocol):
    """Repositories on a host. Raises StorageFailure.

    The host hands out a handle for each that is attached; with a location that names a volume. Neither says where
    anything lies. What an SR's type cannot do is refused by the number for Unimplemented, 38. A request that is
    cancelled is carried out all the same, but for copies, which leave nothing then.
    """

    # Repositories

    async def create(self, sr: SR, surroundings: Surroundings) -> None:
        """Make an SR where its device_config says."""

    async def attach(self, sr: SR, *, make: bool) -> str:
        """Take an SR into use, harmless when it is; return its handle. With `make` it need not be there."""

    async def detach(self, repository: str) -> None:
        """Let go of a repository, in which nothing may be in use."""

    async def destroy(self, sr: SR) -> None:
        """Erase an SR without volumes, harmless when it is not there. Files that are a user's stay."""

    async def scan(self, repository: str) -> Contents:
        """Look at all that there is."""

    async def space(self, repository: str) -> Space | None:
        """Return how large a repository is, and how full; None for one that cannot tell."""

    # Volumes

    async def volume(self, volume: VolumeHandle) -> Volume:
        """Look at one volume, also one that was put there just now."""

    async def make(self, repository: str, new: NewVolume) -> Effect:
        """Make an empty volume."""

    async def provide(self, repository: str, declared: NewVolume) -> Effect:
        """Find a volume that an inventory has declared, or make it.

        Raises the number for VDIUnavailable, 46, where a volume that is not there is lost.
        """

    async def delete(self, volume: VolumeHandle) -> Effect:
        """Remove a volume, and what was hidden for its sake alone."""

    async def resize(self, volume: VolumeHandle, size: int) -> Effect:
        """Make a volume larger, also while it is in use."""

    async def describe(self, volume: VolumeHandle, description: Description) -> None:
        """Change a volume's description."""

    async def checksum(self, volume: VolumeHandle) -> str:
        """Return the MD5 of a volume's contents, in hexadecimal digits."""

    # Copies of all kinds

    async def snapshot(self, volume: VolumeHandle, new: str, description: Description) -> Effect:
        """Keep what a volume holds as a new one, in no time; the volume may be in use. `new` is its uuid."""

    async def clone(self, volume: VolumeHandle, new: str, description: Description) -> Effect:
        """Make a new volume that holds what another does, in no time. `new` is its uuid."""

    async def copy(
        self, volume: VolumeHandle, repository: str, new: NewVolume, progress: Callable[[float], None]
    ) -> Effect:
        """Write all that a volume holds into a new one, as large at least, which is there when it is whole."""

    async def copy_into(self, volume: VolumeHandle, other: VolumeHandle, progress: Callable[[float], None]) -> Effect:
        """Write all that a volume holds over another, at least as large."""

    async def freeze(self, volume: VolumeHandle) -> Effect:
        """Make what a volume holds that to which `reset` goes back."""

    async def reset(self, volume: VolumeHandle) -> Effect:
        """Drop what was written to a volume since it was frozen."""
