"""A PV domain's memory as a kernel finds it at its first instruction, and what cannot be built."""

import struct

import pytest

from hypervisor.arch.x86_64.kinds import PV
from hypervisor.arch.x86_64.pv.cpu import PVCPU
from hypervisor.domains.life import Reason, State
from hypervisor.loader import pv
from hypervisor.loader.elf import LoadError
from hypervisor.memory.guest_memory import PAGE, Memory
from tests.machines import machine
from tests.unit.loader_images import kernel, kernel32, note

MIB = 1 << 20
RAM = 8 * MIB
BASE = 0xFFFF_FFFF_8000_0000


def pv_kernel(entry: int = 0x100000, base: int = 0, **notes: int) -> bytes:
    numbers = {"hypercall_page": 2, "paddr_offset": 4, "init_p2m": 15, "mod_start_pfn": 16}
    content = note(1, struct.pack("<Q", base + entry)) + note(3, struct.pack("<Q", base))
    content += b"".join(note(numbers[name], struct.pack("<Q", value)) for name, value in notes.items())
    return kernel(b"\xf4" * 64, content, size=0x2000)


def build(image: bytes, initrd: bytes | None = None, line: str = "", ram: int = RAM) -> tuple[Memory, pv.PVImage]:
    memory = Memory(pv.ranges(ram)[0][1])
    return memory, pv.build(memory, image, initrd, line, ram=ram)


def physical(memory: Memory, image: pv.PVImage, address: int) -> tuple[int, bool]:
    """Walk the page tables; return the physical address, and whether it may be written to."""
    table = image.root * PAGE
    for shift in (39, 30, 21, 12):
        entry = memory.read_u64(table + (address >> shift & 511) * 8)
        assert entry & 1, f"{address:#x} is not mapped"
        table = entry & 0xFFFFFFFFFF000
    return table | address & 0xFFF, bool(entry & 2)


@pytest.mark.parametrize("base", [0, BASE])
def test_everything_is_mapped_from_the_virtual_base_on(base: int) -> None:
    """Kernel, initrd, p2m, start_info, rings, tables (read-only), stack, and 512 KiB more, up to 4 MiB."""
    memory, image = build(pv_kernel(base=base), b"initrd" * 1000)
    info = struct.unpack_from("<32sQQIxxxxQIxxxxQIxxxxQQQQQ1024sQQ", memory.read(image.start_info_frame * PAGE, 1168))
    tables, count, p2m, module, length = info[8:13]
    assert (image.entry, image.start_info) == (base + 0x100000, base + image.start_info_frame * PAGE)
    assert memory.read(physical(memory, image, module)[0], 6) == b"initrd" and length == 6000
    assert module == base + image.initrd * PAGE and info[3] == 0
    at = physical(memory, image, p2m)[0]
    assert list(struct.unpack("<2048Q", memory.read(at, 16384))) == list(range(RAM // PAGE))
    assert all(physical(memory, image, tables + number * PAGE)[1] is False for number in range(count))
    assert physical(memory, image, image.stack - 8) == (image.stack - 8 - base, True)
    assert physical(memory, image, image.stack + (512 << 10) - 8)[1]
    assert physical(memory, image, base + 4 * MIB - 8)[0] == 4 * MIB - 8


def test_initrd_and_p2m_lie_elsewhere_for_kernels_that_ask() -> None:
    """By MOD_START_PFN the initrd is not mapped; by INIT_P2M the list is where the kernel wants it."""
    memory, image = build(pv_kernel(base=BASE, init_p2m=0x80_0000_0000, mod_start_pfn=1), b"initrd")
    info = memory.read(image.start_info_frame * PAGE, 1168)
    flags, module = struct.unpack_from("<I", info, 48)[0], struct.unpack_from("<Q", info, 112)[0]
    assert (flags, module) == (8, image.initrd) and memory.read(module * PAGE, 6) == b"initrd"
    at = physical(memory, image, 0x80_0000_0000)[0]
    assert struct.unpack_from("<QQ", info, 1152) == (at // PAGE, RAM // PAGE * 8 // PAGE)


def test_hypercall_page_is_filled_where_the_kernel_wants_it() -> None:
    """Each 32 bytes are one call, which ends in SYSCALL."""
    memory, _ = build(pv_kernel(hypercall_page=0x101000))
    page = memory.read(0x101000, PAGE)
    assert page[17 * 32 :].startswith(bytes.fromhex("51 41 53 b8 11 00 00 00 0f 05 41 5b 59 c3"))
    assert page[23 * 32 :].startswith(bytes.fromhex("51 41 53 50 b8 17 00 00 00 0f 05"))


@pytest.mark.parametrize(
    ("image", "options", "why"),
    [
        (kernel(b"\xf4"), {}, "no PV entry"),
        (kernel32(b"\xf4"), {}, "has 32 bits"),
        (pv_kernel(entry=0x300000), {}, "outside of the kernel"),
        (pv_kernel(hypercall_page=0x400000), {}, "hypercall page"),
        (pv_kernel(paddr_offset=0x200000), {}, "PADDR_OFFSET"),
        (pv_kernel(base=0x1000), {}, "boundary"),
        (pv_kernel(init_p2m=0x1000), {}, "boundary"),
        (pv_kernel(), {"initrd": bytes(RAM)}, "need some"),
        (pv_kernel(), {"line": "x" * 1024}, "command line"),
        (pv_kernel(), {"line": "x\0y"}, "command line"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(image: bytes, options: dict[str, object], why: str) -> None:
    """With nothing written."""
    memory = Memory(pv.ranges(RAM)[0][1])
    with pytest.raises(LoadError, match=why) as error:
        pv.build(memory, image, options.get("initrd"), str(options.get("line", "")), ram=RAM)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert memory.used() == 0


@pytest.mark.parametrize("ram", [0, MIB, 8 * MIB + 1, 1 << 40])
def test_sizes_that_no_domain_can_have_are_refused(ram: int) -> None:
    """Less than 4 MiB, parts of pages, more than Linux's p2m can tell of."""
    with pytest.raises(LoadError):
        pv.ranges(ram)


@pytest.mark.parametrize("base", [0, BASE], ids=hex)
@pytest.mark.parametrize("entry", [0, 0x1000], ids=hex)
def test_a_kernel_runs_where_it_is_linked_at_address_zero_too(base: int, entry: int) -> None:
    """As GRUB's images do: virtual base and entry 0."""
    # mov rax, sched_op; mov rdi, shutdown; lea rsi, the word behind; syscall; a word: reboot
    code = bytes.fromhex("48c7c01d000000 48c7c702000000 488d3502000000 0f05 01000000")
    notes = note(1, struct.pack("<Q", base + entry)) + note(3, struct.pack("<Q", base))
    with machine(64 << 20) as host:
        domain = host.create(pv.ranges(RAM), kind=PV)
        image = pv.build(domain.memory, kernel(bytes(entry) + code, notes, physical=0), None, "", ram=RAM)
        pv.attach(domain, image, 1, 2)
        cpu = domain.vcpus[0].cpu
        assert isinstance(cpu, PVCPU)
        pv.enter(cpu, image)
        domain.vcpus[0].up, domain.life.pauses, domain.life.state = True, 0, State.RUNNING
        domain.run()
        assert (domain.life.state, domain.life.reason, domain.life.crash) == (State.SHUTDOWN, Reason.REBOOT, "")
