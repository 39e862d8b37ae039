"""Debian's kernel for the benchmarks: the packages that the tests use, and an initrd that both sides can boot."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.benchmarks.machine import MIB, Machine, Terminal, kernel_config
from tests.guests.conftest import KERNEL_PACKAGE, MODULES, LinuxFiles, archive, fetched, initrd

MEMORY = 256 * MIB
READY = b"guest-ready"
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in /modules/*.ko; do [ -e $module ] && insmod $module; done
echo guest-ready
while :; do sh </dev/console >/dev/console 2>&1; done
"""
_LOAD = Path(__file__).with_name("guest_load.c")


class NotHere(Exception):
    """Something that a benchmark compares with, or needs, is not on this machine."""


def files() -> LinuxFiles:
    """Return Debian's kernel and busybox, from the cache or fetched. Raises NotHere."""
    try:
        return fetched(KERNEL_PACKAGE)
    except pytest.skip.Exception as skipped:
        raise NotHere(str(skipped)) from None


def small_initrd(found: LinuxFiles) -> bytes:
    """Return an initrd that says when it is ready and then gives a shell on whatever console there is."""
    return initrd(found, (), INIT)


def load_initrd(found: LinuxFiles) -> bytes:
    """Return an initrd with the front ends and /bin/load, which makes disks and networks busy. Raises NotHere."""
    extra = archive([("bin/load", 0o100755, load_program())])
    whole = initrd(found, MODULES, INIT)
    return whole + bytes(-len(whole) % 4) + extra  # the kernel unpacks one archive after the other


def load_program() -> bytes:
    """Return a static program made of guest_load.c. Raises NotHere."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NotHere("there is no gcc to make the guest's load program with")
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "load"
        options = ["-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"]
        subprocess.run([compiler, *options, "-o", program, _LOAD], check=True, capture_output=True, timeout=60)
        return program.read_bytes()


class Linux:
    """A booted guest with a shell on its console."""

    def __init__(self, machine: Machine, kernel: Path, ramdisk: Path, memory: int = MEMORY) -> None:
        self.machine = machine
        self.terminal: Terminal = machine.build(
            kernel_config(kernel, ramdisk, "console=hvc0 quiet cryptomgr.notests", memory)
        )

    @property
    def uuid(self) -> str:
        """The domain's."""
        return self.terminal.guest.config.uuid

    def boot(self) -> Linux:
        """Start it and wait for its shell."""
        self.machine.unpause(self.terminal)
        self.terminal.expect(READY)
        self.run("stty -echo")
        return self

    def start(self, command: str) -> None:
        """Type a command; `finish` waits for it."""
        self.terminal.type(f"{command}; echo E''ND=$?\n".encode())

    def finish(self) -> str:
        """Return what the command printed. Raises RuntimeError when it failed."""
        text = self.terminal.expect(b"END=").decode(errors="replace")
        if self.terminal.expect(b"\n").strip() != b"0":
            raise RuntimeError(f"in the guest: {text}")
        return text

    def run(self, command: str) -> str:
        """Run a command and return what it printed. Raises RuntimeError when it failed."""
        self.start(command)
        return self.finish()

    def wait_for(self, command: str) -> None:
        """Repeat a command until it succeeds, for some seconds. Raises RuntimeError."""
        self.run(f"n=0; until {command}; do n=$((n+1)); [ $n -gt 250 ] && break; usleep 20000; done; [ $n -le 250 ]")

    def numbers(self, command: str) -> dict[str, int]:
        """Run a command and return its lines `name: number`."""
        return read_numbers(self.run(command))


def read_numbers(text: str) -> dict[str, int]:
    """Return the lines `name: number` of a text."""
    return {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", text)}


def write(directory: Path, name: str, data: bytes) -> Path:
    """Put an initrd where a guest is booted from."""
    path = directory / name
    path.write_bytes(data)
    return path
