"""Build the memory of a PV domain, and put its first CPU at the kernel's entry (public/xen.h, start_info).

Layout as libxc's for 64-bit guests (tools/libs/guest/xg_dom_x86.c), by guest frames, which are machine frames too:

    the kernel   where it was linked, mapped from its virtual base (note VIRT_BASE) on
    initrd       here if the kernel wants it mapped, else behind all (note MOD_START_PFN)
    p2m list     here, or behind all and mapped at the address of the note INIT_P2M
    start_info, xenstore's ring, the console's ring, page tables (mapped read-only), one page of stack
    …            mapped up to the next 4 MiB with 512 KiB of spare, for the kernel's first needs

Frames below the kernel are plain RAM. Behind the RAM lie Xen's own frames (`arch.x86_64.pv.area`): the domain's
`Memory` is larger than its RAM by those, `ranges` says how large. `build` fills the memory, `attach` makes the
domain a PV one, `enter` puts a CPU at the kernel's entry. `reconnect` is for a guest that goes on from a
suspend.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, replace

from hypervisor.arch.vcpu import VCPU
from hypervisor.arch.x86_64 import entry
from hypervisor.arch.x86_64.cpu import hypercall_page
from hypervisor.arch.x86_64.pv.area import (
    ACCESSED,
    DIRTY,
    LARGEST,
    PRESENT,
    USER,
    VCPUS,
    WRITABLE,
    Area,
)
from hypervisor.arch.x86_64.pv.cpu import pv_cpu
from hypervisor.arch.x86_64.pv.page_tables import PageTables
from hypervisor.domains.domain import Domain
from hypervisor.hypercalls.hvm_op import CONSOLE_PFN, STORE_PFN
from hypervisor.hypercalls.pv import dispatch
from hypervisor.loader import bzimage, elf
from hypervisor.loader.elf import Kernel, LoadError, Notes
from hypervisor.loader.pvh import MemoryRange, Source, content
from hypervisor.memory.guest_memory import PAGE, BadAddress, Memory

_RAM = 1
_SPARE, _ALIGNED = 512 << 10, 4 << 20
_TABLE = PRESENT | WRITABLE | USER | ACCESSED | DIRTY
_PAGE_FLAGS = PRESENT | WRITABLE | ACCESSED
_LINE = 1023
"""Bytes of start_info's command line without the zero (MAX_GUEST_CMDLINE)."""
_START_INFO = struct.Struct("<32sQQIxxxxQIxxxxQIxxxxQQQQQ1024sQQ")
_MAGIC = b"xen-3.0-x86_64"
_MODULE_BY_FRAME = 1 << 3
"""SIF_MOD_START_PFN: mod_start is a frame, for the initrd is not mapped."""
_START_INFO_ARGUMENT = 2
"""Of the hypercall by which a guest suspends itself: after the command and its argument."""
_RENEWED_AT, _STORE_PORT_AT, _CONSOLE_PORT_AT = 32, 64, 80
_RENEWED = struct.Struct("<QQIxxxxQIxxxxQIxxxx")
"""From `_RENEWED_AT` on: number of frames, shared page, flags, rings and their ports."""


@dataclass(frozen=True, slots=True)
class PVImage:
    """A domain's memory as built: what the hypervisor must know of it. Addresses are virtual, frames guest frames."""

    area: Area
    entry: int
    start_info: int
    start_info_frame: int
    stack: int
    """Where the first CPU's stack begins."""
    root: int
    """Frame of the top-level page table."""
    xenstore: int
    console: int
    initrd: int
    """Frame where the initrd begins; 0 for none."""
    memory_map: tuple[MemoryRange, ...]
    notes: Notes


def ranges(ram: int) -> tuple[tuple[int, int], ...]:
    """Return start and end of the guest-physical memory of a domain with so much RAM. Raises LoadError."""
    if not _ALIGNED <= ram <= LARGEST or ram % PAGE:
        raise LoadError(f"a PV domain cannot have {ram} bytes of RAM")
    return ((0, Area(ram).size),)


# Building


def build(
    memory: Memory,
    kernel: Source,
    initrd: Source | None,
    command_line: str,
    *,
    ram: int,
) -> PVImage:
    """Load a kernel, an ELF file or a bzImage, with all that it finds in memory at its start.

    The memory is fresh and as large as `ranges(ram)` says. Raises LoadError, with nothing written.
    """
    if ranges(ram)[0][1] != memory.size:
        raise LoadError(f"a PV domain with {ram} bytes of RAM has not {memory.size} bytes of memory")
    image = _placed(elf.parse(bzimage.extract(content(kernel))))
    ramdisk = b"" if initrd is None else content(initrd)
    if image.bits != 64:
        raise LoadError("the kernel has 32 bits; PV domains here are of 64 bits")
    line = _line(command_line)
    plan = _Plan(image, ram, len(ramdisk))
    start = image.notes.entry
    if start is None:
        raise LoadError("the kernel has no PV entry (note ENTRY)")
    if not plan.base <= start < plan.base + image.end:
        raise LoadError(f"the kernel's PV entry {start:#x} lies outside of the kernel")
    _check_hypercall_page(image, plan)

    area = Area(ram)
    elf.load(image, memory)
    area.build(memory)
    memory.write(plan.initrd * PAGE, ramdisk)
    memory.write(plan.p2m * PAGE, array("Q", range(area.frames)).tobytes())
    _page_tables(memory, plan)
    memory.write(plan.start_info * PAGE, _start_info(plan, area, line, len(ramdisk)))
    if image.notes.hypercall_page is not None:
        memory.write(image.notes.hypercall_page - plan.base, hypercall_page.pv())
    return PVImage(
        area=area,
        entry=start,
        start_info=plan.base + plan.start_info * PAGE,
        start_info_frame=plan.start_info,
        stack=plan.base + (plan.stack + 1) * PAGE,
        root=plan.tables,
        xenstore=plan.xenstore,
        console=plan.console,
        initrd=plan.initrd if ramdisk else 0,
        memory_map=(MemoryRange(0, ram, _RAM),),
        notes=image.notes,
    )


def _placed(kernel: Kernel) -> Kernel:
    """Return a kernel whose physical addresses begin where its virtual base does (note PADDR_OFFSET)."""
    offset = kernel.notes.paddr_offset or 0
    if any(segment.physical < offset for segment in kernel.segments):
        raise LoadError("the kernel lies below its own PADDR_OFFSET")
    moved = tuple(replace(segment, physical=segment.physical - offset) for segment in kernel.segments)
    return replace(kernel, segments=moved)


def _line(text: str) -> bytes:
    try:
        line = text.encode()
    except UnicodeEncodeError:
        raise LoadError("the command line is no text") from None
    if len(line) > _LINE or b"\0" in line:
        raise LoadError(f"the command line has {len(line)} bytes or a zero among them; {_LINE} is the limit")
    return line


def _check_hypercall_page(kernel: Kernel, plan: _Plan) -> None:
    address = kernel.notes.hypercall_page
    if address is not None and (address & PAGE - 1 or not kernel.holds(address - plan.base)):
        raise LoadError(f"the kernel's hypercall page {address:#x} lies outside of the kernel")


class _Plan:
    """Where everything goes, in frames. Raises LoadError when there is not enough RAM."""

    def __init__(self, kernel: Kernel, ram: int, ramdisk: int) -> None:
        notes = kernel.notes
        self.base = notes.virt_base or 0
        self.p2m_frames = -(-(ram // PAGE) * 8 // PAGE)
        self.p2m_address = notes.init_p2m
        self.by_frame = bool(notes.mod_start_pfn) and ramdisk > 0
        ramdisk_frames = -(-ramdisk // PAGE)
        if self.base % (2 << 20) or (self.p2m_address or 0) % (2 << 20):
            raise LoadError(f"the kernel's virtual base {self.base:#x} is not on a boundary of 2 MiB")
        self._next = -(-kernel.end // PAGE)
        self.initrd = 0 if self.by_frame else self._take(ramdisk_frames)
        self.p2m = 0 if self.p2m_address is not None else self._take(self.p2m_frames)
        self.start_info, self.xenstore, self.console = self._take(1), self._take(1), self._take(1)
        self.tables = self._next
        self._count_tables()
        if self.by_frame:
            self.initrd = self._take(ramdisk_frames)
        if self.p2m_address is not None:
            self.p2m = self._take(self.p2m_frames)
        needed = max(self._next * PAGE, self.end)
        if needed > ram:
            raise LoadError(f"kernel and initrd need some {-(-needed >> 20)} MiB of memory")
        if self.base + self.end > 1 << 64:
            raise LoadError(f"the kernel's virtual base {self.base:#x} is too high")

    def _take(self, frames: int) -> int:
        first, self._next = self._next, self._next + frames
        return first

    def mapped(self) -> list[tuple[int, int, int]]:
        """Return virtual address, first frame and number of the runs of frames that are mapped."""
        runs = [(self.base, 0, self.end // PAGE)]
        if self.p2m_address is not None:
            runs.append((self.p2m_address, self.p2m, self.p2m_frames))
        return runs

    def _count_tables(self) -> None:
        """Set how many page tables there are and where the mapping ends, each of which depends on the other."""
        self.table_frames = 4
        while True:
            end = (self.tables + self.table_frames + 1) * PAGE
            self.end = -(-(end + _SPARE) // _ALIGNED) * _ALIGNED
            needed = 1 + sum(
                len({number for start, _, count in self.mapped() for number in _blocks(start, count, shift)})
                for shift in (21, 30, 39)
            )
            if needed <= self.table_frames:
                break
            self.table_frames = needed
        self._take(self.table_frames)
        self.stack = self._take(1)
        self._next = max(self._next, self.end // PAGE)


def _blocks(start: int, frames: int, shift: int) -> range:
    """Return the numbers of the blocks of 2^shift bytes that a run of pages touches."""
    return range(start >> shift, (start + frames * PAGE - 1 >> shift) + 1)


def _page_tables(memory: Memory, plan: _Plan) -> None:
    """Write the page tables; the top-level one is the first."""
    words = memory.words
    following = plan.tables + 1
    tables: dict[tuple[int, int], int] = {}

    def table(address: int, shift: int) -> int:
        """Return the frame of the table whose entries cover an address by blocks of 2^shift bytes."""
        nonlocal following
        if shift == 39:
            return plan.tables
        key = (shift, address >> shift + 9)
        if key not in tables:
            tables[key], following = following, following + 1
            words[table(address, shift + 9) * 512 + (address >> shift + 9 & 511)] = tables[key] * PAGE | _TABLE
        return tables[key]

    for start, first, count in plan.mapped():
        for number in range(0, count, 512):
            run = range(first + number, first + min(number + 512, count))
            at = table(start + number * PAGE, 12) * PAGE
            memory.write(at, array("Q", (frame * PAGE | _PAGE_FLAGS for frame in run)).tobytes())
    for frame in range(plan.tables, plan.tables + plan.table_frames):
        address = plan.base + frame * PAGE
        words[table(address, 12) * 512 + (address >> 12 & 511)] &= ~WRITABLE


def _start_info(plan: _Plan, area: Area, line: bytes, ramdisk: int) -> bytes:
    """Return start_info; the event channels' ports come later, with `attach`."""
    module = 0
    if ramdisk:
        module = plan.initrd if plan.by_frame else plan.base + plan.initrd * PAGE
    return _START_INFO.pack(
        *(_MAGIC, area.frames, area.shared_info * PAGE, _MODULE_BY_FRAME if plan.by_frame else 0),
        *(plan.xenstore, 0, plan.console, 0),
        *(plan.base + plan.tables * PAGE, plan.table_frames),
        plan.base + plan.p2m * PAGE if plan.p2m_address is None else plan.p2m_address,
        *(module, ramdisk, line),
        *((0, 0) if plan.p2m_address is None else (plan.p2m, plan.p2m_frames)),
    )


# The domain and its CPUs


def adopt(domain: Domain, area: Area) -> PageTables:
    """Make a domain over `ranges`, of the kind `PV`, a PV one, by its hypercalls and RAM.

    Returns its page tables, of which none is known yet. Raises LoadError.
    """
    if len(domain.vcpus) > VCPUS:
        raise LoadError(f"a PV domain has at most {VCPUS} vCPUs")
    tables = PageTables(domain.memory, area)
    cpus = [pv_cpu(vcpu.cpu) for vcpu in domain.vcpus]
    for cpu in cpus:
        cpu.attach(area, tables, domain.events, cpus)
    domain.platform.serve(domain, dispatch)
    domain.ranges = domain.physmap.ranges = ((0, area.ram),)
    domain.physmap.foreign = area.foreign
    return tables


def attach(domain: Domain, image: PVImage, store_port: int, console_port: int) -> None:
    """Make a built domain a PV one, with its shared page and the ports of its rings."""
    adopt(domain, image.area).pin(image.root, 4)
    domain.memory_map = [(entry.start, entry.size, entry.kind) for entry in image.memory_map]
    domain.params |= {STORE_PFN: image.xenstore, CONSOLE_PFN: image.console}
    place_shared_page(domain)
    start_info = image.start_info_frame * PAGE
    domain.memory.write_u32(start_info + _STORE_PORT_AT, store_port)
    domain.memory.write_u32(start_info + _CONSOLE_PORT_AT, console_port)


def _area(domain: Domain) -> Area:
    """Return Xen's frames of a domain that was adopted."""
    return Area(domain.ranges[0][1])


def place_shared_page(domain: Domain) -> None:
    """Make the shared page as a guest finds it at its start: no port masked, but no vCPU takes events yet."""
    frame = _area(domain).shared_info
    domain.place_shared_info(frame)
    at = frame * PAGE
    domain.memory.write(at + 0xA00, bytes(0x200))
    for vcpu in range(32):
        domain.memory.bytes[at + vcpu * 64 + 1] = 1


def start_info_frame(domain: Domain) -> int:
    """Return where start_info is in a suspended domain: its guest has said so in the hypercall. Raises BadAddress."""
    frame = domain.vcpus[0].cpu.argument(_START_INFO_ARGUMENT)
    if frame >= _area(domain).frames:
        raise BadAddress(f"the guest has no frame {frame:#x} for its start_info")
    return frame


def reconnect(domain: Domain, store_port: int, console_port: int) -> None:
    """Write into start_info what is new to a guest that goes on from a suspend. Raises BadAddress.

    That is what Xen's toolstack writes (process_start_info of tools/libs/guest/xg_sr_restore_x86_pv.c): the rings,
    whose frames the guest had turned into its own numbers, are machine frames again, and there are no flags.
    """
    area = _area(domain)
    domain.memory.write(
        start_info_frame(domain) * PAGE + _RENEWED_AT,
        _RENEWED.pack(
            *(area.frames, area.shared_info * PAGE, 0),
            *(domain.params[STORE_PFN], store_port, domain.params[CONSOLE_PFN], console_port),
        ),
    )


def enter(cpu: VCPU, image: PVImage) -> None:
    """Put the first CPU at the kernel's entry."""
    entry.pv(cpu, image.entry, image.start_info, image.stack, image.root)
