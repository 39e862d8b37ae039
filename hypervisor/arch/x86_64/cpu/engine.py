"""An engine of Unicorn's over a domain's memory, and what vCPUs in it ask of the platform around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_64, UC_PROT_ALL, Uc
from unicorn import x86_const as x86

from hypervisor.memory.guest_memory import Memory

if TYPE_CHECKING:
    from hypervisor.arch.x86_64.cpu.vcpu import VCPU


class Platform(Protocol):
    """What a virtual CPU asks of the machine around it. An exception other than BadAddress is a bug."""

    def hypercall(self, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
        """Do a hypercall of up to five arguments and return its result, negative for an error."""

    def cpuid(self, cpu: VCPU, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Return EAX, EBX, ECX and EDX of a leaf."""

    def read_msr(self, cpu: VCPU, number: int) -> int:
        """Return a model-specific register that is not of `msr.NATIVE`. Raises NoRegister for #GP."""

    def write_msr(self, cpu: VCPU, number: int, value: int) -> None:
        """Write a model-specific register that is not of `msr.NATIVE`. Raises NoRegister for #GP."""

    def port_in(self, port: int, size: int) -> int:
        """Read an I/O port of 1, 2 or 4 bytes."""

    def port_out(self, port: int, size: int, value: int) -> None:
        """Write an I/O port of 1, 2 or 4 bytes."""


def new_engine(memory: Memory, code_cache: int, ranges: Sequence[tuple[int, int]]) -> Uc:
    """Return an engine over these ranges of the memory, or all of it."""
    engine = Uc(UC_ARCH_X86, UC_MODE_64)
    engine.ctl_set_tcg_buffer_size(code_cache)
    for start, end in ranges or ((0, memory.size),):
        engine.mem_map_ptr(start, end - start, UC_PROT_ALL, memory.address + start)
    return engine


def hook_ports(engine: Uc, platform: Platform) -> None:
    """Bring an engine's IN and OUT to the platform, at once: they are the same for all CPUs."""
    read, write = platform.port_in, platform.port_out
    engine.hook_add(UC_HOOK_INSN, lambda _, port, size, data: read(port, size), None, 1, 0, x86.UC_X86_INS_IN)
    engine.hook_add(
        UC_HOOK_INSN, lambda _, port, size, value, data: write(port, size, value), None, 1, 0, x86.UC_X86_INS_OUT
    )
