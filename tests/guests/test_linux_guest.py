"""deploy/linux-guest: what it builds boots, gets an address, mounts a disk, tells of itself, and goes down."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypervisor.api import Shutdown
from hypervisor.disks import raw
from hypervisor.domains.life import Reason
from hypervisor.network.services import AddressService
from hypervisor.network.switch import Switch
from hypervisor.split.block import BlockConfig, BlockDevice
from hypervisor.split.block_queue import DiskThreads
from hypervisor.split.net import NetConfig, NetDevice
from hypervisor.split.xenbus import Backend
from hypervisor.toolstack.control import Control
from hypervisor.toolstack.toolstack import Toolstack
from tests.guests.conftest import MIB, SCRIPT, Linux, LinuxFiles, build_guest

SECONDS = 60


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files."""
    output = tmp_path_factory.mktemp("linux-guest")
    build_guest(output)
    return output


class Built:
    """A guest of these files, with its control."""

    def __init__(self, toolstack: Toolstack, files: Path, threads: DiskThreads) -> None:
        self.linux = Linux(toolstack, files / "vmlinuz", files / "initrd")
        self.host, self.domain = toolstack.host, self.linux.domain
        self._threads = threads
        self.changed = threading.Event()
        with self.host.lock:
            self.control = Control(self.host.xenstore, self.domain.domid, self.changed.set)
        self._down = threading.Event()
        self.host.listen(lambda domain: self._down.set() if domain is self.domain else None)

    def disk(self, path: Path) -> None:
        device = BlockDevice(self.domain, raw.open(path), self._threads.put, BlockConfig("xvda"))
        Backend(self.domain, self.host.xenstore, device, device.number).plug()

    def card(self, switch: Switch, number: int) -> None:
        device = NetDevice(self.domain, switch, NetConfig(f"00:16:3e:00:00:{number:02x}", number))
        Backend(self.domain, self.host.xenstore, device, number).plug()

    def boot(self) -> Built:
        self.linux.boot()
        self.linux.run("stty -echo; PS1=")
        return self

    def metrics(self, until: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Return what the guest says of itself when it says enough."""
        end = time.monotonic() + SECONDS
        while True:
            self.changed.clear()
            with self.host.lock:
                values = dict(self.control.metrics().values)
            if until(values):
                return values
            assert self.changed.wait(end - time.monotonic()), values

    def ended(self) -> Reason | None:
        assert self._down.wait(SECONDS)
        return self.domain.life.reason


@pytest.fixture
def guest(toolstack: Toolstack, built: Path, disk_threads: DiskThreads) -> Iterator[Built]:
    made = Built(toolstack, built, disk_threads)
    yield made
    with made.host.lock:
        made.control.close()
    toolstack.destroy(made.linux.uuid)


def test_a_guest_with_a_disk_and_cards(guest: Built, tmp_path: Path) -> None:
    """DHCP on each card, also on one that comes later; an ext4 disk on /mnt, clean after control/shutdown."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4 to make a disk with")
    image = tmp_path / "disk"
    raw.create(image, 16 * MIB).close()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    switch = Switch(time.monotonic_ns)
    service = AddressService(switch, time.monotonic_ns)
    guest.disk(image)
    guest.card(switch, 0)
    guest.boot()
    values = guest.metrics(lambda values: {"data/updated", "attr/vif/0/ipv4/0", "attr/vif/0/ipv6/0"} <= set(values))
    assert values["attr/eth0/ip"] == values["attr/vif/0/ipv4/0"] and values["attr/vif/0/ipv6/0"].startswith("fe80:")
    assert values["attr/PVAddons/Installed"] == values["control/feature-poweroff"] == "1"
    assert values["data/os_uname"] == guest.linux.run("uname -r") and values["data/os_distro"] == "debian"
    assert 0 < int(values["data/meminfo_free"]) < int(values["data/meminfo_total"]) < 256 * 1024
    assert guest.linux.run("ping -c 1 -w 5 169.254.0.1 | grep -c 'seq=0'") == "1"
    guest.card(switch, 1)
    values = guest.metrics(lambda values: "attr/vif/1/ipv4/0" in values)
    assert values["attr/vif/1/ipv4/0"] != values["attr/vif/0/ipv4/0"]
    assert guest.linux.run("mount | grep /mnt").startswith("/dev/xvda on /mnt type ext4 (rw")
    guest.linux.run("echo kept >/mnt/file")
    acknowledged = threading.Event()
    with guest.host.lock:
        assert guest.control.supports(Shutdown.POWEROFF)
        guest.control.request(Shutdown.POWEROFF, acknowledged.set)
    assert acknowledged.wait(SECONDS) and guest.ended() is Reason.POWEROFF
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
    assert checked.returncode == 0 and "recovering journal" not in checked.stdout, checked.stdout
    assert subprocess.run(["debugfs", "-R", "cat file", image], capture_output=True).stdout == b"kept\n"
    service.close()


def test_a_reboot_by_request(guest: Built, linux_files: LinuxFiles, tmp_path: Path) -> None:
    """Also: a disk with a file system whose driver is a module."""
    image = tmp_path / "disk"
    raw.create(image, 16 * MIB).close()
    subprocess.run([linux_files.root / "bin/busybox", "mkdosfs", image], check=True)
    guest.disk(image)
    guest.boot()
    assert "type vfat" in guest.linux.run("mount | grep /mnt")
    guest.metrics(lambda values: "data/updated" in values)
    with guest.host.lock:
        guest.control.request(Shutdown.REBOOT)
    assert guest.ended() is Reason.REBOOT


@pytest.mark.parametrize(("command", "reason"), [("poweroff", Reason.POWEROFF), ("reboot", Reason.REBOOT)])
def test_commands_at_the_prompt_end_it(guest: Built, command: str, reason: Reason) -> None:
    """As people type them; without any device."""
    guest.boot()
    guest.linux.console.write(f"{command}\n".encode())
    assert guest.ended() is reason


def test_help_says_what_it_does() -> None:
    """And nothing is downloaded."""
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0 and "makes DIRECTORY/vmlinuz and DIRECTORY/initrd" in done.stdout
