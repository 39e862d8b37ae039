"""A repository of CD images: XenAPI's SR of type iso. The files are the user's; nothing is ever written."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path
from uuid import UUID, uuid5

from hypervisor.api import Description, Space, Volume
from hypervisor.disks import raw
from hypervisor.disks.disk import SECTOR
from hypervisor.storage.attachment import Chain, OpenVolume
from hypervisor.storage.errors import Code, StorageError, failing
from hypervisor.storage.volume import Users

_NAME = re.compile(r"(?:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})|.+)\.(?:iso|img)", re.IGNORECASE | re.DOTALL)


class IsoRepository:
    """The *.iso and *.img files of one directory as read-only volumes. All methods raise StorageError.

    A file that is named by a uuid has that one, as in XCP; any other file's comes from the repository's uuid and its
    name, so it is the same after any scan. Any thread may call.
    """

    def __init__(self, path: Path, uuid: UUID) -> None:
        self.path = path.absolute()
        self.uuid = uuid
        self._lock = threading.Lock()
        self._attached = False
        self._handles: set[OpenVolume] = set()

    def attach(self) -> None:
        """Look whether the directory is there."""
        self._list()
        with self._lock:
            self._attached = True

    def detach(self) -> None:
        """Let go; refused while a CD is open."""
        with self._lock:
            if self._handles:
                raise StorageError(Code.SRInUse, f"{self.path}: a CD is in use")
            self._attached = False

    def scan(self) -> list[Volume]:
        """Return what there is now."""
        self._refuse_detached()
        return self._list()

    def space(self) -> Space:
        """Return the file system's size and use."""
        self._refuse_detached()
        with failing(Code.EIO, self.path):
            status = os.statvfs(self.path)
        size = status.f_blocks * status.f_frsize
        return Space(size, size - status.f_bavail * status.f_frsize)

    def volume(self, location: str) -> Volume:
        """Return a CD as it is now."""
        self._refuse_detached()
        volume = None if "/" in location or "\0" in location else self._volume(location)
        if volume is None:
            raise StorageError(Code.VDIUnavailable, f"{self.path} has no CD {location!r}")
        return volume

    def users(self, location: str) -> Users:
        """Return how many have a CD open."""
        with self._lock:
            return Users(sum(handle.uuid == location for handle in self._handles), 0)

    def open(self, location: str, *, read_only: bool = True) -> OpenVolume:
        """Open a CD as a disk."""
        self.volume(location)
        if not read_only:
            raise StorageError(Code.VDIUnavailable, f"{location} is a CD: only to be read")
        path = self.path / location
        with failing(Code.VDILoad, path):
            chain = Chain(raw.open(path, read_only=True))
            handle = OpenVolume(location, chain, read_only=True, released=self._release)
        with self._lock:
            self._handles.add(handle)
        return handle

    def _release(self, handle: OpenVolume) -> None:
        with self._lock:
            self._handles.discard(handle)
        handle.chain.disk.close()

    def _refuse_detached(self) -> None:
        if not self._attached:
            raise StorageError(Code.SRUnavailable, f"{self.path} is not attached")

    def _list(self) -> list[Volume]:
        try:
            names = sorted(os.listdir(self.path))
        except OSError as error:
            raise StorageError(Code.ISOLocalPath, str(error)) from error
        volumes = [volume for volume in map(self._volume, names) if volume is not None]
        found = {volume.uuid: volume for volume in reversed(volumes)}  # of two with one uuid, the first
        return list(found.values())[::-1]

    def _volume(self, name: str) -> Volume | None:
        """Return a file as a volume; None for what is no image, has no text for a name, or went meanwhile."""
        match = _NAME.fullmatch(name)
        try:
            name.encode()
            status = os.stat(self.path / name)
        except (OSError, UnicodeEncodeError):
            return None
        if match is None or not stat.S_ISREG(status.st_mode) or status.st_size < SECTOR:
            return None
        uuid = match[1].lower() if match[1] else str(uuid5(self.uuid, name))
        size = status.st_size // SECTOR * SECTOR
        description = Description(name, type="user", read_only=True, sharable=True)
        return Volume(uuid, name, "raw", size, status.st_blocks * 512, description=description)
