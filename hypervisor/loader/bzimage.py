"""Take the kernel proper, an ELF file, out of a Linux bzImage.

A bzImage is a boot sector with the header of the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst),
set-up code, a decompressor, and the compressed ELF file as its payload. A domain builder does as Xen's: it
finds the payload by the header (protocol 2.08 and later) and decompresses it outside of the guest, which is
faster, and starts the guest at its Xen entry. The build appends the size of the output to the payload, as a
little-endian word; gzip's own last word says the same.

The file is hostile input. Its output is bounded by the size that it declares, which is bounded by the
header's init_size (the memory in which the kernel decompresses itself) and by `LIMIT`; decompressors' own
memory is bounded as well.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

import lz4.block
import zstandard

from hypervisor.loader.elf import MAGIC, Image, LoadError

LIMIT = 512 << 20
"""Most bytes of a decompressed kernel."""
_WORKING_MEMORY = 256 << 20
"""Most bytes of an xz or lzma dictionary: kernels are built with up to 128 MiB."""
_WINDOW = 1 << 27
"""Most bytes of a zstd window: what `zstd --ultra -22` uses."""
_LZ4_BLOCK = 8 << 20
"""Output of each block but the last of an LZ4 legacy frame (doc/lz4_Frame_format.md)."""

_SETUP_SECTORS, _BOOT_FLAG, _SIGNATURE, _PROTOCOL, _PAYLOAD, _INIT_SIZE = 0x1F1, 0x1FE, 0x202, 0x206, 0x248, 0x260
_HEADER_END = 0x264
_WITH_PAYLOAD, _WITH_INIT_SIZE = 0x208, 0x20A


def extract(image: Image) -> Image:
    """Return the ELF file in a bzImage, or an ELF file as it is. Raises LoadError for all else."""
    view = memoryview(image).cast("B")
    if bytes(view[:4]) == MAGIC:
        return image
    if len(view) < _HEADER_END or bytes(view[_SIGNATURE : _SIGNATURE + 4]) != b"HdrS":
        raise LoadError("the kernel is neither an ELF file nor a bzImage")
    if bytes(view[_BOOT_FLAG : _BOOT_FLAG + 2]) != b"\x55\xaa":
        raise LoadError("the bzImage has no boot signature")
    (protocol,) = struct.unpack_from("<H", view, _PROTOCOL)
    if protocol < _WITH_PAYLOAD:
        raise LoadError(f"the bzImage has boot protocol {protocol >> 8}.{protocol & 255:02}; 2.08 is needed")
    limit = LIMIT
    if protocol >= _WITH_INIT_SIZE:
        limit = min(limit, *struct.unpack_from("<I", view, _INIT_SIZE))
    offset, length = struct.unpack_from("<II", view, _PAYLOAD)
    # Zero means four: a convention older than the field (boot.rst, setup_sects).
    start = ((view[_SETUP_SECTORS] or 4) + 1) * 512 + offset
    if length < 8 or start + length > len(view):
        raise LoadError("the bzImage is cut off")
    return decompress(view[start : start + length], limit)


def decompress(payload: memoryview, limit: int) -> Image:
    """Return the content of a payload whose last word is its size. Raises LoadError."""
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if size > limit:
        raise LoadError(f"the bzImage's payload would have {size} bytes; the limit is {limit}")
    for magic, name, decoder in _DECODERS:
        if bytes(payload[: len(magic)]) != magic:
            continue
        try:
            # The trailing word is no part of the stream, but of gzip's.
            content = decoder(payload if decoder is _gzip else payload[:-4], size)
        except _ERRORS as error:
            raise LoadError(f"the bzImage's {name} payload is damaged: {_one_line(error)}") from None
        if len(content) != size:
            raise LoadError(f"the bzImage's {name} payload is damaged: it has not the size that it declares")
        return content
    raise LoadError(f"the bzImage's payload is of an unknown or unsupported kind: {bytes(payload[:4]).hex()}")


class _Damaged(Exception):
    """A stream that ends too early, too late or in the wrong form."""


# Each decoder returns up to `size` + 1 bytes, so that a stream with more is noticed without being unpacked.


def _gzip(data: memoryview, size: int) -> Image:
    stream = zlib.decompressobj(wbits=31)
    return _whole(stream.decompress(data, size + 1), stream.eof)


def _xz(data: memoryview, size: int) -> Image:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, _WORKING_MEMORY)
    return _whole(stream.decompress(data, size + 1), stream.eof)


def _lzma(data: memoryview, size: int) -> Image:
    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, _WORKING_MEMORY)
    return _whole(stream.decompress(data, size + 1), stream.eof)


def _bzip2(data: memoryview, size: int) -> Image:
    stream = bz2.BZ2Decompressor()
    return _whole(stream.decompress(data, size + 1), stream.eof)


def _whole(content: bytes, ended: bool) -> bytes:
    if not ended:
        raise _Damaged("the stream does not end where it should")
    return content


def _lz4(data: memoryview, size: int) -> Image:
    """Decode a legacy frame. Only the last block may be short, so the number of blocks has a bound."""
    blocks: list[bytes] = []
    at, left = 4, size
    while at < len(data):
        if at + 4 > len(data):
            raise _Damaged("a block is cut off")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length > len(data) - at or not length or not left:
            raise _Damaged("a block is cut off, empty or one too many")
        room = min(left, _LZ4_BLOCK)
        block = lz4.block.decompress(data[at : at + length], uncompressed_size=room)
        at, left = at + length, left - len(block)
        if len(block) < room:
            raise _Damaged("a block is short")
        blocks.append(block)
    return b"".join(blocks)


def _zstd(data: memoryview, size: int) -> Image:
    content = bytearray(size)
    with zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(data) as stream:
        done = 0
        with memoryview(content) as view:
            while done < size and (count := stream.readinto(view[done:])):
                done += count
        if done < size or stream.read(1):
            raise _Damaged("the stream does not end where it should")
    return content


_ERRORS = (zlib.error, lzma.LZMAError, lz4.block.LZ4BlockError, zstandard.ZstdError, OSError, ValueError, _Damaged)
"""What decoders raise; bz2 has OSError and ValueError."""

_DECODERS: tuple[tuple[bytes, str, Callable[[memoryview, int], Image]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"\x02\x21\x4c\x18", "LZ4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)
"""By magic number, as lib/decompress.c of Linux tells them apart; LZO is not supported."""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:100]
