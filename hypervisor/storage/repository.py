"""A storage repository on the host's file system: XenAPI's SR of type ext or file, with volumes as sparse VHD files.

Any thread may call; requests about one volume wait for each other, others run side by side. Nothing here knows of
XenAPI's references, tasks or events.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from hypervisor.api import Description, Space, Volume
from hypervisor.disks import raw, snapshot, vhd
from hypervisor.disks.copying import Progress
from hypervisor.disks.disk import DiskError
from hypervisor.disks.image_file import ImageFile
from hypervisor.disks.room import room_of
from hypervisor.disks.vhd import Clock
from hypervisor.disks.vhd_image import VhdImage
from hypervisor.storage import branches
from hypervisor.storage.attachment import Chain, OpenVolume
from hypervisor.storage.catalogue import Catalogue, Record
from hypervisor.storage.errors import Code, StorageError, failing
from hypervisor.storage.layout import LOCK, MARKER, Found, Layout
from hypervisor.storage.volume import PLAIN, Format, Users, rounded


def _silent(done: int, total: int) -> None:
    """Report progress to nobody."""


class FileRepository:
    """Volumes in one directory. All methods raise StorageError, and block for file work and each other only."""

    def __init__(self, path: Path, *, clock: Clock) -> None:
        self.path = path.absolute()
        self.layout = Layout(self.path)
        self.catalogue = Catalogue(self.layout)
        self.clock = clock
        self._lock_fd = -1

    # -- the repository as a whole

    def create(self) -> None:
        """Make an empty repository; a directory that is there already may hold nothing but an empty repository."""
        with failing(Code.FileSRCreate, self.path):
            existed = self.path.is_dir()
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            if names := self.layout.foreign():
                raise StorageError(Code.SRExists, f"{self.path} holds {names[0]!r}")
            try:
                self.layout.mark()
            except BaseException:
                if not existed:
                    with suppress(OSError):
                        os.rmdir(self.path)
                raise

    def attach(self) -> None:
        """Take the repository for this process, put right what a crash left, and learn what there is."""
        with self.catalogue.lock, failing(Code.SRUnavailable, self.path):
            if self._lock_fd >= 0:
                return
            if not self.layout.is_marked():  # such as the mount point of a disk that is not mounted
                raise StorageError(Code.SRUnavailable, f"{self.path} is no storage repository")
            try:
                fd = self.layout.lock()
            except DiskError as error:
                raise StorageError(Code.SRInUse, f"{self.path} is attached by another") from error
            try:
                self.layout.recover()
                self.catalogue.learn()
            except BaseException:
                os.close(fd)
                raise
            self._lock_fd = fd

    def detach(self) -> None:
        """Let go of the repository; refused while a volume is open or a request at work."""
        with self.catalogue.lock:
            if self.catalogue.busy:
                raise StorageError(Code.SRInUse, f"{self.path}: a volume is in use")
            fd, self._lock_fd = self._lock_fd, -1
            self.catalogue.records.clear()
            if fd >= 0:
                os.close(fd)

    def destroy(self) -> None:
        """Remove a repository that has no volumes, and its directory if nothing else is in it; it is detached then."""
        with self.catalogue.lock, failing(Code.FileSRDelete, self.path):
            attached = self._lock_fd >= 0
            self.attach()
            self.catalogue.learn()
            if self.catalogue.records or self.catalogue.broken:
                if not attached:
                    self.detach()
                raise StorageError(Code.SRNotEmpty, f"{self.path} holds volumes")
            self.detach()
            for name in (MARKER, LOCK):
                (self.path / name).unlink(missing_ok=True)
            with suppress(OSError):  # a mount point, or with files of somebody else
                os.rmdir(self.path)

    def scan(self) -> list[Volume]:
        """Look at all files anew, and return all volumes that are whole, hidden ones, too; see `damaged`."""
        with self.catalogue.lock, failing(Code.EIO, self.path):
            self._attached()
            self.catalogue.learn(anew=True)
            return self.catalogue.volumes()

    def damaged(self) -> dict[str, str]:
        """Return why images cannot be used, by uuid, or by the name of a file that is none; `delete` removes one."""
        with self.catalogue.lock, failing(Code.EIO, self.path):
            return {**dict.fromkeys(self.layout.strays(), "its name is no uuid"), **self.catalogue.broken}

    def space(self) -> Space:
        """Return the file system's size, and what of it is not to be had."""
        with self.catalogue.lock, failing(Code.EIO, self.path):
            self._attached()
            status = os.statvfs(self.path)
            size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
            room = room_of(os.stat(self.path).st_dev)
            return Space(size, size - (free if room is None else room.free(status)))

    def _attached(self) -> None:
        if self._lock_fd < 0:
            raise StorageError(Code.SRUnavailable, f"{self.path} is not attached")

    # -- what a volume is

    def volume(self, uuid: str) -> Volume:
        """Return a volume as it is now."""
        with self.catalogue.lock:
            self._attached()
            return self.catalogue.volume(self.catalogue.get(uuid))

    def image(self, uuid: str) -> Path:
        """Return a volume's file. A snapshot changes what it holds: prefer `open` to the file."""
        with self.catalogue.lock:
            self._attached()
            return self.layout.image(uuid, self.catalogue.get(uuid).found.format)

    def file(self, uuid: str) -> Path:
        """Return where a saved domain lies as a raw volume, or is to be written; it is one when it is looked at."""
        return self.layout.image(uuid, Format.RAW)

    def users(self, uuid: str) -> Users:
        """Return how many have a volume open."""
        with self.catalogue.lock:
            handles = self.catalogue.get(uuid).handles
            readers = sum(handle.read_only for handle in handles)
            return Users(readers, len(handles) - readers)

    def describe(self, uuid: str, description: Description) -> Volume:
        """Change the description of a visible volume."""
        with self.claimed(uuid) as record, failing(Code.InvalidArg, self.path):
            self.catalogue.visible(uuid)
            before = record.description
            if record.shared and (description.sharable, description.read_only) != (before.sharable, before.read_only):
                raise StorageError(Code.VDIInUse, f"volume {uuid} is open for writing")
            self.layout.describe(uuid, description)
            self.layout.sync()
            record.description = description
        return self.volume(uuid)

    def introduce(self, uuid: str) -> Volume:
        """Return a volume whose file was put here, perhaps just now."""
        with self.catalogue.lock, failing(Code.EIO, self.path):
            self._attached()
            self.catalogue.learn()
            self.catalogue.visible(uuid)
        return self.volume(uuid)

    @contextmanager
    def claimed(self, uuid: str) -> Iterator[Record]:
        """Keep other requests about a volume waiting; it must exist."""
        with self.catalogue.claim(uuid):
            with self.catalogue.lock:
                self._attached()
                record = self.catalogue.get(uuid)
            branches.take_back(self, record)
            yield record

    # -- making and removing

    def create_volume(
        self, size: int, description: Description = PLAIN, *, format: Format = Format.VHD, uuid: str | None = None
    ) -> Volume:
        """Make an empty sparse volume of `size` bytes, rounded up to 2 MiB, or to whole sectors if raw."""
        found = Found(str(uuid4()) if uuid is None else uuid, format, rounded(size, format), None, False)
        self.reserve(found, description)
        with self.making(found, Code.VDICreate) as path:
            self.make_image(found, path)
        return self.volume(found.uuid)

    def reserve(self, found: Found, description: Description) -> None:
        """Announce a volume that `making` then makes."""
        with self.catalogue.lock:
            self._attached()
            self.catalogue.reserve(found, description)

    @contextmanager
    def making(self, found: Found, code: Code) -> Iterator[Path]:
        """Yield the name under which a reserved volume's image is to be made; then it becomes the volume."""
        path = self.layout.image(found.uuid, found.format)
        try:
            with failing(code, path):
                yield snapshot.unfinished(path)
                self.layout.describe(found.uuid, self.catalogue.records[found.uuid].description)
                os.rename(snapshot.unfinished(path), path)
                self.layout.sync()
        except BaseException:
            for left in (snapshot.unfinished(path), path):
                with suppress(OSError):
                    left.unlink(missing_ok=True)
            self.forget_description(found.uuid)
            self.catalogue.cancel(found.uuid)
            raise
        self.catalogue.settle(found.uuid)

    def make_image(self, found: Found, path: Path) -> None:
        """Make an empty image, over its parent if it has one."""
        if found.format is Format.RAW:
            raw.create(path, found.size).close()
            return
        parent = self.layout.image(found.parent, Format.VHD) if found.parent else None
        vhd.create(path, found.size, parent, clock=self.clock)

    def forget_description(self, uuid: str) -> None:
        """Remove the description of a volume that is not, or no more; if that fails, `attach` will."""
        with suppress(OSError):
            self.layout.forget_description(uuid)

    def delete(self, uuid: str) -> None:
        """Remove a volume that is not open, and its hidden parents that nothing needs any more."""
        with self.catalogue.claim(uuid), failing(Code.VDIDelete, self.path):
            with self.catalogue.lock:
                self._attached()
                if uuid not in self.catalogue.records:  # put here just now, perhaps
                    self.catalogue.learn()
                if uuid in self.catalogue.broken:
                    self._delete_broken(uuid)
                    return
                record = self.catalogue.visible(uuid)
                _refuse_users(record)
                branches.take_back(self, record)
                path = self.layout.image(uuid, record.found.format)
                if self.catalogue.needed(uuid):
                    _hide(path)
                    record.found = replace(record.found, hidden=True)
                else:
                    path.unlink(missing_ok=True)
                    del self.catalogue.records[uuid]
                self.forget_description(uuid)
                self.catalogue.collect(record.found.parent)
            self.layout.sync()

    def _delete_broken(self, uuid: str) -> None:
        for format in (Format.VHD, Format.RAW):
            self.layout.image(uuid, format).unlink(missing_ok=True)
        self.forget_description(uuid)
        self.layout.sync()
        self.catalogue.learn()

    def resize(self, uuid: str, size: int) -> Volume:
        """Grow a volume, also while it is open for writing: then tell its device (`BlockDevice.resized`)."""
        with self.claimed(uuid) as record:
            found = self.catalogue.changeable(uuid).found
            size = rounded(size, found.format)
            path = self.layout.image(uuid, found.format)
            if size < found.size:
                raise StorageError(Code.VDISize, f"volume {uuid} cannot shrink from {found.size} to {size} bytes")
            with failing(Code.VDIResize, path):
                if record.shared is not None:
                    with record.shared.lock:
                        record.shared.disk.resize(size)
                else:
                    _refuse_users(record)
                    _grow(path, found.format, size)
            record.found = replace(found, size=size)
        return self.volume(uuid)

    # -- opening

    def open(self, uuid: str, *, read_only: bool = False) -> OpenVolume:
        """Open a volume as a disk. One writer shuts out all others, unless the volume is sharable."""
        with self.claimed(uuid) as record:
            self._refuse_opening(record, read_only)
            path, sharable = self.layout.image(uuid, record.found.format), record.description.sharable
            writable = not read_only or (sharable and not record.found.hidden and not record.description.read_only)
            chain = record.shared
            if chain is None:
                with failing(Code.VDILoad, path):
                    if record.found.format is Format.RAW:
                        chain = Chain(raw.open(path, read_only=not writable))
                    else:
                        chain = Chain(vhd.open(path, read_only=not writable))
            handle = OpenVolume(uuid, chain, read_only=read_only, released=self._release)
            with self.catalogue.lock:
                record.handles.add(handle)
                if writable:
                    record.shared = chain
            return handle

    def _refuse_opening(self, record: Record, read_only: bool) -> None:
        uuid, sharable = record.found.uuid, record.description.sharable
        if not read_only:
            self.catalogue.changeable(uuid)
            if record.description.read_only:
                raise StorageError(Code.VDIUnavailable, f"volume {uuid} is only to be read")
        if not sharable and (record.shared is not None or (record.handles and not read_only)):
            raise StorageError(Code.VDIInUse, f"volume {uuid} is open")

    def _release(self, handle: OpenVolume) -> None:
        """Close the chain of a handle if no other uses it."""
        with self.catalogue.claim(handle.uuid):
            with self.catalogue.lock:
                record = self.catalogue.records[handle.uuid]
                record.handles.discard(handle)
                last = all(one.chain is not handle.chain for one in record.handles)
                if last and record.shared is handle.chain:
                    record.shared = None
            if last:
                handle.chain.disk.close()

    # -- copies of all kinds

    def snapshot(self, uuid: str, description: Description | None = None, *, new: str | None = None) -> Volume:
        """Keep what a VHD volume holds now as a new one, in no time and space; the volume may be in use.

        `description` is by default the volume's, as a snapshot of it. Who has the volume open need do nothing.
        """
        default = replace(self.volume(uuid).description, is_a_snapshot=True, snapshot_of=uuid, read_only=False)
        return branches.branch(self, uuid, new, description or default, Code.VDISnapshot)

    def clone(self, uuid: str, description: Description | None = None, *, new: str | None = None) -> Volume:
        """Make a new volume that holds what this one does now; as `snapshot`, but for the default description."""
        default = replace(
            self.volume(uuid).description, is_a_snapshot=False, snapshot_of="", snapshot_time="", read_only=False
        )
        return branches.branch(self, uuid, new, description or default, Code.VDIClone)

    def freeze(self, uuid: str) -> Volume:
        """Make what a VHD volume holds now that to which `reset` goes back (on_boot=reset)."""
        return branches.freeze(self, uuid)

    def reset(self, uuid: str) -> Volume:
        """Drop all that was written since the last freeze, snapshot or clone; refused while the volume is open."""
        return branches.reset(self, uuid)

    def copy(
        self,
        uuid: str,
        target: FileRepository,
        description: Description | None = None,
        *,
        format: Format = Format.VHD,
        new: str | None = None,
        progress: Progress = _silent,
    ) -> Volume:
        """Copy a volume, with its parents' content, to a new one that has no parent; sparse parts stay so.

        What `progress` raises ends the copy, which then leaves nothing, and reaches the caller.
        """
        default = replace(self.volume(uuid).description, is_a_snapshot=False, snapshot_of="", read_only=False)
        return branches.copy(self, uuid, target, new, description or default, format, progress)


def _refuse_users(record: Record) -> None:
    if record.handles:
        raise StorageError(Code.VDIInUse, f"volume {record.found.uuid} is open")


def _grow(path: Path, format: Format, size: int) -> None:
    """Make the disk in a file larger."""
    if format is Format.RAW:
        disk = raw.open(path)
        try:
            disk.resize(size)
        finally:
            disk.close()
        return
    image = snapshot.open_leaf(path)
    try:
        image.grow(size)
    finally:
        image.file.close()


def _hide(path: Path) -> None:
    """Mark an image as hidden; its children may have it open."""
    image = VhdImage(ImageFile.open(path, writable=True, lock=False))
    try:
        snapshot.set_hidden(image, True)
    finally:
        image.file.close()
