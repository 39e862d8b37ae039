"""Build the memory of a PVH domain, and put its first CPU at the kernel's entry (docs/misc/pvh.pandoc of Xen).

**Guest-physical addresses are addresses of `Memory`, always.** So nothing that follows a guest's address, a
page table walk, a grant or a ring, has to translate. A domain whose RAM would reach beyond `LOW_END`
(3.75 GiB, HVM_BELOW_4G_RAM_END of public/hvm/e820.h) has the rest above 4 GiB; its `Memory` is larger than its
RAM by the hole in between, which is never written and so costs nothing: `address_space` says how large,
`allocate` makes it. `ranges` are the parts where the CPU finds RAM, so that a guest gets no memory that it
was not given; `entry.local_apic` puts the local APIC's page into the hole.

Layout, for what a guest may rely on as in libxl (tools/libs/guest/xg_dom_x86.c, libxl_x86_acpi.c):

    0x0000_0000  one page, reserved: no address in start_info can be 0
    0x0000_1000  RAM
    0x000A_0000  reserved: ACPI tables at 0xE0000, their pointer at 0xFFFC0, where a BIOS would have it too
    0x0010_0000  RAM: the kernel where it was linked, the start_info block on the next page, …
                 … and the initrd as high as it can be
    top - 8      special pages, reserved: xenstore's ring is the fifth, the console's the eighth
    0xF000_0000  the hole, reserved: only the local APIC at 0xFEE00000
    0x1_0000_0000  RAM

libxl has the special pages below the local APIC and small domains there too; ours are the last of the low
RAM, since they must be `Memory`. Guests learn of them by HVM_PARAM_STORE_PFN and HVM_PARAM_CONSOLE_PFN.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass

from hypervisor.arch.vcpu import VCPU
from hypervisor.arch.x86_64 import entry
from hypervisor.loader import acpi, bzimage, elf
from hypervisor.loader.elf import Image, Kernel, LoadError, Notes
from hypervisor.memory.guest_memory import PAGE, Memory

LOW_END = 0xF000_0000
"""End of RAM below 4 GiB."""
HIGH_START = 1 << 32
SMALLEST = 2 << 20
"""Least bytes of a domain: the first MiB, the special pages and something to run."""

COMMAND_LINE = 2047
"""Most bytes of a command line: COMMAND_LINE_SIZE of Linux (arch/x86/include/asm/setup.h) without the zero."""

Source = Image | os.PathLike[str]
"""A file: its bytes, or where it is."""

RAM, RESERVED = 1, 2
"""XEN_HVM_MEMMAP_TYPE of public/arch-x86/hvm/start_info.h, the same as E820 types."""

_FIRST, _LEGACY, _LOW_MIB = 0x1000, 0xA0000, 0x100000
_TABLES, _TABLE_POINTER = 0xE0000, 0xFFFC0
_SPECIAL, _XENSTORE, _CONSOLE = 8, 4, 7
"""X86_HVM_NR_SPECIAL_PAGES, SPECIALPAGE_XENSTORE and SPECIALPAGE_CONSOLE of libxenguest."""
_LARGEST_FILE = 1 << 30

_START_INFO = struct.Struct("<IIIIQQQQII8x")
_MODULE = struct.Struct("<QQQQ")
_MAP_ENTRY = struct.Struct("<QQII")
_MAGIC, _START_INFO_VERSION = 0x336EC578, 1


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """An entry of the memory map, in bytes; its kind is `RAM` or `RESERVED`."""

    start: int
    size: int
    kind: int

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class PVHImage:
    """A domain's memory as built: what the hypervisor must know of it."""

    entry: int
    """Physical address where the first CPU starts, in 32-bit mode without paging."""
    start_info: int
    """Physical address of hvm_start_info."""
    initrd: int
    """Physical address of the initrd; 0 for none."""
    xenstore: int
    """Frame of xenstore's ring: HVM_PARAM_STORE_PFN."""
    console: int
    """Frame of the console's ring: HVM_PARAM_CONSOLE_PFN."""
    special_start: int
    """First of the special frames."""
    special_end: int
    """Frame after the last special one."""
    memory_map: tuple[MemoryRange, ...]
    """For XENMEM_memory_map, as in start_info."""
    frames: int
    """How many frames the domain has, special ones included, the hole not."""
    notes: Notes


# The address space


def address_space(ram: int) -> int:
    """Return the size of `Memory` for a domain with so many bytes of RAM, the hole included."""
    return ram if ram <= LOW_END else ram + HIGH_START - LOW_END


def allocate(ram: int) -> Memory:
    """Return fresh memory with so many bytes of RAM. Raises OSError, ValueError as `Memory` does."""
    memory = Memory(address_space(ram))
    memory.present = ram // PAGE
    return memory


def ranges(size: int) -> tuple[tuple[int, int], ...]:
    """Return start and end of the parts of `Memory` of a size that are RAM. Raises LoadError for no such size."""
    if size < SMALLEST or size % PAGE or LOW_END < size <= HIGH_START:
        raise LoadError(f"a PVH domain cannot have an address space of {size} bytes")
    return ((0, size),) if size <= LOW_END else ((0, LOW_END), (HIGH_START, size))


def memory_map(size: int) -> tuple[MemoryRange, ...]:
    """Return the memory map of a domain whose `Memory` has a size. Raises LoadError."""
    low, *high = ranges(size)
    top = low[1] - _SPECIAL * PAGE
    return (
        MemoryRange(0, _FIRST, RESERVED),
        MemoryRange(_FIRST, _LEGACY - _FIRST, RAM),
        MemoryRange(_LEGACY, _LOW_MIB - _LEGACY, RESERVED),
        MemoryRange(_LOW_MIB, top - _LOW_MIB, RAM),
        MemoryRange(top, _SPECIAL * PAGE, RESERVED),
        # Reserved, not left out: guests put Xen's frames (grant tables) where their map has nothing.
        MemoryRange(LOW_END, HIGH_START - LOW_END, RESERVED),
        *(MemoryRange(start, end - start, RAM) for start, end in high),
    )


# Building


def build(
    memory: Memory,
    kernel: Source,
    initrd: Source | None,
    command_line: str,
    *,
    vcpus: int,
    online: int | None = None,
) -> PVHImage:
    """Load a kernel, an ELF file or a bzImage, with all that it finds in memory at its start.

    The first `online` of `vcpus` CPUs (all, for None) are enabled in the ACPI tables. The memory is expected
    to be fresh: only what is said to be zero (bss, special pages) is made so. Raises LoadError, with nothing
    written.
    """
    online = vcpus if online is None else online
    regions = memory_map(memory.size)
    try:
        tables = acpi.build(_TABLES, vcpus=vcpus, online=online)
    except ValueError as error:
        raise LoadError(str(error)) from None
    image = elf.parse(bzimage.extract(content(kernel)))
    start = _entry(image, regions)
    ramdisk = b"" if initrd is None else content(initrd)
    start_info, ramdisk_start, block = _place(image.end, regions, command_line, len(ramdisk))

    elf.load(image, memory)
    memory.write(ramdisk_start, ramdisk)
    memory.write(start_info, block)
    memory.write(_TABLES, tables.tables)
    memory.write(_TABLE_POINTER, tables.rsdp)
    first = regions[4].start // PAGE
    memory.free(first, _SPECIAL)
    return PVHImage(
        entry=start,
        start_info=start_info,
        initrd=ramdisk_start,
        xenstore=first + _XENSTORE,
        console=first + _CONSOLE,
        special_start=first,
        special_end=first + _SPECIAL,
        memory_map=regions,
        frames=sum(end - start for start, end in ranges(memory.size)) // PAGE,
        notes=image.notes,
    )


def content(source: Source) -> Image:
    """Return a file's bytes. It is read, not mapped: who truncates a mapped file kills this process."""
    if isinstance(source, bytes | bytearray | memoryview):
        return source
    try:
        # A pipe or device must not block, or be read at all.
        file = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(file, "rb", buffering=0) as stream:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_FILE:
                raise LoadError(f"{os.fspath(source)!r} is no regular file of at most {_LARGEST_FILE >> 20} MiB")
            return stream.read(status.st_size) or b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise LoadError(f"cannot read {os.fspath(source)!r}: {reason}") from None


def _entry(kernel: Kernel, regions: tuple[MemoryRange, ...]) -> int:
    """Return the PVH entry of a kernel all of whose segments lie in low RAM. Raises LoadError.

    PVH enters kernels of 32 and 64 bits alike, in 32-bit mode. One of 32 bits without the note is entered where its
    ELF header says, as Xen enters the firmware of HVM domains (xg_dom_hvmloader.c), in the same state.
    """
    low = [region for region in regions if region.kind == RAM and region.end <= LOW_END]
    for segment in kernel.segments:
        if not any(region.start <= segment.physical and segment.end <= region.end for region in low):
            raise LoadError(
                f"the kernel wants {segment.size} bytes at {segment.physical:#x}, where the domain has no RAM"
            )
    start = kernel.notes.phys32_entry
    if start is None and kernel.bits == 32:
        start = kernel.entry
    if start is None:
        raise LoadError("the kernel has no PVH entry (note PHYS32_ENTRY)")
    if not kernel.holds(start):
        raise LoadError(f"the kernel's PVH entry {start:#x} lies outside of the kernel")
    return start


def _place(
    kernel_end: int, regions: tuple[MemoryRange, ...], command_line: str, initrd_size: int
) -> tuple[int, int, bytes]:
    """Return the address of start_info, that of the initrd or 0, and start_info with all behind it."""
    low = regions[3]
    start_info = max(-(-kernel_end // PAGE) * PAGE, low.start)
    initrd = max(low.end - initrd_size, 0) // PAGE * PAGE if initrd_size else 0
    block = _start_info(start_info, regions, command_line, initrd, initrd_size)
    if start_info + len(block) > (initrd if initrd_size else low.end):
        need = start_info + len(block) + initrd_size + _SPECIAL * PAGE
        raise LoadError(f"kernel and initrd need some {-(-need >> 20)} MiB of memory")
    return start_info, initrd, block


def _start_info(
    address: int, regions: tuple[MemoryRange, ...], command_line: str, initrd: int, initrd_size: int
) -> bytes:
    """Return hvm_start_info, version 1, with module list, memory map and command line behind it."""
    try:
        text = command_line.encode()
    except UnicodeEncodeError:
        raise LoadError("the command line is no text") from None
    if len(text) > COMMAND_LINE or b"\0" in text:
        raise LoadError(f"the command line has {len(text)} bytes or a zero among them; {COMMAND_LINE} is the limit")
    modules = _MODULE.pack(initrd, initrd_size, 0, 0) if initrd_size else b""
    entries = b"".join(_MAP_ENTRY.pack(region.start, region.size, region.kind, 0) for region in regions)
    modules_at = address + _START_INFO.size
    map_at = modules_at + len(modules)
    text_at = map_at + len(entries)
    header = _START_INFO.pack(
        *(_MAGIC, _START_INFO_VERSION, 0, 1 if modules else 0, modules_at if modules else 0),
        *(text_at, _TABLE_POINTER, map_at, len(regions), 0),
    )
    return header + modules + entries + text + b"\0"


# The first CPU


def enter(cpu: VCPU, image: PVHImage) -> None:
    """Put the first CPU at the kernel's entry."""
    entry.pvh(cpu, image.entry, image.start_info)
