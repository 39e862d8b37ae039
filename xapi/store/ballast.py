"""A file beside the database that only takes room: let go of when the disk is full, so that what frees can be written.

Disk images leave some room to the database in any case (`hypervisor.disks.room`); all others on the host do not.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

SHARE = 8
"""The file takes at most this part of its file system. SQLite's log, of up to 4 MB, must fit into it: for a while what
it holds is in the database, too."""


class Ballast:
    """The file, of at most `size` bytes, which are really allocated while it is held."""

    def __init__(self, path: Path, size: int) -> None:
        status = os.statvfs(path.parent)
        self.path = path
        self.size = min(size, status.f_blocks * status.f_frsize // SHARE)
        self.held = False

    def take(self) -> bool:
        """Allocate the file if as much is free beside it; tell whether it is held. Raises OSError."""
        try:
            self.held = self._allocate()
        except OSError as error:
            self.release()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        return self.held

    def _allocate(self) -> bool:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            there = os.fstat(fd).st_blocks * 512
            status = os.fstatvfs(fd)
            if there < self.size and status.f_bavail * status.f_frsize < 2 * self.size - there:
                return False
            os.ftruncate(fd, self.size)
            os.posix_fallocate(fd, 0, self.size)
        finally:
            os.close(fd)
        return True

    def release(self) -> None:
        """Give its room to the file system."""
        self.held = False
        with suppress(OSError):
            os.truncate(self.path, 0)
