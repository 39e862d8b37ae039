"""The partitions of a disk: MBR with logical partitions, and GPT.

By the UEFI specification, chapter 5 (GPT disk layout, protective MBR), and the form that PC systems share for
MBRs. A GPT whose primary header is damaged is read from its backup at the end of the disk.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass

from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.volume import Volume

EFI_SYSTEM = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
EXTENDED_BOOT = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
"""Partition types: where UEFI looks, and XBOOTLDR of the Boot Loader Specification."""

_SECTOR = 512
_ENTRY = struct.Struct("<B3sB3sII")
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_LARGEST_TABLE = 1 << 20
_MOST = 256
"""Partitions that are looked at."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition; `kind` is ``msdos`` or ``gpt``, `type` the MBR's number in hex or the GPT's GUID."""

    number: int
    volume: Volume
    kind: str
    type: str
    uuid: str
    active: bool = False


def partitions(disk: Volume) -> list[Partition]:
    """Return a disk's partitions, [] when it has no table. Raises BootError for a table that is no good."""
    boot = disk.peek(0, _SECTOR)
    if boot[510:512] != b"\x55\xaa":
        return []
    entries = [_ENTRY.unpack_from(boot, 446 + 16 * number) for number in range(4)]
    if any(entry[2] == _PROTECTIVE for entry in entries):
        found = _gpt(disk)
        if found is not None:
            return found
    # A file system's boot sector has the same signature; its code is no table.
    if any(entry[0] not in (0, 0x80) for entry in entries) or _is_fat(boot):
        return []
    return _mbr(disk, boot, entries)


def _is_fat(boot: bytes) -> bool:
    """Tell a FAT boot sector, whose code may look like a table, from an MBR."""
    return boot[54:57] == b"FAT" or boot[82:85] == b"FAT"


def _mbr(disk: Volume, boot: bytes, entries: list[tuple[int, bytes, int, bytes, int, int]]) -> list[Partition]:
    (signature,) = struct.unpack_from("<I", boot, 440)
    found = []
    for number, (flag, _, kind, _, start, count) in enumerate(entries, 1):
        if not kind or not count:
            continue
        if kind in _EXTENDED:
            found += _logical(disk, start, count, signature)
        else:
            found.append(_msdos(disk, number, kind, start, count, signature, flag == 0x80))
    return sorted(found, key=lambda partition: partition.number)


def _msdos(disk: Volume, number: int, kind: int, start: int, count: int, signature: int, active: bool) -> Partition:
    volume = disk.part(start * disk.sector_size, count * disk.sector_size)
    return Partition(number, volume, "msdos", f"{kind:02x}", f"{signature:08x}-{number:02x}", active)


def _logical(disk: Volume, first: int, size: int, signature: int) -> list[Partition]:
    """Follow the chain of an extended partition; it must go forward, so that it ends."""
    found: list[Partition] = []
    at = first
    while len(found) < _MOST:
        table = disk.peek(at * disk.sector_size, _SECTOR)
        if table[510:512] != b"\x55\xaa":
            break
        (flag, _, kind, _, start, count), (_, _, link, _, step, _) = (
            _ENTRY.unpack_from(table, 446),
            _ENTRY.unpack_from(table, 462),
        )
        if kind and count:
            found.append(_msdos(disk, 5 + len(found), kind, at + start, count, signature, flag == 0x80))
        if link not in _EXTENDED or not step or first + step <= at or step >= size:
            break
        at = first + step
    return found


def _gpt(disk: Volume) -> list[Partition] | None:
    """Return the partitions of a GPT, or None when neither of its headers is good."""
    sector = disk.sector_size
    for at in (sector, disk.size // sector * sector - sector):
        try:
            header = _GPT_HEADER.unpack(disk.read(at, _GPT_HEADER.size))
            return _gpt_entries(disk, at, header)
        except BootError:
            continue
    return None


def _gpt_entries(disk: Volume, at: int, header: tuple[bytes | int, ...]) -> list[Partition]:
    magic, _, length, _, _, _, _, _, _, _, table, count, size, checksum = header
    assert isinstance(length, int) and isinstance(table, int) and isinstance(count, int) and isinstance(size, int)
    if magic != b"EFI PART" or not 92 <= length <= disk.sector_size or size < 128 or size % 8:
        raise BootError("the GPT's header is no good")
    content = bytearray(disk.read(at, length))
    (own,) = struct.unpack_from("<I", content, 16)
    content[16:20] = bytes(4)
    if zlib.crc32(content) != own or count * size > _LARGEST_TABLE:
        raise BootError("the GPT's header is damaged")
    entries = disk.read(table * disk.sector_size, count * size)
    if zlib.crc32(entries) != checksum:
        raise BootError("the GPT's entries are damaged")
    found = []
    for number in range(min(count, _MOST)):
        kind, unique, first, last, flags, _ = _GPT_ENTRY.unpack_from(entries, number * size)
        if any(kind) and first <= last:
            volume = disk.part(first * disk.sector_size, (last - first + 1) * disk.sector_size)
            # Bit 2 of the attributes is "legacy BIOS bootable".
            names = str(uuid.UUID(bytes_le=kind)), str(uuid.UUID(bytes_le=unique))
            found.append(Partition(number + 1, volume, "gpt", *names, bool(flags >> 2 & 1)))
    return found
