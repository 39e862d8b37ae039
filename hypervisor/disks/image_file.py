"""A file of the host that holds an image: positioned I/O, holes, locks; every failure is a DiskError.

Locks are flock(2)'s, which belong to the open file: an image open for writing shuts out every other opener, one
open for reading (a parent of several children, say) only writers. The kernel drops them when the process dies.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hypervisor.disks.disk import ZEROS, DiskError, Kind
from hypervisor.disks.room import room_of

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE, as fallocate(2) demands
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)

_KINDS = {
    errno.ENOSPC: Kind.NO_SPACE,
    errno.EDQUOT: Kind.NO_SPACE,
    errno.EFBIG: Kind.NO_SPACE,
    errno.EROFS: Kind.READ_ONLY,
    errno.EACCES: Kind.READ_ONLY,
    errno.EPERM: Kind.READ_ONLY,
    errno.ENOENT: Kind.NOT_FOUND,
    errno.ENOTDIR: Kind.NOT_FOUND,
    errno.EWOULDBLOCK: Kind.BUSY,
}


def failure(error: OSError, path: Path) -> DiskError:
    """Turn an error of the host into ours."""
    return DiskError(_KINDS.get(error.errno or 0, Kind.IO), f"{path}: {error.strerror}")


class ImageFile:
    """An open file or block device, locked."""

    def __init__(self, path: Path, fd: int, writable: bool) -> None:
        """Take over a descriptor; `open` and `create` are the ways to get one."""
        self.path = path
        self.writable = writable
        self._fd = fd
        self._failed = False  # see sync
        self._room = room_of(os.fstat(fd).st_dev) if writable else None
        self._punches = True  # until the file system says that it cannot

    @classmethod
    def open(cls, path: Path, *, writable: bool, lock: bool = True) -> ImageFile:
        """Open and lock; without `lock`, for a glance at an image that may be in use."""
        # Never wait on a FIFO, nor let a guest's image name a terminal that would become ours.
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        return cls._opened(path, flags, writable, lock)

    @classmethod
    def create(cls, path: Path) -> ImageFile:
        """Make a new empty file, locked for writing; an existing one is refused."""
        return cls._opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, True, True)

    @classmethod
    def _opened(cls, path: Path, flags: int, writable: bool, lock: bool) -> ImageFile:
        try:
            fd = os.open(path, flags, 0o644)
        except OSError as error:
            if not writable and error.errno in (errno.EACCES, errno.EPERM):
                raise DiskError(Kind.IO, f"{path}: may not be read: {error.strerror}") from error
            raise failure(error, path) from error
        try:
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise DiskError(Kind.REFUSED, f"{path}: neither a file nor a block device")
            if lock:
                fcntl.flock(fd, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError):
                raise failure(error, path) from error
            raise
        return cls(path, fd, writable)

    @property
    def identity(self) -> tuple[int, int]:
        """Return what is the same for two openings of one file."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    @property
    def fd(self) -> int:
        if self._fd < 0:
            raise DiskError(Kind.CLOSED, str(self.path))
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    @property
    def size(self) -> int:
        """Return the length in bytes, of devices too."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    @property
    def physical(self) -> int:
        """Return the bytes that the file occupies on the host."""
        return os.fstat(self.fd).st_blocks * 512

    @property
    def modified(self) -> int:
        """Return when the file last changed, in whole seconds of Unix time."""
        return int(os.fstat(self.fd).st_mtime)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes; the end of the file is an error, for the image said that there is more."""
        fd = self._fd if self._fd >= 0 else self.fd
        try:
            data = os.pread(fd, length, offset)
            while len(data) < length:
                more = os.pread(fd, length - len(data), offset + len(data))
                if not more:
                    raise DiskError(Kind.IO, f"{self.path}: ends inside {length} bytes at {offset}")
                data += more
        except OSError as error:
            raise failure(error, self.path) from error
        return data

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; the end of the file is an error."""
        fd = self.fd
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(fd, [buffer[done:] if done else buffer], offset + done)
                if not count:
                    raise DiskError(Kind.IO, f"{self.path}: ends inside {len(buffer)} bytes at {offset}")
                done += count
        except OSError as error:
            raise failure(error, self.path) from error

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`."""
        fd = self.fd
        if self._room is not None and not self._room.take(fd, len(data)) and not self._holds(offset, len(data)):
            raise DiskError(Kind.NO_SPACE, f"{self.path}: what is left is kept back")
        try:
            done = os.pwrite(fd, data, offset)
            while done < len(data):
                done += os.pwrite(fd, memoryview(data)[done:], offset + done)
        except OSError as error:
            raise failure(error, self.path) from error

    def _holds(self, offset: int, length: int) -> bool:
        """Tell whether a range has its place on the file system already."""
        return sum(count for _, count in self.extents(offset, offset + length)) == length

    def sync(self) -> None:
        """Make all writes durable. Once this failed it fails until the file is opened anew.

        The kernel forgets pages that it could not write, so a second fdatasync(2) would succeed over lost data.
        """
        if self._failed:
            raise DiskError(Kind.IO, f"{self.path}: an earlier flush failed")
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._failed = True
            raise failure(error, self.path) from error

    def truncate(self, size: int) -> None:
        """Cut or extend the file."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise failure(error, self.path) from error

    def zero(self, offset: int, length: int) -> None:
        """Make a range of the file read as zeros, giving its space back where the file system can."""
        if length <= 0:
            return
        if self._punches:
            if _libc.fallocate(self.fd, _PUNCH_HOLE, offset, length) == 0:
                return
            if ctypes.get_errno() not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise failure(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())), self.path)
            self._punches = False
        for at in range(offset, offset + length, len(ZEROS)):
            self.write(at, ZEROS[: min(len(ZEROS), offset + length - at)])

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the parts of a range that are not holes."""
        while start < end:
            try:
                start = os.lseek(self.fd, start, os.SEEK_DATA)
                stop = min(end, os.lseek(self.fd, start, os.SEEK_HOLE))
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    return
                if error.errno == errno.EINVAL:  # a device or file system that knows no holes
                    yield start, end - start
                    return
                raise failure(error, self.path) from error
            if stop <= start:  # a device that answers nonsense must not hold us here
                stop = end
            if start < stop:
                yield start, stop - start
            start = stop

    def freeze(self, path: Path) -> None:
        """Write no more, let others read: the file, now called `path`, has become the parent of others."""
        self.path, self.writable = path, False
        with suppress(OSError):  # from an exclusive lock to a shared one there is nothing to wait for
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def close(self) -> None:
        """Close, which drops the lock; closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the creation or renaming of files in a directory durable."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise failure(error, path) from error
