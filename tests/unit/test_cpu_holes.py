"""Guest-physical addresses where nothing is: all ones are read, writes are lost, and the guest goes on."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.arch import vcpu
from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64 import entry
from hypervisor.arch.x86_64.cpu.overlay import R8, RAX, RBX, RCX, RDI, RDX, RSI, RSP, TABLES, VMCB_PAGE, long_mode
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.memory.guest_memory import PAGE, BadAddress
from tests.machines import machine
from tests.x86_64 import cpu_of

CODE, DATA, IDT, STACK, MEMORY = 0x100000, 0x190000, 0x9000, 0x180000, 4 << 20
HOLE = 0x3F76_5000
ONES = (1 << 64) - 1


@pytest.fixture(params=[1, 2], ids=["one vCPU", "two vCPUs"])
def domain(request: pytest.FixtureRequest) -> Iterator[Domain]:
    """A domain in 64-bit mode, with the first GiB mapped and 4 MiB of RAM; its handlers halt at DATA + vector."""
    with machine(16 << 20) as host:
        made = host.create(((0, MEMORY),), vcpus=request.param)
        cpu, memory = cpu_of(made), made.memory
        cpu.reside()
        long_mode(cpu.engine, cpu.overlay)
        memory.write(0x195008, struct.pack("<Q", 0xAF9B000000FFFF))
        regs = cpu.overlay.regs
        regs.gdt.base, regs.gdt.limit = 0x195000, 0xF
        regs.idt.base, regs.idt.limit = IDT, 0xFFF
        for vector in range(32):
            target = DATA + 16 * vector
            memory.write(IDT + 16 * vector, struct.pack("<HHBBHII", target & 0xFFFF, 8, 0, 0x8E, target >> 16, 0, 0))
            memory.write(target, b"\xf4")
        yield made


def run(domain: Domain, code: str, **registers: int) -> VCPU:
    """Run code, ended by HLT, with registers; return the CPU."""
    cpu = cpu_of(domain)
    cpu.forget_code(CODE, CODE + PAGE)
    domain.memory.write(CODE, bytes.fromhex(code) + b"\xf4")
    cpu.overlay.regs.rip, cpu.general[RSP] = CODE, STACK
    numbers = {"rax": RAX, "rbx": RBX, "rcx": RCX, "rsi": RSI, "rdi": RDI, "r8": R8}
    for name, value in registers.items():
        cpu.general[numbers[name]] = value
    assert cpu.run() is Outcome.OFF, cpu.crash
    return cpu


@pytest.mark.parametrize(
    ("read", "found"),
    [
        ("8a 03", 0xFF),  # mov al, [rbx]
        ("66 8b 03", 0xFFFF),
        ("8b 03", 0xFFFFFFFF),
        ("48 8b 03", ONES),
        ("48 8b 43 fd", ONES),  # from another page of the hole on
        ("f3 0f 6f 03 66 48 0f 7e c0", ONES),  # movdqu xmm0, [rbx]; movq rax, xmm0
    ],
    ids=["byte", "word", "double word", "quad word", "over the end of a page", "16 bytes"],
)
def test_a_read_of_a_hole_gives_all_ones_in_every_width(domain: Domain, read: str, found: int) -> None:
    assert run(domain, "31 c0" + read, rbx=HOLE).general[RAX] == found


@pytest.mark.parametrize("write", ["88 03", "66 89 03", "89 03", "48 89 03", "48 89 43 fd", "f3 0f 7f 03"])
def test_a_write_to_a_hole_is_lost_and_all_behind_it_happens_once(domain: Domain, write: str) -> None:
    cpu = run(domain, write + "48 ff c1" + "48 8b 03", rbx=HOLE, rax=0, rcx=0)  # inc rcx; mov rax, [rbx]
    assert (cpu.general[RCX], cpu.general[RAX]) == (1, ONES)


@pytest.mark.parametrize("code", ["f0 48 ff 03", "48 0f c1 03", "48 87 03", "48 0f ab 0b", "48 83 23 01"])
def test_reading_and_writing_at_once_is_possible_in_a_hole(domain: Domain, code: str) -> None:
    run(domain, code, rbx=HOLE, rax=0, rcx=3)
    assert run(domain, "48 8b 03", rbx=HOLE).general[RAX] == ONES


def test_a_halt_in_the_block_of_the_write_is_seen(domain: Domain) -> None:
    """Unicorn ends the run at the end of the block, halted: the next run would begin behind the halt."""
    cpu = run(domain, "48 89 03 f4 48 ff c1", rbx=HOLE, rcx=0)
    assert cpu.general[RCX] == 0


def test_string_instructions_go_through_holes(domain: Domain) -> None:
    count = 3 * PAGE
    cpu = run(domain, "f3 a4", rsi=HOLE, rdi=DATA + 0x10000, rcx=count)
    assert cpu.memory.read(DATA + 0x10000, count) == b"\xff" * count
    cpu = run(domain, "f3 a4", rsi=DATA, rdi=HOLE, rcx=count)
    assert (cpu.general[RCX], cpu.general[RDI]) == (0, HOLE + count)
    assert run(domain, "f3 48 a7", rsi=HOLE, rdi=HOLE + PAGE, rcx=512).general[RCX] == 0


def test_many_pages_of_a_hole_can_be_read(domain: Domain) -> None:
    """mov rax, [rbx]; and r8, rax; add rbx, 4096; dec rcx; jnz."""
    code = "48 8b 03 49 21 c0 48 81 c3 00 10 00 00 48 ff c9 75 ee"
    for _ in range(2):
        cpu = run(domain, code, rbx=HOLE, rcx=200, r8=ONES)
        assert (cpu.general[R8], cpu.general[RCX]) == (ONES, 0)


@pytest.mark.parametrize("read_before", [False, True])
def test_code_in_a_hole_is_a_general_protection_fault(domain: Domain, read_before: bool) -> None:
    """As Xen has it, which cannot emulate an instruction that it cannot read."""
    cpu = run(domain, ("48 8b 03" if read_before else "") + "ff e3", rbx=HOLE)
    assert cpu.overlay.regs.rip == DATA + 16 * 13 + 1
    assert cpu.memory.read_u64(cpu.general[RSP]) == 0
    assert cpu.memory.read_u64(cpu.general[RSP] + 8) == HOLE


def test_a_page_walk_through_a_hole_finds_nothing(domain: Domain) -> None:
    domain.memory.write_u64(TABLES + 8, HOLE | 7)
    cpu = run(domain, "48 8b 03", rbx=1 << 39)
    assert cpu.overlay.regs.rip == DATA + 16 * 14 + 1
    assert cpu.overlay.cr[2] == 1 << 39


def test_a_stack_in_a_hole_loses_what_is_pushed(domain: Domain) -> None:
    cpu = run(domain, "48 89 dc 50 58", rbx=HOLE + 0x100, rax=5)  # mov rsp, rbx; push rax; pop rax
    assert cpu.general[RAX] == ONES


def test_a_guest_without_tables_and_handlers_ends_itself_only(domain: Domain) -> None:
    """The stack for the fault is where nothing is, and so is that for the double fault."""
    cpu = cpu_of(domain)
    domain.memory.write(CODE, bytes.fromhex("48 89 dc ff e3"))
    cpu.overlay.regs.rip, cpu.general[RBX] = CODE, HOLE
    assert cpu.run() is Outcome.CRASHED
    assert "triple fault: exception 13" in cpu.crash


def test_a_frame_can_be_put_where_a_hole_was_read(domain: Domain) -> None:
    """As a guest's grant table is."""
    frame = HOLE // PAGE
    assert run(domain, "48 8b 03", rbx=HOLE).general[RAX] == ONES
    at = domain.memory.place_extra(frame)
    domain.platform.map_extra(frame)
    domain.memory.bytes[at : at + 8] = struct.pack("<Q", 77)
    assert run(domain, "48 8b 03 48 89 0b", rbx=HOLE, rcx=78).general[RAX] == 77
    assert bytes(domain.memory.bytes[at : at + 8]) == struct.pack("<Q", 78)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_ram_beside_holes_is_as_without_them(data: st.DataObject) -> None:
    """A copy of any length from any place to any place changes RAM as a model with all ones in the hole says."""
    start, size = MEMORY - 2 * PAGE, 4 * PAGE
    low, high = data.draw(st.integers(0, size - 1), label="from"), data.draw(st.integers(0, size - 1), label="to")
    count = data.draw(st.integers(0, size - max(low, high)), label="bytes")
    content = data.draw(st.binary(min_size=16, max_size=16), label="content") * (2 * PAGE // 16)
    wide = data.draw(st.booleans(), label="8 bytes at a time")
    count = count // 8 * 8 if wide else count
    with machine(16 << 20) as host:
        domain = host.create(((0, MEMORY),))
        cpu = cpu_of(domain)
        long_mode(cpu.engine, cpu.overlay)
        domain.memory.write(start, content)
        run(domain, "f3 48 a5" if wide else "f3 a4", rsi=start + low, rdi=start + high, rcx=count // (8 if wide else 1))
        model = bytearray(content + b"\xff" * (2 * PAGE))
        for at in range(0, count, 8 if wide else 1):
            step = 8 if wide else 1
            model[high + at : high + at + step] = model[low + at : low + at + step]
            model[2 * PAGE :] = b"\xff" * (2 * PAGE)
        assert domain.memory.read(start, 2 * PAGE) == model[: 2 * PAGE]


def test_an_interrupt_is_taken_on_a_stack_in_a_hole(domain: Domain) -> None:
    """What it pushes is lost; the handler runs, and finds ones where it came from."""
    cpu = cpu_of(domain)
    domain.memory.write(
        IDT + 16 * 0xF3, struct.pack("<HHBBHII", DATA + 0x3000 & 0xFFFF, 8, 0, 0x8E, DATA + 0x3000 >> 16, 0, 0)
    )
    domain.memory.write(DATA + 0x3000, bytes.fromhex("58 f4"))  # pop rax; hlt
    cpu.upcall(0xF3)
    run(domain, "48 89 dc fb 90 90", rbx=HOLE + 0x800, rax=5)  # mov rsp, rbx; sti; nop; nop
    assert (cpu.overlay.regs.rip, cpu.general[RAX]) == (DATA + 0x3002, ONES)


def test_an_interrupt_by_a_table_in_a_hole_ends_the_guest_only(domain: Domain) -> None:
    """And does not keep the thread."""
    cpu = cpu_of(domain)
    cpu.overlay.regs.idt.base = HOLE
    cpu.upcall(0xF3)
    domain.memory.write(CODE, bytes.fromhex("fb 90 eb fe"))
    cpu.overlay.regs.rip, cpu.general[RSP] = CODE, STACK
    assert cpu.run() is Outcome.CRASHED
    assert "triple fault" in cpu.crash


@pytest.mark.parametrize("address", [0xFEE00000, VMCB_PAGE], ids=["local APIC", "our own page"])
def test_a_frame_cannot_be_put_where_something_of_ours_is(domain: Domain, address: int) -> None:
    """Nor is that gone then."""
    cpu = cpu_of(domain)
    entry.local_apic(cpu)
    domain.memory.place_extra(address // PAGE)
    before = bytes(cpu.engine.mem_read(address, 64)) if address == VMCB_PAGE else cpu.apic_page(address)
    with pytest.raises(BadAddress):
        domain.platform.map_extra(address // PAGE)
    assert before == (bytes(cpu.engine.mem_read(address, 64)) if address == VMCB_PAGE else cpu.apic_page(address))


def test_frames_can_be_put_into_a_hole_while_the_guest_runs(domain: Domain) -> None:
    """In a hypercall, as a guest has it that asks for its grant table; the next instruction sees them."""
    cpu, made = cpu_of(domain), list[int]()

    def place(asking: Domain, _: vcpu.VCPU, number: int, arguments: Sequence[int]) -> int:
        frame = HOLE // PAGE + 2 * len(made)
        at = asking.memory.place_extra(frame)
        asking.platform.map_extra(frame)
        asking.memory.bytes[at : at + 8] = struct.pack("<Q", 77)
        made.append(frame)
        return 0

    domain.platform.serve(domain, place)
    code = "48 8b 13 0f 01 c1 4c 03 03 48 03 13 48 81 c3 00 20 00 00 48 ff c9 75 e8"
    run(domain, code, rbx=HOLE, rcx=5, r8=0)  # mov rdx, [rbx]; vmcall; add r8, [rbx]; add rdx, [rbx]; add rbx, 0x2000
    assert (cpu.general[R8], cpu.general[RDX]) == (5 * 77, 76)
    assert run(domain, "48 8b 03", rbx=HOLE + PAGE).general[RAX] == ONES
