"""The demo guest's committed ELF is what its sources build."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest

from hypervisor.guests import DEMO_KERNEL
from hypervisor.loader import elf

_SOURCES = DEMO_KERNEL.parent


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The ELF that gcc makes here; skips where there is none for x86-64."""
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("gcc and make are not installed")
    machine = subprocess.run(["gcc", "-dumpmachine"], check=True, capture_output=True, text=True).stdout
    if not machine.startswith("x86_64"):
        pytest.skip(f"gcc builds for {machine.strip()}, the guest is for x86-64")
    work = tmp_path_factory.mktemp("demo")
    command = ["make", "-j2", f"BUILD={work}/objects", f"OUT={work}", "CC=gcc"]
    done = subprocess.run(command, cwd=_SOURCES, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return (work / "demo.elf").read_bytes()


def section(image: bytes, wanted: str) -> bytes:
    """Return the content of a section of an ELF64 file."""
    (table,) = struct.unpack_from("<Q", image, 40)
    size, count, names = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, table + size * number) for number in range(count)]
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        if image[start : image.index(b"\0", start)].decode() == wanted:
            return image[offset : offset + length]
    raise AssertionError(f"there is no section {wanted}")


def test_committed_elf_is_what_the_sources_build(rebuilt: bytes) -> None:
    """The same compiler gives the same bytes; another one the same entry and layout."""
    committed = DEMO_KERNEL.read_bytes()
    if section(committed, ".comment") == section(rebuilt, ".comment"):
        assert committed == rebuilt, "run `make guests` and commit the result"
    else:
        ours, theirs = elf.parse(committed), elf.parse(rebuilt)
        assert (ours.notes.phys32_entry, len(ours.segments)) == (theirs.notes.phys32_entry, len(theirs.segments))
        assert [part.physical for part in ours.segments][:1] == [part.physical for part in theirs.segments][:1]


def test_elf_is_small_and_starts_by_pvh() -> None:
    """A few dozen KB, below 2 MiB in memory, with the one note that it needs."""
    image = DEMO_KERNEL.read_bytes()
    kernel = elf.parse(image)
    assert len(image) < 64 * 1024
    assert kernel.notes.phys32_entry == 1 << 20
    assert all(part.physical >= 1 << 20 and part.end < 2 << 20 for part in kernel.segments)


def test_code_is_never_writable() -> None:
    """No segment can be both written and executed."""
    image = DEMO_KERNEL.read_bytes()
    table, (size, count) = struct.unpack_from("<Q", image, 32)[0], struct.unpack_from("<HH", image, 54)
    flags = [struct.unpack_from("<II", image, table + size * number)[1] for number in range(count)]
    assert not any(each & 3 == 3 for each in flags)
