"""A PV domain under test, put together as a toolstack does it, with console and xenstore."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hypervisor.arch.x86_64.kinds import PV
from hypervisor.arch.x86_64.pv.cpu import PVCPU
from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.loader import pv
from hypervisor.split.console import Console
from hypervisor.split.store_ring import StoreRing
from hypervisor.xenstore.permissions import NONE, Permissions

MIB = 1 << 20
HERE = Path(__file__).parent
_FLAGS = (
    *("-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-pie", "-mno-red-zone"),
    *("-mgeneral-regs-only", "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"),
    *("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096"),
)
_READABLE = ("vm", "name", "domid", "memory/target")
_OWN = ("control/shutdown", "device", "data", "attr", "drivers", "error")


def compiled(directory: Path, source: str, *flags: str) -> bytes:
    """Return a program without libraries of a source here; skips where there is no compiler for x86-64."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    machine = subprocess.run(["gcc", "-dumpmachine"], check=True, capture_output=True, text=True).stdout
    if not machine.startswith("x86_64"):
        pytest.skip(f"gcc builds for {machine.strip()}, the guest is for x86-64")
    out = directory / "program.elf"
    command = ["gcc", *_FLAGS, *flags, "-o", str(out), str(HERE / source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


def build_kernel(directory: Path) -> bytes:
    """Return the kernel of `pv_kernel`; skips where there is no compiler for x86-64."""
    sources = HERE / "pv_kernel"
    return compiled(
        directory, "pv_kernel/kernel.c", "-mcmodel=kernel", str(sources / "entry.S"), f"-Wl,-T,{sources}/kernel.ld"
    )


class PVGuest:
    """A domain, paused, at its kernel's entry."""

    def __init__(
        self,
        host: Host,
        kernel: bytes | Path,
        initrd: bytes | Path | None = None,
        command_line: str = "",
        ram: int = 8 * MIB,
        code_cache: int = 1 << 20,
    ) -> None:
        self.host = host
        self.domain = domain = host.create(pv.ranges(ram), code_cache=code_cache, kind=PV)
        self.image = pv.build(domain.memory, kernel, initrd, command_line, ram=ram)
        with host.lock:
            self._introduce(domain, ram)
            store_port, console_port = domain.events.alloc_unbound(0), domain.events.alloc_unbound(0)
            pv.attach(domain, self.image, store_port, console_port)
            self.console = Console(domain, self.image.console, console_port)
            connection = host.xenstore.introduce(domain.domid)
            self.store = StoreRing(domain, connection, self.image.xenstore, store_port)
            pv.enter(self.cpu, self.image)
            domain.vcpus[0].up = True

    @property
    def cpu(self) -> PVCPU:
        cpu = self.domain.vcpus[0].cpu
        assert isinstance(cpu, PVCPU)
        return cpu

    @property
    def home(self) -> str:
        """Its home in xenstore."""
        return f"/local/domain/{self.domain.domid}"

    def _introduce(self, domain: Domain, ram: int) -> None:
        store, own = self.host.xenstore, Permissions(domain.domid, NONE)
        values = dict(zip(_READABLE, (f"/vm/{domain.uuid}", "guest", str(domain.domid), str(ram >> 10))))
        for key, value in (values | dict.fromkeys(_OWN, "")).items():
            store.write(f"{self.home}/{key}", value.encode())
            store.set_perms(f"{self.home}/{key}", own)

    def finish(self) -> str:
        """Run the domain on this thread until it is down; return what it told the hypervisor's console."""
        self.host.unpause(self.domain)
        for _ in range(1000):
            self.host.step(self.domain)
            if self.domain.life.reason is not None:
                return self.domain.platform.console.text.decode()
        raise AssertionError(
            f"it does not end: RIP {self.cpu.overlay.regs.rip:#x} {self.domain.platform.console.text!r}"
        )
