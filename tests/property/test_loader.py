"""Prove that no kernel, however damaged, does more than be refused: nothing outside is written, nothing lasts."""

import struct

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hypervisor.loader import bzimage, elf, pvh
from hypervisor.memory.guest_memory import PAGE, Memory

from tests.unit.loader_images import COMPRESSORS, LOAD, NOTE, body_offset, bzimage as make_bzimage  # isort: skip
from tests.unit.loader_images import compressed, elf as make_elf, header, note, pvh_kernel  # isort: skip

RAM = 4 << 20
SMALL = 16 * PAGE
KERNEL = pvh_kernel(bytes(range(256)) * 4)
IMAGES = {"elf": KERNEL, **{name: compressed(name, KERNEL) for name in COMPRESSORS}}

WORDS = st.sampled_from([0, 1, 4, 0x7F, 0xFF, 0x1000, 0xFFFFF, 0x100000, RAM, 0x7FFFFFFF, 0xFFFFFFFF])
QUADS = st.one_of(WORDS, st.sampled_from([1 << 32, 1 << 52, (1 << 64) - PAGE, (1 << 64) - 1]))
PATCHES = st.one_of(
    st.binary(min_size=1, max_size=4),
    WORDS.map(lambda value: struct.pack("<I", value)),
    QUADS.map(lambda value: struct.pack("<Q", value)),
)


def attempt(image: bytes) -> Memory | None:
    """Build a domain; return its memory, or None when the kernel is refused, for which nothing may be written."""
    memory = Memory(RAM)
    try:
        built = pvh.build(memory, image, None, "", vcpus=1)
    except elf.LoadError as error:
        assert "\n" not in str(error)
        assert memory.used() == 0
        memory.close()
        return None
    assert built.start_info % PAGE == 0
    return memory


@given(st.binary(max_size=700))
@example(b"\x7fELF" + bytes(700))
@example(bytes(0x202) + b"HdrS" + bytes(200))
def test_arbitrary_bytes_are_refused(image: bytes) -> None:
    """No byte string is a kernel by chance."""
    assert attempt(image) is None


@settings(deadline=1000)
@given(st.sampled_from(sorted(IMAGES)), st.lists(st.tuples(st.integers(0, 4000), PATCHES), max_size=4), st.data())
def test_a_damaged_kernel_is_loaded_or_refused(
    name: str, patches: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    """Patched anywhere, cut anywhere: a domain, or one line; each in well under a second."""
    image = bytearray(IMAGES[name])
    for at, patch in patches:
        image[at % len(image) : at % len(image) + len(patch)] = patch
    end = data.draw(st.one_of(st.just(len(image)), st.integers(0, len(image))))
    memory = attempt(bytes(image[:end]))
    if memory:
        memory.close()


@settings(deadline=1000)
@given(st.sampled_from(sorted(COMPRESSORS)), st.binary(max_size=200), QUADS, st.integers(0, 40))
def test_a_damaged_stream_gives_what_it_declares_or_is_refused(name: str, junk: bytes, size: int, keep: int) -> None:
    """The head of a good stream, then junk, and any size declared."""
    stream = COMPRESSORS[name](KERNEL)[:keep] + junk
    try:
        content = bzimage.extract(make_bzimage(stream, size & 0xFFFFFFFF, init_size=1 << 22))
    except elf.LoadError:
        return
    assert len(content) == size & 0xFFFFFFFF


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Program headers that are often valid, with small and with wild numbers."""
    kind = draw(st.sampled_from([LOAD, LOAD, LOAD, NOTE, 6]))
    size = draw(st.one_of(st.integers(0, 3 * PAGE), QUADS))
    file_size = draw(st.one_of(st.integers(0, 64), QUADS))
    physical = draw(st.one_of(st.integers(0, SMALL), QUADS))
    return header(kind, draw(st.one_of(st.integers(0, 700), QUADS)), physical, file_size, size)


@given(st.lists(headers(), max_size=5), st.binary(max_size=256))
def test_a_kernel_writes_only_within_its_segments(entries: list[bytes], body: bytes) -> None:
    """Every byte of memory is the file's, zero within a segment, or what it was."""
    image = make_elf(entries, body)
    memory = Memory(SMALL)
    memory.write(0, b"\xee" * SMALL)
    expected = bytearray(b"\xee" * SMALL)
    try:
        kernel = elf.parse(image)
        elf.load(kernel, memory)
    except elf.LoadError:
        kernel = None
    for segment in kernel.segments if kernel else ():
        content = image[segment.offset : segment.offset + segment.file_size]
        assert len(content) == segment.file_size
        expected[segment.physical : segment.end] = content.ljust(segment.size, b"\0")
    assert memory.read(0, SMALL) == expected
    memory.close()


@given(st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=20), st.binary(max_size=9)), max_size=6))
def test_notes_of_any_content_are_decoded_or_refused(notes: list[tuple[int, bytes, bytes]]) -> None:
    """Numbers are numbers, strings are ASCII, and other names are not looked at."""
    content = b"".join(note(kind, data, b"Xen\0" if len(name) < 5 else name) for kind, data, name in notes)
    start = body_offset(2)
    image = make_elf([header(LOAD, 0, 0x1000, 1, 1), header(NOTE, start, 0, len(content), len(content))], content)
    try:
        decoded = elf.parse(image).notes
    except elf.LoadError:
        return
    entries = [int.from_bytes(data, "little") for kind, data, name in notes if kind == 18 and len(name) < 5]
    assert decoded.phys32_entry == (entries[-1] if entries else None)


@given(st.integers(PAGE, 1 << 41))
def test_every_size_of_ram_has_a_map_or_none(ram: int) -> None:
    """Parts are in order, and RAM is never in the hole."""
    ram -= ram % PAGE
    try:
        regions = pvh.memory_map(pvh.address_space(ram))
    except elf.LoadError:
        assert ram < pvh.SMALLEST
        return
    assert all(region.size > 0 for region in regions)
    assert not any(region.kind == pvh.RAM and pvh.LOW_END < region.end <= pvh.HIGH_START for region in regions)
