"""One virtual CPU: a Unicorn engine over a domain's memory, with what Unicorn leaves out added.

Unicorn runs guest code, page tables, IRET, SYSRET, segment loads and MSRs by itself, and delivers
interrupts that `Overlay.interrupt` asks for. It never delivers an exception: it calls us, and
`hypervisor.arch.x86_64.cpu.exceptions` does. SYSCALL, CPUID, port I/O and hypercalls arrive here too; what they mean
is the `Platform`'s business.

`run` executes until the guest halts, is asked to stop, or cannot go on. It is called on one thread at a
time; `stop` from any thread. Unicorn frees Python's lock meanwhile; hooks take it again. Costs: a run that
halts at once 1.2 µs, a hypercall 1 µs plus its work, an exception 15 µs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from unicorn import (
    UC_ERR_FETCH_PROT,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_PROT_ALL,
    Uc,
    UcError,
)
from unicorn import x86_const as x86

from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64.cpu import initial
from hypervisor.arch.x86_64.cpu.code import TranslatedCode
from hypervisor.arch.x86_64.cpu.engine import Platform, hook_ports, new_engine
from hypervisor.arch.x86_64.cpu.exceptions import (
    DOUBLE_FAULT,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    WITH_ERROR_CODE,
    Undeliverable,
    deliver,
)
from hypervisor.arch.x86_64.cpu.holes import Holes
from hypervisor.arch.x86_64.cpu.mmio import MMIO
from hypervisor.arch.x86_64.cpu.msr import NoRegister
from hypervisor.arch.x86_64.cpu.overlay import (
    CS,
    MSR_EXIT,
    R8,
    R10,
    R11,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    VMCB_PAGE,
    Overlay,
    close_engine,
    hook_error,
)
from hypervisor.arch.x86_64.cpu.proof import self_check
from hypervisor.arch.x86_64.cpu.virtual import VirtualMemory
from hypervisor.errors import EPERM
from hypervisor.memory.guest_memory import PAGE, BadAddress, Memory

self_check()

_VMCALL, _VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"
_RDMSR, _WRMSR = b"\x0f\x32", b"\x0f\x30"
_LONGEST = 15
"""Bytes of an instruction."""
_ALL, _LOW = (1 << 64) - 1, (1 << 32) - 1
_CODE64 = 1 << 15
"""hflags' CS64."""
_IF, _RF = 1 << 9, 1 << 16
_ARGUMENTS = (RDI, RSI, RDX, R10, R8)
"""The registers of a hypercall's arguments in 64-bit code."""


class VCPU(VirtualMemory):
    """A 64-bit x86 CPU of a domain, off until its first state is set.

    `ranges` are start and end of the parts of the memory that the CPU finds, all of it if none are given.
    `code_cache` is the size in bytes of the buffer for translated code: 1 MiB suits a small guest and
    makes an engine cost 0.9 MiB; a Linux kernel wants 32 MiB or more, which fill as they are used.
    """

    def __init__(
        self,
        number: int,
        memory: Memory,
        platform: Platform,
        code_cache: int = 1 << 20,
        ranges: Sequence[tuple[int, int]] = (),
    ) -> None:
        engine = new_engine(memory, code_cache, ranges)
        self._set_up(number, memory, platform, Overlay(engine), set())
        self._translated = TranslatedCode(engine, memory, ranges)
        self._holes = Holes(engine, ranges or ((0, memory.size),), VMCB_PAGE)
        self._mmio = MMIO(engine, self._holes)
        self._apic_address: int | None = None
        hook = engine.hook_add
        hook(UC_HOOK_INTR, self._on_exception)
        hook(UC_HOOK_INSN_INVALID, self._on_invalid)
        hook(UC_HOOK_INSN, self._on_syscall, None, 1, 0, x86.UC_X86_INS_SYSCALL)
        hook(UC_HOOK_INSN, self._on_cpuid, None, 1, 0, x86.UC_X86_INS_CPUID)
        hook_ports(engine, platform)

    def _set_up(self, number: int, memory: Memory, platform: Platform, overlay: Overlay, mapped: set[int]) -> None:
        self.number = number
        self.memory = memory
        self.platform = platform
        self.crash = ""
        """Why the CPU crashed, for people."""
        self.engine = overlay.engine
        self.overlay = overlay
        self.general = overlay.general
        self.running = False
        self._stop = False
        self._mapped = mapped
        """Frames beyond the memory that the engine has."""

    # Running

    def reside(self) -> None:
        """Make sure that the engine's registers are this CPU's, between runs; they always are, unless it is shared."""

    def run(self) -> Outcome:
        """Execute until something has to be decided outside. Raises nothing that the guest can cause."""
        overlay = self.overlay
        regs = overlay.regs
        self.running = True
        try:
            while not self._stop:
                try:
                    self.engine.emu_start(regs.rip, 0)
                except UcError as error:
                    self._meet(error)
                if self.crash:
                    return Outcome.CRASHED
                # A halt goes before a stop that came at the same time: the next run would begin behind it.
                # An interrupt that is masked does not end one.
                if overlay.halted and not (overlay.interrupt_pending and regs.eflags & _IF):
                    return Outcome.HALTED if regs.eflags & _IF else Outcome.OFF
                # Else a stop that was meant for an earlier run, or a halt that an interrupt ends: go on.
        finally:
            self.running = self._stop = False
        return Outcome.STOPPED

    def _meet(self, error: UcError) -> None:
        """Let the guest hear of code where nothing is (`holes`), or crash for any other error of Unicorn's."""
        if (raised := hook_error(self.engine)) is not None:
            raise raised from None
        if error.errno == UC_ERR_FETCH_PROT:
            self.raise_exception(GENERAL_PROTECTION, 0)
        else:
            self.crash = f"{error} at RIP {self.overlay.regs.rip:#x}"

    def stop(self) -> None:
        """Make `run` come back soon, from any thread. Repeat it until it has: a stop can be lost at a start."""
        self._stop = True
        if self.running:
            self.engine.emu_stop()

    @property
    def stopping(self) -> bool:
        """True from `stop` until `run` has come back."""
        return self._stop

    def halt_here(self) -> None:
        """From a hook: let `run` come back after this instruction, as if asked to stop."""
        self._stop = True
        self.engine.emu_stop()

    def upcall(self, vector: int) -> None:
        """Let the guest take its events: by an interrupt, if it has chosen a vector (0: none)."""
        if vector:
            self.overlay.interrupt(vector)

    # Hypercalls of 64-bit code

    def argument(self, number: int) -> int:
        """Return an argument of the hypercall in which the CPU is; the first is 0."""
        return int(self.general[_ARGUMENTS[number]])

    def answer(self, result: int) -> None:
        """Let a hypercall that is over return something else."""
        self.general[RAX] = result & _ALL

    # What only vCPUs that share an engine do (`hypervisor.arch.x86_64.cpu.shared`)

    initial_size = initial.SIZE
    """Bytes of the state in which a guest starts a vCPU (VCPUOP_initialise)."""

    gave_up = False
    """True when the last run ended because the guest waits for another vCPU."""
    deadline: int | None = None
    """When the local APIC's timer interrupts; `expire` is to be called then."""

    def own_upcall(self, vector: int) -> None:
        """Let the guest take its events by a vector that this vCPU has chosen."""
        self.upcall(vector)

    def give_up(self) -> None:
        """From a hook: let `run` come back, for the guest waits for another vCPU."""
        self.halt_here()

    def exit_at_pause(self, on: bool) -> None:
        """Let PAUSE end the run, or do nothing."""

    def expire(self) -> None:
        """Do what the local APIC's timer does when it is due."""

    def interrupted(self) -> None:
        """Hear that an interrupt of the local APIC's waits."""

    def start(self, page: int) -> None:
        """Put the CPU at the start of a page in real mode."""
        raise NotImplementedError("this vCPU runs alone: no other one can start it")

    def initialise(self, state: bytes) -> None:
        """Take the state in which a guest starts it. Raises XenError for one in which no CPU can start."""
        initial.load(self, state)

    def withdraw(self) -> None:
        """Take back an interrupt that the guest has not taken; while its event is pending, the next run offers it."""
        self.overlay.cancel_interrupt()

    def close(self) -> None:
        """Free the engine of a CPU that does not run. Later use raises AttributeError, and reads no freed memory."""
        engine, overlay = self.engine, self.overlay
        kept = {"number": self.number, "crash": self.crash, "running": False, "_stop": False}
        vars(overlay).clear()
        vars(self).clear()
        vars(self).update(kept)
        close_engine(engine)

    def map_extra(self, frame: int) -> None:
        """Show the guest a frame beyond its memory; harmless when it is mapped already.

        Raises BadAddress where something of ours lies: the local APIC, the page for interrupts.
        """
        if frame not in self._mapped:
            host = self.memory.address + self.memory.extra[frame]
            self._holes.clear(frame * PAGE)
            try:
                self.engine.mem_map_ptr(frame * PAGE, PAGE, UC_PROT_ALL, host)
            except UcError as error:
                raise BadAddress(f"frame {frame:#x} cannot be mapped: {error}") from None
            self._mapped.add(frame)

    def map_device(
        self,
        start: int,
        length: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> None:
        """Have accesses to addresses where no memory is done by `read` and `write`, which are given them.

        Pages that the range touches are theirs as a whole; harmless where they are it already. Raises BadAddress.
        """
        self._mmio.map(start, length, read, write)

    def forget_code(self, start: int, end: int) -> None:
        """Let bytes of `Memory.bytes` that the host has written be translated anew; on the thread that runs us."""
        self._translated.forget(start, end)

    # The local APIC: a page of memory, which answers with an identity and does nothing

    def map_apic(self, address: int, page: bytes) -> None:
        """Show the guest a local APIC with these registers; once."""
        self._holes.clear(address)
        self.engine.mem_map(address, PAGE)
        self._apic_address = address
        self.engine.mem_write(address, page)

    def apic_page(self, address: int) -> bytes:
        """Return the registers of the local APIC; nothing if there is none."""
        return bytes(self.engine.mem_read(address, PAGE)) if self._apic_address == address else b""

    def load_apic(self, address: int, page: bytes) -> None:
        """Set the registers of the local APIC."""
        self.engine.mem_write(address, page)

    # What Unicorn calls

    def _on_exception(self, engine: Uc, vector: int, _: Any) -> None:
        if vector == MSR_EXIT:
            self.on_msr()
            return
        overlay = self.overlay
        if self._stop and overlay.interrupt_pending:
            # Taking the interrupt may be what faults. Unicorn then tries again at once, and looks for a stop later.
            self.withdraw()
        is_int = bool(overlay.exception_is_int.value)
        overlay.exception_is_int.value = 0
        code = overlay.error_code.value & 0xFFFFFFFF if vector in WITH_ERROR_CODE and not is_int else None
        self.raise_exception(vector, code, software=is_int)

    def raise_exception(self, vector: int, error_code: int | None = None, software: bool = False) -> None:
        """Deliver an exception to the guest; one that cannot be delivered ends in a crash, as on hardware."""
        overlay = self.overlay
        overlay.old_exception.value = -1  # else the next fault would count as one during this one
        try:
            try:
                deliver(self, vector, error_code, software)
            except Undeliverable:
                if vector == DOUBLE_FAULT:
                    raise
                deliver(self, DOUBLE_FAULT, 0)
        except Undeliverable as error:
            self._crash(f"triple fault: exception {vector} at RIP {overlay.regs.rip:#x}: {error}")

    def _crash(self, why: str) -> None:
        self.crash = self.crash or why
        self.withdraw()
        self.engine.emu_stop()

    def _on_invalid(self, engine: Uc, _: Any) -> bool:
        try:
            code = self.read(self.linear_rip, 3)
        except BadAddress:
            code = b""
        if code in (_VMCALL, _VMMCALL):
            self._hypercall()
            self.overlay.regs.rip += 3
        else:
            self.raise_exception(INVALID_OPCODE)
        return True

    def _hypercall(self) -> None:
        overlay, general = self.overlay, self.general
        if overlay.regs.hflags & 3 or not overlay.cr[0] & 1:  # not for users, nor in real mode (hvm_hypercall of Xen)
            general[RAX] = -EPERM & _ALL
            return
        if self.wide:  # the 64-bit calling convention of public/arch-x86/xen-x86_64.h
            arguments = (general[RDI], general[RSI], general[RDX], general[R10], general[R8])
        else:
            arguments = tuple(general[number] & _LOW for number in (RBX, RCX, RDX, RSI, RDI))
        general[RAX] = self.platform.hypercall(self, general[RAX] & _LOW, arguments) & _ALL

    def on_msr(self) -> None:
        """Do an RDMSR or WRMSR of a register that the emulator does not have."""
        overlay, general = self.overlay, self.general
        overlay.exception_is_int.value = 0
        number = general[RCX] & _LOW
        write = bool(overlay.error_code.value)
        try:
            if write:
                self.platform.write_msr(self, number, (general[RDX] & _LOW) << 32 | general[RAX] & _LOW)
            else:
                value = self.platform.read_msr(self, number)
                general[RAX], general[RDX] = value & _LOW, value >> 32
        except NoRegister:
            self.raise_exception(GENERAL_PROTECTION, 0)
        else:
            overlay.regs.rip += self.length_of(_WRMSR if write else _RDMSR)

    @property
    def wide(self) -> bool:
        """True while 64-bit code runs, not that of 32 or 16 bits."""
        return bool(self.overlay.regs.hflags & _CODE64)

    @property
    def linear_rip(self) -> int:
        """Where the instruction at RIP is in the linear address space."""
        regs = self.overlay.regs
        if self.wide:
            return int(regs.rip)
        return int(regs.rip + self.overlay.segments[CS].base & _LOW)

    def length_of(self, code: bytes) -> int:
        """Return the bytes of the instruction at RIP, prefixes and this code; 0, to run it again, if not readable."""
        at = self.linear_rip
        for length in range(len(code), _LONGEST + 1):
            try:
                if self.read(at + length - len(code), len(code)) == code:
                    return length
            except BadAddress:
                break
        return 0

    def _on_syscall(self, engine: Uc, _: Any) -> None:
        """SYSCALL (Intel SDM volume 2): Unicorn adds the instruction's length to RIP afterwards."""
        overlay = self.overlay
        regs, general = overlay.regs, self.general
        flags = overlay.flags
        general[RCX] = regs.rip + 2
        general[R11] = flags
        selector = overlay.star.value >> 32 & 0xFFFC
        overlay.set_code64(selector, 0)
        overlay.set_stack(selector + 8, 0)
        overlay.flags = flags & ~overlay.fmask.value & ~_RF
        regs.rip = (overlay.lstar.value - 2) & _ALL

    def _on_cpuid(self, engine: Uc, _: Any) -> int:
        general = self.general
        values = self.platform.cpuid(self, general[RAX] & 0xFFFFFFFF, general[RCX] & 0xFFFFFFFF)
        general[RAX], general[RBX], general[RCX], general[RDX] = values
        return 1  # skip Unicorn's own
