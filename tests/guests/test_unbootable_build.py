"""What a domain runs that has nothing to boot: its committed ELF is what its sources build, and it says why."""

from __future__ import annotations

import shutil
import struct
import subprocess
import threading
import uuid
from collections.abc import Iterator

import pytest

from hypervisor.api import DirectBoot, DomainConfig
from hypervisor.domains.life import State
from hypervisor.guests import UNBOOTABLE_KERNEL
from hypervisor.host import Host
from hypervisor.loader import elf
from hypervisor.toolstack.toolstack import Toolstack

MIB = 1 << 20
GIB = 1 << 30


def test_committed_elf_is_what_the_sources_build(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same compiler gives the same bytes; another one the same entry and layout."""
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("gcc and make are not installed")
    machine = subprocess.run(["gcc", "-dumpmachine"], check=True, capture_output=True, text=True).stdout
    if not machine.startswith("x86_64"):
        pytest.skip(f"gcc builds for {machine.strip()}, the guest is for x86-64")
    work = tmp_path_factory.mktemp("unbootable")
    command = ["make", f"BUILD={work}/objects", f"OUT={work}", f"{work}/unbootable.elf"]
    done = subprocess.run(command, cwd=UNBOOTABLE_KERNEL.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    committed, rebuilt = UNBOOTABLE_KERNEL.read_bytes(), (work / "unbootable.elf").read_bytes()
    if _compiler(committed) == _compiler(rebuilt):
        assert committed == rebuilt, "run `make guests` and commit the result"
    else:
        ours, theirs = elf.parse(committed), elf.parse(rebuilt)
        assert ours.notes.phys32_entry == theirs.notes.phys32_entry
        assert [part.physical for part in ours.segments] == [part.physical for part in theirs.segments]


def _compiler(image: bytes) -> bytes:
    start = image.index(b"GCC: ")
    return image[start : image.index(b"\0", start)]


def test_elf_is_small_and_code_is_never_writable() -> None:
    image = UNBOOTABLE_KERNEL.read_bytes()
    table, (size, count) = struct.unpack_from("<Q", image, 32)[0], struct.unpack_from("<HH", image, 54)
    flags = [struct.unpack_from("<II", image, table + size * number)[1] for number in range(count)]
    assert len(image) < 8192 and not any(each & 3 == 3 for each in flags)


@pytest.fixture
def toolstack() -> Iterator[Toolstack]:
    made = Toolstack(Host(16 * GIB, 1))
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("memory", [2 * MIB, 256 * MIB, 8 * GIB])
def test_the_text_is_said_on_the_console_and_the_domain_stays(toolstack: Toolstack, memory: int) -> None:
    """All of the longest text, whatever memory there is; then it waits, and costs nothing."""
    text = "No bootable device. " + "x" * 2000 + "\nend"
    heard, news = bytearray(), threading.Event()
    config = DomainConfig(str(uuid.uuid4()), "none", memory, memory, 1, DirectBoot(str(UNBOOTABLE_KERNEL), "", text))
    guest = toolstack.build(config)

    def hear(data: bytes) -> None:
        heard.extend(data)
        news.set()

    guest.console.listen(hear)
    toolstack.unpause(config.uuid)
    assert news.wait(20)
    assert heard == text.replace("\n", "\r\n").encode() + b"\r\n"
    assert guest.domain.life.state is State.RUNNING
    guest.console.write(b"typing does no harm")
    assert guest.domain.life.state is State.RUNNING and not guest.domain.life.crash
