"""Read ext2, ext3 and ext4, by Documentation/filesystems/ext4 of Linux.

A reader of our own, since no library fits (looked at in November 2026). `ext4` 1.4.1 (MIT): finds nothing in
directories with inline data or without extents, which is all of ext2; prints warnings; pins exact versions of what it
needs. `dissect.extfs`: AGPL. `libfsext-python` (LGPL, "pre-alpha") and `pytsk3` (alpha) are C that would parse a
hostile guest's disk inside of this process, where a bad pointer is everyone's end. e2fsprogs has no binding.

Read-only, and as GRUB reads: the journal is not replayed, checksums are not verified. Directories are read
from one end to the other, hash trees too, whose inner blocks look like empty entries just for that.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

from hypervisor.bootloader import ext_blocks
from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.tree import Content, Kind, check_size
from hypervisor.bootloader.volume import Volume

_SUPERBLOCK, _MAGIC = 1024, 0xEF53
_ROOT = 2
_FILE_TYPE, _META_BG, _64BIT = 0x2, 0x10, 0x80
_KNOWN = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
"""Incompatible features that a reader can live with: filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg,
ea_inode, csum_seed, largedir, inline_data, encrypt (such inodes are refused one by one), casefold."""
_EXTENTS, _ENCRYPTED, _INLINE = 0x80000, 0x800, 0x10000000
_KINDS = {0x8: Kind.FILE, 0x4: Kind.DIRECTORY, 0xA: Kind.LINK}
_LARGEST_DIRECTORY = 16 << 20
_POINTERS = 60
"""Bytes of i_block, where an inode has its map, or small data itself."""
_XATTR_MAGIC, _SYSTEM = 0xEA020000, 7


class ExtFileSystem:
    """An ext2, 3 or 4 that is open."""

    name = "ext2/3/4"

    def __init__(self, volume: Volume) -> None:
        """Read the superblock. Raises BootError when it is no good."""
        block = volume.read(_SUPERBLOCK, 1024)
        self.volume = volume
        self.budget = volume.budget
        self._inodes, blocks = struct.unpack_from("<II", block, 0)
        self._first, log_size = struct.unpack_from("<II", block, 20)
        self._blocks_per_group, _, self._inodes_per_group = struct.unpack_from("<III", block, 32)
        magic, _, _, _ = struct.unpack_from("<HHHH", block, 56)
        revision, size = struct.unpack_from("<I", block, 76)[0], struct.unpack_from("<H", block, 88)[0]
        self.incompatible, self._ro = struct.unpack_from("<II", block, 96) if revision else (0, 0)
        self._inode_size = size if revision else 128
        self.uuid = str(uuid.UUID(bytes=block[104:120]))
        self.label = block[120:136].split(b"\0")[0].decode("utf-8", "replace")
        if magic != _MAGIC or log_size > 6 or not blocks:
            raise BootError("the ext superblock is no good")
        self.block_size = 1024 << log_size
        wide = struct.unpack_from("<H", block, 254)[0] if self.incompatible & _64BIT else 32
        self._descriptor = wide
        (self._first_meta,) = struct.unpack_from("<I", block, 260)
        self._check()
        self.root = ExtNode(self, _ROOT)

    def _check(self) -> None:
        unknown = self.incompatible & ~_KNOWN
        if unknown:
            raise BootError(f"the ext file system has features that are not known here ({unknown:#x})")
        if not 128 <= self._inode_size <= self.block_size or self._inode_size & (self._inode_size - 1):
            raise BootError("the ext superblock is no good (inode size)")
        if not 32 <= self._descriptor <= 1024 or not self._inodes_per_group or not self._blocks_per_group:
            raise BootError("the ext superblock is no good (groups)")

    def block(self, number: int) -> bytes:
        """Return one block."""
        return self.volume.read(number * self.block_size, self.block_size)

    def inode(self, number: int) -> bytes:
        """Return an inode's bytes."""
        if not 1 <= number <= self._inodes:
            raise BootError("a directory names an inode that cannot be")
        group, index = divmod(number - 1, self._inodes_per_group)
        descriptor = self._group(group)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._descriptor >= 64:
            table |= struct.unpack_from("<I", descriptor, 40)[0] << 32
        return self.volume.read(table * self.block_size + index * self._inode_size, self._inode_size)

    def _group(self, group: int) -> bytes:
        """Return a group's descriptor."""
        each = self.block_size // self._descriptor
        table, index = divmod(group, each)
        if self.incompatible & _META_BG and table >= self._first_meta:
            leader = table * each
            at = self._first + leader * self._blocks_per_group + self._has_superblock(leader)
        else:
            at = self._first + 1 + table
        return self.volume.read(at * self.block_size + index * self._descriptor, self._descriptor)

    def _has_superblock(self, group: int) -> bool:
        """Tell whether a group begins with a copy of the superblock (sparse_super)."""
        if group <= 1 or not self._ro & 1:
            return True
        return any(group == base**power for base in (3, 5, 7) for power in range(1, 21))


class ExtNode:
    """An inode."""

    def __init__(self, files: ExtFileSystem, number: int) -> None:
        self._files = files
        self._raw = files.inode(number)
        mode, _, low = struct.unpack_from("<HHI", self._raw, 0)
        (self._flags,) = struct.unpack_from("<I", self._raw, 32)
        self._map = self._raw[40 : 40 + _POINTERS]
        self.kind = _KINDS.get(mode >> 12, Kind.OTHER)
        # The high half is an ACL's block in directories of ext2.
        high = struct.unpack_from("<I", self._raw, 108)[0] if self.kind is Kind.FILE else 0
        self.size = high << 32 | low

    def content(self, limit: int) -> Content:
        """Return a file's or directory's bytes, or a link's target. Raises BootError."""
        check_size(self.size, limit)
        if self._flags & _ENCRYPTED:
            raise BootError("the file is encrypted")
        if self._flags & _INLINE:
            return (self._map + self._inline())[: self.size]
        if self.kind is Kind.LINK and self.size < _POINTERS:
            return self._map[: self.size]
        return self._blocks()

    def _blocks(self) -> bytearray:
        """Return what lies in blocks; holes are zeros."""
        files, size = self._files, self.size
        block_size = files.block_size
        count = -(-size // block_size)
        runs = (ext_blocks.extents if self._flags & _EXTENTS else ext_blocks.pointers)(files, self._map, count)
        content = bytearray(size)
        for logical, physical, length in runs:
            start = logical * block_size
            end = min(start + length * block_size, size)
            content[start:end] = files.volume.read(physical * block_size, end - start)
        return content

    def _inline(self) -> bytes:
        """Return the rest of inline data: the value of the attribute system.data behind the inode's fields."""
        raw = self._raw
        extra = struct.unpack_from("<H", raw, 128)[0] if len(raw) >= 132 else 0
        first = 128 + extra + 4
        if first + 4 > len(raw) or struct.unpack_from("<I", raw, first - 4)[0] != _XATTR_MAGIC:
            return b""
        at = first
        while at + 16 <= len(raw):
            length, index, offset, block, size, _ = struct.unpack_from("<BBHIII", raw, at)
            if not (length or index or offset or block):
                break
            if index == _SYSTEM and raw[at + 16 : at + 16 + length] == b"data" and not block:
                return raw[first + offset : first + offset + size]
            at += 16 + (length + 3 & ~3)
        return b""

    def names(self) -> Iterator[str]:
        """Yield the names in a directory."""
        for _, name in self._entries():
            yield name.decode("utf-8", "surrogateescape")

    def lookup(self, name: str) -> ExtNode | None:
        """Return the entry of a name, exactly."""
        try:
            wanted = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a name that no disk can have
            return None
        for number, found in self._entries():
            if found == wanted:
                return ExtNode(self._files, number)
        return None

    def _entries(self) -> Iterator[tuple[int, bytes]]:
        """Yield inode numbers and names of a directory."""
        content = bytes(self.content(_LARGEST_DIRECTORY))
        if self._flags & _INLINE:
            # The parent's number, then entries; those that did not fit are in the attribute.
            pieces = [content[4:_POINTERS], content[_POINTERS:]]
        else:
            size = self._files.block_size
            pieces = [content[at : at + size] for at in range(0, len(content), size)]
        typed = bool(self._files.incompatible & _FILE_TYPE)
        for piece in pieces:
            at = 0
            while at + 8 <= len(piece):
                self._files.budget.step()
                number, step, length = struct.unpack_from("<IHH", piece, at)
                if step < 8:
                    break
                name = piece[at + 8 : at + 8 + (length & 0xFF if typed else length)]
                if number and name and name not in (b".", b".."):
                    yield number, name
                at += step
