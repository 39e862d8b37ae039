"""Fixtures for tests with real guests: Debian's kernel, an initrd of its modules and busybox, and a running Linux.

The packages are fetched once with `apt-get download` into `.cache/guests` at the top of the checkout; where that
does not work (no apt, no network) the tests are skipped and say why.
"""

from __future__ import annotations

import fcntl
import functools
import re
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypervisor.api import DirectBoot, DomainConfig
from hypervisor.host import Host
from hypervisor.scheduling.scheduler import Entity, Scheduler
from hypervisor.split.block_queue import DiskThreads
from hypervisor.toolstack.toolstack import Toolstack
from tests.machines import machine

CACHE = Path(__file__).parents[2] / ".cache" / "guests"
SCRIPT = CACHE.parents[1] / "deploy" / "linux-guest"
PACKAGES = CACHE.parent / "linux-guest" / "packages"
"""Where the script keeps them too."""
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("kernel/drivers/block/xen-blkfront.ko", "kernel/drivers/net/xen-netfront.ko")
MIB = 1 << 20
_SECONDS = 60
"""How long a guest may take for anything, before the test fails."""

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod $module; done
stty -echo -F /dev/hvc0
echo ready
while :; do sh </dev/hvc0 2>&1; done | cat >/dev/hvc0
"""

_UDHCPC = """#!/bin/sh
[ $1 = bound ] || exit 0
ip addr replace $ip/$mask dev $interface
ip link set mtu ${mtu:-1500} dev $interface
[ -z "$router" ] || ip route replace default via $router dev $interface
echo "search $domain" >/etc/resolv.conf
for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
"""


# The files


def _run(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=300).stdout


def _fetch(into: Path, kernel: str) -> None:
    """Download and unpack a kernel's package and busybox; `into` appears whole or not at all."""
    depends = _run("apt-cache", "depends", kernel, cwd=into.parent)
    found = re.search(r"Depends: (linux-image-\d\S+)", depends)
    if found is None:
        raise FileNotFoundError(f"{kernel} depends on no kernel")
    PACKAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent) as directory:
        root = Path(directory) / "root"
        for package in (found[1], "busybox-static"):
            if not list(PACKAGES.glob(f"{package}_*.deb")):
                _run("apt-get", "download", "-q", package, cwd=PACKAGES)
            _run("dpkg-deb", "-x", str(next(PACKAGES.glob(f"{package}_*.deb"))), str(root), cwd=into.parent)
        root.rename(into)


@dataclass(frozen=True)
class LinuxFiles:
    """Unpacked packages."""

    root: Path

    @property
    def kernel(self) -> Path:
        """The bzImage."""
        return next((self.root / "boot").glob("vmlinuz-*"))

    def module(self, name: str) -> bytes:
        """Return a module by its path below the modules' directory."""
        return next((self.root / "lib/modules").glob(f"*/{name}")).read_bytes()


def fetched(kernel: str) -> LinuxFiles:
    """Return a kernel of Debian's by its package, and busybox, from the cache or fetched; skip where neither can be."""
    root = CACHE / kernel
    if not root.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            pytest.skip("there is no apt to fetch a kernel with")
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            with (CACHE / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # tests of several files run side by side
                if not root.exists():
                    _fetch(root, kernel)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"no kernel could be fetched: {said.strip().splitlines()[-1]}")
    return LinuxFiles(root)


@pytest.fixture(scope="session")
def linux_files() -> LinuxFiles:
    """Debian's kernel for clouds, and busybox."""
    return fetched(KERNEL_PACKAGE)


def build_guest(output: Path) -> None:
    """Let deploy/linux-guest make its two files, from packages that were downloaded before; skip where it cannot."""
    fetched(KERNEL_PACKAGE)
    for tool in ("cpio", "gzip"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} to build with")
    (output / "packages").symlink_to(PACKAGES)
    done = subprocess.run([SCRIPT, output], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}/vmlinuz and {output}/initrd are ready\n"


def archive(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Return a cpio archive, "newc", of (path, mode, content); what an initrd is."""
    parts = []
    for number, (path, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        parts += [header, bytes(-len(header) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def initrd(files: LinuxFiles, modules: Iterable[str] = MODULES, init: str = _INIT) -> bytes:
    """Return an initrd with busybox, modules to be loaded in their order, and an init."""
    directories = [(name, 0o040755, b"") for name in ("bin", "proc", "sys", "dev", "mnt", "tmp", "etc", "modules")]
    busybox = (files.root / "bin/busybox").read_bytes()
    content = [("bin/busybox", 0o100755, busybox), ("init", 0o100755, init.encode())]
    content.append(("etc/udhcpc", 0o100755, _UDHCPC.encode()))
    content += [
        (f"modules/{order:02}-{Path(name).name}", 0o100644, files.module(name)) for order, name in enumerate(modules)
    ]
    return archive([*directories, *content])


# A guest


class Linux:
    """A booted guest with a shell on its console."""

    def __init__(
        self, toolstack: Toolstack, kernel: Path, ramdisk: Path, memory: int = 256 * MIB, vcpus: int = 1
    ) -> None:
        line = "console=hvc0 quiet loglevel=4 cryptomgr.notests"
        boot = DirectBoot(str(kernel), str(ramdisk), line)
        self.uuid = str(uuid.uuid4())
        self.toolstack = toolstack
        self.host = toolstack.host
        guest = toolstack.build(DomainConfig(self.uuid, "guest", memory, memory, vcpus, boot))
        self.domain, self.console = guest.domain, guest.console
        self._heard = bytearray()
        self._news = threading.Condition()
        self.console.listen(self._hear)

    def _hear(self, data: bytes) -> None:
        with self._news:
            self._heard += data
            self._news.notify_all()

    def _until(self, found: Callable[[], bool], what: str) -> None:
        with self._news:
            came = self._news.wait_for(lambda: found() or self.domain.life.reason is not None, _SECONDS)
        assert came and self.domain.life.reason is None, (
            f"{what}: {self.domain.life.reason} {bytes(self._heard[-2000:])!r}"
        )

    def boot(self) -> Linux:
        """Start it and wait for the shell."""
        self.toolstack.unpause(self.uuid)
        self._until(lambda: b"ready" in self._heard, "no shell")
        self._heard.clear()
        return self

    def start(self, command: str) -> None:
        """Type a command; `finish` waits for it."""
        self._heard.clear()
        self.console.write(f"{command}\necho ==$?==\n".encode())

    def finish(self) -> str:
        """Return what the command wrote; it must have succeeded."""
        self._until(lambda: re.search(rb"==\d+==\r?\n", self._heard) is not None, "no answer")
        text = self._heard.decode(errors="replace").replace("\r", "")
        found = re.search(r"==(\d+)==\n", text)
        assert found is not None
        assert found[1] == "0", text
        return text[: found.start()].strip()

    def run(self, command: str) -> str:
        """Run a command in the shell and return its output; it must succeed."""
        self.start(command)
        return self.finish()

    def wait_for(self, command: str) -> str:
        """Repeat a command until it succeeds; return its output."""
        return self.run(
            f"n=0; until {command}; do n=$((n+1)); [ $n -gt 200 ] && break; usleep 20000; done; [ $n -le 200 ]"
        )


@pytest.fixture
def host() -> Iterator[Host]:
    """A machine with its pCPU threads running; what is left on it at the end is destroyed."""
    with machine(2 << 30, 2, threads=True) as made:
        yield made


@pytest.fixture
def threads() -> Iterator[DiskThreads]:
    disks = DiskThreads()
    yield disks
    disks.stop()


@pytest.fixture(scope="module")
def toolstack() -> Iterator[Toolstack]:
    """A machine with its pCPU threads running; what is left on it at the end is destroyed."""
    machine = Host(2 << 30, 2)
    machine.start()
    made = Toolstack(machine)
    yield made
    for uuid_text in list(made.guests):
        made.destroy(uuid_text)
    machine.stop()


@pytest.fixture(scope="module")
def disk_threads() -> Iterator[DiskThreads]:
    threads = DiskThreads()
    yield threads
    threads.stop()


@pytest.fixture(scope="module")
def make_linux(
    toolstack: Toolstack, linux_files: LinuxFiles, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Linux]:
    """Build a Linux on the machine; `boot` it."""
    ramdisk = tmp_path_factory.mktemp("linux") / "initrd"
    ramdisk.write_bytes(initrd(linux_files))
    return functools.partial(Linux, toolstack, linux_files.kernel, ramdisk)


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> list[Entity]:
    """What pCPUs run from now on, slice by slice. What that costs is for the benchmarks to tell."""
    ran: list[Entity] = []
    run = Scheduler._run_slice

    def noted(scheduler: Scheduler, entity: Entity) -> None:
        ran.append(entity)
        run(scheduler, entity)

    monkeypatch.setattr(Scheduler, "_run_slice", noted)
    return ran
