"""The CPU layer: instructions run once whatever stops them, and exceptions arrive as on hardware."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64.cpu import overlay, proof, support
from hypervisor.arch.x86_64.cpu.msr import NoRegister
from hypervisor.arch.x86_64.cpu.overlay import RAX, RBX, RCX, RDX, RSP, long_mode
from hypervisor.arch.x86_64.cpu.support import UnsupportedUnicorn
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.memory.guest_memory import Memory

CODE, DATA, IDT, GDT, TSS, STACK = 0x100000, 0x190000, 0x9000, 0x195000, 0x196000, 0x180000
ROUNDS = 1_000_000
STOPS = 300
"""How many stops each instruction goes through: some four thousand in all."""


class Bare:
    """A platform that records what it is asked."""

    def __init__(self) -> None:
        self.hypercalls: list[tuple[int, tuple[int, ...]]] = []
        self.ports: list[tuple[int, int, int]] = []
        self.asked: Callable[[], None] = lambda: None
        """What happens when a port is read."""

    def hypercall(self, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
        self.hypercalls.append((number, tuple(arguments)))
        return -38

    def cpuid(self, cpu: VCPU, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        return leaf + 1, leaf + 2, leaf + 3, subleaf

    def read_msr(self, cpu: VCPU, number: int) -> int:
        raise NoRegister(number)

    def write_msr(self, cpu: VCPU, number: int, value: int) -> None:
        raise NoRegister(number)

    def port_in(self, port: int, size: int) -> int:
        self.asked()
        return port + size

    def port_out(self, port: int, size: int, value: int) -> None:
        self.ports.append((port, size, value))


@pytest.fixture
def bare() -> Bare:
    return Bare()


@pytest.fixture
def cpu(bare: Bare) -> Iterator[VCPU]:
    """A CPU in 64-bit mode with a GDT, an IDT of halting handlers and a TSS."""
    memory = Memory(4 << 20)
    made = VCPU(0, memory, bare)
    long_mode(made.engine, made.overlay)
    regs = made.overlay.regs
    # null, 64-bit code, data, user data, user code, TSS
    descriptors = [0, 0xAF9B000000FFFF, 0xCF93000000FFFF, 0xCFF3000000FFFF, 0xAFFB000000FFFF]
    memory.write(GDT, struct.pack("<5Q", *descriptors))
    regs.gdt.base, regs.gdt.limit = GDT, 0x3F
    regs.idt.base, regs.idt.limit = IDT, 0xFFF
    regs.tr.base, regs.tr.limit = TSS, 0x67
    memory.write_u64(TSS + 4, STACK - 0x1000)  # rsp0
    memory.write_u64(TSS + 36, STACK - 0x2000)  # ist1
    yield made
    made.engine = None
    memory.close()


def gate(cpu: VCPU, vector: int, handler: int, *, ist: int = 0, dpl: int = 0, trap: bool = False) -> None:
    kind = 0x8E | dpl << 5 | trap
    entry = struct.pack("<HHBBHII", handler & 0xFFFF, 8, ist, kind, handler >> 16 & 0xFFFF, 0, 0)
    cpu.memory.write(IDT + 16 * vector, entry)


def load(cpu: VCPU, code: str, at: int = CODE) -> None:
    cpu.memory.write(at, bytes.fromhex(code))
    cpu.overlay.regs.rip = CODE


def run_with_stops(cpu: VCPU) -> int:
    """Run until the CPU is off while another thread stops it all the time; return how many stops took."""
    done = threading.Event()

    def stopper() -> None:
        while not done.is_set():
            cpu.stop()

    thread = threading.Thread(target=stopper)
    thread.start()
    stops = 0
    try:
        while (outcome := cpu.run()) is Outcome.STOPPED:
            stops += 1
    finally:
        done.set()
        thread.join()
    assert outcome is Outcome.OFF, cpu.crash
    return stops


# rbx points at the counter; rcx counts down; each loop body must change memory exactly once
READ_MODIFY_WRITE = {
    "inc": "48 ff 03",
    "lock inc": "f0 48 ff 03",
    "add": "48 83 03 01",
    "lock add": "f0 48 83 03 01",
    "xadd": "ba 01 00 00 00 48 0f c1 13",
    "lock xadd": "ba 01 00 00 00 f0 48 0f c1 13",
    "push pop": "53 5b 48 ff 03",
    "cmpxchg": "48 8b 03 48 8d 50 01 f0 48 0f b1 13",
    "adc": "f9 48 83 13 00",
    "call": "e8 02 00 00 00 eb 04 48 ff 03 c3",
    "movs": "48 89 de 48 89 df 48 a5 48 ff 03",
}


@pytest.mark.parametrize("body", READ_MODIFY_WRITE.values(), ids=READ_MODIFY_WRITE.keys())
def test_a_stop_makes_no_instruction_run_twice_or_not_at_all(cpu: VCPU, body: str) -> None:
    """Without no_exit_request a stop lands after a memory access, and the instruction runs again."""
    code = bytes.fromhex(body)
    loop = code + bytes.fromhex("48 ff c9 75") + struct.pack("b", -(len(code) + 5)) + b"\xf4"
    stops = runs = 0
    while stops < STOPS:
        load(cpu, loop.hex())
        cpu.general[RBX], cpu.general[RCX] = DATA, ROUNDS
        stops += run_with_stops(cpu)
        runs += 1
    assert cpu.memory.read_u64(DATA) == runs * ROUNDS


@pytest.mark.parametrize("bit", ["f0 48 0f bb 03", "48 0f bb 03"], ids=["lock btc", "btc"])
def test_a_stop_makes_no_bit_flip_twice(cpu: VCPU, bit: str) -> None:
    """An odd number of flips leaves the bit set."""
    code = bytes.fromhex("31 c0" + bit)
    loop = code + bytes.fromhex("48 ff c9 75") + struct.pack("b", -(len(code) + 5)) + b"\xf4"
    load(cpu, loop.hex())
    stops = runs = 0
    while stops < STOPS or not runs % 2:
        cpu.overlay.regs.rip = CODE
        cpu.general[RBX], cpu.general[RCX] = DATA, ROUNDS + 1
        stops += run_with_stops(cpu)
        runs += 1
    assert cpu.memory.read_u64(DATA) == 1


@pytest.mark.parametrize("kind", ["no gate", "no stack"])
def test_an_interrupt_that_cannot_be_taken_does_not_keep_the_thread(cpu: VCPU, kind: str) -> None:
    """Unicorn tries again and again before it looks for a stop."""
    load(cpu, "fb 90 eb fe")  # sti; nop; jmp to itself
    cpu.upcall(0xF3)
    if kind == "no gate":  # and none for the fault of that
        assert cpu.run() is Outcome.CRASHED and "vector 8 has no gate" in cpu.crash
        return
    cpu.overlay.regs.tr.flags = 0x8B00
    gate(cpu, 0xF3, CODE, ist=2)
    cpu.memory.write_u64(TSS + 44, 1 << 40)
    gate(cpu, 14, CODE, ist=1, trap=True)
    timer = threading.Timer(0.05, cpu.stop)
    timer.start()
    assert cpu.run() is Outcome.STOPPED
    timer.join()


def test_the_self_check_fails_when_a_block_may_be_left_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check must notice a build where no_exit_request lies elsewhere."""
    monkeypatch.setattr(overlay, "_NO_EXIT_REQUEST", overlay._NO_EXIT_REQUEST + 3)
    with pytest.raises(UnsupportedUnicorn):
        proof.self_check()


@pytest.mark.parametrize(
    "name", ["_EFER", "_LSTAR", "_ERROR_CODE", "_OLD_EXCEPTION", "_VMCB", "_INTERRUPT_REQUEST", "_HALTED"]
)
def test_the_self_check_fails_when_an_offset_is_wrong(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(overlay, name, getattr(overlay, name) + 16)
    with pytest.raises(UnsupportedUnicorn):
        proof.self_check()


def test_another_version_of_unicorn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "VERSION", "2.1.5")
    with pytest.raises(UnsupportedUnicorn, match=r"needs exactly 2\.1\.5"):
        proof.self_check()


def frame(cpu: VCPU, words: int) -> tuple[int, ...]:
    return struct.unpack(f"<{words}Q", cpu.memory.read(cpu.general[RSP], 8 * words))


def test_a_page_fault_pushes_its_error_code_and_sets_cr2(cpu: VCPU) -> None:
    cpu.memory.write(0x3000 + 8 * (0x70000000 >> 21), bytes(8))
    gate(cpu, 14, DATA)
    cpu.memory.write(DATA, b"\xf4")
    load(cpu, "48 89 04 25 00 00 00 70")  # mov [0x70000000], rax
    assert cpu.run() is Outcome.OFF
    assert frame(cpu, 3)[:2] == (2, CODE)
    assert cpu.overlay.cr[2] == 0x70000000


def test_many_page_faults_in_a_row_stay_page_faults(cpu: VCPU) -> None:
    """Unicorn would make the second one a double fault."""
    cpu.memory.write(0x3000 + 8 * (0x70000000 >> 21), bytes(8))
    gate(cpu, 14, DATA)
    # handler: inc rbx; add qword [rsp+8], 8 (skip the load); add rsp, 8; iretq
    cpu.memory.write(DATA, bytes.fromhex("48 ff c3 48 83 44 24 08 08 48 83 c4 08 48 cf"))
    load(cpu, "48 8b 04 25 00 00 00 70" * 5 + "f4")
    cpu.general[RBX] = 0
    assert cpu.run() is Outcome.OFF
    assert cpu.general[RBX] == 5


@pytest.mark.parametrize(
    ("code", "vector", "rip", "error"),
    [
        ("0f 0b", 6, CODE, None),  # ud2: a fault
        ("31 c9 f7 f1", 0, CODE + 2, None),  # div ecx
        ("cc", 3, CODE + 1, None),  # int3: a trap
        ("cd 80", 128, CODE + 2, None),
        ("66 b8 38 00 8e d8", 13, CODE + 4, 0x38),  # mov ds, a selector beyond the GDT
    ],
    ids=["invalid opcode", "divide", "breakpoint", "int 0x80", "general protection"],
)
def test_an_exception_enters_its_gate_with_the_right_frame(
    cpu: VCPU, code: str, vector: int, rip: int, error: int | None
) -> None:
    gate(cpu, vector, DATA)
    cpu.memory.write(DATA, b"\xf4")
    load(cpu, code)
    assert cpu.run() is Outcome.OFF
    pushed = frame(cpu, 6)
    if error is not None:
        assert pushed[0] == error
        pushed = pushed[1:]
    assert (pushed[0], pushed[1], pushed[3]) == (rip, 8, STACK)
    assert cpu.general[RSP] % 16 == (8 if error is None else 0)


def user_mode(cpu: VCPU) -> None:
    cpu.memory.write(0x1000, struct.pack("<Q", 0x2000 | 7))
    cpu.overlay.set_code64(0x23, 3)
    cpu.overlay.set_stack(0x1B, 3)


def test_an_exception_in_user_mode_switches_to_the_kernel_s_stack(cpu: VCPU) -> None:
    gate(cpu, 6, DATA)
    cpu.memory.write(DATA, b"\xf4")
    load(cpu, "0f 0b")
    user_mode(cpu)
    assert cpu.run() is Outcome.OFF
    assert cpu.overlay.cpl == 0
    assert cpu.general[RSP] == STACK - 0x1000 - 40
    assert frame(cpu, 5)[1::2] == (0x23, STACK)
    assert frame(cpu, 5)[4] == 0x1B


def test_a_gate_may_name_a_stack_of_its_own(cpu: VCPU) -> None:
    gate(cpu, 6, DATA, ist=1)
    cpu.memory.write(DATA, b"\xf4")
    load(cpu, "0f 0b")
    assert cpu.run() is Outcome.OFF
    assert cpu.general[RSP] == STACK - 0x2000 - 40


def test_user_code_may_not_enter_a_kernel_s_gate_by_int(cpu: VCPU) -> None:
    gate(cpu, 0x80, DATA)
    gate(cpu, 13, DATA)
    cpu.memory.write(DATA, b"\xf4")
    load(cpu, "cd 80")
    user_mode(cpu)
    assert cpu.run() is Outcome.OFF
    assert frame(cpu, 1) == (0x80 * 8 + 2,)


def test_an_exception_without_a_gate_becomes_a_double_fault(cpu: VCPU) -> None:
    gate(cpu, 8, DATA)
    cpu.memory.write(DATA, b"\xf4")
    load(cpu, "0f 0b")
    assert cpu.run() is Outcome.OFF
    assert frame(cpu, 2) == (0, CODE)


def test_without_any_gate_the_cpu_crashes_and_says_where(cpu: VCPU) -> None:
    load(cpu, "0f 0b")
    assert cpu.run() is Outcome.CRASHED
    assert cpu.crash.startswith(f"triple fault: exception 6 at RIP {CODE:#x}")


def test_an_access_to_where_nothing_is_crashes_the_domain_only(cpu: VCPU) -> None:
    """The first GiB is mapped by the page tables, but the memory has 4 MiB."""
    load(cpu, "48 8b 04 25 00 00 00 30")
    assert cpu.run() is Outcome.CRASHED
    assert "RIP" in cpu.crash


def test_syscall_and_sysret_change_the_level(cpu: VCPU) -> None:
    """SYSCALL saves RIP and flags, masks flags, and takes CS and SS from STAR."""
    cpu.overlay.star.value = 0x13 << 48 | 8 << 32
    cpu.overlay.lstar.value = DATA
    cpu.overlay.fmask.value = 0x200
    cpu.memory.write(DATA, bytes.fromhex("48 ff c3 48 0f 07"))  # inc rbx; sysretq
    load(cpu, "0f 05 0f 05 cd 80")
    gate(cpu, 0x80, DATA + 0x100, dpl=3)
    cpu.memory.write(DATA + 0x100, b"\xf4")
    user_mode(cpu)
    cpu.general[RBX] = 0
    assert cpu.run() is Outcome.OFF
    assert cpu.general[RBX] == 2
    assert frame(cpu, 2) == (CODE + 6, 0x23)


def test_a_hypercall_gives_its_arguments_and_takes_the_result(bare: Bare, cpu: VCPU) -> None:
    load(cpu, "0f 01 c1 f4")
    for register, value in ((RAX, 17), (7, 1), (6, 2), (RDX, 3), (10, 4), (8, 5)):
        cpu.general[register] = value
    assert cpu.run() is Outcome.OFF
    assert bare.hypercalls == [(17, (1, 2, 3, 4, 5))]
    assert cpu.general[RAX] == (1 << 64) - 38


@pytest.mark.parametrize("call", ["0f 01 c1", "0f 01 d9"], ids=["vmcall", "vmmcall"])
def test_user_code_cannot_make_hypercalls(bare: Bare, cpu: VCPU, call: str) -> None:
    """Xen's hvm_hypercall answers -EPERM; it does not fault."""
    gate(cpu, 6, DATA)
    cpu.memory.write(DATA, b"\xf4")
    load(cpu, call + "0f 0b")
    user_mode(cpu)
    assert cpu.run() is Outcome.OFF
    assert bare.hypercalls == []
    assert cpu.general[RAX] == 2**64 - 1
    assert frame(cpu, 5)[0] == CODE + 3


def test_cpuid_and_ports_ask_the_platform(bare: Bare, cpu: VCPU) -> None:
    load(cpu, "b8 07 00 00 00 b9 02 00 00 00 0f a2 89 c6 66 ba e9 00 ec ee f4")
    assert cpu.run() is Outcome.OFF
    assert (cpu.general[6], cpu.general[RBX]) == (8, 9)
    assert bare.ports == [(0xE9, 1, 0xEA)]


def test_an_interrupt_waits_until_the_guest_accepts_it(cpu: VCPU) -> None:
    gate(cpu, 0xF3, DATA)
    cpu.memory.write(DATA, bytes.fromhex("48 ff c3 48 cf"))  # inc rbx; iretq
    load(cpu, "90 90 fb 90 90 f4")
    cpu.general[RBX] = 0
    cpu.overlay.interrupt(0xF3)
    assert cpu.run() is Outcome.HALTED
    assert cpu.general[RBX] == 1


def test_a_stop_at_a_halt_does_not_carry_the_cpu_past_it(bare: Bare, cpu: VCPU) -> None:
    """The stop comes inside the block that ends in HLT."""
    load(cpu, "ec 90 f4 0f 0b")
    bare.asked = cpu.halt_here
    assert cpu.run() is Outcome.OFF
    assert cpu.overlay.regs.rip == CODE + 3


def test_a_masked_interrupt_does_not_end_a_halt(bare: Bare, cpu: VCPU) -> None:
    """cli, an interrupt that stays pending, hlt: the CPU is off, as Linux leaves it at the end."""
    load(cpu, "fa ec f4")
    bare.asked = lambda: cpu.overlay.interrupt(0x40)
    stopper = threading.Timer(5, cpu.stop)
    stopper.start()
    assert cpu.run() is Outcome.OFF
    stopper.cancel()


def test_an_instruction_that_ends_like_a_halt_is_none(bare: Bare, cpu: VCPU) -> None:
    """mov ebx, 0xf4000000 before the stop."""
    load(cpu, "ec bb 00 00 00 f4 eb fe")
    bare.asked = cpu.halt_here
    cpu.general[RBX] = 0
    assert cpu.run() is Outcome.STOPPED


def test_a_halt_with_a_pending_interrupt_goes_on(cpu: VCPU) -> None:
    gate(cpu, 0xF3, DATA)
    cpu.memory.write(DATA, bytes.fromhex("48 ff c3 fa 48 83 c4 28 f4"))  # inc rbx; cli; drop the frame; hlt
    load(cpu, "fb f4")
    cpu.general[RBX] = 0
    assert cpu.run() is Outcome.HALTED
    cpu.overlay.interrupt(0xF3)
    assert cpu.run() is Outcome.OFF
    assert cpu.general[RBX] == 1


def test_code_that_the_guest_writes_over_itself_is_seen(cpu: VCPU) -> None:
    """mov byte [next+1], 2; mov al, 1 -> mov al, 2."""
    load(cpu, "c6 05 01 00 00 00 02 b0 01 f4")
    assert cpu.run() is Outcome.OFF
    assert cpu.general[RAX] & 0xFF == 2


def test_code_at_virtual_address_zero_runs(cpu: VCPU) -> None:
    """Unicorn takes the address at which a run is to end for no code."""
    cpu.memory.write(0, bytes.fromhex("b8 05 00 00 00 f4"))  # mov eax, 5; hlt
    load(cpu, "31 c9 ff e1")  # xor ecx, ecx; jmp rcx
    assert cpu.run() is Outcome.OFF
    assert (cpu.general[RAX], cpu.overlay.regs.rip) == (5, 6)


def test_a_jump_to_zero_where_nothing_is_mapped_is_a_page_fault(cpu: VCPU) -> None:
    """A kernel that calls a function that it does not have."""
    cpu.memory.write(0x4000, struct.pack("<512Q", 0, *(number << 12 | 7 for number in range(1, 512))))
    cpu.memory.write_u64(0x3000, 0x4000 | 7)
    gate(cpu, 14, DATA)
    cpu.memory.write(DATA, b"\xf4")
    load(cpu, "31 c9 ff e1")  # xor ecx, ecx; jmp rcx
    cpu.overlay.cr[2] = 7
    assert cpu.run() is Outcome.OFF
    assert (cpu.overlay.regs.rip, cpu.overlay.cr[2], frame(cpu, 2)[1]) == (DATA + 1, 0, 0)
