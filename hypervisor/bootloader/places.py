"""The disks, discs and partitions that a boot configuration can name, and the files on them.

Names are GRUB's: ``hd0``, ``hd0,msdos1``, ``hd1,gpt2``, ``cd0``; a partition may come without its table's name,
``hd0,1``. Disks are counted in the order in which they were given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hypervisor.bootloader import tree
from hypervisor.bootloader.errors import BootError, one_line
from hypervisor.bootloader.filesystems import open_volume
from hypervisor.bootloader.partitions import Partition, partitions
from hypervisor.bootloader.tree import Content, FileSystem
from hypervisor.bootloader.volume import Budget, Volume
from hypervisor.disks.disk import Disk

_DEVICE = re.compile(r"(hd|cd)(\d{0,4})(?:,(?:(?:msdos|gpt)?(\d{1,4})))?")
CONFIGURATION_LIMIT = 512 << 10
"""Most bytes of a configuration file: Debian's with twenty kernels has 50 KiB."""


@dataclass(slots=True)
class Place:
    """A partition, or a disk or disc as a whole (`partition` None), with its file system if it has one."""

    drive: str
    volume: Volume
    partition: Partition | None = None
    _files: FileSystem | None = field(default=None, repr=False)
    _problem: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """GRUB's name, such as ``hd0,gpt1``."""
        return f"{self.drive},{self.partition.kind}{self.partition.number}" if self.partition else self.drive

    @property
    def title(self) -> str:
        """What people call it."""
        device = f"{'disk' if self.drive.startswith('hd') else 'CD'} {self.drive[2:]}"
        return f"{device} partition {self.partition.number}" if self.partition else device

    @property
    def files(self) -> FileSystem:
        """The file system, opened once. Raises BootError."""
        if self._files is None:
            if not self._problem:
                try:
                    self._files = open_volume(self.volume)
                    return self._files
                except BootError as error:
                    self._problem = str(error)
                    self.volume.budget.step()
            raise BootError(self._problem)
        return self._files

    def read(self, path: str) -> str:
        """Return a configuration file. Raises BootError."""
        content = tree.read(self.files, path, CONFIGURATION_LIMIT)
        self.volume.budget.step(len(content) // 4)  # for those who take it apart
        return bytes(content).decode("utf-8", "replace").replace("\r\n", "\n")

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, [] for none."""
        try:
            return tree.names(self.files, path)
        except BootError:
            self.volume.budget.step()
            return []

    def kind(self, path: str) -> tree.Kind | None:
        """Return what is at a path, None for nothing."""
        try:
            return tree.kind(self.files, path)
        except BootError:
            self.volume.budget.step()
            return None


@dataclass(frozen=True, slots=True)
class File:
    """A file by where it is; it is read when it is wanted."""

    place: Place
    path: str

    @property
    def title(self) -> str:
        return f"{one_line(self.path, 100)} on {self.place.title}"

    def read(self, limit: int) -> Content:
        """Return its bytes. Raises BootError."""
        try:
            return tree.read(self.place.files, self.path, limit)
        except BootError as error:
            raise BootError(f"{self.title}: {error}") from None


class Places:
    """All places, in the order of the disks."""

    def __init__(self, disks: Sequence[Disk], discs: Sequence[Disk], budget: Budget) -> None:
        self.budget = budget
        self._drives: dict[str, list[Place]] = {}
        self.problems: dict[str, str] = {}
        for kind, drives in (("hd", disks), ("cd", discs)):
            for number, disk in enumerate(drives):
                name = f"{kind}{number}"
                self._drives[name] = self._of(name, Volume(disk, budget))

    def _of(self, drive: str, volume: Volume) -> list[Place]:
        whole = Place(drive, volume)
        try:
            return [whole, *(Place(drive, found.volume, found) for found in partitions(volume))]
        except BootError as error:
            self.problems[drive] = str(error)
            self.budget.step()
            return [whole]

    def on(self, drive: str) -> list[Place]:
        """Return where a drive may have files: its partitions, active ones first, then the whole of it.

        A disc's own file system comes first, for the table of one that also starts from USB points into it.
        """
        whole, *parts = self._drives.get(drive, [])
        parts.sort(key=lambda place: not (place.partition and place.partition.active))
        return [whole, *parts] if drive.startswith("cd") else [*parts, whole]

    def all(self) -> Iterator[Place]:
        """Yield all places."""
        for places in self._drives.values():
            self.budget.step()
            yield from places

    def named(self, name: str) -> Place:
        """Return the place of one of GRUB's names, without parentheses. Raises BootError."""
        match = _DEVICE.fullmatch(name)
        number = int(match[3]) if match and match[3] else None
        for place in self._drives.get(f"{match[1]}{int(match[2] or 0)}", []) if match else []:
            if number == (place.partition.number if place.partition else None):
                return place
        raise BootError(f"there is no device ({one_line(name, 60)})")

    def search(self, by: str, wanted: str) -> Place | None:
        """Return the first place with a file system of a ``uuid`` or ``label``, or with a ``file``."""
        for place in self.all():
            try:
                files = place.files
            except BootError:
                self.budget.step()
                continue
            if by == "file":
                if place.kind(wanted) is not None:
                    return place
            elif by == "label":
                if files.label == wanted:
                    return place
            elif files.uuid.lower() == wanted.lower():
                return place
        return None
