"""All that is private to Unicorn 2.1.4: where its x86 CPU keeps its state.

Unicorn's public interface cannot raise the privilege level, read an error code, deliver an interrupt or
stop soundly, and a register costs 2 µs. So the CPU's own structures are laid over with ctypes. The
offsets below are those of ``offsetof`` compiled against the sources of 2.1.4 (``uc_struct`` of
include/uc_priv.h, ``CPUState`` of qemu/include/hw/core/cpu.h, ``CPUX86State`` of qemu/target/i386/cpu.h);
`hypervisor.arch.x86_64.cpu.proof` verifies each one by behaviour before a CPU is made, and nothing is guessed.

Two techniques were weighed. Unicorn still has QEMU's SVM code, so that a guest entered by ``vmrun`` exits
for every intercept, MSRs and nested page faults included; but it delivers no more than this overlay for
what Linux needs, adds a VMCB, a host save area and a stub to every engine. The overlay alone boots Linux at the
same speed, so it carries the CPU; SVM is used for what only it can do: exits for PAUSE, which CPUs that share an
engine want, and for MSRs that the emulator does not have. It needs no ``vmrun``: QEMU looks for intercepts
whenever hflags has its bit for guest mode. To read or write an MSR that exits by Unicorn's interface is a crash;
those of `msr.NATIVE` do not exit.

**Several CPUs in one engine.** All that is a CPU's own, from the registers to what SVM intercepts, is one piece
of memory, `ENV_SIZE` bytes from `ENV` on; what is behind it (features) and before it (the TLB) is the engine's.
`Overlay.leave` and `Overlay.take` copy that piece out and in and flush the TLB. The pointers to hardware
breakpoints in it go along, but the engine's list of them does not: one that a guest sets is seen by its other
CPUs too, which take an exception 1 that their DR6 does not explain.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from unicorn import UC_CTL_IO_WRITE, UC_CTL_TLB_FLUSH, UC_PROT_ALL, Uc
from unicorn import x86_const as x86

from hypervisor.arch.x86_64.cpu import msr
from hypervisor.arch.x86_64.cpu.support import UnsupportedUnicorn

_CPU, _NO_EXIT_REQUEST = 440, 2034
"""In uc_struct: the CPU object; whether blocks leave out the exit check after each memory access."""
_INTERRUPT_REQUEST, _ENV_POINTER, _HALTED, ENV = 28, 296, 33176, 35408
"""In the CPU object: pending interrupts; the pointer to its registers; whether HLT ended the last run (the
only word that differs between an engine that halted and one that was stopped); the registers themselves."""
_STAR, _LSTAR, _CSTAR, _FMASK, _KERNEL_GS = 4824, 4840, 4848, 4856, 4864
_EFER, _ERROR_CODE, _EXCEPTION_IS_INT, _OLD_EXCEPTION, _VMCB, _INTERCEPT = 592, 5384, 5388, 5496, 5504, 5520
ENV_SIZE = 5568
"""offsetof(CPUX86State, end_reset_fields): a CPU's own state ends here, for uc_context_save too."""

_EXPECTED_VIRQ = 0x100
"""CPU_INTERRUPT_VIRQ of target/i386/cpu.h: deliver the vector named in the VMCB as soon as IF allows."""
_VMCB_VECTOR, _VMCB_PERMISSIONS = 0x64, 0x48
"""Offsets of int_vector and msrpm_base_pa in struct vmcb_control_area (target/i386/svm.h)."""

VMCB_PAGE = 0xFFFF_F000_0000
"""Guest-physical address of our own page with the vector, and of the map of MSRs behind it: above every memory that
a domain can have, and above what the CPU's page tables reach (40 bits)."""
_MSR_MAP = VMCB_PAGE + 4096

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)
ES, CS, SS, DS, FS, GS = range(6)

_INHIBIT_IRQ, _SVM_GUEST = 1 << 3, 1 << 21
_PAUSE_INTERCEPT, _MSR_INTERCEPT = 1 << 23, 1 << 28
PAUSE_EXIT, MSR_EXIT = 0x177, 0x17C
"""What UC_HOOK_INTR is called with at an intercepted PAUSE, RDMSR or WRMSR: EXCP_VMEXIT + SVM_EXIT_PAUSE, _MSR; RIP is
at it, and the error code is 1 for a write."""
_CC_OP_EFLAGS = 1
"""CC_OP_EFLAGS of target/i386/cpu.h: the condition codes are the flags in cc_src."""
_CC_FLAGS = 0x8D5
_PERMISSIONS = msr.permission_map()
_NOT_EFLAGS = 0xCD5
"""Condition codes and DF, which live outside of `eflags`."""


class Segment(ctypes.Structure):
    """SegmentCache of target/i386/cpu.h: a segment register with its hidden part."""

    _fields_ = (
        ("selector", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )
    selector: int
    base: int
    limit: int
    flags: int


class _Registers(ctypes.Structure):
    """The first members of CPUX86State."""

    _fields_ = (
        ("general", ctypes.c_uint64 * 16),
        ("rip", ctypes.c_uint64),
        ("eflags", ctypes.c_uint64),
        ("cc_dst", ctypes.c_uint64),
        ("cc_src", ctypes.c_uint64),
        ("cc_src2", ctypes.c_uint64),
        ("cc_op", ctypes.c_uint32),
        ("df", ctypes.c_int32),
        ("hflags", ctypes.c_uint32),
        ("hflags2", ctypes.c_uint32),
        ("segments", Segment * 6),
        ("ldt", Segment),
        ("tr", Segment),
        ("gdt", Segment),
        ("idt", Segment),
        ("cr", ctypes.c_uint64 * 5),
    )


class Overlay:
    """The live registers of one engine. Reading or writing one costs 0.1 µs and has no side effects.

    `regs.general[RAX]`, `regs.rip`, `regs.hflags`, `regs.segments[CS]`, `regs.cr[3]` … are the guest's.
    Only the thread that runs the engine may write here, and only between runs or inside a hook.
    """

    def __init__(self, engine: Uc) -> None:
        handle = _handle(engine)
        cpu = ctypes.c_uint64.from_address(handle + _CPU).value
        if not cpu or ctypes.c_uint64.from_address(cpu + _ENV_POINTER).value != cpu + ENV:
            raise UnsupportedUnicorn("Unicorn keeps its CPU elsewhere than in the build known here")
        env = cpu + ENV
        self.engine = engine
        self._vector = 0
        self._see(env)
        self._halted = ctypes.c_uint32.from_address(cpu + _HALTED)
        self._interrupt_request = ctypes.c_uint32.from_address(cpu + _INTERRUPT_REQUEST)
        self._interrupt_soon = ctypes.c_uint16.from_address(env - 14)  # icount_decr.u16.high
        # Without this, a stop from another thread lands after a memory access and the instruction
        # runs again: an increment counts twice (measured: 400 of 450 stops). With it a block ends whole.
        no_exit_request = ctypes.c_uint8.from_address(handle + _NO_EXIT_REQUEST)
        if no_exit_request.value != 0:
            raise UnsupportedUnicorn("Unicorn's no_exit_request is not where it was in the build known here")
        no_exit_request.value = 1
        # No address ends a run: with `until` code at virtual address 0 would never be run, nor fault.
        engine.ctl_exits_enabled(True)
        engine.mem_map(VMCB_PAGE, 4096 + -(-msr.PERMISSION_MAP_SIZE // 4096) * 4096, UC_PROT_ALL)
        engine.mem_write(VMCB_PAGE + _VMCB_PERMISSIONS, struct.pack("<Q", _MSR_MAP))
        engine.mem_write(_MSR_MAP, _PERMISSIONS)
        ctypes.c_uint64.from_address(env + _VMCB).value = VMCB_PAGE
        self.exit_at_pause(False)

    def _see(self, env: int) -> None:
        """Lay the members over registers at a host address."""
        self.address = env
        self.regs = _Registers.from_address(env)
        self.general = self.regs.general
        self.segments = self.regs.segments
        self.cr = self.regs.cr
        self.error_code = ctypes.c_int32.from_address(env + _ERROR_CODE)
        self.exception_is_int = ctypes.c_int32.from_address(env + _EXCEPTION_IS_INT)
        self.old_exception = ctypes.c_int32.from_address(env + _OLD_EXCEPTION)
        self.efer = ctypes.c_uint64.from_address(env + _EFER)
        self.star = ctypes.c_uint64.from_address(env + _STAR)
        self.lstar = ctypes.c_uint64.from_address(env + _LSTAR)
        self.cstar = ctypes.c_uint64.from_address(env + _CSTAR)
        self.fmask = ctypes.c_uint64.from_address(env + _FMASK)
        self.kernel_gs = ctypes.c_uint64.from_address(env + _KERNEL_GS)
        self._intercept = ctypes.c_uint64.from_address(env + _INTERCEPT)

    # Several CPUs in turn

    def leave(self, place: Parked) -> None:
        """Copy the registers out, between runs, with the interrupt that the CPU has not taken yet."""
        ctypes.memmove(place.address, self.address, ENV_SIZE)
        place.vector = self._vector if self.interrupt_pending else 0
        self.cancel_interrupt()

    def take(self, place: Parked) -> None:
        """Copy registers in, between runs. Code that was translated for another CPU stays: it depends on none."""
        ctypes.memmove(self.address, place.address, ENV_SIZE)
        self.engine.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)
        if place.vector:
            self.interrupt(place.vector)

    def exit_at_pause(self, on: bool) -> None:
        """Let PAUSE call UC_HOOK_INTR with `PAUSE_EXIT`, or do nothing; RDMSR and WRMSR call it with `MSR_EXIT`."""
        self.regs.hflags |= _SVM_GUEST
        self._intercept.value = _MSR_INTERCEPT | (_PAUSE_INTERCEPT if on else 0)

    # Interrupts

    def interrupt(self, vector: int) -> None:
        """Let the CPU take an interrupt as soon as the guest accepts one; a later vector replaces it."""
        self._vector = vector
        self.engine.mem_write(VMCB_PAGE + _VMCB_VECTOR, struct.pack("<I", vector))
        self._interrupt_request.value |= _EXPECTED_VIRQ
        self._interrupt_soon.value = 0xFFFF

    @property
    def halted(self) -> bool:
        """True when the last run ended by HLT; RIP is then behind it."""
        return bool(self._halted.value)

    @property
    def interrupt_pending(self) -> bool:
        """True until the guest has taken the interrupt."""
        return bool(self._interrupt_request.value & _EXPECTED_VIRQ)

    def cancel_interrupt(self) -> None:
        """Take back an interrupt that the guest has not taken yet."""
        self._interrupt_request.value &= ~_EXPECTED_VIRQ

    # Flags and segments, whose true values are spread over several members

    @property
    def flags(self) -> int:
        """RFLAGS, condition codes included."""
        return int(self.engine.reg_read(x86.UC_X86_REG_EFLAGS))

    @flags.setter
    def flags(self, value: int) -> None:
        regs = self.regs
        regs.cc_op = _CC_OP_EFLAGS
        regs.cc_src = value & _CC_FLAGS
        regs.df = -1 if value & 0x400 else 1
        regs.eflags = (value & ~_NOT_EFLAGS) | 2

    @property
    def cpl(self) -> int:
        """The privilege level, 0 to 3."""
        return int(self.regs.hflags & 3)

    def set_code64(self, selector: int, level: int) -> None:
        """Load CS with a flat 64-bit code segment of a privilege level, and make that the CPU's.

        hflags (target/i386/cpu.h): CPL in bits 0-1, INHIBIT_IRQ 3 and ADDSEG 6 cleared, CS32 4, SS32 5,
        CS64 15 set.
        """
        segment = self.segments[CS]
        segment.selector, segment.base, segment.limit = selector, 0, 0xFFFFFFFF
        segment.flags = 0xA09B00 | level << 13
        self.regs.hflags = (self.regs.hflags & ~0x4B) | 0x8030 | level

    def set_stack(self, selector: int, level: int, null: bool = False) -> None:
        """Load SS with a flat data segment, or with a null selector as a change to CPL 0 does."""
        segment = self.segments[SS]
        segment.selector, segment.base = selector, 0
        segment.limit, segment.flags = (0, 0) if null else (0xFFFFFFFF, 0xC09300)
        segment.flags |= level << 13

    @property
    def interrupts_shadowed(self) -> bool:
        """True for one instruction after STI, MOV SS and POP SS: hflags' INHIBIT_IRQ."""
        return bool(self.regs.hflags & _INHIBIT_IRQ)

    def derive_mode(self, level: int, shadowed: bool) -> None:
        """Compute hflags (target/i386/cpu.h) from the registers, after all of them were written.

        Bits: CPL 0-1, INHIBIT_IRQ 3, CS32 4, SS32 5, ADDSEG 6, PE 7, TF 8, MP EM TS 9-11, IOPL 12-13, LMA 14,
        CS64 15, VM 17, OSFXSR 22; the rest belongs to modes that a new engine is not in.
        """
        regs, segments, cr0 = self.regs, self.segments, self.cr[0]
        eflags = regs.eflags
        hflags = regs.hflags & _SVM_GUEST
        hflags |= level | (_INHIBIT_IRQ if shadowed else 0) | (cr0 & 1) << 7 | (cr0 << 8) & 0xE00
        hflags |= eflags & 0x23100 | (self.cr[4] >> 9 & 1) << 22 | (self.efer.value >> 10 & 1) << 14
        if hflags & 1 << 14 and segments[CS].flags & 1 << 21:
            hflags |= 0x8030
        else:
            hflags |= (segments[CS].flags >> 22 & 1) << 4 | (segments[SS].flags >> 22 & 1) << 5
            flat = cr0 & 1 and not eflags & 1 << 17 and hflags & 1 << 4
            if not flat or segments[DS].base or segments[ES].base or segments[SS].base:
                hflags |= 1 << 6
        regs.hflags = hflags

    def enter_flat32(self) -> None:
        """Put the CPU into 32-bit protected mode, paging off, all segments flat: the entry of PVH.

        Source: docs/misc/pvh.pandoc of Xen (CR0.PE set, CR4 0, EFER 0, cs base 0 limit 4 GiB).
        """
        self.engine.reg_write(x86.UC_X86_REG_CR4, 0)
        self.cr[0] = 0x11
        self.efer.value = 0
        self.regs.hflags = (self.regs.hflags & ~0xC0B3) | 0xB0
        for number, segment in enumerate(self.segments):
            segment.selector, segment.base, segment.limit = (8 if number == CS else 16), 0, 0xFFFFFFFF
            segment.flags = 0xCF9B00 if number == CS else 0xCF9300
        self.flags = 2

    def enter_real(self, page: int, signature: int) -> None:
        """Put the CPU into real mode at the start of a page below 1 MiB, as INIT and a startup IPI do.

        Source: Intel SDM volume 3, table 10-1; the FPU and most MSRs stay as they are. `signature` is that of CPUID.
        """
        regs = self.regs
        for number in range(16):
            self.general[number] = signature if number == RDX else 0
        for number, value in enumerate((0x10, 0, 0, 0, 0)):
            self.cr[number] = value
        self.efer.value = 0
        for number, segment in enumerate(self.segments):
            segment.selector, segment.base, segment.limit, segment.flags = 0, 0, 0xFFFF, 0x9300
            if number == CS:
                segment.selector, segment.base, segment.flags = page << 8, page << 12, 0x9B00
        for table, kind in ((regs.gdt, 0), (regs.idt, 0), (regs.ldt, 0x8200), (regs.tr, 0x8B00)):
            table.selector, table.base, table.limit, table.flags = 0, 0, 0xFFFF, kind
        self.old_exception.value = -1
        self.exception_is_int.value = 0
        regs.rip, self.flags = 0, 2
        self.derive_mode(0, False)


class Parked(Overlay):
    """The registers of a CPU that its engine does not run now, as `Overlay` shows those of the one that it runs.

    Between runs only: then the condition codes are in `eflags` too. An interrupt waits in `vector`, 0 for none.
    """

    def __init__(self, live: Overlay) -> None:
        self.engine = live.engine
        self.vector = 0
        self._kept = (ctypes.c_ubyte * ENV_SIZE)()
        self._see(ctypes.addressof(self._kept))
        ctypes.memmove(self.address, live.address, ENV_SIZE)

    def interrupt(self, vector: int) -> None:
        """Let the CPU take an interrupt when it runs again and accepts one."""
        self.vector = vector

    @property
    def halted(self) -> bool:
        """False: whoever halted has been told so."""
        return False

    @property
    def interrupt_pending(self) -> bool:
        """True while an interrupt waits."""
        return self.vector != 0

    def cancel_interrupt(self) -> None:
        """Take the interrupt back."""
        self.vector = 0

    @property
    def flags(self) -> int:
        """RFLAGS."""
        return int(self.regs.eflags)

    @flags.setter
    def flags(self, value: int) -> None:
        self.regs.eflags = value | 2


def hook_error(engine: Uc) -> BaseException | None:
    """Return what a hook raised during the last run. The binding raises it itself only when the run ended well."""
    error: BaseException | None = engine._hook_exception
    return error


@contextmanager
def without_cpu(engine: Uc) -> Iterator[None]:
    """Let Unicorn believe for a while that it has no CPU yet, to change its memory map; not while guest code runs."""
    place = ctypes.c_uint64.from_address(_handle(engine) + _CPU)
    cpu, place.value = place.value, 0
    try:
        yield
    finally:
        place.value = cpu


def close_engine(engine: Uc) -> None:
    """Free an engine now, and what its hooks refer to: else they live until Python collects garbage."""
    engine._Uc__finalizer()  # the binding's own; it runs once
    for hook in (*engine._callbacks.values(), *chain.from_iterable(engine._mmio_callbacks.values())):
        hook._objects.clear()  # what ctypes casts refers to itself
    vars(engine).clear()


def _handle(engine: Uc) -> int:
    handle = getattr(engine, "_uch", None)
    value = getattr(handle, "value", handle)
    if not isinstance(value, int):
        raise UnsupportedUnicorn("Unicorn's binding keeps its handle elsewhere than in the build known here")
    return value


# 64-bit mode as small machines have it: code at 1 MiB, page tables below, everything flat.

CODE, STACK, TABLES = 0x100000, 0x180000, 0x1000


def long_mode(engine: Uc, overlay: Overlay) -> None:
    """Set the engine up in 64-bit mode with the first GiB mapped one to one; for checks and small guests."""
    engine.mem_write(TABLES, struct.pack("<Q", (TABLES + 0x1000) | 7))
    engine.mem_write(TABLES + 0x1000, struct.pack("<Q", (TABLES + 0x2000) | 7))
    engine.mem_write(TABLES + 0x2000, struct.pack("<512Q", *(number << 21 | 0x87 for number in range(512))))
    engine.reg_write(x86.UC_X86_REG_CR4, 0x620)
    engine.reg_write(x86.UC_X86_REG_CR3, TABLES)
    engine.reg_write(x86.UC_X86_REG_MSR, (0xC0000080, 0x901))
    engine.reg_write(x86.UC_X86_REG_CR0, 0x80010033)
    overlay.set_code64(8, 0)
    overlay.set_stack(16, 0)
    for number in (ES, DS, FS, GS):
        segment = overlay.segments[number]
        segment.selector, segment.base, segment.limit, segment.flags = 16, 0, 0xFFFFFFFF, 0xC09300
    overlay.flags = 2
    overlay.general[RSP] = STACK
