"""The vCPUs of domains as what they are here, for tests that set or look at registers."""

from __future__ import annotations

from hypervisor.arch import vcpu
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.domains.domain import Domain


def x86(cpu: vcpu.VCPU) -> VCPU:
    """Return a vCPU as one of x86."""
    assert isinstance(cpu, VCPU)
    return cpu


def cpu_of(domain: Domain, number: int = 0) -> VCPU:
    """Return a vCPU of a domain."""
    return x86(domain.vcpus[number].cpu)
