"""What is x86 of the platform around a domain's vCPUs, CPUID and MSRs; the rest is the domain's."""

from __future__ import annotations

from hypervisor.arch import vcpu
from hypervisor.arch.x86_64.cpu import msr
from hypervisor.arch.x86_64.cpu.cpuid import HYPERCALL_PAGE, Leaf, Policy
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.memory.guest_memory import BadAddress


class X86Platform:
    """A `cpu.engine.Platform`. `hypercall_page` is what a guest's page for hypercalls is filled with."""

    def __init__(self, platform: vcpu.Platform, policy: Policy, hypercall_page: bytes) -> None:
        self.policy = policy
        self._write_page, self._hypercall_page = platform.write_page, hypercall_page
        # The domain's own methods: no exit costs a call more for passing here.
        self.hypercall, self.port_in, self.port_out = platform.hypercall, platform.port_in, platform.port_out
        self.reset_cpu, self.start_cpu, self.wake_cpu = platform.reset_cpu, platform.start_cpu, platform.wake_cpu

    def cpuid(self, cpu: VCPU, leaf: int, subleaf: int) -> Leaf:
        """Answer CPUID."""
        return self.policy.leaf(cpu.number, leaf, subleaf)

    def read_msr(self, cpu: VCPU, number: int) -> int:
        """Answer RDMSR. Raises NoRegister."""
        return msr.read(number, cpu.number)

    def write_msr(self, cpu: VCPU, number: int, value: int) -> None:
        """Do a WRMSR. Raises NoRegister."""
        if number != HYPERCALL_PAGE:
            msr.write(number, value)
            return
        try:
            self._write_page(value, self._hypercall_page)
        except BadAddress:
            raise msr.NoRegister(number) from None
