"""Make the ACPI tables of a PVH domain: what Linux needs to see its processors, and nothing more.

Without ACPI Linux chooses no APIC driver, sets up no clock event device, and time stands still. The tables
say that the hardware is "reduced" (ACPI 6.0, section 4.1): no power management timer, no PIC, no fixed
registers; devices are found in xenstore. RSDP → XSDT → FADT (→ DSDT) and MADT. Identifiers are those of
Xen's libacpi, since guests and their tools know Xen by them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypervisor.arch.x86_64.cpu import apic

VCPUS = 128
"""Most vCPUs: HVM_MAX_VCPUS of public/hvm/hvm_info_table.h; their APIC numbers still fit into a byte."""

_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_OEM, _OEM_TABLE, _CREATOR = b"Xen", b"HVM", b"HVML"
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_FADT_LENGTH = 276
_NO_VGA, _NO_CMOS_RTC = 1 << 2, 1 << 5
"""IAPC_BOOT_ARCH flags of the FADT (ACPI 6.0, table 5-36); without 8042 and LEGACY_DEVICES."""
_WBINVD, _PROC_C1, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _REDUCED = 1 << 0, 1 << 2, 1 << 4, 1 << 5, 1 << 20
"""FADT flags (ACPI 6.0, table 5-35)."""
_MADT_APIC, _MADT_ENABLED = 0, 1


@dataclass(frozen=True, slots=True)
class Tables:
    """The pointer, for `rsdp_address`, and all tables, for `address`, of one `build`."""

    rsdp: bytes
    tables: bytes


def build(address: int, *, vcpus: int, online: int, definitions: bytes = b"") -> Tables:
    """Return the tables, linked to lie at an address below 4 GiB and divisible by 16.

    The first `online` of `vcpus` processors are enabled, the others may be brought up later. `definitions`
    is AML for the DSDT, which comes last and so has room to grow. Raises ValueError for impossible numbers.
    """
    if not 1 <= online <= vcpus <= VCPUS:
        raise ValueError(f"{online} of {vcpus} vCPUs are not among 1 to {VCPUS}")
    image = bytearray()

    def place(table: bytes) -> int:
        at = address + len(image)
        image.extend(table.ljust(-(-len(table) // 16) * 16, b"\0"))
        return at

    madt = place(_madt(vcpus, online))
    # The XSDT and the FADT have fixed lengths, so the DSDT's place is known before they are made.
    xsdt = address + len(image)
    fadt = xsdt + -(-(_HEADER.size + 16) // 16) * 16
    dsdt = fadt + -(-_FADT_LENGTH // 16) * 16
    place(_table(b"XSDT", 1, struct.pack("<QQ", fadt, madt)))
    place(_fadt(dsdt))
    place(_table(b"DSDT", 2, definitions))
    return Tables(_rsdp(xsdt), bytes(image))


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Return a table with its header and a checksum that makes all bytes sum up to 0."""
    length = _HEADER.size + len(body)
    table = bytearray(_HEADER.pack(signature, length, revision, 0, _OEM, _OEM_TABLE, 0, _CREATOR, 0) + body)
    table[9] = -sum(table) & 255
    return bytes(table)


def _rsdp(xsdt: int) -> bytes:
    """Return the pointer (ACPI 6.0, section 5.2.5.3), whose first 20 bytes have a checksum of their own."""
    rsdp = bytearray(_RSDP.pack(b"RSD PTR ", 0, _OEM, 2, 0, _RSDP.size, xsdt, 0))
    rsdp[8] = -sum(rsdp[:20]) & 255
    rsdp[32] = -sum(rsdp) & 255
    return bytes(rsdp)


def _madt(vcpus: int, online: int) -> bytes:
    """Return the APIC table (ACPI 6.0, section 5.2.12): a local APIC for each vCPU."""
    body = struct.pack("<II", apic.ADDRESS, 0)
    for vcpu in range(vcpus):
        flags = _MADT_ENABLED if vcpu < online else 0
        # Guests take the ACPI number for the vCPU's number in hypercalls (public/hvm/hvm_info_table.h).
        body += struct.pack("<BBBBI", _MADT_APIC, 8, vcpu, apic.identity(vcpu), flags)
    return _table(b"APIC", 4, body)


def _fadt(dsdt: int) -> bytes:
    """Return the fixed table, revision 6.0; offsets as in ACPI 6.0, table 5-34."""
    fadt = bytearray(_FADT_LENGTH)
    struct.pack_into("<I", fadt, 40, dsdt)
    struct.pack_into("<H", fadt, 109, _NO_VGA | _NO_CMOS_RTC)
    struct.pack_into("<I", fadt, 112, _WBINVD | _PROC_C1 | _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _REDUCED)
    struct.pack_into("<Q", fadt, 140, dsdt)
    return _table(b"FACP", 6, bytes(fadt[_HEADER.size :]))
