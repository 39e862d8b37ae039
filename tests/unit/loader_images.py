"""Assemble tiny kernels for the loader's tests: ELF files and bzImages, byte by byte."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import zstandard

ENTRY = 0x100010
"""PVH entry of `pvh_kernel`."""
LOAD, NOTE = 1, 4


def note(kind: int, content: bytes, name: bytes = b"Xen\0") -> bytes:
    """Return a note, padded to words."""
    head = struct.pack("<III", len(name), len(content), kind)
    return head + name.ljust(-(-len(name) // 4) * 4, b"\0") + content.ljust(-(-len(content) // 4) * 4, b"\0")


def header(kind: int, offset: int, physical: int, file_size: int, size: int, virtual: int = 0) -> bytes:
    """Return a program header."""
    return struct.pack("<IIQQQQQQ", kind, 7, offset, virtual or physical, physical, file_size, size, 4)


def elf(headers: list[bytes], body: bytes = b"", *, kind: int = 2, machine: int = 62, width: int = 2) -> bytes:
    """Return an ELF file; the body begins at `body_offset(len(headers))`."""
    ident = b"\x7fELF" + bytes([width, 1, 1]) + bytes(9)
    fixed = struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0x100000, 64, 0, 0, 64, 56, len(headers), 0, 0, 0)
    return ident + fixed + b"".join(headers) + body


def elf32(
    headers: list[tuple[int, int, int, int, int]], body: bytes = b"", *, machine: int = 3, entry: int = 0
) -> bytes:
    """Return an ELF file of 32 bits: headers of kind, offset, address, sizes in the file and in memory."""
    ident = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    fixed = struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, entry, 52, 0, 0, 52, 32, len(headers), 0, 0, 0)
    packed = (struct.pack("<IIIIIIII", kind, at, to, to, size, full, 7, 4) for kind, at, to, size, full in headers)
    return ident + fixed + b"".join(packed) + body


def kernel32(code: bytes, notes: bytes = b"", *, entry: int = 0, physical: int = 0x100000) -> bytes:
    """Return a kernel of 32 bits with one segment and some notes."""
    start = 52 + 32 * 2
    headers = [(LOAD, start, physical, len(code), len(code)), (NOTE, start + len(code), 0, len(notes), len(notes))]
    return elf32(headers, code + notes, entry=entry)


def body_offset(headers: int) -> int:
    return 64 + 56 * headers


def kernel(code: bytes, notes: bytes = b"", *, physical: int = 0x100000, size: int | None = None) -> bytes:
    """Return a kernel with one segment and some notes."""
    start = body_offset(2)
    headers = [
        header(LOAD, start, physical, len(code), len(code) if size is None else size),
        header(NOTE, start + len(code), 0, len(notes), len(notes)),
    ]
    return elf(headers, code + notes)


def pvh_kernel(code: bytes = b"\xf4" * 64, *, entry: int = ENTRY, size: int = 0x3000) -> bytes:
    """Return a kernel that PVH can start: HLT everywhere, then zeros."""
    return kernel(code, note(18, struct.pack("<I", entry)), size=size)


def legacy_lz4(content: bytes) -> bytes:
    """Return an LZ4 legacy frame (doc/lz4_Frame_format.md), as `lz4 -l` makes it."""
    frame = b"\x02\x21\x4c\x18"
    for start in range(0, len(content), 8 << 20):
        block = lz4.block.compress(content[start : start + (8 << 20)], store_size=False)
        frame += struct.pack("<I", len(block)) + block
    return frame


def streamed_zstd(content: bytes) -> bytes:
    """Return a zstd frame that does not tell its size, as a kernel's build makes it out of a pipe."""
    return zstandard.ZstdCompressor(write_content_size=False).compress(content)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda content: gzip.compress(content, mtime=0)[:-4],  # its own size is the trailing word
    "xz": lambda content: lzma.compress(content, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "lz4": legacy_lz4,
    "zstd": streamed_zstd,
}


def bzimage(
    stream: bytes, size: int, *, protocol: int = 0x20F, init_size: int = 1 << 24, sectors: int = 1, pad: int = 0x30
) -> bytes:
    """Return a bzImage with a compressed stream that is said to have `size` bytes."""
    payload = stream + struct.pack("<I", size)
    image = bytearray(((sectors or 4) + 1) * 512 + pad)
    image[0x1F1] = sectors
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<II", image, 0x248, pad, len(payload))
    struct.pack_into("<I", image, 0x260, init_size)
    return bytes(image) + payload


def compressed(name: str, content: bytes) -> bytes:
    """Return a bzImage of a kernel, with one of `COMPRESSORS`."""
    return bzimage(COMPRESSORS[name](content), len(content))
