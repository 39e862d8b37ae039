"""A CPU in 32-bit and real mode: exceptions arrive as on hardware, and our own page walks are those of the CPU."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64.cpu.overlay import CS, DS, ES, FS, GS, RAX, RBX, RSP, SS
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason, State
from hypervisor.memory.guest_memory import BadAddress
from tests.machines import machine
from tests.x86_64 import cpu_of

CODE, DATA, IDT, GDT, TSS, STACK, TABLES = 0x10000, 0x19000, 0x9000, 0x15000, 0x16000, 0x18000, 0x20000
RING0_CODE, RING0_DATA, RING3_CODE, RING3_DATA = 8, 16, 0x1B, 0x23
ENOSYS = -38 & 0xFFFFFFFF


@pytest.fixture
def domain() -> Iterator[Domain]:
    """A domain in flat 32-bit mode without paging; its handlers halt at DATA + 16 * vector."""
    with machine(16 << 20) as host:
        made = host.create(((0, 4 << 20),))
        prepare(made)
        yield made


def prepare(domain: Domain) -> None:
    cpu, memory = cpu_of(domain), domain.memory
    cpu.overlay.enter_flat32()
    descriptors = [0, 0xCF9B000000FFFF, 0xCF93000000FFFF, 0xCFFB000000FFFF, 0xCFF3000000FFFF]
    memory.write(GDT, struct.pack("<5Q", *descriptors))
    memory.write(TSS, struct.pack("<III", 0, STACK - 0x1000, RING0_DATA))
    for vector in range(32):
        gate(domain, vector)
        memory.write(DATA + 16 * vector, b"\xf4")
    regs = cpu.overlay.regs
    regs.gdt.base, regs.gdt.limit, regs.idt.base, regs.idt.limit = GDT, 0x27, IDT, 0x7FF
    regs.tr.base, regs.tr.limit, regs.tr.flags = TSS, 0x67, 0x8B00
    cpu.general[RSP], regs.rip = STACK, CODE


def gate(domain: Domain, vector: int, kind: int = 0x8E, selector: int = RING0_CODE) -> None:
    target = DATA + 16 * vector
    domain.memory.write(IDT + 8 * vector, struct.pack("<HHBBH", target & 0xFFFF, selector, 0, kind, target >> 16))


def go(domain: Domain, code: str) -> VCPU:
    cpu = cpu_of(domain)
    domain.memory.write(CODE, bytes.fromhex(code) + b"\xf4")
    assert cpu.run() is Outcome.OFF, cpu.crash
    return cpu


def frame(cpu: VCPU, words: int) -> tuple[int, ...]:
    return struct.unpack(f"<{words}I", cpu.memory.read(cpu.general[RSP], 4 * words))


def user_mode(cpu: VCPU, flags: int = 0) -> None:
    for name in (ES, CS, SS, DS):
        segment = cpu.overlay.segments[name]
        segment.selector, segment.flags = (RING3_CODE, 0xCFFB00) if name == CS else (RING3_DATA, 0xCFF300)
    cpu.overlay.flags = 2 | flags
    cpu.overlay.derive_mode(3, False)


@pytest.mark.parametrize(
    ("code", "vector", "rip", "error"),
    [
        ("0f 0b", 6, CODE, None),
        ("31 c9 f7 f1", 0, CODE + 2, None),  # div ecx
        ("cc", 3, CODE + 1, None),
        ("66 b8 38 00 8e d8", 13, CODE + 4, 0x38),  # mov ds, a selector beyond the GDT
    ],
    ids=["invalid opcode", "divide", "breakpoint", "general protection"],
)
def test_an_exception_in_the_kernel_stays_on_its_stack(
    domain: Domain, code: str, vector: int, rip: int, error: int | None
) -> None:
    cpu = go(domain, code)
    assert cpu.overlay.regs.rip == DATA + 16 * vector + 1
    words = frame(cpu, 4)
    if error is not None:
        assert words[0] == error
    assert words[error is not None :][:2] == (rip, RING0_CODE)
    assert cpu.general[RSP] == STACK - 12 - 4 * (error is not None)


def test_an_exception_of_a_user_switches_to_the_stack_of_the_tss(domain: Domain) -> None:
    cpu = cpu_of(domain)
    user_mode(cpu)
    go(domain, "0f 0b")
    assert cpu.overlay.cpl == 0
    assert cpu.overlay.segments[SS].selector == RING0_DATA
    assert cpu.general[RSP] == STACK - 0x1000 - 20
    assert frame(cpu, 5)[1::2] == (RING3_CODE, STACK)
    assert frame(cpu, 5)[4] == RING3_DATA


def test_iret_goes_back_from_an_exception(domain: Domain) -> None:
    """The handler skips the instruction; the user's code goes on at its level."""
    domain.memory.write(DATA + 16 * 6, bytes.fromhex("83 04 24 02 cf"))  # add dword [esp], 2; iret
    cpu = cpu_of(domain)
    user_mode(cpu)
    go(domain, "0f 0b 43 0f 0b 43 cc")  # ud2; inc ebx; twice; int3
    assert cpu.overlay.regs.rip == DATA + 16 * 13 + 1  # INT3 needs a gate for users
    assert cpu.general[RBX] == 2


def test_an_exception_in_virtual_8086_mode_leaves_it(domain: Domain) -> None:
    cpu = cpu_of(domain)
    for name, selector in ((CS, CODE >> 4), (SS, 0x1000), (DS, 3), (ES, 4), (FS, 5), (GS, 6)):
        segment = cpu.overlay.segments[name]
        segment.selector, segment.base, segment.limit, segment.flags = selector, selector << 4, 0xFFFF, 0xF300
    cpu.overlay.flags = 2 | 1 << 17
    cpu.overlay.derive_mode(3, False)
    cpu.general[RSP], cpu.overlay.regs.rip = 0x8000, 0
    go(domain, "0f 0b")
    assert not cpu.overlay.flags & 1 << 17
    assert cpu.general[RSP] == STACK - 0x1000 - 36
    assert frame(cpu, 9)[:2] == (0, CODE >> 4) and frame(cpu, 9)[3:] == (0x8000, 0x1000, 4, 3, 5, 6)
    assert cpu.overlay.segments[DS].selector == 0


@pytest.mark.parametrize("kind", [0x85, 0x86, 0x0E], ids=["task gate", "16-bit gate", "not present"])
def test_a_gate_that_cannot_be_used_ends_the_guest_only(domain: Domain, kind: int) -> None:
    for vector in (6, 8):
        gate(domain, vector, kind)
    domain.memory.write(CODE, b"\x0f\x0b")
    cpu = cpu_of(domain)
    assert cpu.run() is Outcome.CRASHED
    assert "no gate of 32 bits" in cpu.crash


def test_an_exception_in_real_mode_goes_by_the_table_of_vectors(domain: Domain) -> None:
    cpu = cpu_of(domain)
    cpu.overlay.enter_real(CODE >> 12, 0)
    cpu.overlay.regs.idt.limit = 0x3FF
    domain.memory.write(4 * 6, struct.pack("<HH", 0x20, DATA >> 4))
    domain.memory.write(DATA + 0x20, b"\xf4")
    cpu.general[RSP] = 0x8000
    go(domain, "0f 0b")
    assert (cpu.overlay.segments[CS].selector, cpu.overlay.regs.rip) == (DATA >> 4, 0x21)
    assert struct.unpack("<HHH", domain.memory.read(0x8000 - 6, 6))[:2] == (0, CODE >> 4)


def page(domain: Domain, kind: str, address: int, target: int, large: bool) -> None:
    """Map one virtual page, by 32-bit entries or PAE, and the first MiB as it is, under TABLES."""
    memory = domain.memory
    memory.write(TABLES, bytes(0x8000))
    if kind == "pae":
        memory.write(TABLES, struct.pack("<4Q", *(TABLES + 0x1000 * n | 1 for n in range(1, 5))))
        memory.write_u64(TABLES + 0x1000, 0x83)  # the first 2 MiB
        directory = TABLES + 0x1000 * (1 + (address >> 30)) + (address >> 21 & 511) * 8
        if large:
            memory.write_u64(directory, target & ~0x1FFFFF | 0x83)
        else:
            memory.write_u64(directory, TABLES + 0x5000 | 3)
            memory.write_u64(TABLES + 0x5000 + (address >> 12 & 511) * 8, target & ~0xFFF | 3)
    else:
        memory.write_u32(TABLES, 0x83)
        if large:
            memory.write_u32(TABLES + (address >> 22) * 4, target & ~0x3FFFFF | 0x83)
        else:
            memory.write_u32(TABLES + (address >> 22) * 4, TABLES + 0x5000 | 3)
            memory.write_u32(TABLES + 0x5000 + (address >> 12 & 1023) * 4, target & ~0xFFF | 3)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["pae", "32"]),
    address=st.integers(0x40_0000, 0xFFFF_FFF0).filter(lambda address: address ^ 0x4000_0000 >= 0x40_0000),
    target=st.integers(0x20_0000, 0x3F_FFF0),
    large=st.booleans(),
)
def test_our_page_walk_finds_what_the_cpu_finds(kind: str, address: int, target: int, large: bool) -> None:
    """PAE and 32-bit entries, large pages and small ones."""
    address = address & ~15
    with machine(16 << 20) as host:
        domain = host.create(((0, 4 << 20),))
        prepare(domain)
        cpu = cpu_of(domain)
        page(domain, kind, address, target, large)
        cpu.engine.reg_write(x86.UC_X86_REG_CR4, 0x20 if kind == "pae" else 0x10)
        cpu.engine.reg_write(x86.UC_X86_REG_CR3, TABLES)
        cpu.engine.reg_write(x86.UC_X86_REG_CR0, 0x80000011)
        physical = cpu.translate(address)
        domain.memory.write_u32(physical, 0x51BB_1E5)
        cpu.general[RBX] = address
        assert go(domain, "8b 03").general[RAX] == 0x51BB_1E5
        with pytest.raises(BadAddress):
            cpu.translate(address ^ 0x4000_0000)


# Hypercalls


def test_a_kernel_of_32_bits_can_ask_for_the_version_and_shut_down(domain: Domain) -> None:
    """What has another layout there is refused, not misread."""
    domain.memory.write_u32(DATA + 0x800, Reason.REBOOT)
    vmcall = "0f 01 c1"
    code = "b8 11 00 00 00 31 db" + vmcall + "89 c6"  # mov eax, xen_version; xor ebx, ebx; vmcall; mov esi, eax
    code += "b8 0c 00 00 00 bb 07 00 00 00" + vmcall + "89 c7"  # memory_op(add_to_physmap)
    code += "b8 1d 00 00 00 bb 02 00 00 00 b9" + struct.pack("<I", DATA + 0x800).hex() + vmcall
    cpu = cpu_of(domain)
    domain.life.state = State.RUNNING
    domain.memory.write(CODE, bytes.fromhex(code + "f4"))
    cpu.run()
    assert (cpu.general[6], cpu.general[7] & 0xFFFFFFFF) == (4 << 16 | 17, ENOSYS)
    assert (domain.life.state, domain.life.reason) == (State.SHUTDOWN, Reason.REBOOT)
