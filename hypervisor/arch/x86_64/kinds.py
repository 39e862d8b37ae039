"""The kinds of guests of x86: PVH, and 64-bit PV."""

from __future__ import annotations

from collections.abc import Sequence

from hypervisor.arch.clock import Clock
from hypervisor.arch.vcpu import Platform
from hypervisor.arch.x86_64.cpu import hypercall_page
from hypervisor.arch.x86_64.cpu.cpuid import Policy, brand
from hypervisor.arch.x86_64.cpu.shared import SharedEngine
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.arch.x86_64.platform import X86Platform
from hypervisor.arch.x86_64.pv.cpu import PVCPU
from hypervisor.arch.x86_64.pv.cpuid import PVPolicy
from hypervisor.memory.guest_memory import Memory


class _PVH:
    """Guests that are entered without a BIOS, on CPUs with hardware virtualisation (docs/misc/pvh.pandoc of Xen)."""

    name = "PVH"

    def shares(self, count: int) -> bool:
        """Several vCPUs share an engine."""
        return count > 1

    def vcpus(
        self,
        count: int,
        memory: Memory,
        platform: Platform,
        clock: Clock,
        code_cache: int,
        ranges: Sequence[tuple[int, int]],
        name: str,
    ) -> Sequence[VCPU]:
        """Return the vCPUs of a new domain."""
        around = X86Platform(platform, Policy(clock.hz, count, brand=brand(name)), hypercall_page.hvm())
        if self.shares(count):
            return SharedEngine(count, memory, around, clock.now, code_cache, ranges).cpus
        return [VCPU(0, memory, around, code_cache, ranges)]


class _PV:
    """Guests whose kernels know that they have no machine to themselves, only Xen's calls."""

    name = "PV"

    def shares(self, count: int) -> bool:
        """Each vCPU has an engine; all but the first stay offline."""
        return False

    def vcpus(
        self,
        count: int,
        memory: Memory,
        platform: Platform,
        clock: Clock,
        code_cache: int,
        ranges: Sequence[tuple[int, int]],
        name: str,
    ) -> Sequence[PVCPU]:
        """Return the vCPUs of a new domain."""
        around = X86Platform(platform, PVPolicy(clock.hz, count, brand=brand(name)), hypercall_page.pv())
        return [PVCPU(number, memory, around, code_cache, ranges) for number in range(count)]


PVH, PV = _PVH(), _PV()
