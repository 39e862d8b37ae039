"""The CPU of a PV domain: how a guest's kernel is entered and left by Xen's rules (xen-x86_64.h).

**The guest's kernel runs at CPL 0 of the emulated CPU**, its users at CPL 3. On hardware both have ring 3 and
Xen makes kernel pages accessible to it, entry by entry; an unmodified kernel does not see the difference (frames
say "kernel" by a requested privilege of 0 in CS, with both), and here page tables need no rewriting and isolate
the kernel from its users by themselves. What a kernel does natively that Xen would emulate or refuse (CR and MSR
accesses, CLI, ports) acts on its own emulated CPU only. An IRET to selectors of ring 3, by which kernels of
Xen's own examples return to themselves, is done as Xen's CPU would.

**Who does a crossing** was decided by what Unicorn offers. Stubs of guest code that build frames natively would
spare nothing: Unicorn has no SYSCALL of its own, nor delivers exceptions, so each crossing into a kernel is a
call into Python anyway, and a PV kernel leaves by a hypercall, which is a SYSCALL too. What can be
saved is the TLB: QEMU keeps separate ones for CPL 3 and CPL 0, so CR3 is *poked* when users and kernel have
tables of their own, and nothing is flushed; each TLB is only ever filled through its own tables. Measured (CPU
time, 2 cores under load): a hypercall 2.4 µs; a system call of Linux (dd's read or write, all told) 25 µs, by PVH
27; fork and exec 22 ms (PVH: 10), for page tables are hypercalls; Debian's kernel to its shell 4.7 to
5.6 s (PVH: 2.4 to 2.7), 1.6 s of it one loop of its own over the 134 million entries of its p2m.

Events are never interrupts of the CPU: a pending one is bounced to the guest when a hypercall ends or the vCPU
is entered, unless `evtchn_upcall_mask` is set.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Protocol

from unicorn import UC_CTL_IO_WRITE, UC_CTL_TLB_FLUSH, Uc
from unicorn import x86_const as x86

from hypervisor.arch import vcpu
from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64.cpu.engine import Platform
from hypervisor.arch.x86_64.cpu.overlay import (
    CS,
    DS,
    ES,
    FS,
    GS,
    MSR_EXIT,
    R8,
    R10,
    R11,
    RAX,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    SS,
)
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.arch.x86_64.pv import segments
from hypervisor.arch.x86_64.pv.area import (
    FRAME_MASK,
    KERNEL_CODE,
    KERNEL_STACK,
    LARGE,
    PRESENT,
    USER_CODE,
    USER_STACK,
    WRITABLE,
    Area,
)
from hypervisor.arch.x86_64.pv.page_tables import PageTables
from hypervisor.arch.x86_64.pv.state import PVState
from hypervisor.memory.guest_memory import BadAddress, Memory

_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
_DEBUG, _BREAKPOINT, _OVERFLOW, _INVALID_OPCODE, _NO_DEVICE, _GENERAL_PROTECTION, _PAGE_FAULT = 1, 3, 4, 6, 7, 13, 14
_FORCED_CPUID = b"\x0f\x0bxen\x0f\xa2"
"""XEN_EMULATE_PREFIX and CPUID (public/arch-x86/xen.h): a PV kernel's way to ask Xen."""
_IRETQ = b"\x48\xcf"
_IRET = 23
"""__HYPERVISOR_iret, which is no function of arguments."""
_IN_SYSCALL = 1 << 8
"""VGCF_in_syscall: RCX and R11 of the frame are not restored."""
_IF, _TF, _IOPL, _VM = 1 << 9, 1 << 8, 3 << 12, 1 << 17
"""TF loaded by a hypercall would trap at its end, before the first instruction behind: so it is put into hflags,
which the CPU reads as well when it translates that instruction, and is taken out again at the next bounce."""
_CC_OP_EFLAGS, _CC_FLAGS, _DF = 1, 0x8D5, 1 << 10
"""As in `overlay`: where the condition codes and DF are, and when they are there."""
_CLEARED = 1 << 18 | _VM | 1 << 16 | 1 << 14 | 1 << 8
"""AC, VM, RF, NT and TF, which a bounce clears."""
_FLAGS = 0x3F7FD7
_CR2 = 16
"""Offset of arch.cr2 in vcpu_info."""
_ALL = (1 << 64) - 1
_LOW_WORD = 0xFFFFFFFF


class Events(Protocol):
    """The event channels of a domain, as far as its CPUs bounce to their callbacks by themselves."""

    def info_of(self, vcpu: int) -> int:
        """Return where a vCPU's vcpu_info is in `Memory.bytes`, negative for nowhere."""


class PVCPU(VCPU):
    """A vCPU of a PV domain; `attach` it to the domain before it runs."""

    area: Area
    tables: PageTables

    def __init__(
        self,
        number: int,
        memory: Memory,
        platform: Platform,
        code_cache: int = 1 << 20,
        ranges: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__(number, memory, platform, code_cache, ranges)
        self.state = PVState()
        self._regs = self.overlay.regs
        self._bytes, self._words = memory.bytes, memory.words
        self._events: Events | None = None
        self._cpus: Sequence[PVCPU] = ()
        self._in_hypercall = False
        self._flush = False

    def attach(self, area: Area, tables: PageTables, events: Events, cpus: Sequence[PVCPU]) -> None:
        """Give the CPU what all of the domain share, with themselves."""
        self.area, self.tables, self._events, self._cpus = area, tables, events, cpus

    # Running

    def run(self) -> Outcome:
        """Execute until something has to be decided outside; HLT in the kernel waits for an event."""
        if self._flush:
            self.flush_now()
        outcome = super().run()
        if outcome is Outcome.HALTED:
            info = self._info()
            if info >= 0:
                self._bytes[info + 1] = 0
        return outcome

    def upcall(self, vector: int) -> None:
        """Let the guest take its events: at once between runs, at its end in a hypercall, else soon."""
        if not self.running:
            self._take_events()
        elif not self._in_hypercall:
            self.halt_here()

    def _info(self) -> int:
        events = self._events
        return -1 if events is None else events.info_of(self.number)

    def _take_events(self) -> None:
        """Bounce to the guest's event callback if an event is pending and not masked."""
        info = self._info()
        if info >= 0 and self._bytes[info] and not self._bytes[info + 1] and self.state.event:
            self._bounce(self.state.event, None, True)

    @property
    def in_kernel(self) -> bool:
        """True while the guest's kernel runs, not one of its users."""
        return not self._regs.hflags & 3

    # Memory

    def translate(self, address: int, root: int | None = None) -> int:
        """Return the physical address of the kernel's virtual one, whoever runs. Raises BadAddress."""
        if root is None and not self.in_kernel:
            root = self.state.kernel_root
        return super().translate(address, root)

    def apic_page(self, address: int) -> bytes:
        """Return nothing: there is no local APIC, and RAM may lie where others have it."""
        return b""

    def flush(self) -> None:
        """Forget all translations when the hypercall ends or the vCPU next runs."""
        self._flush = True

    def flush_everywhere(self) -> None:
        """Have all CPUs of the domain forget translations."""
        for cpu in self._cpus:
            cpu.flush()

    def flush_now(self) -> None:
        """Forget all translations."""
        self._flush = False
        self.engine.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)

    def set_root(self, root: int) -> None:
        """Let the kernel run on other page tables."""
        self.state.kernel_root = root
        if self.in_kernel:
            self.overlay.cr[3] = root
        self._flush = True

    def _let_write(self) -> bool:
        """Let the kernel write to a level-1 table that it has mapped read-only, as Xen does; tell whether it may.

        The mapping becomes writable, so each costs one fault; Linux itself maps the frame anew when the table ends.
        """
        address, table = self.overlay.cr[2], self.overlay.cr[3] & FRAME_MASK
        words, size = self._words, self.memory.size
        for shift in (39, 30, 21, 12):
            at = table + (address >> shift & 511) * 8
            if at >= size:
                return False
            entry = words[at >> 3]
            if not entry & PRESENT or ((shift == 21 or shift == 30) and entry & LARGE):
                return False
            table = entry & FRAME_MASK
        if entry & WRITABLE or not self.tables.is_level1(table >> 12):
            return False
        words[at >> 3] = entry | WRITABLE
        return True

    # Crossing between users and kernel

    def _bounce(self, target: int, code: int | None, mask: bool, extra: bytes = b"", flags: int | None = None) -> None:
        """Enter the kernel at a callback, with Xen's frame on its stack (create_bounce_frame of Xen).

        The frame is RCX, R11, the error code if there is one, RIP, CS with the saved mask in bits 32-39, RFLAGS
        with IF for unmasked events, RSP, SS. A stack that cannot be written, or no callback, crashes the domain.
        """
        overlay, regs, general = self.overlay, self._regs, self.general
        info = self._info()
        if not target or info < 0:
            return self._crash(f"no callback of the guest's for what happened at RIP {regs.rip:#x}")
        masked = self._bytes[info + 1]
        flags = (self._flags() if flags is None else flags) | regs.hflags & _TF
        regs.hflags &= ~_TF
        user = regs.hflags & 3
        stack = (self.state.stack if user else general[RSP]) & ~15
        selector = overlay.segments[CS].selector
        shown = (selector if user else selector & ~3) & 0xFFFF | masked << 32
        seen = flags & ~(_IF | _IOPL) | (0 if masked else _IF)
        frame = struct.pack("<QQQQQ", regs.rip, shown, seen, general[RSP], overlay.segments[SS].selector & 0xFFFF)
        if code is not None:
            frame = struct.pack("<Q", code & _LOW_WORD) + frame
        frame = struct.pack("<QQ", general[RCX], general[R11]) + extra + frame
        stack = stack - len(frame) & _ALL
        if mask:
            self._bytes[info + 1] = 1
        if user:
            self._enter_kernel()
        try:
            self.write(stack, frame)
        except BadAddress as error:
            return self._crash(f"the guest's kernel stack at {stack:#x}: {error}")
        overlay.flags = flags & ~_CLEARED | _IF
        general[RSP], regs.rip = stack, target
        return None

    def _flags(self) -> int:
        """Return RFLAGS; without a call into Unicorn (3 µs) when the condition codes lie open."""
        regs = self._regs
        if regs.cc_op != _CC_OP_EFLAGS:
            return self.overlay.flags
        return int(regs.eflags | regs.cc_src & _CC_FLAGS | (_DF if regs.df < 0 else 0))

    def _swap_gs(self) -> None:
        segment, other = self.overlay.segments[GS], self.overlay.kernel_gs
        segment.base, other.value = other.value, segment.base

    def _enter_kernel(self) -> None:
        overlay = self.overlay
        self._swap_gs()
        overlay.cr[3] = self.state.kernel_root
        overlay.set_code64(KERNEL_CODE, 0)
        overlay.set_stack(KERNEL_STACK, 0)

    def _on_syscall(self, engine: Uc, _: Any) -> None:
        """SYSCALL: a hypercall from the kernel, a system call from its users."""
        regs = self._regs
        regs.rip += 2
        if regs.hflags & 3:
            self._system_call()
        else:
            self._in_hypercall = True
            self._hypercall()
            self._in_hypercall = False
            if self._flush:
                self.flush_now()
            self._take_events()
        regs.rip = regs.rip - 2 & _ALL  # Unicorn adds the instruction's length

    def _system_call(self) -> None:
        overlay, regs, general = self.overlay, self._regs, self.general
        wide = regs.hflags & 0x8000
        target, mask = self.state.syscall if wide else self.state.syscall32
        if not target:
            regs.rip -= 2
            return self.raise_exception(_INVALID_OPCODE)
        flags = self._flags()
        general[RCX], general[R11] = regs.rip, flags
        # Nobody knows what the selectors were, so Xen reports its own.
        overlay.segments[CS].selector = USER_CODE if wide else 0xE023
        overlay.segments[SS].selector = USER_STACK
        return self._bounce(target, None, mask, flags=flags)

    def _hypercall(self) -> None:
        general = self.general
        number = general[RAX] & _LOW_WORD
        if number == _IRET:
            return self._iret()
        arguments = (general[RDI], general[RSI], general[RDX], general[R10], general[R8])
        general[RAX] = self.platform.hypercall(self, number, arguments) & _ALL
        return None

    def _iret(self) -> None:
        """Leave the kernel by a frame on its stack (struct iret_context), to a user or to itself."""
        general, overlay, regs = self.general, self.overlay, self._regs
        try:
            frame = self.read(general[RSP], 72)
        except BadAddress as error:
            return self._crash(f"the guest's frame for iret: {error}")
        rax, r11, rcx, how, rip, cs, flags, rsp, ss = struct.unpack("<9Q", frame)
        cs, ss = cs & 0xFFFF, ss & 0xFFFF
        new_flags = flags & _FLAGS & ~(_IOPL | _VM) | _IF | 2
        if how & _IN_SYSCALL:
            rcx, r11 = rip, new_flags
        info = self._info()
        if info >= 0:
            self._bytes[info + 1] = 0 if flags & _IF else 1
        general[RAX], general[R11], general[RCX], general[RSP] = rax, r11, rcx, rsp
        regs.rip = rip
        overlay.flags = new_flags & ~_TF
        if cs & 3 != 3:
            overlay.set_code64(cs & 0xFFFC, 0)
        elif not self.state.user_root:
            return self._crash("the guest returns to its users without page tables for them")
        else:
            overlay.cr[3] = self.state.user_root
            self._swap_gs()
            if not self._load_user(cs, ss | 3 if ss else 0):
                return None
        regs.hflags |= new_flags & _TF
        return None

    def _load_user(self, cs: int, ss: int) -> bool:
        """Load a user's code and stack segments; False if they cannot be, which the failsafe callback hears."""
        overlay, number, memory = self.overlay, self.number, self.memory
        if cs in (0x33, USER_CODE) and ss in (0x2B, USER_STACK):
            overlay.set_code64(cs, 3)
            overlay.set_stack(ss, 3)
            return True
        entries = self.state.ldt[1]
        code = segments.find(memory, self.area, number, cs, entries)
        stack = segments.find(memory, self.area, number, ss, entries)
        if segments.load_user(overlay, code, stack, cs, ss):
            return True
        overlay.set_code64(cs, 3)
        overlay.set_stack(ss, 3)
        target, mask = self.state.failsafe
        kept = [overlay.segments[name].selector for name in (DS, ES, FS, GS)]
        self._bounce(target, None, mask, struct.pack("<4Q", *kept))
        return False

    # Exceptions

    def _on_exception(self, engine: Uc, vector: int, _: Any) -> None:
        if vector == MSR_EXIT:
            return self.on_msr()
        overlay, regs = self.overlay, self._regs
        overlay.old_exception.value = -1  # else the next fault would count as one during this one
        if overlay.exception_is_int.value:
            overlay.exception_is_int.value = 0
            needed = self.state.traps[vector][1] & 3
            if vector not in (_BREAKPOINT, _OVERFLOW) and needed < (3 if regs.hflags & 3 else 1):
                regs.rip -= 2
                vector, code = _GENERAL_PROTECTION, vector * 8 + 2
                return self.raise_exception(vector, code)
            return self.raise_exception(vector)
        code = overlay.error_code.value & _LOW_WORD
        if vector == _PAGE_FAULT:
            if code & 0x17 == 3 and self._let_write():
                return None
            info = self._info()
            if info >= 0:
                self._words[info + _CR2 >> 3] = overlay.cr[2]
        elif vector == _GENERAL_PROTECTION and not regs.hflags & 3 and self._iret_to_itself():
            return None
        elif vector == _NO_DEVICE:
            self.set_task_switched(False)
        elif vector == _DEBUG:
            self.state.debug[6] = int(engine.reg_read(x86.UC_X86_REG_DR6))
        return self.raise_exception(vector, code if vector in _WITH_ERROR_CODE else None)

    def raise_exception(self, vector: int, error_code: int | None = None, software: bool = False) -> None:
        """Bounce an exception to the guest's own table; without an entry there the domain crashes."""
        target, flags = self.state.traps[vector]
        if not target:
            fault = f", CR2 {self.overlay.cr[2]:#x}" if vector == _PAGE_FAULT else ""
            return self._crash(f"no trap of the guest's for exception {vector} at RIP {self._regs.rip:#x}{fault}")
        return self._bounce(target, error_code, bool(flags & 4))

    def _on_invalid(self, engine: Uc, _: Any) -> bool:
        regs = self._regs
        try:
            code = VCPU.translate(self, regs.rip)
            forced = self.memory.read(code, 2) == _FORCED_CPUID[:2] and self._code(7) == _FORCED_CPUID
        except BadAddress:
            forced = False
        if forced:
            self._on_cpuid(engine, None)
            regs.rip += 7
        else:
            self.raise_exception(_INVALID_OPCODE)
        return True

    def _code(self, length: int) -> bytes:
        """Return the code at RIP, as whoever runs sees it. Raises BadAddress."""
        at, first = self._regs.rip, 0x1000 - (self._regs.rip & 0xFFF)
        root = self.overlay.cr[3]
        code = self.memory.read(VCPU.translate(self, at, root), min(length, first))
        if first < length:
            code += self.memory.read(VCPU.translate(self, at + first, root), length - first)
        return code

    def _iret_to_itself(self) -> bool:
        """Do a kernel's own IRET to selectors of ring 3, which are the kernel's too on hardware; tell if it was one."""
        regs, general, overlay = self._regs, self.general, self.overlay
        try:
            if self._code(2) != _IRETQ:
                return False
            rip, cs, flags, rsp, _ = struct.unpack("<5Q", self.read(general[RSP], 40))
        except BadAddress:
            return False
        if cs & 3 != 3:
            return False
        overlay.set_code64(cs & 0xFFFC, 0)
        overlay.set_stack(KERNEL_STACK, 0)
        overlay.flags = flags & _FLAGS & ~(_IOPL | _VM) | _IF | 2
        general[RSP], regs.rip = rsp, rip
        return True

    def set_task_switched(self, on: bool) -> None:
        """Set or clear CR0.TS: with it, the next use of the FPU is exception 7."""
        cr0 = self.overlay.cr[0]
        self.engine.reg_write(x86.UC_X86_REG_CR0, cr0 | 8 if on else cr0 & ~8)


def pv_cpu(cpu: vcpu.VCPU) -> PVCPU:
    """Return a CPU of a PV domain as what it is."""
    assert isinstance(cpu, PVCPU)
    return cpu
