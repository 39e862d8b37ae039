"""Tell which file system a volume has, and open it."""

from __future__ import annotations

from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.ext import ExtFileSystem
from hypervisor.bootloader.fat import FatFileSystem
from hypervisor.bootloader.iso9660 import SECTOR, IsoFileSystem
from hypervisor.bootloader.tree import FileSystem
from hypervisor.bootloader.volume import Volume

_FOREIGN = (
    (0, b"XFSB", "XFS"),
    (65600, b"_BHRfS_M", "btrfs"),
    (536, b"LVM2 001", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "LUKS, which is encrypted"),
    (3, b"NTFS    ", "NTFS (Windows)"),
    (3, b"EXFAT   ", "exFAT"),
    (3, b"-FVE-FS-", "BitLocker, which is encrypted"),
    (9564, b"\x54\x19\x01\0", "UFS (BSD)"),
    (66908, b"\x19\x01\x54\x19", "UFS (BSD)"),
    (4086, b"SWAPSPACE2", "swap"),
    (0, b"hsqs", "squashfs"),
    (4096, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (32769, b"BEA01", "UDF"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
)
"""Offset, magic and name of what is recognised but not read."""


def open_volume(volume: Volume) -> FileSystem:
    """Return the file system on a volume. Raises BootError that says what is there instead, or what is wrong."""
    if volume.peek(1080, 2) == b"\x53\xef":
        return ExtFileSystem(volume)
    if volume.peek(16 * SECTOR + 1, 5) == b"CD001":
        return IsoFileSystem(volume)
    for offset, magic, name in _FOREIGN:
        if volume.peek(offset, len(magic)) == magic:
            raise BootError(f"{name}, which this boot loader does not read")
    boot = volume.peek(0, 512)
    if boot[510:512] == b"\x55\xaa" and (boot[54:57] == b"FAT" or boot[82:87] == b"FAT32"):
        return FatFileSystem(volume)
    raise BootError("no file system that this boot loader knows")
