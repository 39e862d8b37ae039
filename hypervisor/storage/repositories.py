"""The repositories that are attached to a host, found by their paths."""

from __future__ import annotations

import threading
from pathlib import Path

from hypervisor.storage.attachment import OpenVolume
from hypervisor.storage.errors import Code, StorageError
from hypervisor.storage.iso import IsoRepository
from hypervisor.storage.repository import FileRepository

Repository = FileRepository | IsoRepository


class Repositories:
    """What is attached. Any thread may call."""

    def __init__(self) -> None:
        self._attached: dict[Path, Repository] = {}
        self._lock = threading.Lock()

    def attach(self, repository: Repository) -> None:
        """Attach a repository; harmless when it is. Raises StorageError."""
        repository.attach()
        with self._lock:
            self._attached[repository.path] = repository

    def detach(self, path: Path) -> None:
        """Let go of a repository; harmless when it is not attached. Raises StorageError."""
        repository = self._attached.get(path)
        if repository is not None:
            repository.detach()
            with self._lock:
                self._attached.pop(path, None)

    def at(self, path: Path) -> Repository:
        """Return the repository of a directory. Raises StorageError when it is not attached."""
        repository = self._attached.get(path)
        if repository is None:
            raise StorageError(Code.SRUnavailable, f"{path} is not attached")
        return repository

    def open(self, path: Path, *, read_only: bool) -> OpenVolume | None:
        """Open the volume that is kept at a path; None if the path is in no repository. Raises StorageError."""
        repository = self._attached.get(path.parent)
        if repository is None:
            return None
        if isinstance(repository, FileRepository):  # files are named by the volumes' uuids
            return repository.open(path.stem, read_only=read_only)
        uuid = next((one.uuid for one in repository.scan() if one.location == path.name), None)
        if uuid is None:
            raise StorageError(Code.VDIUnavailable, f"there is no CD {path}")
        return repository.open(uuid, read_only=read_only)
