"""What CPUID tells guests: the instruction set that the emulator translates, and Xen's own leaves.

Features (Intel SDM volume 2, CPUID) are those of QEMU's model qemu64 as far as guests need them; what the
emulator does not have or has not been tested with (XSAVE, AVX, SMEP, SMAP, FSGSBASE, PCID, X2APIC, MWAIT,
RDRAND, MTRR) is not offered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

Leaf = tuple[int, int, int, int]

_FEATURES_EDX = {
    0: "fpu",
    3: "pse",
    4: "tsc",
    5: "msr",
    6: "pae",
    8: "cx8",
    9: "apic",
    13: "pge",
    15: "cmov",
    16: "pat",
    19: "clflush",
    23: "mmx",
    24: "fxsr",
    25: "sse",
    26: "sse2",
}
_FEATURES_ECX = {0: "pni", 13: "cx16", 31: "hypervisor"}
_EXTENDED_EDX = {11: "syscall", 20: "nx", 29: "lm"}
_EXTENDED_ECX = {0: "lahf_lm"}
"""The bits that are set, with Linux's names for them."""
_THREADS = 28
"""HTT of leaf 1: the number of APICs next to it is good."""
_SIGNATURE = 0x00030661
"""Family 6, model 0x36, stepping 1: an Atom that executes in order, whose instruction set is next to ours. Guests
take from the model whether a CPU speculates, which this one does not. With one that does (0x3C, Haswell) Linux isolates
its page tables, replaces indirect calls and flushes buffers against Meltdown, Spectre and MDS; that took 9 % of the CPU
time of its boot (measured), and takes two flushes of the TLB for each system call."""
_XEN = struct.unpack("<III", b"XenVMMXenVMM")
VENDOR = "GenuineIntel"
_VENDOR = struct.unpack("<III", VENDOR.encode())
BRAND = "Kronos virtual CPU"
_BRAND_SIZE = 48

XEN_LEAVES = 0x40000000
HYPERCALL_PAGE = 0x40000000
"""The model-specific register by which a guest gets the page of hypercalls (public/arch-x86/cpuid.h)."""


def _bits(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in numbers)


def brand(name: str) -> str:
    """Return as much of a name as a CPU can say of itself: 47 characters of ASCII, single spaces between words.

    Nothing of it: the usual name.
    """
    text = "".join(each if " " <= each <= "~" else "?" for each in " ".join(name.split()))
    return text[: _BRAND_SIZE - 1].rstrip() or BRAND


def flags(edx: int, extended_edx: int, ecx: int, extended_ecx: int) -> list[str]:
    """Return Linux's names of the features in leaves 1 and 0x80000001, in its order (/proc/cpuinfo)."""
    words = ((edx, _FEATURES_EDX), (extended_edx, _EXTENDED_EDX), (ecx, _FEATURES_ECX), (extended_ecx, _EXTENDED_ECX))
    return [name for word, names in words for bit, name in names.items() if word >> bit & 1]


@dataclass(frozen=True, slots=True)
class Policy:
    """The leaves of one domain: `tsc_hz` is the counter's frequency, `version` Xen's, `brand` the CPU's name."""

    tsc_hz: int
    vcpus: int
    version: tuple[int, int] = (4, 17)
    brand: str = BRAND

    def leaf(self, number: int, leaf: int, subleaf: int) -> Leaf:
        """Return EAX, EBX, ECX and EDX of a leaf for vCPU `number`; zeros where there is nothing."""
        if leaf == 0:
            return 0x16, _VENDOR[0], _VENDOR[2], _VENDOR[1]
        if leaf == 1:
            several = self.vcpus > 1
            apic = number * 2 << 24 | (min(2 * self.vcpus, 255) if several else 1) << 16 | 8 << 8
            return _SIGNATURE, apic, _bits(_FEATURES_ECX), _bits(_FEATURES_EDX) | several << _THREADS
        if leaf == 0xB and self.vcpus > 1:
            return self._topology(number, subleaf)
        if leaf == 0x16:  # MHz: spares the guest a calibration against a timer that it does not have
            mhz = self.tsc_hz // 10**6
            return mhz, mhz, 100, 0
        if 0x40000000 <= leaf <= 0x40000005:
            return self._xen(leaf - XEN_LEAVES, number, subleaf)
        if leaf == 0x80000000:
            return 0x80000008, 0, 0, 0
        if leaf == 0x80000001:
            return 0, 0, _bits(_EXTENDED_ECX), _bits(_EXTENDED_EDX)
        if 0x80000002 <= leaf <= 0x80000004:
            name = self.brand.encode().ljust(_BRAND_SIZE, b"\0")
            return struct.unpack_from("<IIII", name, 16 * (leaf - 0x80000002))
        if leaf == 0x80000008:
            return 0x3028, 0, 0, 0
        return 0, 0, 0, 0

    def _topology(self, number: int, subleaf: int) -> Leaf:
        """Answer leaf 0xB: a socket of cores with one thread each, whose APICs have even numbers, as in Xen."""
        if subleaf == 0:
            return 1, 1, 1 << 8, 2 * number
        if subleaf == 1:
            return (2 * self.vcpus - 1).bit_length(), self.vcpus, 2 << 8 | 1, 2 * number
        return 0, 0, subleaf & 0xFF, 2 * number

    def _xen(self, leaf: int, number: int, subleaf: int) -> Leaf:
        """Answer Xen's leaves (public/arch-x86/cpuid.h)."""
        if leaf == 0:
            return XEN_LEAVES + 5, *_XEN
        if leaf == 1:
            return self.version[0] << 16 | self.version[1], 0, 0, 0
        if leaf == 2:  # pages of hypercalls, and the MSR by which a guest gets them
            return 1, HYPERCALL_PAGE, 0, 0
        if leaf == 3 and subleaf == 0:
            return 0, 2, self.tsc_hz // 1000, 1
        if leaf == 4:  # XEN_HVM_CPUID_VCPU_ID_PRESENT
            return 1 << 3, number, 0, 0
        return 0, 0, 0, 0
