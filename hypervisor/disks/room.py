"""Room that is kept back on the host's file systems: disks meet "no space" before those do that all depends on.

A guest may fill a disk, and thin disks fill the file system. Who must be able to write there at any time, such as the
toolstack its database, has some of it kept back (`keep_back`): images take room only down to that. Writing over what
an image holds already takes none and always goes on. Cost: 200 ns a write; a statvfs(2), some 20 us, whenever a part of
the room is used up, hence at each write only when next to nothing is left.
"""

from __future__ import annotations

import os
from pathlib import Path

_SHARE = 8
"""What is kept back is at most this part of a file system."""
_PART = 4
"""Between two looks at the file system at most this part of what is kept back may be written."""
_kept: dict[int, Room] = {}
"""By device, as stat(2) numbers them: a fact of the machine, like its file systems."""


class Room:
    """What may be taken of one file system."""

    def __init__(self, kept: int) -> None:
        self._wanted = kept
        self._budget = 0

    def take(self, fd: int, count: int) -> bool:
        """Tell whether an open file may take so many bytes. Of threads at once, each may take what is left."""
        budget = self._budget - count
        if budget < 0:
            budget = self._look(os.fstatvfs(fd)) - count
        self._budget = max(0, budget)
        return budget >= 0

    def _look(self, status: os.statvfs_result) -> int:
        """Return what may be written before the next look."""
        free = self.free(status)
        return max(min(free // 2, self._kept(status) // _PART), min(free, 1 << 20))

    def _kept(self, status: os.statvfs_result) -> int:
        return min(self._wanted, status.f_blocks * status.f_frsize // _SHARE)

    def free(self, status: os.statvfs_result) -> int:
        """Return the bytes that images may still take."""
        return max(0, status.f_bavail * status.f_frsize - self._kept(status))


def keep_back(path: Path, count: int) -> None:
    """Keep so many bytes back, at most an eighth, on the file system of a path; 0 ends that."""
    device = os.stat(path).st_dev
    _kept.pop(device, None)
    if count:
        _kept[device] = Room(count)


def room_of(device: int) -> Room | None:
    """Return the room of a file system of which something is kept back, by its device number."""
    return _kept.get(device)
