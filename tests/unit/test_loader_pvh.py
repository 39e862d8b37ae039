"""A PVH domain's memory as a guest finds it at its first instruction."""

import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64 import entry
from hypervisor.arch.x86_64.cpu.msr import NoRegister
from hypervisor.arch.x86_64.cpu.overlay import RAX, RBX, RCX
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.loader import acpi, pvh
from hypervisor.loader.elf import LoadError
from hypervisor.memory.guest_memory import PAGE, Memory
from tests.unit.loader_images import ENTRY, compressed, elf, header, kernel, kernel32, note, pvh_kernel

MIB = 1 << 20
GIB = 1 << 30
RAM = 16 * MIB


def build(
    memory: Memory,
    kernel: pvh.Source | None = None,
    initrd: pvh.Source | None = None,
    command_line: str = "console=hvc0",
    vcpus: int = 1,
    online: int | None = None,
) -> pvh.PVHImage:
    return pvh.build(memory, kernel or pvh_kernel(), initrd, command_line, vcpus=vcpus, online=online)


class Guest:
    """Read hvm_start_info as a guest does, by public/arch-x86/hvm/start_info.h."""

    def __init__(self, memory: Memory, image: pvh.PVHImage) -> None:
        self.memory = memory
        fields = struct.unpack("<IIIIQQQQII", memory.read(image.start_info, 56))
        self.magic, self.version, self.flags, self.modules, self.module_list = fields[:5]
        self.command_line, self.rsdp, self.map, self.entries, self.reserved = fields[5:]

    def text(self) -> bytes:
        return self.memory.read(self.command_line, 4096).partition(b"\0")[0]

    def module(self) -> tuple[int, ...]:
        return struct.unpack("<QQQQ", self.memory.read(self.module_list, 32))

    def memory_map(self) -> list[tuple[int, ...]]:
        return list(struct.iter_unpack("<QQII", self.memory.read(self.map, 24 * self.entries)))


def test_start_info_leads_to_everything() -> None:
    """Version 1, with a memory map, ACPI and a command line; no module without an initrd."""
    memory = Memory(RAM)
    image = build(memory)
    guest = Guest(memory, image)
    assert (guest.magic, guest.version, guest.flags, guest.reserved) == (0x336EC578, 1, 0, 0)
    assert (guest.modules, guest.module_list, image.initrd) == (0, 0, 0)
    assert guest.text() == b"console=hvc0"
    assert memory.read(guest.rsdp, 8) == b"RSD PTR "
    assert guest.memory_map() == [(entry.start, entry.size, entry.kind, 0) for entry in image.memory_map]


def test_the_map_reserves_page_zero_the_legacy_area_and_the_special_pages() -> None:
    """All else of a small domain is RAM."""
    image = build(Memory(RAM))
    assert [(entry.start, entry.end, entry.kind) for entry in image.memory_map] == [
        (0, 0x1000, pvh.RESERVED),
        (0x1000, 0xA0000, pvh.RAM),
        (0xA0000, 0x100000, pvh.RESERVED),
        (0x100000, RAM - 0x8000, pvh.RAM),
        (RAM - 0x8000, RAM, pvh.RESERVED),
        (0xF0000000, 0x100000000, pvh.RESERVED),
    ]
    assert (image.special_start, image.special_end) == ((RAM >> 12) - 8, RAM >> 12)
    assert (image.xenstore, image.console) == ((RAM >> 12) - 4, (RAM >> 12) - 1)
    assert image.frames == RAM >> 12


def test_special_pages_are_empty_even_in_used_memory() -> None:
    """A stale ring index would be taken for the guest's."""
    memory = Memory(RAM)
    memory.write(RAM - 8 * PAGE, b"\xee" * 8 * PAGE)
    build(memory)
    assert memory.read(RAM - 8 * PAGE, 8 * PAGE) == bytes(8 * PAGE)


def test_the_initrd_ends_below_the_special_pages() -> None:
    """As high as whole pages allow, and listed as the one module."""
    memory = Memory(RAM)
    initrd = bytes(range(256)) * 33
    image = build(memory, initrd=initrd)
    guest = Guest(memory, image)
    assert guest.modules == 1
    assert guest.module() == (image.initrd, len(initrd), 0, 0)
    assert memory.read(image.initrd, len(initrd)) == initrd
    assert image.initrd % PAGE == 0
    assert 0 <= RAM - 0x8000 - (image.initrd + len(initrd)) < PAGE


def test_start_info_follows_the_kernel() -> None:
    """Where libxl puts it; some kernels take what follows it for free memory."""
    image = build(Memory(RAM), pvh_kernel(size=0x3001))
    assert image.start_info == 0x104000


def test_a_kernel_below_the_first_mib_leaves_start_info_above_it() -> None:
    """The legacy area is not RAM."""
    low = kernel(b"\xf4" * 16, note(18, struct.pack("<I", 0x1000)), physical=0x1000)
    assert build(Memory(RAM), low).start_info == 0x100000


def test_kernels_and_initrds_may_be_files(tmp_path: Path) -> None:
    """A bzImage in a file is as good as an ELF file in bytes."""
    (tmp_path / "kernel").write_bytes(compressed("zstd", pvh_kernel()))
    (tmp_path / "initrd").write_bytes(b"archive")
    one, other = Memory(RAM), Memory(RAM)
    assert build(one, tmp_path / "kernel", tmp_path / "initrd") == build(other, pvh_kernel(), b"archive")
    assert one.read(0, RAM) == other.read(0, RAM)


def test_the_tables_know_the_vcpus() -> None:
    """Two of three are there at the start."""
    memory = Memory(RAM)
    build(memory, vcpus=3, online=2)
    expected = acpi.build(0xE0000, vcpus=3, online=2)
    assert memory.read(0xE0000, len(expected.tables)) == expected.tables
    assert memory.read(0xFFFC0, 36) == expected.rsdp


def outside(physical: int) -> bytes:
    start = 64 + 56 * 3
    notes = note(18, struct.pack("<I", 0x100000))
    headers = [header(1, start, 0x100000, 4, 4), header(1, start, physical, 4, 4)]
    return elf([*headers, header(4, start, 0, len(notes), len(notes))], notes)


REFUSED: dict[str, dict[str, Any]] = {
    "no PVH entry": {"kernel": kernel(b"\xf4")},
    "lies outside of the kernel": {"kernel": pvh_kernel(entry=0x103000)},
    "0xffd, where the domain": {"kernel": outside(0xFFD)},
    "0x9fffd, where the domain": {"kernel": outside(0x9FFFD)},
    "0xffff0, where the domain": {"kernel": outside(0xFFFF0)},
    "0xff7ffd, where the domain": {"kernel": outside(RAM - 0x8003)},
    "0x100000000, where the domain": {"kernel": outside(1 << 32)},
    "need some 16 MiB": {"initrd": bytes(RAM - 0x8000 - 0x104000 + 1)},
    "need some 18 MiB": {"initrd": bytes(RAM)},
    "the command line has 2048 bytes": {"command_line": "x" * 2048},
    "the command line has 3 bytes or a zero": {"command_line": "a\0b"},
    "the command line is no text": {"command_line": "\udc80"},
    "0 of 0 vCPUs": {"vcpus": 0},
    "5 of 4 vCPUs": {"vcpus": 4, "online": 5},
    "cannot read '.*/none': No such file": {"kernel": Path(__file__).parent / "none"},
    "cannot read 'a.*b': embedded null": {"kernel": Path("a\0b")},
    "'/dev/zero' is no regular file": {"initrd": Path("/dev/zero")},
    "'/' is no regular file|Is a directory": {"kernel": Path("/")},
}


@pytest.mark.parametrize(("text", "options"), REFUSED.items(), ids=list(REFUSED))
def test_what_cannot_be_built_is_refused_with_nothing_written(text: str, options: dict[str, Any]) -> None:
    """One line for people, and memory as it was."""
    memory = Memory(RAM)
    with pytest.raises(LoadError, match=text) as caught:
        build(memory, **options)
    assert "\n" not in str(caught.value)
    assert memory.used() == 0


def test_the_longest_command_line_is_taken() -> None:
    """2047 bytes and the zero are Linux's COMMAND_LINE_SIZE."""
    memory = Memory(RAM)
    assert Guest(memory, build(memory, command_line="x" * 2047)).text() == b"x" * 2047


def test_an_initrd_may_fill_the_memory_to_the_last_page() -> None:
    """Start_info takes one page between kernel and initrd."""
    memory = Memory(RAM)
    image = build(memory, initrd=b"i" * (RAM - 0x8000 - 0x104000))
    assert image.initrd == 0x104000


# The address space of large domains


@pytest.mark.parametrize("ram", [2 * MIB, 256 * MIB, pvh.LOW_END, pvh.LOW_END + PAGE, 8 * GIB, 1024 * GIB])
def test_all_ram_is_in_the_map_whatever_its_size(ram: int) -> None:
    """What is not RAM or special in the address space is the hole."""
    size = pvh.address_space(ram)
    regions = pvh.memory_map(size)
    low_end = min(ram, pvh.LOW_END)
    own = [region for region in regions if region.end <= low_end or region.start >= pvh.HIGH_START]
    assert sum(region.size for region in own) == ram
    assert max(region.end for region in own) == size
    assert all(one.end <= other.start for one, other in pairwise(regions))


def test_a_large_domain_is_built_around_the_hole() -> None:
    """The special pages and the initrd stay below it; its frames do not count."""
    memory = pvh.allocate(5 * GIB)
    image = build(memory, initrd=b"archive")
    assert memory.size == 5 * GIB + 256 * MIB
    assert memory.present == image.frames == 5 * GIB // PAGE
    assert image.special_end * PAGE == pvh.LOW_END
    assert image.initrd == pvh.LOW_END - 9 * PAGE
    assert (image.memory_map[-1].start, image.memory_map[-1].end) == (4 * GIB, memory.size)
    assert memory.used() < 1 * MIB


@pytest.mark.parametrize("size", [0, PAGE, 2 * MIB - PAGE, 2 * MIB + 1, pvh.LOW_END + PAGE, 4 * GIB])
def test_an_address_space_that_ends_in_the_hole_is_refused(size: int) -> None:
    """Or that is too small for anything."""
    with pytest.raises(LoadError, match="cannot have an address space"):
        pvh.memory_map(size)


# On a CPU


class Silent:
    """A machine that answers nothing."""

    def hypercall(self, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
        return -38

    def cpuid(self, cpu: VCPU, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        return 0, 0, 0, 0

    def read_msr(self, cpu: VCPU, number: int) -> int:
        raise NoRegister(number)

    def write_msr(self, cpu: VCPU, number: int, value: int) -> None:
        raise NoRegister(number)

    def port_in(self, port: int, size: int) -> int:
        return 0

    def port_out(self, port: int, size: int, value: int) -> None:
        pass


def run(memory: Memory, code: str, number: int = 0) -> tuple[VCPU, Outcome, pvh.PVHImage]:
    image = build(memory, kernel(bytes.fromhex(code), note(18, struct.pack("<I", 0x100000))))
    cpu = VCPU(number, memory, Silent(), ranges=pvh.ranges(memory.size))
    entry.local_apic(cpu)
    pvh.enter(cpu, image)
    return cpu, cpu.run(), image


def test_the_cpu_starts_in_32_bit_mode_with_start_info_in_ebx() -> None:
    """The first instructions read the magic number through EBX, and encode otherwise in 64-bit mode."""
    cpu, outcome, image = run(Memory(RAM), "8b 03 40 f4")  # mov eax, [ebx]; inc eax (REX in 64-bit mode); hlt
    assert outcome is Outcome.OFF
    assert cpu.general[RAX] == 0x336EC579
    assert cpu.general[RBX] == image.start_info
    assert cpu.overlay.cr[0] == 0x11
    assert (cpu.overlay.regs.tr.base, cpu.overlay.regs.tr.limit) == (0, 0x67)
    assert cpu.overlay.flags & 0x20300 == 0


@pytest.mark.parametrize("ram", [RAM, 4 * GIB])
def test_each_cpu_sees_its_own_local_apic(ram: int) -> None:
    """Identity and version, in a small domain and in one with a hole; nothing of it is in `Memory`."""
    memory = pvh.allocate(ram)
    cpu, outcome, _ = run(memory, "a1 20 00 e0 fe 8b 0d 30 00 e0 fe f4", number=3)  # mov eax, [..20]; mov ecx, [..30]
    assert outcome is Outcome.OFF
    assert cpu.general[RAX] == 6 << 24
    assert cpu.general[RCX] == 0x50014


def test_the_hole_holds_no_memory_for_the_guest() -> None:
    """Reading it gives all ones, as any address without memory does."""
    memory = pvh.allocate(4 * GIB)
    cpu, outcome, _ = run(memory, "a1 00 00 00 f0 f4")  # mov eax, [0xf0000000]; hlt
    assert outcome is Outcome.OFF
    assert cpu.general[RAX] == 0xFFFFFFFF


def test_memory_on_both_sides_of_the_hole_stays_the_domains() -> None:
    """Taking the hole out must not replace what is beside it."""
    memory = pvh.allocate(4 * GIB)
    cpu, _, _ = run(memory, "c7 05 fc ff ff ef 78 56 34 12 f4")  # mov dword [0xeffffffc], 0x12345678; hlt
    cpu.engine.mem_write(4 * GIB, b"high")
    assert memory.read_u32(0xEFFFFFFC) == 0x12345678
    assert memory.read(4 * GIB, 4) == b"high"


def test_the_entry_is_the_notes_not_the_files() -> None:
    """e_entry is for other loaders."""
    assert build(Memory(RAM)).entry == ENTRY


def test_a_kernel_of_32_bits_is_entered_by_its_note() -> None:
    """PVH enters all kernels in 32-bit mode."""
    image = kernel32(b"\xf4" * 64, note(18, struct.pack("<I", 0x100020)), entry=0x100010)
    memory = Memory(RAM)
    assert build(memory, image).entry == 0x100020
    assert memory.read(0x100000, 64) == b"\xf4" * 64


def test_a_kernel_of_32_bits_without_a_note_is_entered_where_its_header_says() -> None:
    """So Xen enters the firmware of HVM domains."""
    assert build(Memory(RAM), kernel32(b"\xf4" * 64, entry=0x100010)).entry == 0x100010
    with pytest.raises(LoadError, match="lies outside of the kernel"):
        build(Memory(RAM), kernel32(b"\xf4" * 64, entry=0x200000))
