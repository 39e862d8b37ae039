"""The repositories that are attached to a host, found by their handles."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, Protocol, TypeVar

from hypervisor.api import VolumeHandle
from hypervisor.disks.disk import Disk
from hypervisor.storage.errors import Code, StorageError


class Opens(Protocol):
    """What domains need of a repository. Any thread may call; raises StorageError."""

    def open(self, location: str, *, read_only: bool) -> Disk:
        """Open a volume as a disk."""

    def file(self, location: str) -> Path:
        """Return where a saved domain of this name lies, or is to be written."""


class Volumes(Protocol):
    """What domains need of all that is attached. Any thread may call; raises StorageError."""

    def open(self, volume: VolumeHandle, *, read_only: bool) -> Disk:
        """Open a volume as a disk."""


T = TypeVar("T", bound=Opens)


class Repositories(Generic[T]):
    """What is attached. Any thread may call."""

    def __init__(self) -> None:
        self._attached: dict[str, T] = {}

    def __contains__(self, handle: str) -> bool:
        return handle in self._attached

    def attach(self, handle: str, repository: T) -> None:
        """Have a repository found by a handle."""
        self._attached[handle] = repository

    def detach(self, handle: str) -> None:
        """Have it found no more; harmless when it is not attached."""
        self._attached.pop(handle, None)

    def at(self, handle: str) -> T:
        """Return a repository. Raises StorageError when it is not attached."""
        repository = self._attached.get(handle)
        if repository is None:
            raise StorageError(Code.SRUnavailable, f"{handle} is not attached")
        return repository

    def open(self, volume: VolumeHandle, *, read_only: bool) -> Disk:
        """Open a volume as a disk. Raises StorageError."""
        return self.at(volume.repository).open(volume.location, read_only=read_only)

    def file(self, image: VolumeHandle) -> Path:
        """Return where a saved domain lies, or is to be written. Raises StorageError."""
        return self.at(image.repository).file(image.location)
