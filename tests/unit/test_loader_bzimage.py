"""bzImages: every compression that is supported, and bounds on what comes out."""

import gzip
import lzma
import struct
import tracemalloc
import zlib

import lz4.block
import pytest
import zstandard

from hypervisor.loader.bzimage import LIMIT, extract
from hypervisor.loader.elf import LoadError
from tests.unit.loader_images import COMPRESSORS, bzimage, compressed, legacy_lz4, pvh_kernel

KERNEL = pvh_kernel(bytes(range(256)) * 40)
NAMES = list(COMPRESSORS)


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_of_each_compression_is_decompressed(name: str) -> None:
    """The streams are made by libraries, framed as a kernel's build does."""
    assert extract(compressed(name, KERNEL)) == KERNEL


def test_an_elf_file_passes_through() -> None:
    """Not even a copy is made."""
    assert extract(KERNEL) is KERNEL


def test_lz4_with_several_blocks_is_joined() -> None:
    """A legacy frame has blocks of 8 MiB."""
    content = KERNEL + bytes(17 << 20) + b"end"
    assert extract(bzimage(legacy_lz4(content), len(content), init_size=32 << 20)) == content


def test_zero_set_up_sectors_mean_four() -> None:
    """A convention of the boot protocol (boot.rst, setup_sects)."""
    stream = COMPRESSORS["xz"](KERNEL)
    assert extract(bzimage(stream, len(KERNEL), sectors=0)) == KERNEL


def test_a_header_without_init_size_does_not_limit_by_it() -> None:
    """The field came with protocol 2.10."""
    stream = COMPRESSORS["xz"](KERNEL)
    assert extract(bzimage(stream, len(KERNEL), protocol=0x208, init_size=0)) == KERNEL


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [-1, 1])
def test_a_size_that_is_not_the_streams_is_refused(name: str, error: int) -> None:
    """What is declared is exactly what comes out."""
    with pytest.raises(LoadError, match="damaged"):
        extract(bzimage(COMPRESSORS[name](KERNEL), len(KERNEL) + error))


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_of_a_stream_is_refused(name: str) -> None:
    """The payload's length in the header agrees, so the decompressor meets the end."""
    stream = COMPRESSORS[name](KERNEL)
    for length in range(4, len(stream), 7):
        with pytest.raises(LoadError):
            extract(bzimage(stream[:length], len(KERNEL)))


BOMB = bytes(32 << 20)


@pytest.mark.parametrize("name", NAMES)
def test_a_bomb_that_declares_little_gives_little(name: str) -> None:
    """32 MiB of zeros that pretend to be 100 bytes never exist; xz and lzma keep a dictionary of 8 MiB."""
    image = bzimage(COMPRESSORS[name](BOMB), 100)
    tracemalloc.start()
    try:
        with pytest.raises(LoadError, match="damaged"):
            extract(image)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_that_declares_much_is_refused_unseen() -> None:
    """The limit is the smaller of init_size and ours."""
    with pytest.raises(LoadError, match=f"would have {LIMIT + 1} bytes"):
        extract(bzimage(COMPRESSORS["gzip"](KERNEL), LIMIT + 1, init_size=0xFFFFFFFF))
    with pytest.raises(LoadError, match="the limit is 4096"):
        extract(bzimage(COMPRESSORS["gzip"](KERNEL), len(KERNEL), init_size=4096))


def test_a_frame_header_that_promises_much_allocates_nothing() -> None:
    """A zstd frame may declare any size; ours is the one that counts."""
    frame = zstandard.ZstdCompressor().compress(KERNEL)
    size = zstandard.frame_content_size(frame)
    lying = frame.replace(struct.pack("<H", size - 256), b"\xff\xff", 1)
    assert lying != frame
    with pytest.raises(LoadError, match="damaged"):
        extract(bzimage(lying, len(KERNEL)))


def test_an_lzma_dictionary_beyond_the_limit_is_refused() -> None:
    """The header asks for memory before any output is there."""
    stream = bytearray(lzma.compress(KERNEL, lzma.FORMAT_ALONE))
    struct.pack_into("<I", stream, 1, 0xC0000000)
    with pytest.raises(LoadError, match="lzma payload is damaged"):
        extract(bzimage(bytes(stream), len(KERNEL)))


def test_many_tiny_lz4_blocks_are_refused_at_the_first() -> None:
    """Else a file could have millions of them, each with its own buffer."""
    tiny = lz4.block.compress(b"a", store_size=False)
    stream = b"\x02\x21\x4c\x18" + (struct.pack("<I", len(tiny)) + tiny) * 1000
    with pytest.raises(LoadError, match="a block is short"):
        extract(bzimage(stream, 1000))


LZO = b"\x89LZO\0\r\n\x1a\n" + bytes(40)
PATCHES = {
    "neither an ELF file nor a bzImage": [(0x202, b"Hdrs")],
    "no boot signature": [(0x1FE, b"\0")],
    "protocol 2.07; 2.08 is needed": [(0x206, b"\x07\x02")],
    "cut off": [(0x24C, b"\xff\xff\xff\xff"), (0x248, b"\xff\xff\xff\xff"), (0x24C, b"\x07\0\0\0"), (0x1F1, b"\xff")],
}


@pytest.mark.parametrize(
    ("text", "offset", "patch"),
    [(text, offset, patch) for text, patches in PATCHES.items() for offset, patch in patches],
)
def test_a_bad_header_is_refused(text: str, offset: int, patch: bytes) -> None:
    """Every field that is used can be wrong."""
    image = bytearray(compressed("gzip", KERNEL))
    image[offset : offset + len(patch)] = patch
    with pytest.raises(LoadError, match=text):
        extract(bytes(image))


@pytest.mark.parametrize("image", [b"", b"MZ", bytes(1000), b"\x1f\x8b" + bytes(1000)])
def test_other_files_are_refused(image: bytes) -> None:
    """Shorter than a header, or without one."""
    with pytest.raises(LoadError, match="neither an ELF file nor a bzImage"):
        extract(image)


def test_a_compression_without_a_decompressor_is_named() -> None:
    """LZO, which no current kernel defaults to."""
    with pytest.raises(LoadError, match="unsupported kind: 894c5a4f"):
        extract(bzimage(LZO, 1000))


def test_a_damaged_stream_is_told_from_a_good_one() -> None:
    """gzip's checksum is checked, not only its form."""
    stream = bytearray(gzip.compress(KERNEL, mtime=0))
    assert zlib.crc32(KERNEL) == struct.unpack_from("<I", stream, len(stream) - 8)[0]
    stream[-8] ^= 1
    with pytest.raises(LoadError, match=r"gzip payload is damaged: .*incorrect data check"):
        extract(bzimage(bytes(stream[:-4]), len(KERNEL)))
