"""Debian's unmodified kernel suspended by xenstore, saved, restored, copied while it runs, and cloned."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hypervisor.api import NIC, Addresses, DirectBoot, Disk, Display, DomainConfig, Network, Shutdown
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.host import Host
from hypervisor.migration import resume
from hypervisor.migration.clone import Template
from hypervisor.migration.live import LiveCopy
from hypervisor.migration.restore import Image
from hypervisor.migration.save import save
from hypervisor.toolstack.devices.screen import Screen
from hypervisor.toolstack.toolstack import Toolstack
from tests.guests.conftest import initrd
from tests.guests.go_on import LinuxShell
from tests.guests.resumed import join, leave

SECONDS = 60
CACHE = 64 << 20
COUNT = "i=0; while :; do i=$((i+1)); echo $i >/tmp/m; mv /tmp/m /tmp/n; usleep 5000; done &"
LATER = "n=$(cat /tmp/n); while [ $(cat /tmp/n) = $n ]; do usleep 5000; done; echo $n $(cat /tmp/n) $HELD"
"""Wait until the counter goes on; print what it was, what it is, and a variable of the shell."""


class Suspendable:
    """A Linux with a counter in its shell, in whatever domain it is now."""

    def __init__(self, linux: Any) -> None:
        self.linux = linux
        self.host: Host = linux.host
        self.run = linux.run
        self.made: list[Domain] = []
        self._ended = threading.Event()
        self.host.listen(lambda _: self._ended.set())
        self.run(f"HELD=kept; {COUNT}")
        linux.wait_for("[ -e /tmp/n ]")

    @property
    def domain(self) -> Domain:
        domain: Domain = self.linux.domain
        return domain

    def suspend(self) -> None:
        """Ask for it, and wait until the guest has."""
        self._ended.clear()
        with self.host.lock:
            self.host.xenstore.write(f"/local/domain/{self.domain.domid}/control/shutdown", b"suspend")
        assert self._ended.wait(SECONDS) and self.domain.life.reason is Reason.SUSPEND

    def image(self) -> bytes:
        file = io.BytesIO()
        save(self.host, self.domain, file)
        return file.getvalue()

    def restore(self, image: bytes) -> None:
        """Go on in a new domain."""
        self.go_on(Image(io.BytesIO(image)).build(self.host, code_cache=CACHE))

    def go_on(self, domain: Domain) -> None:
        """Go on in a domain that is restored, cloned or renewed."""
        console = join(self.host, domain).console
        self.linux.domain, self.linux.console = domain, console
        console.listen(self.linux._hear)
        self.made.append(domain)
        self.host.unpause(domain)

    def count(self) -> int:
        """See that the counter goes on, and return it."""
        before, now, held = self.run(LATER).split()
        assert int(now) > int(before) and held == "kept"
        return int(now)


@pytest.fixture(scope="module")
def booted(make_linux: Callable[[], Any], toolstack: Toolstack) -> Iterator[Suspendable]:
    guest = Suspendable(make_linux().boot())
    yield guest
    for domain in guest.made:
        if domain.domid in guest.host.domains:
            leave(guest.host, domain)


@pytest.fixture
def guest(booted: Suspendable) -> Iterator[Suspendable]:
    """One Linux for all tests here; after each it runs, in some domain, and other domains are gone."""
    yield booted
    for domain in booted.made[:-1]:
        if domain is not booted.domain and domain.domid in booted.host.domains:
            leave(booted.host, domain)


def test_goes_on_in_the_same_domain_after_a_checkpoint(guest: Suspendable) -> None:
    """Its suspend was cancelled; the image is not needed."""
    before = guest.count()
    guest.suspend()
    guest.image()
    resume.cancel(guest.host, guest.domain)
    assert guest.count() > before


def test_goes_on_as_another_domain(guest: Suspendable) -> None:
    """The shell with its variables, its counter, a file and the clock; twice over; the old domain is destroyed."""
    guest.run("dd if=/dev/urandom of=/tmp/file bs=64k count=100; md5sum </tmp/file >/tmp/sum")
    before, uptime = guest.count(), float(guest.run("cat /proc/uptime").split()[0])
    domid = guest.domain.domid
    for _ in range(2):
        guest.suspend()
        image, old = guest.image(), guest.domain
        guest.restore(image)
        assert guest.count() > before
        if old in guest.made:
            leave(guest.host, old)
    assert guest.domain.domid > domid + 1
    assert guest.run("md5sum </tmp/file") == guest.run("cat /tmp/sum")
    assert uptime < float(guest.run("cat /proc/uptime").split()[0]) < uptime + 60
    assert "BUG" not in guest.run("dmesg") and "Call Trace" not in guest.run("dmesg")


def test_goes_on_in_another_process(guest: Suspendable, tmp_path: Path) -> None:
    """A day later by that one's clock; the guest sees the time, and does not mind."""
    before = guest.count()
    guest.suspend()
    path = tmp_path / "image"
    path.write_bytes(guest.image())
    resume.cancel(guest.host, guest.domain)
    now = int(guest.run("date +%s"))
    commands = [LATER, "date +%s", "dmesg | grep -c -e BUG -e 'Call Trace'; true", "cat /sys/hypervisor/type"]
    command = [sys.executable, "-m", "tests.guests.go_on", str(path), "linux", "86400", *commands]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.splitlines()
    _, later, date, bugs, kind = (json.loads(line) for line in said)
    assert int(later.split()[1]) > before and later.split()[2] == "kept"
    assert 86400 <= int(date) - now < 86400 + 120
    assert (bugs, kind) == ("0", "xen")


def test_a_guest_at_work_is_copied(guest: Suspendable) -> None:
    """The stop sends a small part of what the first round sent; the copy goes on."""
    file = io.BytesIO()
    before = guest.count()
    with LiveCopy(guest.host, guest.domain, file) as copy:
        assert copy.rounds() > 1
        guest.suspend()
        copy.finish()
    assert copy.done[-1].frames < copy.done[0].frames / 4
    guest.restore(file.getvalue())
    assert guest.count() > before


def test_clones_and_their_source_go_on(guest: Suspendable) -> None:
    """Each counts by itself from where the source was."""
    guest.suspend()
    before, source, console = guest.domain, guest.domain, guest.linux.console
    with Template(guest.host, guest.domain) as template:
        clones = [template.clone(guest.host, code_cache=CACHE) for _ in range(2)]
    resume.cancel(guest.host, source)
    counted = guest.count()
    for domain in clones:
        guest.go_on(domain)
        assert guest.count() > 0
        assert guest.run("md5sum </tmp/file") == guest.run("cat /tmp/sum")
    guest.linux.domain, guest.linux.console = source, console
    assert guest.domain is before and guest.count() > counted
    for domain in clones:
        leave(guest.host, domain)


def test_goes_on_in_place_as_if_in_a_new_domain(guest: Suspendable) -> None:
    """Without the cancelled suspend: new ports, rings and shared page in the same domain."""
    before = guest.count()
    guest.suspend()
    domid = guest.domain.domid
    resume.renew(guest.host, guest.domain)
    guest.go_on(guest.domain)
    assert guest.count() > before and guest.domain.domid == domid


# With devices, through the toolstack


class Served:
    """A Linux with a disk that is written all the time and a network, and the toolstack that has it."""

    def __init__(self, files: Any, directory: Path) -> None:
        self.toolstack = Toolstack(Host(2 << 30, 2))
        self.toolstack.start()
        addresses = Addresses("169.254.0.0/16", "169.254.0.1", "169.254.0.10", "169.254.0.99")
        self.toolstack.networks.bring_up([Network("net", addresses=addresses)])
        ramdisk, disk = directory / "initrd", directory / "disk"
        ramdisk.write_bytes(initrd(files))
        disk.touch()
        os.truncate(disk, 64 << 20)
        boot = DirectBoot(str(files.kernel), str(ramdisk), "console=hvc0 quiet loglevel=4 cryptomgr.notests")
        self.config = DomainConfig(
            *("00000000-0000-0000-0000-000000000001", "served", 256 << 20, 256 << 20, 1, boot),
            disks=(Disk(0, str(disk)),),
            nics=(NIC(0, "00:16:3e:11:22:33", "net"),),
            display=Display(),
        )
        self._ended = threading.Event()
        self.toolstack.host.listen(lambda _: self._ended.set())
        self.toolstack.build(self.config)

    def shell(self) -> LinuxShell:
        """Let the guest run, and return a shell on its console."""
        shell = LinuxShell(self.toolstack.host, self.toolstack.guest(self.config.uuid).console)
        self.toolstack.unpause(self.config.uuid)
        return shell

    def shows(self, pixel: bytes) -> None:
        """Wait until the screen begins so: its frontend connects anew when it is restored."""
        screen = self.toolstack.guest(self.config.uuid).devices.find(Screen).framebuffer
        news = threading.Event()
        with contextlib.closing(screen.follow(news.set)) as follower:
            while not screen.picture().data.startswith(pixel):
                assert news.wait(SECONDS), "nothing has changed"
                news.clear()
                follower.take()

    def suspend(self) -> None:
        self._ended.clear()
        self.toolstack.request(self.config.uuid, Shutdown.SUSPEND)
        assert self._ended.wait(SECONDS)
        assert self.toolstack.guest(self.config.uuid).domain.life.reason is Reason.SUSPEND


@pytest.fixture
def served(linux_files: Any, tmp_path: Path) -> Iterator[Served]:
    made = Served(linux_files, tmp_path)
    yield made
    made.toolstack.stop()


def test_devices_go_on_with_the_guest(served: Served, tmp_path: Path) -> None:
    """A writer on the disk, the network and the screen survive a restore, and then a suspend that is cancelled."""
    shell = served.shell()
    shell.run("until [ -b /dev/xvda ]; do usleep 20000; done; mke2fs /dev/xvda; mount -t ext4 /dev/xvda /mnt")
    shell.run("dd if=/dev/urandom of=/mnt/f bs=1M count=8; md5sum </mnt/f >/tmp/sum; ip link set eth0 up")
    shell.run("udhcpc -i eth0 -s /etc/udhcpc -n -q -t 10 -T 1")
    shell.run("echo 0 >/sys/class/graphics/fbcon/cursor_blink")  # or it draws over our pixel
    shell.run(
        "while :; do dd if=/dev/urandom of=/mnt/g bs=64k count=20 conv=fsync; echo >>/tmp/rounds; done 2>/dev/null &"
    )
    for restored in (True, False):
        served.suspend()
        if restored:
            served.toolstack.save(served.config.uuid, tmp_path / "image")
            served.toolstack.destroy(served.config.uuid)
            served.toolstack.restore(served.config, tmp_path / "image")
            shell = served.shell()
        else:
            served.toolstack.resume(served.config.uuid)
        shell.run("n=$(wc -l </tmp/rounds); while [ $(wc -l </tmp/rounds) = $n ]; do usleep 20000; done")
        assert shell.run("echo 3 >/proc/sys/vm/drop_caches; md5sum </mnt/f") == shell.run("cat /tmp/sum")
        assert "2 packets received" in shell.run("ping -c 2 -i 0.1 -w 10 169.254.0.1")
        shell.run(f"printf 'was{restored:d}' >/dev/fb0")
        served.shows(b"was%d" % restored)
        assert shell.run("dmesg | grep -c -i -e 'I/O error' -e 'Call Trace'") == "0"
