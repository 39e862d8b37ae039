"""Proof, before a CPU is made, that the installed Unicorn is the one whose insides are known here.

`self_check` makes the changes to its code (`translation`, `abort`, `stores`) and verifies by behaviour each of them
and each place that `overlay` knows of. With any other build it raises `UnsupportedUnicorn`.
"""

from __future__ import annotations

import struct
from typing import Any

from unicorn import (
    UC_ARCH_X86,
    UC_HOOK_INSN,
    UC_HOOK_INTR,
    UC_MODE_64,
    UC_PROT_ALL,
    Uc,
    UcError,
)
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from hypervisor.arch.x86_64.cpu import stores
from hypervisor.arch.x86_64.cpu.abort import raise_instead
from hypervisor.arch.x86_64.cpu.cpuid import HYPERCALL_PAGE
from hypervisor.arch.x86_64.cpu.holes import Holes
from hypervisor.arch.x86_64.cpu.overlay import (
    CODE,
    ENV,
    ENV_SIZE,
    MSR_EXIT,
    PAUSE_EXIT,
    RAX,
    RBX,
    RCX,
    RDX,
    RSP,
    TABLES,
    VMCB_PAGE,
    Overlay,
    Parked,
    long_mode,
)
from hypervisor.arch.x86_64.cpu.patch import UnknownCode
from hypervisor.arch.x86_64.cpu.support import UnsupportedUnicorn, check_version
from hypervisor.arch.x86_64.cpu.translation import mend

_CONTEXT_HEADER = 40
"""Bytes of a context of uc_context_save before the CPU's own state."""
_IDT, _DATA = 0x9000, 0x190000
_SENTINELS = [0x51BB_0000_0000_0000 | 0x1234567 * (number + 3) for number in range(16)]


def self_check() -> None:
    """Verify by behaviour every offset used here. Raises UnsupportedUnicorn. Takes some 10 ms."""
    check_version()
    try:
        mend()
        raise_instead(ENV)
        stores.mend()
        failed = [check.__doc__ for check in _CHECKS if not check()]
    except (UcError, ValueError, struct.error, UnknownCode) as error:
        raise UnsupportedUnicorn(f"Unicorn does not behave as the build known here: {error}") from error
    if failed:
        raise UnsupportedUnicorn(f"Unicorn does not behave as the build known here: {'; '.join(map(str, failed))}")


def machine(code: str) -> tuple[Uc, Overlay]:
    """Return a small machine in 64-bit mode with some code."""
    engine = Uc(UC_ARCH_X86, UC_MODE_64)
    engine.ctl_set_tcg_buffer_size(1 << 20)
    engine.mem_map(0, 0x200000, UC_PROT_ALL)
    overlay = Overlay(engine)
    long_mode(engine, overlay)
    engine.mem_write(CODE, bytes.fromhex(code))
    return engine, overlay


def _registers() -> bool:
    """the general registers, RIP and flags"""
    engine, overlay = machine("f9 fd f4")  # stc; std; hlt
    order = [
        x86.UC_X86_REG_RAX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RSP,
        x86.UC_X86_REG_RBP, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDI, *range(x86.UC_X86_REG_R8, x86.UC_X86_REG_R15 + 1),
    ]  # fmt: skip
    for register, value in zip(order, _SENTINELS):
        engine.reg_write(register, value)
    seen = list(overlay.general)
    engine.emu_start(CODE, 0)
    ran = overlay.regs.rip == CODE + 3 and overlay.flags & 0x401 == 0x401
    overlay.flags = 0x8D7
    return seen == _SENTINELS and ran and overlay.flags == 0x8D7 and engine.reg_read(x86.UC_X86_REG_EFLAGS) == 0x8D7


def _system_registers() -> bool:
    """control registers, descriptor tables and system-call MSRs"""
    load = "48 c7 c0 00 50 19 00 0f 01 10 48 c7 c0 00 60 19 00 0f 01 18"  # lgdt [0x195000]; lidt [0x196000]
    engine, overlay = machine(load + "f4")
    engine.mem_write(0x195000, struct.pack("<HQ", 0x3F, 0x191000))
    engine.mem_write(0x196000, struct.pack("<HQ", 0xFFF, _IDT))
    engine.emu_start(CODE, 0)
    regs = overlay.regs
    tables = (regs.gdt.base, regs.gdt.limit, regs.idt.base, regs.idt.limit) == (0x191000, 0x3F, _IDT, 0xFFF)
    for number in (0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102):
        engine.reg_write(x86.UC_X86_REG_MSR, (number, 0x7000_0000_0000 | number & 0xFF))
    places = (overlay.star, overlay.lstar, overlay.cstar, overlay.kernel_gs)
    same = [place.value & 0xFF for place in places] == [0x81, 0x82, 0x83, 0x02]
    same = same and all(place.value >> 44 == 7 for place in places) and overlay.fmask.value & 0xFF == 0x84
    controls = (overlay.cr[0], overlay.cr[3], overlay.cr[4]) == (0x80010033, TABLES, 0x620)
    return tables and same and controls and overlay.efer.value & 0xD01 == 0xD01


def _faults() -> bool:
    """the error code, CR2 and the state of a second fault"""
    seen = []

    def fault(engine: Uc, number: int, _: Any) -> None:
        seen.append((number, overlay.error_code.value, overlay.cr[2], overlay.old_exception.value))
        overlay.old_exception.value = -1
        overlay.regs.rip += 8

    write = "48 89 04 25 00 00 00 70"  # mov [0x70000000], rax
    read = "48 8b 04 25 08 00 00 70"  # mov rax, [0x70000008]
    engine, overlay = machine(write + read + "f4")
    engine.mem_write(TABLES + 0x2000 + 8 * (0x70000000 >> 21), bytes(8))
    engine.hook_add(UC_HOOK_INTR, fault)
    engine.emu_start(CODE, 0)
    return seen == [(14, 2, 0x70000000, 14), (14, 0, 0x70000008, 14)] and overlay.regs.rip == CODE + 17


def _whole_blocks() -> bool:
    """a stop in the middle of a block, which must let the block end"""
    # in al,dx; inc qword [0x190000] twice; jmp to itself
    increment = "48 ff 04 25 00 00 19 00"
    engine, overlay = machine("ec" + increment * 2 + "eb fe")
    engine.hook_add(UC_HOOK_INSN, lambda engine, *_: engine.emu_stop() or 0, None, 1, 0, x86.UC_X86_INS_IN)
    engine.emu_start(CODE, 0, 0, 0)
    counted = struct.unpack("<Q", engine.mem_read(_DATA, 8))[0]
    return bool(counted == 2 and overlay.regs.rip == CODE + 17)


def _halts() -> bool:
    """telling a halt from a stop"""
    engine, overlay = machine("90 f4 ec eb fe")  # nop; hlt; in al,dx; jmp to itself
    engine.hook_add(UC_HOOK_INSN, lambda engine, *_: engine.emu_stop() or 0, None, 1, 0, x86.UC_X86_INS_IN)
    engine.emu_start(CODE, 0)
    halted = overlay.halted and overlay.regs.rip == CODE + 2
    engine.emu_start(CODE + 2, 0)
    return bool(halted and not overlay.halted)


def _interrupts() -> bool:
    """native delivery of an interrupt, held back while IF is clear"""
    engine, overlay = machine("90 fb 90 f4 f4")  # nop; sti; nop; hlt; hlt
    handler = CODE + 0x100
    gate = struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16 & 0xFFFF, 0, 0)
    engine.mem_write(_IDT + 16 * 0xF3, gate)
    engine.mem_write(handler, bytes.fromhex("48 ff 04 25 00 00 19 00 f4"))  # inc [0x190000]; hlt
    engine.mem_write(0x195008, struct.pack("<Q", 0x00AF9B000000FFFF))
    regs = overlay.regs
    regs.idt.base, regs.idt.limit = _IDT, 0xFFF
    regs.gdt.base, regs.gdt.limit = 0x195000, 0x3F
    overlay.interrupt(0xF3)
    engine.emu_start(CODE, 0)
    taken = struct.unpack("<Q", engine.mem_read(_DATA, 8))[0]
    frame = struct.unpack("<Q", engine.mem_read(overlay.general[RSP], 8))[0]
    return bool(taken == 1 and frame == CODE + 3 and not overlay.interrupt_pending and regs.rip == handler + 9)


def _turns() -> bool:
    """two CPUs in turn in one engine, and the exit at PAUSE"""
    # movq xmm0, rbx; fninit; fild qword [rbx]; pause; movq rax, xmm0; fistp qword [rbx + 8]; hlt
    engine, overlay = machine("66 48 0f 6e c3 db e3 df 2b f3 90 66 48 0f 7e c0 df 7b 08 f4")
    exits = []

    def leave(engine: Uc, vector: int, _: Any) -> None:
        exits.append((vector, overlay.regs.rip))
        overlay.regs.rip += 2
        engine.emu_stop()

    engine.hook_add(UC_HOOK_INTR, leave)
    overlay.regs.rip = CODE
    overlay.exit_at_pause(True)
    overlay.cr[2] = 77
    places = [Parked(overlay), Parked(overlay)]
    for number, place in enumerate(places):
        place.general[RBX] = _DATA + 64 * number
        engine.mem_write(place.general[RBX], struct.pack("<QQ", 1000 + number, 0))
    for place in [*places, *places]:
        overlay.take(place)
        engine.emu_start(overlay.regs.rip, 0)
        overlay.leave(place)
    results = [struct.unpack("<Q", engine.mem_read(place.general[RAX] + 8, 8))[0] for place in places]
    own = [place.general[RAX] == _DATA + 64 * number for number, place in enumerate(places)]
    size = uclib.uc_context_size(engine._uch) - _CONTEXT_HEADER
    return exits == [(PAUSE_EXIT, CODE + 9)] * 2 and results == [1000, 1001] and all(own) and size == ENV_SIZE


def _no_task() -> bool:
    """an interrupt that needs a stack of a TSS, when there is none"""
    engine, overlay = machine("fb 90 90 f4")  # sti; nop; nop; hlt
    seen = []

    def fault(engine: Uc, number: int, _: Any) -> None:
        seen.append(number)
        overlay.cancel_interrupt()
        engine.emu_stop()

    engine.hook_add(UC_HOOK_INTR, fault)
    engine.mem_write(_IDT + 16 * 0xF3, struct.pack("<HHBBHII", 0, 8, 1, 0x8E, 0, 0, 0))
    overlay.regs.idt.base, overlay.regs.idt.limit = _IDT, 0xFFF
    overlay.regs.gdt.base, overlay.regs.gdt.limit = 0x195000, 0x3F
    engine.mem_write(0x195008, struct.pack("<Q", 0x00AF9B000000FFFF))
    overlay.regs.tr.flags = 0
    overlay.interrupt(0xF3)
    engine.emu_start(CODE, 0)
    return seen == [10]


def _written_code() -> bool:
    """noticing that code was changed, by another address of its page too"""
    # mov byte [rdx + 1], 1; call rbx; mov byte [rdx + 1], 2; call rbx; mov ecx, eax; mov byte [rbx + 1], 3; call rbx
    engine, overlay = machine("c6 42 01 01 ff d3 c6 42 01 02 ff d3 89 c1 c6 43 01 03 ff d3 f4")
    engine.mem_write(TABLES + 0x1008, struct.pack("<Q", 1 << 63 | (TABLES + 0x2000) | 7))
    engine.mem_write(_DATA, bytes.fromhex("b8 00 00 00 00 c3"))  # mov eax, 0; ret
    overlay.general[RBX], overlay.general[RDX] = _DATA, 1 << 30 | _DATA
    engine.emu_start(CODE, 0)
    return bool((overlay.general[RCX], overlay.general[RAX]) == (2, 3))


def _holes() -> bool:
    """a read, a write and a new page where nothing is"""
    engine, overlay = machine("48 8b 03 48 89 03 48 8b 0b f4")  # mov rax, [rbx]; mov [rbx], rax; mov rcx, [rbx]; hlt
    holes = Holes(engine, ((0, 0x200000),), VMCB_PAGE)
    overlay.general[RBX] = 0x3F76_5438
    engine.emu_start(CODE, 0)
    lost = overlay.general[RAX] == overlay.general[RCX] == (1 << 64) - 1
    holes.clear(0x3F76_5000)
    engine.mem_map(0x3F76_5000, 4096, UC_PROT_ALL)
    overlay.general[RAX] = 7
    engine.emu_start(CODE + 3, 0)
    return bool(lost and overlay.general[RCX] == 7 and len(list(engine.mem_regions())) == 5)


def _model_specific_registers() -> bool:
    """the exits for MSRs that are not the emulator's, and none for those that are"""
    engine, overlay = machine(
        "0f 32 0f 30 b9 02 01 00 c0 0f 30 f4"
    )  # rdmsr; wrmsr; mov ecx, KERNEL_GS_BASE; wrmsr; hlt
    exits = []

    def leave(engine: Uc, vector: int, _: Any) -> None:
        exits.append((vector, overlay.error_code.value))
        overlay.regs.rip += 2

    engine.hook_add(UC_HOOK_INTR, leave)
    overlay.general[RAX], overlay.general[RDX], overlay.general[RCX] = 7, 0, HYPERCALL_PAGE
    engine.emu_start(CODE, 0)
    return exits == [(MSR_EXIT, 0), (MSR_EXIT, 1)] and overlay.kernel_gs.value == 7


_CHECKS = (
    _registers, _system_registers, _faults, _whole_blocks, _halts, _interrupts, _turns, _no_task, _written_code,
    _holes, _model_specific_registers,
)  # fmt: skip
