"""A vCPU's registers carried to another engine: the guest goes on as if nothing had been."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import pytest

from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64.cpu import context
from hypervisor.arch.x86_64.cpu.context import MSRS, CPUContext
from hypervisor.arch.x86_64.cpu.overlay import R15, RAX, RBX, long_mode
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.memory.guest_memory import Memory

_CODE = 0x100000

FLOATS = bytes.fromhex(
    "db e3"  # fninit
    "d9 e8 d9 e8 de c1"  # fld1; fld1; faddp: ST0 = 2
    "d9 eb"  # fldpi
    "48 c7 c0 07 00 00 00 f3 48 0f 2a f8"  # mov rax, 7; cvtsi2ss xmm7, rax
    "66 45 0f 6f ff 66 45 0f 76 ff"  # movdqa xmm15, xmm15; pcmpeqd xmm15, xmm15: all ones
    "f9 fd"  # stc; std
    "f4"  # hlt: here it moves
    "de c9"  # fmulp: ST0 = 2 pi
    "dd 1c 25 00 00 19 00"  # fstp qword [0x190000]
    "f3 0f 58 ff"  # addss xmm7, xmm7
    "f3 0f 11 3c 25 08 00 19 00"  # movss [0x190008], xmm7
    "f3 44 0f 7f 3c 25 10 00 19 00"  # movdqu [0x190010], xmm15
    "9c 8f 04 25 20 00 19 00"  # pushf; pop [0x190020]
    "f4"
)


class Nothing:
    """A platform that is never asked."""

    def hypercall(self, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
        raise AssertionError

    def cpuid(self, cpu: VCPU, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        raise AssertionError

    def read_msr(self, cpu: VCPU, number: int) -> int:
        raise AssertionError

    def write_msr(self, cpu: VCPU, number: int, value: int) -> None:
        raise AssertionError

    def port_in(self, port: int, size: int) -> int:
        raise AssertionError

    def port_out(self, port: int, size: int, value: int) -> None:
        raise AssertionError


def a_cpu(memory: Memory) -> VCPU:
    return VCPU(0, memory, Nothing())


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(2 << 20)
    yield made
    made.close()


def moved(cpu: VCPU, memory: Memory) -> VCPU:
    """Carry a CPU's state over bytes to a new engine."""
    other = a_cpu(memory)
    context.load(other, CPUContext.decode(context.read(cpu).encode()))
    return other


def test_a_program_goes_on_in_another_engine(memory: Memory) -> None:
    """Floats, vectors, flags and the place in the program are where they were."""
    cpu = a_cpu(memory)
    long_mode(cpu.engine, cpu.overlay)
    memory.write(_CODE, FLOATS)
    cpu.overlay.regs.rip = _CODE
    assert cpu.run() is Outcome.OFF
    other = moved(cpu, memory)
    assert other.overlay.regs.hflags == cpu.overlay.regs.hflags
    other.run()
    double, single = struct.unpack("<df", memory.read(0x190000, 12))
    assert abs(double - 6.283185307179586) < 1e-12 and single == 14
    assert memory.read(0x190010, 16) == b"\xff" * 16
    flags = memory.read_u64(0x190020)
    assert flags & 0x400 and flags & 1


def test_all_that_is_read_is_loaded(memory: Memory) -> None:
    """Every register set to a value of its own is read back from another engine."""
    cpu = a_cpu(memory)
    long_mode(cpu.engine, cpu.overlay)
    before = context.read(cpu)
    values = CPUContext(
        general=tuple(0x1111 * number for number in range(1, 17)),
        rip=_CODE,
        rflags=0x246,
        cpl=0,
        shadowed=True,
        segments=before.segments,
        control=(before.control[0], 0xABC000, before.control[2], before.control[3]),
        debug=(1, 2, 3, 4, *before.debug[4:]),
        msrs=tuple(value if MSRS[at] == 0xC0000080 else 0x10 + at for at, value in enumerate(before.msrs)),
        fpu=(0x37F, 0x2800, 0xFFF0, 5),
        fpu_pointers=(7, 8),
        fpu_registers=tuple((1 << 63 | number, 0x3FFF + number) for number in range(8)),
        mxcsr=0x1F80,
        xmm=tuple(1 << 120 | number for number in range(16)),
        apic=b"",
    )
    context.load(cpu, values)
    after = context.read(moved(cpu, memory))
    tag = after.fpu[2]  # what is not empty is told apart by its value: valid, zero, special
    assert [tag >> 2 * number & 3 == 3 for number in range(8)] == [False] * 2 + [True] * 6
    for name in CPUContext.__slots__:
        if name != "fpu":
            assert getattr(after, name) == getattr(values, name), name
    assert (after.fpu[0], after.fpu[1], after.fpu[3]) == (values.fpu[0], values.fpu[1], values.fpu[3])


def test_the_mode_of_the_start_is_derived(memory: Memory) -> None:
    """The 32-bit state in which a PVH kernel starts has the same derived flags in another engine."""
    cpu = a_cpu(memory)
    cpu.overlay.enter_flat32()
    memory.write(_CODE, bytes.fromhex("b8 78 56 34 12 89 c3 f4"))  # mov eax, 0x12345678; mov ebx, eax; hlt
    cpu.overlay.regs.rip = _CODE
    cpu.overlay.general[R15] = 9
    other = moved(cpu, memory)
    assert other.run() is Outcome.OFF and other.overlay.general[RBX] == other.overlay.general[RAX] == 0x12345678


@pytest.mark.parametrize(
    "change",
    [
        {"cpl": 4},
        {"control": (1 << 31, 0, 0, 0)},
        {"control": (1 << 8, 0, 0, 0)},
        {"control": (0x80000001, 0, 0, 0)},
        {"mxcsr": 1 << 16},
        {"apic": b"x"},
    ],
)
def test_impossible_states_are_refused(memory: Memory, change: dict[str, object]) -> None:
    """A mode that no instruction leads to is not loaded."""
    cpu = a_cpu(memory)
    long_mode(cpu.engine, cpu.overlay)
    good = context.read(cpu)
    fields = {name: getattr(good, name) for name in CPUContext.__slots__} | change
    with pytest.raises(ValueError):
        CPUContext.decode(CPUContext(**fields).encode())
