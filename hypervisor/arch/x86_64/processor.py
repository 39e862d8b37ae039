"""The processor that guests find by CPUID, as a value for those who tell of it without running any.

It imports nothing that runs guests, so it can be told of where none can run.
"""

from __future__ import annotations

import platform
from functools import cache

from hypervisor.api import Processor
from hypervisor.arch.x86_64.cpu import cpuid
from hypervisor.arch.x86_64.pv.cpuid import PVPolicy

_FEATURE_WORDS = 18
"""Words of a featureset of Xen 4.17 (public/arch-x86/cpufeatureset.h); those that are not named below are zero."""


def processor(name: str = "") -> Processor:
    """Return the processor of a host whose CPUs are called so, as far as CPUID can say it; "" for the usual name.

    The first call may take 20 ms.
    """
    hvm, pv = cpuid.Policy(0, 1, brand=cpuid.brand(name)), PVPolicy(0, 1)
    signature, _, ecx, edx = hvm.leaf(0, 1, 0)
    _, _, more_ecx, more_edx = hvm.leaf(0, 0x80000001, 0)
    return Processor(
        vendor=cpuid.VENDOR,
        name=hvm.brand,
        family=signature >> 8 & 0xF,
        model=signature >> 4 & 0xF | signature >> 12 & 0xF0,
        stepping=signature & 0xF,
        mhz=_megahertz(),
        flags=" ".join(cpuid.flags(edx, more_edx, ecx, more_ecx)),
        features="-".join(f"{word:08x}" for word in (ecx, edx, more_ecx, more_edx)),
        features_pv=_featureset(pv),
        features_hvm=_featureset(hvm),
    )


def _featureset(policy: cpuid.Policy) -> str:
    """Return the words of a domain with one vCPU: 1d 1c e1d e1c Da1 7b0 7c0 e7d e8b 7d0 …."""
    leaves = [(1, 0, 3), (1, 0, 2), (0x80000001, 0, 3), (0x80000001, 0, 2), (0xD, 1, 0), (7, 0, 1), (7, 0, 2)]
    leaves += [(0x80000007, 0, 3), (0x80000008, 0, 1), (7, 0, 3)]
    words = [policy.leaf(0, leaf, subleaf)[register] for leaf, subleaf, register in leaves]
    return "-".join(f"{word:08x}" for word in words + [0] * (_FEATURE_WORDS - len(words)))


@cache
def _megahertz() -> int:
    """Return the frequency of the time stamp counter, which guests take for the CPU's; 0 where it is not known."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return 0
    from hypervisor.arch.x86_64.cpu import tsc

    return tsc.frequency() // 10**6
