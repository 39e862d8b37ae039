"""Several vCPUs in one engine: each has its own registers, all have the same code, no instruction is run twice."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence

import pytest

from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64 import entry
from hypervisor.arch.x86_64.cpu import context
from hypervisor.arch.x86_64.cpu.apic import EOI, ICR_LOW, ISR, SVR
from hypervisor.arch.x86_64.cpu.msr import NoRegister
from hypervisor.arch.x86_64.cpu.overlay import RAX, RBX, RCX, RDI, RSI, RSP, long_mode
from hypervisor.arch.x86_64.cpu.shared import SharedEngine, SharingVCPU
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.memory.guest_memory import Memory

CODE, DATA, IDT, GDT, TABLES, STACKS = 0x100000, 0x190000, 0x9000, 0x195000, 0x1000, 0x180000
HALT, PAUSE = "f4", "f3 90"


class Board:
    """A platform that answers as little as it can, and lets APICs start and interrupt CPUs."""

    def __init__(self) -> None:
        self.cpus: list[SharingVCPU] = []
        self.calls: list[int] = []

    def hypercall(self, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
        self.calls.append(cpu.number)
        cpu.halt_here()
        return number + 1

    def cpuid(self, cpu: VCPU, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        return cpu.number, 0, 0, 0

    def read_msr(self, cpu: VCPU, number: int) -> int:
        raise NoRegister(number)

    def write_msr(self, cpu: VCPU, number: int, value: int) -> None:
        raise NoRegister(number)

    def port_in(self, port: int, size: int) -> int:
        return port

    def port_out(self, port: int, size: int, value: int) -> None:
        pass

    def reset_cpu(self, number: int) -> None:
        pass

    def start_cpu(self, number: int, page: int) -> None:
        self.cpus[number].start(page)

    def wake_cpu(self, number: int) -> None:
        self.cpus[number].interrupted()


@pytest.fixture
def cpus() -> Iterator[list[SharingVCPU]]:
    """Two CPUs in 64-bit mode with one GDT, one IDT, a local APIC and a stack each."""
    memory, board = Memory(4 << 20), Board()
    shared = SharedEngine(2, memory, board, lambda: 0)
    board.cpus = shared.cpus
    memory.write(GDT, struct.pack("<3Q", 0, 0xAF9B000000FFFF, 0xCF93000000FFFF))
    for cpu in shared.cpus:
        cpu.reside()
        entry.local_apic(cpu)
        long_mode(cpu.engine, cpu.overlay)
        regs = cpu.overlay.regs
        regs.gdt.base, regs.gdt.limit = GDT, 0x17
        regs.idt.base, regs.idt.limit = IDT, 0xFFF
        regs.rip = CODE
        cpu.general[RSP] = STACKS + 0x1000 * cpu.number
    yield shared.cpus
    for cpu in shared.cpus:
        cpu.close()
    memory.close()


def put(cpu: SharingVCPU, code: str, at: int = CODE) -> None:
    cpu.memory.write(at, bytes.fromhex(code))


def gate(cpu: SharingVCPU, vector: int, handler: int) -> None:
    cpu.memory.write(IDT + 16 * vector, struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0))


def map_apic(cpu: SharingVCPU) -> int:
    """Map the local APIC at 3 MiB, past the identity map's first pages, and return where."""
    cpu.memory.write_u64(TABLES + 0x2000 + 8, 0xFEE00000 | 0x83)
    return 0x200000


def test_each_has_its_own_registers(cpus: list[SharingVCPU]) -> None:
    """General, FPU, SSE, MSRs, control and debug registers; both run the same code, over and over in turn."""
    first, second = cpus
    put(first, "66 48 0f 6e c3 db e3 48 89 1f db 07" + PAUSE + "48 ff c1 66 48 0f 7e c0 db 17 48 8b 17" + "eb ef")
    first.general[RBX], first.general[RDI] = 1000, DATA
    second.general[RBX], second.general[RDI] = 2000, DATA + 64
    for number, cpu in enumerate(cpus):
        values = context.read(cpu)
        assert values.general[RBX] == (1000, 2000)[number]
    for _ in range(3):
        for cpu in cpus:
            cpu.exit_at_pause(True)
            assert cpu.run() is Outcome.STOPPED and cpu.gave_up
    for number, cpu in enumerate(cpus):
        values = context.read(cpu)
        assert values.general[RAX] == (1000, 2000)[number] and values.general[RCX] == 2
        assert values.xmm[0] == (1000, 2000)[number] and values.general[2] == (1000, 2000)[number]
    kept = [context.read(cpu) for cpu in cpus]
    assert [context.read(cpu) for cpu in cpus] == kept
    assert kept[0] != kept[1]


def test_a_whole_state_is_loaded_beside_another(cpus: list[SharingVCPU]) -> None:
    """What a restored domain needs."""
    kept = [context.read(cpu) for cpu in cpus]
    context.load(cpus[0], kept[1])
    context.load(cpus[1], kept[0])
    assert [context.read(cpu) for cpu in cpus] == [kept[1], kept[0]]


def test_code_that_one_writes_is_new_to_the_other(cpus: list[SharingVCPU]) -> None:
    """The one returns a constant from a function; the other rewrites the constant, a hundred times."""
    put(cpus[0], "e8 fb 00 00 00 f4")  # call CODE + 0x100; hlt
    put(cpus[0], "b8 00 00 00 00 c3", CODE + 0x100)  # mov eax, 0; ret
    put(cpus[0], "88 0f f4", CODE + 0x200)  # mov [rdi], cl; hlt
    for number in range(100):
        writer, caller = cpus if number % 2 else reversed(cpus)
        writer.overlay.regs.rip = CODE + 0x200
        writer.general[RCX], writer.general[RDI] = number, CODE + 0x101
        caller.overlay.regs.rip = CODE
        assert writer.run() is Outcome.OFF and caller.run() is Outcome.OFF
        assert caller.general[RAX] == number


def test_each_sees_memory_by_its_own_page_tables(cpus: list[SharingVCPU]) -> None:
    """The same address is another page for each; nothing of one's TLB is left for the other."""
    memory, place = cpus[0].memory, 0x40000000
    for number, cpu in enumerate(cpus):
        root = 0x20000 + 0x4000 * number
        memory.write(root, struct.pack("<Q", root + 0x1000 | 7))
        memory.write(root + 0x1000, struct.pack("<QQ", 0x3007, root + 0x2000 | 7))
        memory.write(root + 0x2000, struct.pack("<Q", (2 << 20) * number | 0x87))
        memory.write_u64((2 << 20) * number + 0x80000, 100 + number)
        cpu.overlay.cr[3] = root
        cpu.general[RBX] = place + 0x80000
    put(cpus[0], "48 8b 03 0f 01 c1 eb f8")  # mov rax, [rbx]; vmcall; again
    for _ in range(3):
        for number, cpu in enumerate(cpus):
            assert cpu.run() is Outcome.STOPPED and cpu.general[RAX] == 101 + number
            assert cpu.translate(place) == (2 << 20) * number == cpus[number].translate(place)


def test_a_pause_ends_the_run_only_if_asked_for(cpus: list[SharingVCPU]) -> None:
    """With prefixes too; behind it the CPU goes on."""
    put(cpus[0], PAUSE + "66 f3 90 f3 48 90" + "48 ff c0" + HALT)
    cpus[0].exit_at_pause(False)
    assert cpus[0].run() is Outcome.OFF and not cpus[0].gave_up and cpus[0].general[RAX] == 1
    cpu = cpus[1]
    for rip in (CODE + 2, CODE + 5, CODE + 8):
        cpu.exit_at_pause(True)
        assert cpu.run() is Outcome.STOPPED and cpu.gave_up and cpu.overlay.regs.rip == rip
    assert cpu.run() is Outcome.OFF and not cpu.gave_up and cpu.general[RAX] == 1


@pytest.mark.parametrize("body", ["48 ff 03", "f0 48 ff 03", "f9 48 83 13 00"], ids=["inc", "lock inc", "adc"])
def test_stops_and_changes_make_no_instruction_run_twice(cpus: list[SharingVCPU], body: str) -> None:
    """Two CPUs add to one counter, changed at each of hundreds of stops from another thread."""
    code = bytes.fromhex(body)
    put(cpus[0], (code + b"\x48\xff\xc9\x75" + struct.pack("b", -(len(code) + 5)) + b"\xf4").hex())
    rounds, done, changes = 2_000_000, threading.Event(), 0

    def stop() -> None:
        while not done.wait(0.0005):
            for cpu in cpus:
                cpu.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        while changes < 200:
            for cpu in cpus:
                cpu.general[RBX], cpu.general[RCX], cpu.overlay.regs.rip = DATA, rounds, CODE
            cpus[0].memory.write_u64(DATA, 0)
            running = list(cpus)
            while running:
                running = [cpu for cpu in running if cpu.run() is Outcome.STOPPED]
                changes += len(running)
            assert cpus[0].memory.read_u64(DATA) == 2 * rounds
    finally:
        done.set()
        thread.join()


def test_an_interrupt_waits_for_the_cpu_that_it_is_for(cpus: list[SharingVCPU]) -> None:
    """The other one runs meanwhile with interrupts on; callbacks that are asked for twice come once."""
    first, second = cpus
    gate(first, 0xF3, CODE + 0x100)
    put(first, "fb 90 0f 01 c1 eb fb")  # sti; nop; vmcall, over and over
    put(first, "48 ff c6 48 cf", CODE + 0x100)  # inc rsi; iretq
    first.run()
    second.upcall(0xF3)
    second.upcall(0xF3)
    assert first.run() is Outcome.STOPPED and first.general[RSI] == 0
    assert second.run() is second.run() is Outcome.STOPPED and second.general[RSI] == 1
    assert first.run() is Outcome.STOPPED and first.general[RSI] == 0


def test_an_ipi_of_its_own_and_a_callback_come_one_after_the_other(cpus: list[SharingVCPU]) -> None:
    """The APIC's first; it is in service until the guest says that it has ended."""
    cpu = cpus[0]
    apic = map_apic(cpu)
    gate(cpu, 0x51, CODE + 0x100)
    gate(cpu, 0xF3, CODE + 0x200)

    def store(offset: int, value: int) -> str:
        return "c7 83" + struct.pack("<II", offset, value).hex()

    cpu.general[RBX] = apic
    put(cpu, store(SVR, 0x1FF) + store(ICR_LOW, 1 << 18 | 0x51) + "fb 90 90 f4")
    load = "8b 83" + struct.pack("<I", ISR + 0x20).hex()
    put(cpu, load + "89 c6 ff c2" + store(EOI, 0) + load + "48 cf", CODE + 0x100)
    put(cpu, "01 d1 48 cf", CODE + 0x200)  # add ecx, edx
    cpu.general[2] = 5
    cpu.upcall(0xF3)
    assert cpu.run() is Outcome.HALTED, cpu.crash
    assert cpu.general[RSI] == 1 << 17 and cpu.general[RAX] == 0
    assert (cpu.general[2], cpu.general[RCX]) == (6, 6)


def test_a_startup_begins_in_real_mode(cpus: list[SharingVCPU]) -> None:
    """At the start of a page, with CS to it; what was in the CPU before is gone."""
    cpu = cpus[1]
    cpu.general[RBX] = 77
    cpu.reside()
    cpus[0].reside()
    cpu.memory.write(0x8000, bytes.fromhex("8c c8 66 bb 78 56 34 12 2e 89 1e 00 01 c1 e0 04 fa f4"))
    cpu.start(8)
    assert cpu.run() is Outcome.OFF
    assert cpu.general[RAX] == 0x8000 and cpu.memory.read_u32(0x8100) == 0x5678 and cpu.overlay.cpl == 0


def test_hooks_are_those_of_the_cpu_that_runs(cpus: list[SharingVCPU]) -> None:
    """CPUID knows whom it answers; ports are the same for all."""
    put(cpus[0], "0f a2 89 c6 66 ba 34 12 ec f4")  # cpuid; mov esi, eax; mov dx, 0x1234; in al, dx; hlt
    for cpu in cpus:
        assert cpu.run() is Outcome.OFF and (cpu.general[RSI], cpu.general[RAX] & 0xFF) == (cpu.number, 0x34)
