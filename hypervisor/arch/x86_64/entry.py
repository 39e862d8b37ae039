"""The first registers of a vCPU, by the way in which its kernel is entered."""

from __future__ import annotations

from unicorn import x86_const as x86

from hypervisor.arch import vcpu
from hypervisor.arch.x86_64.cpu import apic
from hypervisor.arch.x86_64.cpu.overlay import CS, RBX, RSI, RSP
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.arch.x86_64.pv.area import KERNEL_CODE, KERNEL_STACK, RESERVED_GDT_PAGE
from hypervisor.arch.x86_64.pv.cpu import PVCPU
from hypervisor.memory.guest_memory import PAGE

_TASK_SEGMENT, _TASK_LIMIT = 0x8B00, 0x67
"""Descriptor flags of a present, busy 32-bit TSS, and its limit."""


def pvh(cpu: vcpu.VCPU, entry: int, start_info: int) -> None:
    """Be in the state in which a PVH kernel starts (docs/misc/pvh.pandoc of Xen); addresses are physical."""
    assert isinstance(cpu, VCPU)
    cpu.reside()
    overlay = cpu.overlay
    overlay.enter_flat32()
    for number in range(16):
        overlay.general[number] = 0
    overlay.general[RBX] = start_info
    overlay.regs.rip = entry
    task = overlay.regs.tr
    task.selector, task.base, task.limit, task.flags = 0, 0, _TASK_LIMIT, _TASK_SEGMENT
    for table in (overlay.regs.gdt, overlay.regs.idt):
        table.base, table.limit = 0, 0


def local_apic(cpu: vcpu.VCPU) -> None:
    """Give a new CPU, made with the domain's ranges, its own local APIC.

    To be called once for each CPU before it runs, in a restored domain too. With one CPU the APIC is a plain page
    that answers with an identity: guests that take interrupts by event channels ask no more of it.
    """
    assert isinstance(cpu, VCPU)
    cpu.map_apic(apic.ADDRESS, apic.after_reset(apic.identity(cpu.number)))


def pv(cpu: vcpu.VCPU, entry: int, start_info: int, stack: int, root: int) -> None:
    """Be in the state in which a PV kernel starts: 64-bit mode, RSI is start_info's address (public/xen.h).

    `stack` is where it begins, `root` the frame of the top-level page table. The CPU is attached to its domain.
    """
    assert isinstance(cpu, PVCPU)
    overlay, engine = cpu.overlay, cpu.engine
    engine.reg_write(x86.UC_X86_REG_CR4, 0x620)  # PAE, OSFXSR, OSXMMEXCPT
    engine.reg_write(x86.UC_X86_REG_CR3, root * PAGE)
    engine.reg_write(x86.UC_X86_REG_MSR, (0xC0000080, 0x901))  # NXE, LME, SCE
    engine.reg_write(x86.UC_X86_REG_CR0, 0x80050033)  # PG, AM, WP, NE, ET, MP, PE
    for number, segment in enumerate(overlay.segments):
        segment.selector, segment.base, segment.limit = 0, 0, 0
        segment.flags = 0 if number != CS else segment.flags
    overlay.set_code64(KERNEL_CODE, 0)
    overlay.set_stack(KERNEL_STACK, 0)
    gdt = overlay.regs.gdt
    gdt.base, gdt.limit = cpu.area.window(cpu.number), (RESERVED_GDT_PAGE + 1) * PAGE - 1
    overlay.regs.idt.base, overlay.regs.idt.limit = 0, 0
    for number in range(16):
        overlay.general[number] = 0
    overlay.flags = 0x202
    overlay.general[RSI], overlay.general[RSP] = start_info, stack
    overlay.regs.rip = entry
    cpu.tables.use(root, 4)
    cpu.state.stack = stack
    cpu.set_root(root * PAGE)
