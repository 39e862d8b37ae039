"""A vCPU's registers as plain numbers, to be carried to another engine, another process or another machine.

Nothing here has the form that Unicorn keeps it in: what the CPU derives for itself (QEMU's hflags, lazy
condition codes) is derived again where the registers are loaded, so that another build can read them. The
registers are those of the instruction set that `cpuid` offers; the local APIC's page is carried along.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unicorn import UcError
from unicorn import x86_const as x86

from hypervisor.arch import vcpu
from hypervisor.arch.x86_64.cpu import apic
from hypervisor.arch.x86_64.cpu.overlay import Segment as LiveSegment
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.memory.guest_memory import PAGE

MSRS = (
    0x174, 0x175, 0x176,  # SYSENTER_CS, _ESP, _EIP
    0x277,  # PAT
    0xC0000080,  # EFER
    0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084,  # STAR, LSTAR, CSTAR, FMASK
    0xC0000102,  # KERNEL_GS_BASE
    0xC0000103,  # TSC_AUX
)  # fmt: skip
"""The model-specific registers that are carried (Intel SDM volume 4); FS and GS base are with their segments."""
_EFER = 0xC0000080
_LIVE = {_EFER: "efer", 0xC0000081: "star", 0xC0000082: "lstar", 0xC0000083: "cstar", 0xC0000084: "fmask",
         0xC0000102: "kernel_gs"}  # fmt: skip

_CR0_BITS, _CR4_BITS, _EFER_BITS = 0xE005003F, 0x7FFFFF, 0xFFFF
_PE, _PG, _PAE = 1, 1 << 31, 1 << 5
_LME, _LMA = 1 << 8, 1 << 10

_FPU = (x86.UC_X86_REG_FPCW, x86.UC_X86_REG_FPSW, x86.UC_X86_REG_FPTAG, x86.UC_X86_REG_FOP)
_FPU_POINTERS = (x86.UC_X86_REG_FIP, x86.UC_X86_REG_FDP)
_DEBUG = (x86.UC_X86_REG_DR0, x86.UC_X86_REG_DR1, x86.UC_X86_REG_DR2, x86.UC_X86_REG_DR3, x86.UC_X86_REG_DR6,
          x86.UC_X86_REG_DR7)  # fmt: skip
_SEGMENTS = 10
"""ES CS SS DS FS GS LDTR TR GDTR IDTR."""

_FIXED = struct.Struct("<16QQQ4Q6Q" + f"{len(MSRS)}Q" + "2QIBB4HI" + "QHI" * 8)
_SEGMENT = struct.Struct("<IQII")


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment or table register with its hidden part; `flags` as in the second word of a descriptor."""

    selector: int
    base: int
    limit: int
    flags: int


@dataclass(frozen=True, slots=True)
class CPUContext:
    """The state of one CPU between two instructions."""

    general: tuple[int, ...]
    """RAX RCX RDX RBX RSP RBP RSI RDI R8 … R15."""
    rip: int
    rflags: int
    cpl: int
    shadowed: bool
    """Whether interrupts wait for one instruction more, after STI or a load of SS."""
    segments: tuple[Segment, ...]
    control: tuple[int, ...]
    """CR0 CR2 CR3 CR4."""
    debug: tuple[int, ...]
    msrs: tuple[int, ...]
    """In the order of `MSRS`."""
    fpu: tuple[int, ...]
    """Control, status and tag word, last opcode."""
    fpu_pointers: tuple[int, ...]
    """Last instruction's and operand's address."""
    fpu_registers: tuple[tuple[int, int], ...]
    """Mantissa, and exponent with sign, of the eight registers by number, not from the top."""
    mxcsr: int
    xmm: tuple[int, ...]
    apic: bytes
    """The local APIC's page, empty for a CPU without one."""

    def encode(self) -> bytes:
        """Return the context as bytes, all numbers little-endian."""
        floats = [part for mantissa, exponent in self.fpu_registers for part in (mantissa, exponent, 0)]
        fixed = _FIXED.pack(
            *(*self.general, self.rip, self.rflags, *self.control, *self.debug, *self.msrs, *self.fpu_pointers),
            *(0, self.cpl, self.shadowed, *self.fpu, self.mxcsr, *floats),
        )
        segments = b"".join(_SEGMENT.pack(s.selector, s.base, s.limit, s.flags) for s in self.segments)
        return fixed + segments + b"".join(value.to_bytes(16, "little") for value in self.xmm) + self.apic

    @classmethod
    def decode(cls, data: bytes) -> CPUContext:
        """Return the context in bytes. Raises ValueError for what no CPU of ours can be in."""
        start = _FIXED.size + _SEGMENTS * _SEGMENT.size
        apic = data[start + 256 :]
        if len(data) < start + 256 or len(apic) not in (0, PAGE):
            raise ValueError("a CPU's context has another length")
        values = iter(_FIXED.unpack_from(data))

        def take(count: int) -> tuple[int, ...]:
            return tuple(next(values) for _ in range(count))

        general, (rip, rflags), control, debug = take(16), take(2), take(4), take(6)
        msrs, pointers, (_, cpl, shadowed), fpu, (mxcsr,) = take(len(MSRS)), take(2), take(3), take(4), take(1)
        floats = tuple((mantissa, exponent) for mantissa, exponent, _ in (take(3) for _ in range(8)))
        places = range(_FIXED.size, start, _SEGMENT.size)
        segments = tuple(Segment(*_SEGMENT.unpack_from(data, at)) for at in places)
        xmm = tuple(int.from_bytes(data[at : at + 16], "little") for at in range(start, start + 256, 16))
        context = cls(general, rip, rflags, cpl, bool(shadowed), segments, control, debug, msrs, fpu, pointers, floats,
                      mxcsr, xmm, apic)  # fmt: skip
        context._check(shadowed)
        return context

    def _check(self, shadowed: int) -> None:
        """Raise ValueError for a mode that a guest cannot have brought its CPU into."""
        cr0, _, _, cr4 = self.control
        efer = self.msrs[MSRS.index(_EFER)]
        if self.cpl > 3 or shadowed > 1 or cr0 & ~_CR0_BITS or cr4 & ~_CR4_BITS or efer & ~_EFER_BITS:
            raise ValueError("a CPU's control registers have unknown bits")
        paged = bool(cr0 & _PG)
        if paged and (not cr0 & _PE or bool(efer & _LMA) != bool(efer & _LME) or (efer & _LMA and not cr4 & _PAE)):
            raise ValueError("a CPU is in no possible mode")
        if self.mxcsr & ~0xFFFF:
            raise ValueError("a CPU's MXCSR has unknown bits")


def read(cpu: vcpu.VCPU) -> CPUContext:
    """Return the registers of a vCPU that does not run. Takes 0.2 ms."""
    assert isinstance(cpu, VCPU)
    cpu.reside()
    overlay, engine = cpu.overlay, cpu.engine
    regs = overlay.regs
    live: Sequence[Any] = (*regs.segments, regs.ldt, regs.tr, regs.gdt, regs.idt)
    return CPUContext(
        general=tuple(overlay.general),
        rip=regs.rip,
        rflags=overlay.flags,
        cpl=overlay.cpl,
        shadowed=overlay.interrupts_shadowed,
        segments=tuple(Segment(s.selector, s.base, s.limit, s.flags) for s in live),
        control=(overlay.cr[0], overlay.cr[2], overlay.cr[3], overlay.cr[4]),
        debug=tuple(int(engine.reg_read(number)) for number in _DEBUG),
        msrs=tuple(_read_msr(cpu, number) for number in MSRS),
        fpu=tuple(int(engine.reg_read(number)) & 0xFFFF for number in _FPU),
        fpu_pointers=tuple(int(engine.reg_read(number)) for number in _FPU_POINTERS),
        fpu_registers=tuple(tuple(engine.reg_read(x86.UC_X86_REG_FP0 + number)) for number in range(8)),
        mxcsr=int(engine.reg_read(x86.UC_X86_REG_MXCSR)),
        xmm=tuple(int(engine.reg_read(x86.UC_X86_REG_XMM0 + number)) for number in range(16)),
        apic=cpu.apic_page(apic.ADDRESS),
    )


def load(cpu: vcpu.VCPU, context: CPUContext) -> None:
    """Put a new vCPU, one that never ran, into a state; its APIC's page, if the context has one, is mapped already.

    Raises ValueError for a state that the engine refuses.
    """
    assert isinstance(cpu, VCPU)
    try:
        _load(cpu, context)
    except UcError as error:
        raise ValueError(str(error)) from error


def _load(cpu: VCPU, context: CPUContext) -> None:
    cpu.reside()
    overlay, engine = cpu.overlay, cpu.engine
    regs = overlay.regs
    overlay.cr[0], overlay.cr[2], overlay.cr[3], overlay.cr[4] = context.control
    for number, value in zip(MSRS, context.msrs):
        if number in _LIVE:
            getattr(overlay, _LIVE[number]).value = value
        else:
            engine.reg_write(x86.UC_X86_REG_MSR, (number, value))
    for number, value in zip(
        (*_FPU, *_FPU_POINTERS, x86.UC_X86_REG_MXCSR, *_DEBUG),
        (*context.fpu, *context.fpu_pointers, context.mxcsr, *context.debug),
    ):
        engine.reg_write(number, value)
    for number, pair in enumerate(context.fpu_registers):
        engine.reg_write(x86.UC_X86_REG_FP0 + number, pair)
    for number, value in enumerate(context.xmm):
        engine.reg_write(x86.UC_X86_REG_XMM0 + number, value)
    live: Sequence[LiveSegment] = (*regs.segments, regs.ldt, regs.tr, regs.gdt, regs.idt)
    for target, source in zip(live, context.segments):
        target.selector, target.base, target.limit, target.flags = (
            source.selector, source.base, source.limit, source.flags,
        )  # fmt: skip
    for number, value in enumerate(context.general):
        overlay.general[number] = value
    regs.rip = context.rip
    overlay.flags = context.rflags
    regs.eflags = context.rflags | 2  # between runs condition codes and DF are here: each run begins by taking them out
    overlay.derive_mode(context.cpl, context.shadowed)
    if context.apic:
        cpu.load_apic(apic.ADDRESS, context.apic)


def _read_msr(cpu: VCPU, number: int) -> int:
    if number in _LIVE:
        return int(getattr(cpu.overlay, _LIVE[number]).value)
    return int(cpu.engine.reg_read(x86.UC_X86_REG_MSR, number))
