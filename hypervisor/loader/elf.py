"""Read a kernel in ELF, with the notes that tell Xen how to start it, and copy it into a domain's memory.

A parser of our own, since a kernel is hostile input and pyelftools, made for tools that look at every section
of friendly files, costs more and checks less: here is only what a loader needs, the program headers and the
notes among them (System V ABI, chapters 4 and 5; notes: public/elfnote.h, features: public/features.h).
Section headers are not looked at, so neither a symbol table (BSD_SYMTAB) nor the ``__xen_guest`` section of
kernels before 2007 is honoured.

Everything is checked before a byte of the domain is touched, and a bad file is a `LoadError` of one line.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from hypervisor.memory.guest_memory import PAGE, BadAddress, Memory

Image = bytes | bytearray | memoryview

MAGIC = b"\x7fELF"
_PROGRAM_HEADERS = 64
"""Most program headers of a kernel; Linux has 5."""
_NOTES_BYTES = 1 << 16
"""Most bytes of all notes together; Linux has 500."""
_ADDRESSES = 1 << 52
"""End of physical addresses on x86-64."""

_IDENT = struct.Struct("<4sBBB9xHHI")
_LITTLE_ENDIAN, _VERSION, _EXECUTABLE, _SHARED = 1, 1, 2, 3
_LOAD, _NOTE = 1, 4

FEATURES = (
    *("writable_page_tables", "writable_descriptor_tables", "auto_translated_physmap", "supervisor_mode_kernel"),
    *("pae_pgdir_above_4gb", "mmu_pt_update_preserve_ad", "highmem_assist", "gnttab_map_avail_bits"),
    *("hvm_callback_vector", "hvm_safe_pvclock", "hvm_pirqs", "dom0", "grant_map_identity"),
    *("memory_op_vnode_supported", "ARM_SMCCC_supported", "linux_rsdp_unrestricted", "not_direct_mapped"),
    *("direct_mapped", "runstate_phys_area", "vcpu_time_phys_area", "dm_msix_all_writes"),
)
"""XENFEAT names by bit number (public/features.h)."""


@dataclass(frozen=True, slots=True)
class _Width:
    """The form of the files of one word size."""

    bits: int
    machine: int
    """EM_386 or EM_X86_64."""
    file_header: struct.Struct
    """What follows `_IDENT`: e_entry, e_phoff, e_phentsize, e_phnum."""
    program_header: struct.Struct
    """p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align, but for `order`."""
    order: tuple[int, ...]
    """Where those are in the file's header."""


_WIDTHS = {
    1: _Width(32, 3, struct.Struct("<II10xHH6x"), struct.Struct("<IIIIIIII"), (0, 6, 1, 2, 3, 4, 5, 7)),
    2: _Width(64, 62, struct.Struct("<QQ14xHH6x"), struct.Struct("<IIQQQQQQ"), (0, 1, 2, 3, 4, 5, 6, 7)),
}
"""By EI_CLASS."""


class LoadError(Exception):
    """A kernel, or what goes with it, that cannot be loaded; the text is one line for people."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the kernel: `file_size` bytes of the file, then zeros up to `size`."""

    offset: int
    file_size: int
    physical: int
    virtual: int
    size: int

    @property
    def end(self) -> int:
        """The physical address after the last byte."""
        return self.physical + self.size


@dataclass(frozen=True, slots=True)
class Notes:
    """What the kernel's notes of the name "Xen" say; None or empty for a note that is not there.

    Names are those of public/elfnote.h; `supported` and `required` are XENFEAT bits out of FEATURES and
    SUPPORTED_FEATURES together.
    """

    info: str | None = None
    entry: int | None = None
    hypercall_page: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    xen_version: str | None = None
    guest_os: str | None = None
    guest_version: str | None = None
    loader: str | None = None
    pae_mode: str | None = None
    features: str | None = None
    bsd_symtab: str | None = None
    hv_start_low: int | None = None
    l1_mfn_valid: tuple[tuple[int, int], ...] = ()
    suspend_cancel: int | None = None
    init_p2m: int | None = None
    mod_start_pfn: int | None = None
    supported_features: int | None = None
    phys32_entry: int | None = None
    phys32_reloc: tuple[int, ...] | None = None
    supported: int = 0
    required: int = 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """A parsed kernel. Its segments are sorted by physical address, do not overlap, and lie in the file."""

    image: memoryview = field(repr=False)
    bits: int
    """32 or 64."""
    entry: int
    """e_entry; it is not checked."""
    segments: tuple[Segment, ...]
    notes: Notes

    @property
    def start(self) -> int:
        """The lowest physical address."""
        return self.segments[0].physical

    @property
    def end(self) -> int:
        """The physical address after the last byte."""
        return self.segments[-1].end

    def holds(self, address: int) -> bool:
        """Return whether a physical address lies in a segment."""
        return any(segment.physical <= address < segment.end for segment in self.segments)


def parse(image: Image) -> Kernel:
    """Return the kernel in an ELF executable for x86, position-independent or not. Raises LoadError."""
    view = memoryview(image).cast("B")
    if bytes(view[:4]) != MAGIC:
        raise LoadError("the kernel is not an ELF file")
    if len(view) < _IDENT.size:
        raise LoadError("the kernel's ELF header is cut off")
    _, kind_of_file, order, ident_version, kind, machine, version = _IDENT.unpack_from(view)
    width = _WIDTHS.get(kind_of_file)
    if width is None or (order, ident_version, machine, version) != (_LITTLE_ENDIAN, _VERSION, width.machine, _VERSION):
        raise LoadError("the kernel is not an ELF file for x86")
    if kind not in (_EXECUTABLE, _SHARED):
        raise LoadError("the kernel is not an executable ELF file")
    if len(view) < _IDENT.size + width.file_header.size:
        raise LoadError("the kernel's ELF header is cut off")
    entry, table, entry_size, count = width.file_header.unpack_from(view, _IDENT.size)
    if entry_size != width.program_header.size or not 0 < count <= _PROGRAM_HEADERS:
        raise LoadError(f"the kernel has {count} program headers of {entry_size} bytes")
    if table + count * entry_size > len(view):
        raise LoadError("the kernel's program headers are cut off")
    found = width.program_header.iter_unpack(view[table : table + count * entry_size])
    headers = [tuple(header[at] for at in width.order) for header in found]
    return Kernel(view, width.bits, entry, _segments(headers, len(view)), _notes(headers, view))


def _segments(headers: list[tuple[int, ...]], length: int) -> tuple[Segment, ...]:
    """Return the loadable segments, checked against the file, the address space and one another."""
    segments = []
    for kind, _, offset, virtual, physical, file_size, size, _ in headers:
        if kind != _LOAD or not size:
            continue
        if file_size > size:
            raise LoadError("a segment of the kernel is larger in the file than in memory")
        if offset + file_size > length:
            raise LoadError("a segment of the kernel is cut off")
        if physical + size > _ADDRESSES or virtual + size > 1 << 64:
            raise LoadError(f"a segment of the kernel has no such addresses: {physical:#x}, {virtual:#x}")
        segments.append(Segment(offset, file_size, physical, virtual, size))
    if not segments:
        raise LoadError("the kernel has nothing to load")
    segments.sort(key=lambda segment: segment.physical)
    for one, other in pairwise(segments):
        if one.end > other.physical:
            raise LoadError(f"two segments of the kernel overlap at {other.physical:#x}")
    return tuple(segments)


def load(kernel: Kernel, memory: Memory) -> None:
    """Copy the segments to their physical addresses, and zero what the file does not hold.

    Zeros of whole frames are holes, so they cost nothing in fresh memory. Raises LoadError, with nothing
    written, when a segment does not fit.
    """
    for segment in kernel.segments:
        try:
            memory.check(segment.physical, segment.size)
        except BadAddress:
            raise LoadError(
                f"the kernel needs memory up to {segment.end:#x}; the domain's ends at {memory.size:#x}"
            ) from None
    for segment in kernel.segments:
        memory.write(segment.physical, kernel.image[segment.offset : segment.offset + segment.file_size])
        zero(memory, segment.physical + segment.file_size, segment.end)


def zero(memory: Memory, start: int, end: int) -> None:
    """Make a range read as zero, giving its whole frames back to the host. Raises BadAddress."""
    first, last = -(-start // PAGE), end // PAGE
    if first >= last:
        memory.write(start, bytes(end - start))
        return
    memory.write(start, bytes(first * PAGE - start))
    memory.free(first, last - first)
    memory.write(last * PAGE, bytes(end - last * PAGE))


# Notes

_STRINGS = {
    0: "info",
    5: "xen_version",
    6: "guest_os",
    7: "guest_version",
    8: "loader",
    9: "pae_mode",
    10: "features",
    11: "bsd_symtab",
}
_NUMBERS = {
    1: "entry",
    2: "hypercall_page",
    3: "virt_base",
    4: "paddr_offset",
    12: "hv_start_low",
    14: "suspend_cancel",
    15: "init_p2m",
    16: "mod_start_pfn",
    17: "supported_features",
    18: "phys32_entry",
}
_L1_MFN_VALID, _PHYS32_RELOC = 13, 19


def _notes(headers: list[tuple[int, ...]], view: memoryview) -> Notes:
    """Decode the notes of all PT_NOTE segments; of two of a type the later one counts, as for Xen."""
    values: dict[str, str | int | tuple[int, ...] | tuple[tuple[int, int], ...]] = {}
    total = 0
    for kind, _, offset, _, _, size, _, alignment in headers:
        if kind != _NOTE:
            continue
        total += size
        if total > _NOTES_BYTES or offset + size > len(view):
            raise LoadError("the kernel's notes are cut off or too long")
        for name, type_, content in _each_note(bytes(view[offset : offset + size]), 8 if alignment == 8 else 4):
            if name != b"Xen\0":
                continue
            if type_ in _STRINGS:
                values[_STRINGS[type_]] = _string(content)
            elif type_ in _NUMBERS:
                values[_NUMBERS[type_]] = _number(content, type_)
            elif type_ == _L1_MFN_VALID:
                values["l1_mfn_valid"] = _pairs(content)
            elif type_ == _PHYS32_RELOC:
                values["phys32_reloc"] = _constraints(content)
    named, numbered = values.get("features"), values.get("supported_features", 0)
    supported, required = _features(named if isinstance(named, str) else "")
    assert isinstance(numbered, int)
    return Notes(**values, supported=supported | numbered, required=required)  # type: ignore[arg-type]


def _each_note(data: bytes, alignment: int) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield name, type and content of each note of a segment."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        content = -(-(at + 12 + name_size) // alignment) * alignment
        if content + size > len(data):
            raise LoadError("a note of the kernel is cut off")
        yield data[at + 12 : at + 12 + name_size], kind, data[content : content + size]
        at = -(-(content + size) // alignment) * alignment


def _string(content: bytes) -> str:
    text = content.partition(b"\0")[0]
    if not text.isascii():
        raise LoadError("a note of the kernel is not ASCII")
    return text.decode("ascii")


def _number(content: bytes, kind: int) -> int:
    if len(content) not in (4, 8):
        raise LoadError(f"note {kind} of the kernel has {len(content)} bytes where a number is due")
    return int.from_bytes(content, "little")


def _pairs(content: bytes) -> tuple[tuple[int, int], ...]:
    """Return pairs of mask and value."""
    if len(content) % 16:
        raise LoadError("the kernel's note L1_MFN_VALID holds no whole pairs")
    return tuple((mask, value) for mask, value in struct.iter_unpack("<QQ", content))


def _constraints(content: bytes) -> tuple[int, ...]:
    """Return up to three values: alignment, lowest and highest address."""
    if len(content) % 4 or len(content) > 12:
        raise LoadError("the kernel's note PHYS32_RELOC is not up to three words")
    return struct.unpack(f"<{len(content) // 4}I", content)


def _features(text: str) -> tuple[int, int]:
    """Return supported and required bits of a list as "a|!b"; what is required is supported too."""
    supported = required = 0
    for item in text.split("|"):
        name = item.removeprefix("!")
        if name in FEATURES:
            bit = 1 << FEATURES.index(name)
            supported |= bit
            required |= bit if item.startswith("!") else 0
        elif item.startswith("!"):
            raise LoadError(f"the kernel requires a feature that nobody knows: {name[:40]!r}")
    return supported, required
