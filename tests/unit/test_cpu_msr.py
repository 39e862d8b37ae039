"""Model-specific registers: those of Xen's answer as Xen does, and the page of hypercalls is where a guest asks."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64.cpu import context, cpuid, hypercall_page, msr
from hypervisor.arch.x86_64.cpu.overlay import RAX, RCX, RDX, RSP, long_mode
from hypervisor.domains.domain import Domain
from hypervisor.domid import DOMID_SELF
from hypervisor.hypercalls.memory_op import memory_op
from hypervisor.memory.guest_memory import PAGE
from tests.machines import machine
from tests.x86_64 import cpu_of

CODE, DATA, IDT, STACK, CALLS = 0x100000, 0x190000, 0x9000, 0x180000, 0x1C0000
MEMORY = 4 << 20
RDMSR, WRMSR, HALT = "0f 32", "0f 30", "f4"


@pytest.fixture(params=[1, 2], ids=["one vCPU", "two vCPUs"])
def domain(request: pytest.FixtureRequest) -> Iterator[Domain]:
    """A domain whose first vCPU is in 64-bit mode; its handler of general protection faults halts at DATA."""
    with machine(16 << 20) as host:
        made = host.create(((0, MEMORY),), vcpus=request.param)
        cpu = cpu_of(made)
        cpu.reside()
        long_mode(cpu.engine, cpu.overlay)
        made.memory.write(0x195008, struct.pack("<Q", 0xAF9B000000FFFF))
        regs = cpu.overlay.regs
        regs.gdt.base, regs.gdt.limit = 0x195000, 0xF
        regs.idt.base, regs.idt.limit = IDT, 0xFFF
        made.memory.write(IDT + 16 * 13, struct.pack("<HHBBHII", DATA & 0xFFFF, 8, 0, 0x8E, DATA >> 16, 0, 0))
        made.memory.write(DATA, b"\xf4")
        yield made


def run(domain: Domain, code: str, number: int = 0, value: int = 0) -> bool:
    """Run code with a register's number and a value for it; tell whether there was a general protection fault."""
    cpu = cpu_of(domain)
    cpu.forget_code(CODE, CODE + PAGE)
    domain.memory.write(CODE, bytes.fromhex(code))
    cpu.overlay.regs.rip, cpu.general[RSP] = CODE, STACK
    cpu.general[RCX], cpu.general[RAX], cpu.general[RDX] = number, value & 0xFFFFFFFF, value >> 32
    assert cpu.run() is Outcome.OFF, cpu.crash
    return bool(cpu.overlay.regs.rip == DATA + 1)


def value(domain: Domain) -> int:
    general = cpu_of(domain).general
    return int(general[RDX] << 32 | general[RAX])


@pytest.mark.parametrize(
    ("number", "found"),
    [
        pytest.param(0x1B, 0xFEE00900, id="APIC_BASE of the first vCPU"),
        pytest.param(0x1A0, 0x1801, id="MISC_ENABLE has fast strings"),
        pytest.param(0x40000000, 0, id="the hypercall page reads as zero"),
        pytest.param(0x186, 0, id="a counter without vPMU"),
    ],
)
def test_a_register_reads_as_in_xen(domain: Domain, number: int, found: int) -> None:
    assert not run(domain, RDMSR + HALT, number, 0xDEAD)
    assert value(domain) == found
    assert cpu_of(domain).overlay.regs.rip == CODE + 3


def test_only_the_first_vcpu_is_the_bootstrap_processor() -> None:
    assert (msr.read(0x1B, 0), msr.read(0x1B, 1)) == (0xFEE00900, 0xFEE00800)


@pytest.mark.parametrize("number", [0x40000001, 0x2FF, 0x48, 0xDEAD, 0xC0010015, 0xC0002000, 0x800])
@pytest.mark.parametrize("access", [RDMSR, WRMSR], ids=["read", "write"])
def test_a_register_that_nobody_knows_is_a_general_protection_fault(domain: Domain, number: int, access: str) -> None:
    """So Linux's rdmsr_safe and wrmsr_safe see that it is not there."""
    assert run(domain, access + HALT, number)
    assert struct.unpack("<QQ", domain.memory.read(cpu_of(domain).general[RSP], 16)) == (0, CODE)


@pytest.mark.parametrize(
    ("number", "written", "faults"),
    [
        (0x1B, 0xFEE00900, False),
        (0x1B, 0xFEE01900, True),
        (0x1B, 0xFEE00C00, True),
        (0x1A0, 0x1801, False),
        (0x1A0, 0, True),
        (0x8B, 0, False),
        (0x1D9, 2, False),
        (0x1D9, 1 << 20, True),
        (0x140, 0, False),
        (0x140, 1, True),
    ],
)
def test_a_write_is_taken_or_refused_as_in_xen(domain: Domain, number: int, written: int, faults: bool) -> None:
    assert run(domain, WRMSR + HALT, number, written) is faults


def test_a_prefix_before_the_instruction_does_not_matter(domain: Domain) -> None:
    assert not run(domain, "48" + RDMSR + HALT, 0x1B)
    assert cpu_of(domain).overlay.regs.rip == CODE + 4


def test_the_registers_that_a_saved_vcpu_carries_are_the_emulator_s() -> None:
    """To read one that exits by Unicorn's interface would end the process."""
    assert set(context.MSRS) <= msr.NATIVE


@given(number=st.sampled_from([*range(0x600), *range(0xC0000080, 0xC0000110), 0xC0010015]))
def test_the_map_has_a_pair_of_bits_for_each_register(number: int) -> None:
    bits = int.from_bytes(msr.permission_map(), "little")
    start = {0: 0, 0xC000: 0x2000, 0xC001: 0x4000}[number >> 16]
    assert bits >> 2 * (start + (number & 0xFFFF)) & 3 == (0 if number in msr.NATIVE else 3)


# The page of hypercalls


def test_the_page_is_filled_where_the_guest_wants_it_and_works(domain: Domain) -> None:
    """xen_version(0) by its entry, as Linux before 6.1 and XTF do it."""
    at = CALLS + 17 * 32
    call = "0f 30 48 31 ff b8" + struct.pack("<I", at).hex() + "ff d0 f4"  # wrmsr; xor rdi, rdi; call the entry
    assert not run(domain, call, cpuid.HYPERCALL_PAGE, CALLS)
    assert domain.memory.read(CALLS, PAGE) == hypercall_page.hvm()
    assert cpu_of(domain).general[RAX] == 4 << 16 | 17


def test_the_page_may_be_wanted_again_where_code_has_run(domain: Domain) -> None:
    """What was translated of the place before is forgotten."""
    code = "0f 30 48 31 ff b8" + struct.pack("<I", CALLS + 17 * 32).hex() + "ff d0 f4"
    for _ in range(2):
        cpu_of(domain).forget_code(CALLS, CALLS + PAGE)
        domain.memory.write(CALLS, bytes.fromhex("b8 07 00 00 00 c3").ljust(32, b"\xcc") * 128)  # mov eax, 7; ret
        assert not run(domain, code[code.index("48 31") :])
        assert cpu_of(domain).general[RAX] == 7
        assert not run(domain, code, cpuid.HYPERCALL_PAGE, CALLS)
        assert cpu_of(domain).general[RAX] == 4 << 16 | 17


def test_iret_has_no_entry_in_the_page() -> None:
    page = hypercall_page.hvm()
    assert page[23 * 32 : 23 * 32 + 2] == b"\x0f\x0b"
    assert page[12 * 32 : 12 * 32 + 9] == bytes.fromhex("b8 0c 00 00 00 0f 01 c1 c3")
    assert set(page[64 * 32 :]) == {0xCC}


@pytest.mark.parametrize("place", [CALLS + 1, MEMORY, 1 << 40, (1 << 64) - PAGE], ids=hex)
def test_a_place_that_is_no_frame_of_the_guest_is_a_fault(domain: Domain, place: int) -> None:
    assert run(domain, WRMSR + HALT, cpuid.HYPERCALL_PAGE, place)


def test_a_frame_that_was_given_back_is_no_place(domain: Domain) -> None:
    domain.memory.write(DATA + 0x100, struct.pack("<QQIIH", DATA + 0x200, 1, 0, 0, DOMID_SELF))
    domain.memory.write(DATA + 0x200, struct.pack("<Q", CALLS // PAGE))
    assert memory_op(domain, cpu_of(domain), [1, DATA + 0x100]) == 1
    assert run(domain, WRMSR + HALT, cpuid.HYPERCALL_PAGE, CALLS)
    assert domain.memory.read(CALLS, PAGE) == bytes(PAGE)
