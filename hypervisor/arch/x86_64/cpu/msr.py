"""Model-specific registers: which ones the emulator keeps by itself, and what guests find in the others.

The others exit (`permission_map` is SVM's way to say which) and are answered as Xen answers them (guest_rdmsr and
guest_wrmsr of xen/arch/x86/msr.c, the vmx and vpmu parts beside it): a register of a feature that CPUID does not
offer, or that nobody knows, is a general protection fault. An access costs 6 µs, one of `NATIVE` nothing more than it
did.
"""

from __future__ import annotations

from hypervisor.arch.x86_64.cpu import tsc
from hypervisor.arch.x86_64.cpu.cpuid import HYPERCALL_PAGE

SYSTEM_CALLS = (0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084)
"""STAR, LSTAR, CSTAR, FMASK."""
NATIVE = frozenset(
    {
        *(0x174, 0x175, 0x176),  # SYSENTER_CS, _ESP, _EIP
        *(0x277, 0xC0000080, *SYSTEM_CALLS),  # PAT, EFER
        *(0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103),  # FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX
    }
)
"""The registers that the emulator reads and writes without us."""

_RANGES = (0, 0xC0000000, 0xC0010000)
_RANGE_SIZE = 0x2000
PERMISSION_MAP_SIZE = len(_RANGES) * _RANGE_SIZE // 4

_TSC, _APIC_BASE, _DEBUGCTL, _MISC_ENABLE, _MISC_FEATURES = 0x10, 0x1B, 0x1D9, 0x1A0, 0x140
_APIC_ADDRESS, _APIC_ENABLED, _APIC_FIRST = 0xFEE00000, 1 << 11, 1 << 8
_FAST_STRINGS, _NO_BRANCH_TRACE, _NO_EVENT_SAMPLING = 1, 1 << 11, 1 << 12
_LAST_BRANCH, _BRANCH_STEPS = 1, 2
_PERFORMANCE = frozenset({*range(0xC1, 0xC9), *range(0x186, 0x18E), *range(0x309, 0x30C), *range(0x38D, 0x391)})
"""Counters and their controls, which read as zero where a domain has no vPMU."""
_FIXED = {
    0x17: 0,  # PLATFORM_ID
    0x3A: 1,  # FEATURE_CONTROL: locked, with nothing on
    0x8B: 0,  # UCODE_REV
    0xCE: 0,  # PLATFORM_INFO
    0x179: 0,  # MCG_CAP: no banks
    0x17A: 0,  # MCG_STATUS
    _MISC_FEATURES: 0,
    _MISC_ENABLE: _FAST_STRINGS | _NO_BRANCH_TRACE | _NO_EVENT_SAMPLING,
    _DEBUGCTL: 0,
    HYPERCALL_PAGE: 0,
}
_DISCARDED = frozenset({0x79, 0x8B, 0x17A, _TSC}) | _PERFORMANCE
"""What may be written and stays as it is: microcode, counters, and the TSC, which is the host's."""


class NoRegister(Exception):
    """There is no such register, or not with this value: a general protection fault."""


def permission_map() -> bytes:
    """Return the map of registers that exit (AMD APM volume 2, 15.11): two bits each, for reads and for writes."""
    bits = bytearray(b"\xff" * PERMISSION_MAP_SIZE)
    for number in NATIVE:
        start = _RANGES.index(max(first for first in _RANGES if first <= number))
        at = (start * _RANGE_SIZE + number - _RANGES[start]) * 2
        bits[at >> 3] &= ~(3 << (at & 7))
    return bytes(bits)


def read(number: int, vcpu: int) -> int:
    """Return what a register holds for a vCPU. Raises NoRegister."""
    if number == _APIC_BASE:
        return _APIC_ADDRESS | _APIC_ENABLED | (_APIC_FIRST if vcpu == 0 else 0)
    if number == _TSC:
        return tsc.read()
    if number in _PERFORMANCE:
        return 0
    try:
        return _FIXED[number]
    except KeyError:
        raise NoRegister(number) from None


def write(number: int, value: int) -> None:
    """Write a register, `HYPERCALL_PAGE` excepted. Raises NoRegister.

    The local APIC can be neither moved, which Xen refuses, nor switched off, which is passed over.
    """
    if number in _DISCARDED or (number == _DEBUGCTL and not value & ~(_LAST_BRANCH | _BRANCH_STEPS)):
        return
    if number == _APIC_BASE and value & ~(_APIC_ENABLED | _APIC_FIRST) == _APIC_ADDRESS:
        return
    if number not in (_MISC_ENABLE, _MISC_FEATURES) or value != _FIXED[number]:
        raise NoRegister(number)
