"""Debian's unmodified kernel, entered by its PV entry: to the shell, with disk, users, balloon and poweroff."""

from __future__ import annotations

import hashlib
import re
import threading
import uuid
from collections.abc import Iterator

import pytest

from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.domain import Domain, Reason
from hypervisor.host import Host
from hypervisor.pv.block import BlockDevice
from hypervisor.pv.block_queue import DiskThreads
from hypervisor.pv.xenbus import Backend
from tests.guests.conftest import MIB, Linux, LinuxFiles, initrd
from tests.guests.pv_guest import PVGuest

RAM = 256 * MIB
_MODULES = (
    *("kernel/drivers/block/xen-blkfront.ko", "kernel/lib/crc16.ko", "kernel/crypto/crc32c_generic.ko"),
    *("kernel/lib/libcrc32c.ko", "kernel/fs/mbcache.ko", "kernel/fs/jbd2/jbd2.ko", "kernel/fs/ext4/ext4.ko"),
)


class PVLinux(Linux):
    """Linux in a paravirtual domain; its console is driven as the others' are."""

    def __init__(self, host: Host, files: LinuxFiles) -> None:
        ramdisk = initrd(files, [name for name in _MODULES if list(files.root.glob(f"lib/modules/*/{name}"))])
        line = "console=hvc0 quiet loglevel=4 cryptomgr.notests"
        self.guest = PVGuest(host, files.kernel, ramdisk, line, RAM, code_cache=64 * MIB)
        self.uuid = str(uuid.uuid4())
        self.host = host
        self.domain, self.console = self.guest.domain, self.guest.console
        self._heard = bytearray()
        self._news = threading.Condition()
        self.console.listen(self._hear)

    def boot(self) -> PVLinux:
        self.host.unpause(self.domain)
        self._until(lambda: b"ready" in self._heard, "no shell")
        self._heard.clear()
        return self


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    machine = Host(1 << 30, 2)
    machine.start()
    yield machine
    for domain in list(machine.domains.values()):
        machine.destroy(domain)
    machine.stop()


@pytest.fixture(scope="module")
def linux(host: Host, linux_files: LinuxFiles) -> PVLinux:
    return PVLinux(host, linux_files).boot()


def test_linux_runs_as_a_paravirtual_guest(linux: PVLinux) -> None:
    """The kernel says so itself, and found nothing to warn of but what is known."""
    log = linux.run("dmesg")
    assert "Booting kernel on Xen" in log or "Booting paravirtualized kernel on Xen" in log
    assert "xen:events: Using 2-level ABI" in log
    assert not re.search(r"BUG:|Oops|general protection|unable to handle", log), log
    assert linux.run("cat /sys/hypervisor/type") == "xen"
    assert linux.run("grep -c 'model name' /proc/cpuinfo") == "1"


def test_users_fault_fork_and_compute(linux: PVLinux) -> None:
    """Page faults, copy on write, signals and pipes, a few hundred processes."""
    assert linux.run("n=0; for i in $(seq 100); do n=$((n+$(echo $i | tr -d x))); done; echo $n") == "5050"
    data = b"".join(b"%d\n" % number for number in range(1, 50001))
    assert linux.run("seq 50000 | sha256sum").split()[0] == hashlib.sha256(data).hexdigest()
    assert linux.run("sh -c 'kill -SEGV $$'; echo died $?").endswith("died 139")
    assert linux.run(
        "dd if=/dev/zero of=/tmp/big bs=1M count=64 2>/dev/null; sha1sum </tmp/big; rm /tmp/big"
    ).startswith(hashlib.sha1(bytes(64 * MIB)).hexdigest())


def test_clock_agrees_with_ours(linux: PVLinux) -> None:
    """A sleep takes as long as it says, and the timer wakes the idle CPU."""
    before = linux.domain.clock.now()
    linux.run("sleep 1")
    passed = (linux.domain.clock.now() - before) / 1e9
    assert 0.95 < passed < 3


def test_disk_keeps_a_file_system(linux: PVLinux, host: Host) -> None:
    """A hot-plugged disk, granted and served: a pattern through the page cache and back."""
    threads = DiskThreads()
    disk = AnonymousDisk(64 * MIB)
    device = BlockDevice(linux.domain, disk, threads.put, name="xvdb")
    backend = Backend(linux.domain, host.xenstore, device, device.number)
    with host.lock:
        backend.plug()
    linux.wait_for("[ -b /dev/xvdb ]")
    linux.run("seq 300000 >/tmp/pattern; dd if=/tmp/pattern of=/dev/xvdb bs=64k conv=fsync 2>/dev/null")
    linux.run("echo 3 >/proc/sys/vm/drop_caches")
    wanted = linux.run("sha256sum </tmp/pattern")
    size = int(linux.run("wc -c </tmp/pattern"))
    assert linux.run(f"dd if=/dev/xvdb bs=64k 2>/dev/null | head -c {size} | sha256sum") == wanted
    assert hashlib.sha256(disk.read(0, size)).hexdigest() == wanted.split()[0]
    gone = threading.Event()
    backend.unplug(gone.set)
    assert gone.wait(30)
    threads.stop()


def test_balloon_follows_the_target(linux: PVLinux, host: Host) -> None:
    """memory/target goes down and up; the host has the frames meanwhile."""
    domain = linux.domain

    def target(mib: int) -> None:
        with host.lock:
            host.xenstore.write(f"{linux.guest.home}/memory/target", str(mib << 10).encode())

    full = domain.memory.present
    target(192)
    linux.wait_for("[ $(cat /sys/devices/system/xen_memory/xen_memory0/info/current_kb) -le 196608 ]")
    assert full - domain.memory.present == (RAM - 192 * MIB) // 4096
    target(256)
    linux.wait_for("[ $(cat /sys/devices/system/xen_memory/xen_memory0/info/current_kb) -ge 262144 ]")
    assert domain.memory.present == full


def test_linux_powers_off(linux: PVLinux, host: Host) -> None:
    """The guest's own poweroff ends the domain."""
    down = threading.Event()

    def ended(domain: Domain) -> None:
        if domain is linux.domain:
            down.set()

    host.listen(ended)
    linux.start("poweroff -f")
    assert down.wait(30)
    assert linux.domain.reason is Reason.POWEROFF
