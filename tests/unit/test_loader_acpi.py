"""ACPI tables of a PVH domain: followed from the pointer as a guest follows them."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hypervisor.loader import acpi

BASE = 0xE0000
SOFT_OFF = bytes.fromhex("08 5f53355f 12 08 04 0a05 0a05 00 00")
"""Name (_S5, Package (4) {5, 5, 0, 0})."""


class Walk:
    """Find the tables by their addresses, checking lengths and checksums on the way."""

    def __init__(self, built: acpi.Tables) -> None:
        self.image = built.tables
        self.rsdp = built.rsdp
        (xsdt,) = struct.unpack_from("<Q", built.rsdp, 24)
        self.tables = {b"XSDT": self.table(xsdt)}
        for (address,) in struct.iter_unpack("<Q", self.tables[b"XSDT"][36:]):
            table = self.table(address)
            self.tables[table[:4]] = table
        self.fadt, self.madt = self.tables[b"FACP"], self.tables[b"APIC"]
        self.dsdt = self.table(struct.unpack_from("<Q", self.fadt, 140)[0])

    def table(self, address: int) -> bytes:
        at = address - BASE
        assert at >= 0
        assert at % 16 == 0
        (length,) = struct.unpack_from("<I", self.image, at + 4)
        table = self.image[at : at + length]
        assert len(table) == length
        assert sum(table) % 256 == 0
        return table

    def processors(self) -> list[tuple[int, ...]]:
        return list(struct.iter_unpack("<BBBBI", self.madt[44:]))


def test_the_pointer_has_both_checksums() -> None:
    """The first 20 bytes are ACPI 1.0's, all 36 are 2.0's."""
    rsdp = Walk(acpi.build(BASE, vcpus=1, online=1)).rsdp
    assert (rsdp[:8], rsdp[15], len(rsdp)) == (b"RSD PTR ", 2, 36)
    assert struct.unpack_from("<I", rsdp, 20) == (36,)
    assert (sum(rsdp[:20]) % 256, sum(rsdp) % 256) == (0, 0)


def test_hardware_is_reduced_in_revision_6() -> None:
    """Linux then looks for no timer, PIC or fixed register."""
    fadt = Walk(acpi.build(BASE, vcpus=1, online=1)).fadt
    assert (len(fadt), fadt[8]) == (276, 6)
    assert struct.unpack_from("<I", fadt, 112)[0] & 1 << 20
    assert struct.unpack_from("<I", fadt, 40)[0] == struct.unpack_from("<Q", fadt, 140)[0]


def test_each_vcpu_has_a_local_apic_and_the_first_are_enabled() -> None:
    """ACPI numbers are vCPU numbers; APIC numbers are twice those."""
    walk = Walk(acpi.build(BASE, vcpus=4, online=2))
    assert struct.unpack_from("<II", walk.madt, 36) == (0xFEE00000, 0)
    assert walk.processors() == [(0, 8, 0, 0, 1), (0, 8, 1, 2, 1), (0, 8, 2, 4, 0), (0, 8, 3, 6, 0)]


def test_the_most_vcpus_have_numbers_of_their_own_in_a_byte() -> None:
    """255 would be a broadcast."""
    walk = Walk(acpi.build(BASE, vcpus=128, online=128))
    assert [entry[3] for entry in walk.processors()] == list(range(0, 256, 2))
    assert len(walk.image) < 0xFFFC0 - BASE


def test_definitions_are_the_body_of_the_last_table() -> None:
    """Room for an _S5 object."""
    walk = Walk(acpi.build(BASE, vcpus=1, online=1, definitions=SOFT_OFF))
    assert walk.dsdt[:4] == b"DSDT"
    assert walk.dsdt[36:] == SOFT_OFF
    assert Walk(acpi.build(BASE, vcpus=1, online=1)).dsdt[36:] == b""


@pytest.mark.parametrize(("vcpus", "online"), [(0, 0), (1, 0), (1, 2), (129, 1), (-1, -1)])
def test_impossible_numbers_are_refused(vcpus: int, online: int) -> None:
    """One CPU at least, and no more than there are."""
    with pytest.raises(ValueError, match="are not among"):
        acpi.build(BASE, vcpus=vcpus, online=online)


def test_intels_compiler_reads_and_rebuilds_every_table(tmp_path: Path) -> None:
    """The reference implementation (acpica-tools) finds nothing to remark."""
    iasl = os.environ.get("KRONOS_IASL") or shutil.which("iasl")
    if not iasl:
        pytest.skip("iasl is not installed (acpica-tools)")
    # Its grammar has no empty DSDT, so this one has an object.
    walk = Walk(acpi.build(BASE, vcpus=4, online=2, definitions=SOFT_OFF))
    for name, table in [*walk.tables.items(), (b"DSDT", walk.dsdt)]:
        file = tmp_path / f"{name.decode()}.dat"
        file.write_bytes(table)
        subprocess.run([iasl, "-d", file], check=True, capture_output=True)
        done = subprocess.run([iasl, file.with_suffix(".dsl")], check=True, capture_output=True, text=True)
        assert "0 Errors, 0 Warnings, 0 Remarks" in done.stdout + done.stderr
        assert file.with_suffix(".aml").read_bytes()[36:] == table[36:]
