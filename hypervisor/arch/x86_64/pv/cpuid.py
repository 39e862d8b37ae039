"""What CPUID tells PV guests: no large pages, no APIC, and Xen as their only hypervisor."""

from __future__ import annotations

from dataclasses import dataclass

from hypervisor.arch.x86_64.cpu.cpuid import XEN_LEAVES, Leaf, Policy

_HIDDEN_EDX = 1 << 3 | 1 << 9 | 1 << 13 | 1 << 16
"""PSE, APIC, PGE and PAT: Xen keeps large pages and global ones to itself, and the APIC is Xen's."""


@dataclass(frozen=True, slots=True)
class PVPolicy(Policy):
    """The leaves of one PV domain."""

    def leaf(self, number: int, leaf: int, subleaf: int) -> Leaf:
        """Return EAX, EBX, ECX and EDX of a leaf for vCPU `number`; zeros where there is nothing."""
        eax, ebx, ecx, edx = Policy.leaf(self, number, leaf, subleaf)
        if leaf == 1:
            edx &= ~_HIDDEN_EDX
        elif leaf == XEN_LEAVES + 2:  # ECX: MMU_PT_UPDATE_PRESERVE_AD
            ecx = 1
        elif leaf == XEN_LEAVES + 4:
            eax, ebx, ecx, edx = 0, 0, 0, 0
        return eax, ebx, ecx, edx
