"""What the host kernel knows of pages: which of a private mapping are its own, and which were written lately.

Both are asked with PAGEMAP_SCAN (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst), which skips what is not
there and so costs little for sparse memory. Writes are logged by write-protecting pages with userfaultfd in its
asynchronous mode (Documentation/admin-guide/mm/userfaultfd.rst): the kernel lifts the protection at the first
write by itself, whoever writes, translated guest code, a backend or a system call; nobody is stopped.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

_WRITTEN, _FILE, _PRESENT, _SWAPPED = 1 << 1, 1 << 2, 1 << 3, 1 << 4
"""PAGE_IS_* of include/uapi/linux/fs.h."""
_PROTECT, _CHECK = 1, 2
"""PM_SCAN_WP_MATCHING, PM_SCAN_CHECK_WPASYNC."""
_SCAN = struct.Struct("<12Q")
_VECTOR = 1024
"""Ranges that one call returns at most."""

_SYS_USERFAULTFD, _USER_MODE_ONLY = 323, 1
_UFFD_API, _WP_SHMEM, _WP_UNPOPULATED, _WP_ASYNC = 0xAA, 1 << 12, 1 << 13, 1 << 15
_MODE_WP = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _iowr(kind: int, number: int, size: int) -> int:
    """Return _IOWR of asm-generic/ioctl.h."""
    return 3 << 30 | size << 16 | kind << 8 | number


_PAGEMAP_SCAN = _iowr(ord("f"), 16, _SCAN.size)
_UFFDIO_API, _UFFDIO_REGISTER = _iowr(_UFFD_API, 0x3F, 24), _iowr(_UFFD_API, 0, 32)


def _scan(address: int, length: int, flags: int, categories: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
    """Yield offsets of the start and end of ranges whose pages match (inverted, all of, any of). Raises OSError."""
    inverted, mask, anyof = categories
    vector = (ctypes.c_uint64 * (3 * _VECTOR))()
    at, end = address, address + length
    file = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while at < end:
            asked = _SCAN.pack(
                *(_SCAN.size, flags, at, end, 0, ctypes.addressof(vector), _VECTOR, 0), *(inverted, mask, anyof, mask)
            )
            argument = bytearray(asked)
            found = fcntl.ioctl(file, _PAGEMAP_SCAN, argument)
            ranges = [(vector[3 * number] - address, vector[3 * number + 1] - address) for number in range(found)]
            at = max(_SCAN.unpack(argument)[4], at + mmap.PAGESIZE)
            yield from ranges
    finally:
        os.close(file)


def own_pages(address: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield offsets of ranges that a private file mapping has copied, so that they are no longer the file's.

    Raises OSError where the kernel cannot tell.
    """
    return _scan(address, length, 0, (_FILE, _FILE, _PRESENT | _SWAPPED))


class WriteLog:
    """A log of the pages written in a mapping of this process. Raises OSError where the kernel has none."""

    def __init__(self, address: int, length: int) -> None:
        self._address, self._length = address, length
        self._file = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
        if self._file < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"userfaultfd: {os.strerror(code)}")
        try:
            wanted = _WP_ASYNC | _WP_UNPOPULATED | _WP_SHMEM
            fcntl.ioctl(self._file, _UFFDIO_API, bytearray(struct.pack("<3Q", _UFFD_API, wanted, 0)))
            self.register()
        except OSError:
            self.close()
            raise

    def register(self) -> None:
        """Log the mapping, also the parts of it that were mapped anew."""
        fcntl.ioctl(
            self._file, _UFFDIO_REGISTER, bytearray(struct.pack("<4Q", self._address, self._length, _MODE_WP, 0))
        )

    def take(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the written ranges in an offset range since it was last asked for, all of it at first.

        A write that comes while this runs is in this answer or in the next. Raises OSError, and then nothing is
        known of the range: a part of it was mapped anew.
        """
        found = _scan(self._address + start, end - start, _PROTECT | _CHECK, (0, _WRITTEN, 0))
        return [(low + start, high + start) for low, high in found]

    def close(self) -> None:
        """End the log."""
        os.close(self._file)
