"""Debian's kernel finds the processor that its host tells of, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hypervisor.arch.x86_64.processor import processor
from hypervisor.host import Host
from hypervisor.toolstack.toolstack import Toolstack
from tests.guests.conftest import MODULES, Linux, LinuxFiles, initrd

NAME = "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz"


@pytest.fixture(scope="module")
def linux(linux_files: LinuxFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    """A booted guest of a host whose CPUs have a name."""
    ramdisk: Path = tmp_path_factory.mktemp("linux") / "initrd"
    ramdisk.write_bytes(initrd(linux_files, MODULES))
    machine = Host(2 << 30, 2, cpu_name=NAME)
    machine.start()
    toolstack = Toolstack(machine)
    guest = Linux(toolstack, linux_files.kernel, ramdisk)
    yield guest.boot()
    toolstack.destroy(guest.uuid)
    machine.stop()


def test_linux_finds_the_processor_that_the_host_tells_of(linux: Linux) -> None:
    """Name, family, model, stepping and each feature (/proc/cpuinfo)."""
    told = processor(NAME)
    lines = (line.split(":", 1) for line in linux.run("cat /proc/cpuinfo").splitlines() if ":" in line)
    found = {name.strip(): value.strip() for name, value in lines}
    wanted = (told.vendor, told.name, str(told.family), str(told.model), str(told.stepping))
    assert tuple(found[name] for name in ("vendor_id", "model name", "cpu family", "model", "stepping")) == wanted
    assert set(told.flags.split()) <= set(found["flags"].split())
    assert abs(float(found["cpu MHz"]) - told.mhz) <= 1
    assert told.name == NAME


def test_linux_finds_no_register_missing_that_it_reads(linux: Linux) -> None:
    """It tells of one that it reads without asking whether it is there."""
    assert "unchecked MSR" not in linux.run("dmesg")


def test_a_read_of_a_physical_hole_gives_ones_and_linux_goes_on(linux: Linux) -> None:
    """Where other machines have their HPET."""
    assert linux.run("/bin/busybox devmem 0xfed00000") == "0xFFFFFFFF"
    linux.run("/bin/busybox devmem 0xfed00000 32 5")
    assert linux.run("/bin/busybox devmem 0xfed00000 16") == "0xFFFF"
