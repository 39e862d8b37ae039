"""Debian's unmodified kernel, entered by its PV entry: a shell, users, disk, grants, balloon, suspends, poweroff."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE
from hypervisor.migration import resume
from hypervisor.migration.clone import Template
from hypervisor.migration.live import LiveCopy
from hypervisor.migration.restore import Image
from hypervisor.migration.save import save
from hypervisor.split.block import BlockConfig, BlockDevice
from hypervisor.split.block_queue import DiskThreads
from hypervisor.split.xenbus import Backend
from tests.guests.conftest import MIB, Linux, LinuxFiles, initrd
from tests.guests.pv_guest import PVGuest, compiled
from tests.guests.resumed import join, leave
from tests.machines import machine

RAM = 256 * MIB
_MODULES = (
    *("kernel/drivers/block/xen-blkfront.ko", "kernel/lib/crc16.ko", "kernel/crypto/crc32c_generic.ko"),
    *("kernel/lib/libcrc32c.ko", "kernel/fs/mbcache.ko", "kernel/fs/jbd2/jbd2.ko", "kernel/fs/ext4/ext4.ko"),
    "kernel/drivers/xen/xen-gntdev.ko",
)


class PVLinux(Linux):
    """Linux in a PV domain; its console is driven as the others' are."""

    disk: tuple[AnonymousDisk, DiskThreads]

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

    def suspend(self) -> None:
        """Ask for it, and wait until the guest has."""
        down = threading.Event()
        self.host.listen(lambda _: down.set())
        with self.host.lock:
            self.host.xenstore.write(f"/local/domain/{self.domain.domid}/control/shutdown", b"suspend")
        assert down.wait(30) and self.domain.life.reason is Reason.SUSPEND, bytes(
            self.domain.platform.console.text[-2000:]
        )

    def go_on(self, domain: Domain) -> None:
        """Go on in a domain that is restored; the old one ends."""
        leave(self.host, self.domain)
        self.domain, self.console = domain, join(self.host, domain).console
        self.console.listen(self._hear)
        self.host.unpause(domain)

    def plug(self) -> None:
        """Give it the disk that it has in all domains."""
        disk, threads = self.disk
        device = BlockDevice(self.domain, disk, threads.put, BlockConfig("xvda"))
        with self.host.lock:
            Backend(self.domain, self.host.xenstore, device, device.number).plug()

    def goes_on(self) -> None:
        """See that its counter does, and that nothing is lost."""
        self.run("n=$(cat /tmp/n); while [ $(cat /tmp/n) = $n ]; do usleep 5000; done")
        found = self.run("echo 3 >/proc/sys/vm/drop_caches; md5sum </mnt/f; echo $HELD")
        assert found == self.run("cat /tmp/sum; echo kept")
        log = self.run("dmesg")
        assert not re.search(r"BUG:|Oops|Call Trace|I/O error|general protection", log), log


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with machine(1 << 30, 2, threads=True) as made:
        yield made


@pytest.fixture(scope="module")
def linux(host: Host, linux_files: LinuxFiles) -> PVLinux:
    return PVLinux(host, linux_files).boot()


def test_linux_runs_as_a_pv_guest(linux: PVLinux) -> None:
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
    before = linux.domain.time.clock.now()
    linux.run("sleep 1")
    passed = (linux.domain.time.clock.now() - before) / 1e9
    assert 0.95 < passed < 3


def test_disk_keeps_a_file_system(linux: PVLinux, host: Host) -> None:
    """A hot-plugged disk, granted and served: a pattern through the page cache and back."""
    threads = DiskThreads()
    disk = AnonymousDisk(64 * MIB)
    device = BlockDevice(linux.domain, disk, threads.put, BlockConfig("xvdb"))
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


def test_a_process_maps_what_another_domain_has_granted(linux: PVLinux, host: Host, tmp_path: Path) -> None:
    """By gntdev: an entry of its own page tables and one of the kernel's; both go with the mapping."""
    program = base64.b64encode(compiled(tmp_path, "gntdev.c", "-Os", "-Wl,-N,-s")).decode()
    linux.run(f"echo {program} | base64 -d >/tmp/gntdev; chmod +x /tmp/gntdev")
    granter = host.create([(0, 64 * PAGE)])
    granter.grants.place(0, 1)
    entry = PAGE + 8 * 8
    for ref, flags in ((8, 1), (9, 5)):
        granter.memory.write(PAGE + 8 * ref, struct.pack("<HHI", flags, linux.domain.domid, ref))
        granter.memory.write(ref * PAGE, b"granted by %d\n" % ref)
    map_grant = f"/tmp/gntdev {granter.domid}"
    assert linux.run(f"{map_grant} 8") == "granted by 8"
    assert granter.memory.read(8 * PAGE, 7) == b"Wranted"
    assert linux.run(f"{map_grant} 9 r") == "granted by 9"
    assert linux.run(f"{map_grant} 9; echo $?") == "22"
    assert linux.run(f"{map_grant} 10 r; echo $?") == "22"
    assert not len(linux.domain.maptrack) and granter.memory.read(entry, 16) == struct.pack(
        "<HHIHHI", 1, linux.domain.domid, 8, 5, linux.domain.domid, 9
    )
    host.destroy(granter)


def test_balloon_follows_the_target(linux: PVLinux, host: Host) -> None:
    """memory/target goes down and up; the host has the frames meanwhile."""
    domain = linux.domain

    def target(mib: int) -> None:
        with host.lock:
            host.xenstore.write(f"/local/domain/{domain.domid}/memory/target", str(mib << 10).encode())

    full = domain.memory.present
    target(192)
    linux.wait_for("[ $(cat /sys/devices/system/xen_memory/xen_memory0/info/current_kb) -le 196608 ]")
    assert full - domain.memory.present == (RAM - 192 * MIB) // 4096
    target(256)
    linux.wait_for("[ $(cat /sys/devices/system/xen_memory/xen_memory0/info/current_kb) -ge 262144 ]")
    assert domain.memory.present == full


def test_linux_goes_on_in_another_process(linux: PVLinux, tmp_path: Path) -> None:
    """A day later by that one's clock: its memory is what it was, and here it goes on too."""
    linux.run("HELD=kept; dd if=/dev/urandom of=/tmp/f bs=64k count=100; md5sum </tmp/f >/tmp/sum")
    linux.suspend()
    path = tmp_path / "image"
    with path.open("wb") as file:
        save(linux.host, linux.domain, file)
    resume.cancel(linux.host, linux.domain)
    now = int(linux.run("date +%s"))
    commands = ["md5sum </tmp/f", "echo $HELD", "date +%s", "dmesg | grep -c -e BUG -e 'Call Trace'; true"]
    command = [sys.executable, "-m", "tests.guests.go_on", str(path), "linux", "86400", *commands]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    _, found, held, date, bugs = (json.loads(line) for line in done.stdout.splitlines())
    assert (found, held, bugs) == (linux.run("cat /tmp/sum"), "kept", "0")
    assert 86400 <= int(date) - now < 86400 + 120


@pytest.fixture(scope="module")
def suspendable(linux: PVLinux, host: Host) -> Iterator[PVLinux]:
    """With a file system on a disk that comes along, a file in it, a variable in its shell, and a counter."""
    threads = DiskThreads()
    linux.disk = AnonymousDisk(64 * MIB), threads
    linux.plug()
    linux.wait_for("[ -b /dev/xvda ]")
    linux.run("mke2fs /dev/xvda 2>&1; mount -t ext4 /dev/xvda /mnt; HELD=kept")
    linux.run("dd if=/dev/urandom of=/mnt/f bs=1M count=8 2>/dev/null; md5sum </mnt/f >/tmp/sum")
    linux.run("i=0; while :; do i=$((i+1)); echo $i >/tmp/m; mv /tmp/m /tmp/n; echo $i >>/mnt/n; usleep 5000; done &")
    linux.wait_for("[ -e /tmp/n ]")
    yield linux
    threads.stop()


def _save(linux: PVLinux) -> Domain:
    file = io.BytesIO()
    linux.suspend()
    save(linux.host, linux.domain, file)
    file.seek(0)
    return Image(file).build(linux.host, code_cache=64 * MIB)


def _copy(linux: PVLinux) -> Domain:
    file = io.BytesIO()
    with LiveCopy(linux.host, linux.domain, file) as copy:
        assert copy.rounds(3, downtime=0) > 1
        linux.suspend()
        copy.finish()
    assert copy.done[-1].frames < copy.done[0].frames / 4
    file.seek(0)
    return Image(file).build(linux.host, code_cache=64 * MIB)


def _clone(linux: PVLinux) -> Domain:
    linux.suspend()
    with Template(linux.host, linux.domain) as template:
        return template.clone(linux.host, code_cache=64 * MIB)


@pytest.mark.parametrize("move", [_save, _copy, _clone])
def test_linux_goes_on_as_another_domain(suspendable: PVLinux, move: Callable[[PVLinux], Domain]) -> None:
    """Suspended by xenstore, time and again: users, page cache, a file system on a disk that is plugged anew."""
    linux, old = suspendable, suspendable.domain
    uptime = float(linux.run("cut -d' ' -f1 /proc/uptime"))
    linux.go_on(move(linux))
    linux.plug()
    linux.goes_on()
    assert linux.domain.domid != old.domid
    assert uptime < float(linux.run("cut -d' ' -f1 /proc/uptime")) < uptime + 60


def test_linux_goes_on_where_it_was(suspendable: PVLinux) -> None:
    """After a checkpoint its suspend was cancelled, and its disk has never been away."""
    suspendable.suspend()
    save(suspendable.host, suspendable.domain, io.BytesIO())
    resume.cancel(suspendable.host, suspendable.domain)
    suspendable.goes_on()


def test_linux_powers_off(linux: PVLinux, host: Host) -> None:
    """The guest's own poweroff ends the domain."""
    down = threading.Event()

    def ended(domain: Domain) -> None:
        if domain is linux.domain:
            down.set()

    host.listen(ended)
    linux.start("poweroff -f")
    assert down.wait(30)
    assert linux.domain.life.reason is Reason.POWEROFF
