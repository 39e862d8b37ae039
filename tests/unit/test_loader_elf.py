"""The ELF parser: what it takes, what it refuses, and where bytes end up."""

import dataclasses
import struct

import pytest

from hypervisor.loader import bzimage
from hypervisor.loader.elf import FEATURES, LoadError, load, parse, zero
from hypervisor.memory.guest_memory import PAGE, Memory
from tests.guests.conftest import KERNEL_PACKAGE, fetched
from tests.unit.loader_images import LOAD, NOTE, body_offset, elf, elf32, header, kernel, kernel32, note

CODE = bytes(range(256))


def word(value: int) -> bytes:
    return struct.pack("<I", value)


def long(value: int) -> bytes:
    return struct.pack("<Q", value)


def test_segments_have_their_addresses_and_are_sorted_by_the_physical_one() -> None:
    """A loader may rely on the order."""
    start = body_offset(3)
    headers = [
        header(LOAD, start + 16, 0x300000, 16, 64, virtual=0xFFFFFFFF80300000),
        header(LOAD, start, 0x200000, 16, 16, virtual=0xFFFFFFFF80200000),
        header(LOAD, start, 0x100000, 0, 0),
    ]
    parsed = parse(elf(headers, bytes(32)))
    assert [(s.physical, s.virtual, s.file_size, s.size) for s in parsed.segments] == [
        (0x200000, 0xFFFFFFFF80200000, 16, 16),
        (0x300000, 0xFFFFFFFF80300000, 16, 64),
    ]
    assert (parsed.start, parsed.end, parsed.entry) == (0x200000, 0x300040, 0x100000)


def test_loading_copies_the_file_and_zeros_the_rest() -> None:
    """Memory that was used before shows that nothing is left where bss is."""
    memory = Memory(2 << 20)
    memory.write(0x100000, b"\xee" * 0x5000)
    load(parse(kernel(CODE, size=0x3210)), memory)
    assert memory.read(0x100000, 256) == CODE
    assert memory.read(0x100100, 0x3110) == bytes(0x3110)
    assert memory.read(0x103210, 16) == b"\xee" * 16


def test_zeros_in_fresh_memory_cost_no_memory() -> None:
    """A kernel's bss may be much larger than its file."""
    memory = Memory(64 << 20)
    load(parse(kernel(CODE, size=32 << 20)), memory)
    assert memory.used() <= 4 * PAGE


def test_zeroing_within_a_frame_leaves_its_neighbours() -> None:
    """A range that holds no whole frame is written, not freed."""
    memory = Memory(PAGE)
    memory.write(0, b"\xee" * 64)
    zero(memory, 8, 24)
    assert memory.read(0, 64) == b"\xee" * 8 + bytes(16) + b"\xee" * 40


def test_a_kernel_beyond_the_memory_is_refused_with_nothing_written() -> None:
    """The first segment would fit."""
    memory = Memory(1 << 20)
    start = body_offset(2)
    image = elf([header(LOAD, start, 0x1000, 16, 16), header(LOAD, start, 0xFFFF8, 16, 16)], b"\xff" * 16)
    with pytest.raises(LoadError, match="needs memory up to 0x100008"):
        load(parse(image), memory)
    assert memory.read(0x1000, 16) == bytes(16)


NUMBERS = {
    **dict.fromkeys([(1, "entry"), (2, "hypercall_page"), (3, "virt_base"), (4, "paddr_offset")], 8),
    **dict.fromkeys([(12, "hv_start_low"), (15, "init_p2m"), (18, "phys32_entry")], 8),
    **dict.fromkeys([(14, "suspend_cancel"), (16, "mod_start_pfn"), (17, "supported_features")], 4),
}
STRINGS = [
    *[(0, "info"), (5, "xen_version"), (6, "guest_os"), (7, "guest_version"), (8, "loader"), (9, "pae_mode")],
    *[(10, "features"), (11, "bsd_symtab")],
]


@pytest.mark.parametrize(("case", "size"), NUMBERS.items(), ids=lambda value: str(value))
def test_numeric_notes_are_decoded(case: tuple[int, str], size: int) -> None:
    """Each type of public/elfnote.h that is a number, in the width that kernels use."""
    number, name = case
    notes = parse(kernel(CODE, note(number, (0x1234).to_bytes(size, "little")))).notes
    assert getattr(notes, name) == 0x1234


@pytest.mark.parametrize(("number", "name"), STRINGS)
def test_string_notes_are_decoded(number: int, name: str) -> None:
    """Each type of public/elfnote.h that is a string."""
    notes = parse(kernel(CODE, note(number, b"yes\0"))).notes
    assert getattr(notes, name) == "yes"


def test_notes_of_pairs_and_constraints_are_decoded() -> None:
    """The two types that are neither number nor string."""
    pairs = struct.pack("<QQQQ", 1, 1, 5, 4)
    notes = parse(kernel(CODE, note(13, pairs) + note(19, word(0x1000) + word(0x200000)))).notes
    assert notes.l1_mfn_valid == ((1, 1), (5, 4))
    assert notes.phys32_reloc == (0x1000, 0x200000)


def test_features_of_both_notes_are_joined() -> None:
    """What is required is supported; unknown names without a mark are no harm (libelf of Xen)."""
    text = b"!writable_page_tables|pae_pgdir_above_4gb|something_new\0"
    notes = parse(kernel(CODE, note(10, text) + note(17, word(1 << 15)))).notes
    assert notes.supported == 1 << 15 | 1 << 4 | 1
    assert notes.required == 1
    assert FEATURES[20] == "dm_msix_all_writes"


def test_notes_of_others_and_unknown_notes_say_nothing() -> None:
    """A build id has type 3, as VIRT_BASE has."""
    notes = parse(kernel(CODE, note(3, b"12345678", b"GNU\0") + note(0x1000001, b"?"))).notes
    assert notes == parse(kernel(CODE)).notes


def test_notes_aligned_to_eight_bytes_are_found() -> None:
    """Segments with property notes are padded to 8 bytes (x86-64 psABI)."""
    content = note(5, b"GNU", b"GNU\0") + bytes(4) + note(18, word(0x100000))
    start = body_offset(2)
    aligned = struct.pack("<IIQQQQQQ", NOTE, 4, start, 0, 0, len(content), len(content), 8)
    parsed = parse(elf([header(LOAD, start, 0x100000, 4, 4), aligned], content))
    assert parsed.notes.phys32_entry == 0x100000


def test_a_kernel_of_32_bits_is_parsed_as_one_of_64() -> None:
    """The order of a program header's members is another."""
    parsed = parse(kernel32(CODE, note(18, struct.pack("<I", 0x100002)), entry=0x100001))
    assert (parsed.bits, parsed.entry, parsed.notes.phys32_entry) == (32, 0x100001, 0x100002)
    (segment,) = parsed.segments
    assert (segment.physical, segment.virtual, segment.file_size, segment.size) == (
        0x100000,
        0x100000,
        *[len(CODE)] * 2,
    )
    assert parsed.image[segment.offset : segment.offset + len(CODE)] == CODE
    assert parse(kernel(CODE)).bits == 64


BAD = {
    "not an ELF file": [b"", b"\x7fEL", b"MZ" + bytes(100)],
    "ELF header is cut off": [b"\x7fELF", elf([])[:63], elf32([])[:51]],
    "not an ELF file for x86": [elf([], machine=3), elf([], width=1), elf([], width=3), elf32([], machine=8)],
    "not an executable": [elf([header(LOAD, 0, 0, 1, 1)], kind=1), elf([header(LOAD, 0, 0, 1, 1)], kind=4)],
    "program headers of": [elf([]), elf([header(LOAD, 0, 0, 1, 1)] * 65)],
    "program headers are cut off": [elf([header(LOAD, 0, 0, 1, 1)])[:-1]],
    "nothing to load": [elf([header(NOTE, 0, 0, 0, 0)]), elf([header(LOAD, 0, 0, 0, 0)])],
    "larger in the file": [elf([header(LOAD, 0, 0x1000, 2, 1)])],
    "segment of the kernel is cut off": [
        elf([header(LOAD, 119, 0x1000, 2, 2)]),
        elf([header(LOAD, (1 << 64) - 1, 0x1000, 2, 2)]),
    ],
    "no such addresses": [
        elf([header(LOAD, 0, (1 << 52) - 1, 2, 2)]),
        elf([header(LOAD, 0, 0x1000, 2, 2, virtual=(1 << 64) - 1)]),
    ],
    "overlap at 0x1001": [elf([header(LOAD, 0, 0x1001, 1, 1), header(LOAD, 0, 0x1000, 1, 2)])],
    "notes are cut off": [elf([header(NOTE, 100, 0, 200, 200), header(LOAD, 0, 0, 1, 1)])],
    "cut off or too long": [kernel(CODE, bytes((1 << 16) + 1))],
    "a note of the kernel is cut off": [
        kernel(CODE, struct.pack("<III", 4, 5, 18) + b"Xen\0abcd"),
        kernel(CODE, struct.pack("<III", 0xFFFFFFFF, 0, 18)),
        kernel(CODE, struct.pack("<III", 4, 0xFFFFFFFF, 18) + b"Xen\0"),
    ],
    "not ASCII": [kernel(CODE, note(6, b"\xff\0"))],
    "where a number is due": [kernel(CODE, note(18, b"abc")), kernel(CODE, note(1, b""))],
    "no whole pairs": [kernel(CODE, note(13, long(1)))],
    "up to three words": [kernel(CODE, note(19, bytes(16))), kernel(CODE, note(19, b"ab"))],
    "feature that nobody knows: 'x": [kernel(CODE, note(10, b"dom0|!x" + b"x" * 500 + b"\0"))],
}


@pytest.mark.parametrize(("text", "image"), [(text, image) for text, images in BAD.items() for image in images])
def test_a_bad_file_is_refused_in_one_line(text: str, image: bytes) -> None:
    """Strict: nothing is guessed."""
    with pytest.raises(LoadError, match=text) as caught:
        parse(image)
    assert len(str(caught.value)) < 120


def test_every_truncation_of_a_kernel_is_refused() -> None:
    """No length is special."""
    image = kernel(CODE, note(18, word(0x100000)))
    for length in range(len(image)):
        with pytest.raises(LoadError):
            parse(image[:length])
    assert parse(image)


# Debian's kernel


@pytest.fixture(scope="module")
def debian() -> bytes:
    return fetched(KERNEL_PACKAGE).kernel.read_bytes()


def test_debians_kernel_is_loaded_byte_by_byte(debian: bytes) -> None:
    """Each segment's bytes are in memory, and the notes are those of Linux."""
    image = bzimage.extract(debian)
    parsed = parse(image)
    memory = Memory(128 << 20)
    load(parsed, memory)
    assert len(parsed.segments) >= 3
    for segment in parsed.segments:
        content = memory.read(segment.physical, segment.size)
        assert content == bytes(image[segment.offset : segment.offset + segment.file_size]).ljust(segment.size, b"\0")
    notes = dataclasses.asdict(parsed.notes)
    assert (notes["guest_os"], notes["xen_version"], notes["paddr_offset"]) == ("linux", "xen-3.0", 0)
    assert parsed.notes.phys32_entry is not None and parsed.holds(parsed.notes.phys32_entry)
    assert notes["supported_features"] & 1 << FEATURES.index("linux_rsdp_unrestricted")
