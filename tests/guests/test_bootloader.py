"""The built-in boot loader with real systems: Debian's kernel, from disks and discs as an installer leaves them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypervisor.api import Boot, BootLoader, DirectBoot, Disk, DomainConfig, Firmware, HostError
from hypervisor.bootloader import boot as bootloader
from hypervisor.bootloader.errors import BootError
from hypervisor.domains.life import State
from hypervisor.guests import DEMO_KERNEL, DEMO_MEMORY, DEMO_PROMPT
from hypervisor.host import Host
from hypervisor.toolstack.toolstack import Toolstack
from tests.guests import grub_mkconfig
from tests.guests.conftest import MODULES, Linux, LinuxFiles, initrd
from tests.unit.bootloader_images import MIB, MemoryDisk, ext, iso, partitioned, run

ROOT = "0fc63daf-8483-4772-8e79-3d69d8477de4"
DISK_MODULES = (MODULES[0],)


@pytest.fixture
def machine() -> Iterator[Toolstack]:
    made = Toolstack(Host(4 << 30, 2))
    made.start()
    yield made
    made.stop()


class Installed(Linux):
    """A Linux whose kernel is found by the boot loader."""

    def __init__(self, toolstack: Toolstack, boot: Boot, disks: tuple[Disk, ...], memory: int = 256 * MIB) -> None:
        self.uuid = str(uuid.uuid4())
        self.toolstack, self.host = toolstack, toolstack.host
        guest = toolstack.build(DomainConfig(self.uuid, "guest", memory, memory, 1, boot, disks))
        self.domain, self.console = guest.domain, guest.console
        self._heard = bytearray()
        self._news = threading.Condition()
        self.console.listen(self._hear)


def versions(files: LinuxFiles) -> tuple[str, str]:
    """Return the kernel's version, and that of an older one that is not there."""
    return files.kernel.name.removeprefix("vmlinuz-"), "5.10.0-1-amd64"


@pytest.fixture(scope="module")
def debian_disk(linux_files: LinuxFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with one partition of ext4, as Debian's installer makes it, its grub.cfg by grub-mkconfig."""
    work = tmp_path_factory.mktemp("debian")
    version, older = versions(linux_files)
    files: dict[str, bytes | str] = {
        f"boot/vmlinuz-{version}": linux_files.kernel.read_bytes(),
        f"boot/initrd.img-{version}": initrd(linux_files, DISK_MODULES),
        f"boot/vmlinuz-{older}": b"not a kernel",
        f"boot/initrd.img-{older}": b"",
        "vmlinuz": f"-> boot/vmlinuz-{version}",
        "initrd.img": f"-> boot/initrd.img-{version}",
        "boot/grub/grub.cfg": grub_mkconfig.generate(work, [version, older], ROOT, line="quiet loglevel=4"),
        "boot/grub/grubenv": "# GRUB Environment Block\n".ljust(1024, "#"),
        "etc/hostname": "debian\n",
    }
    image = ext(work, files, "-U", ROOT, size=48 * MIB)
    table = "label: dos\n1: start=2048, type=83, bootable\n"
    path = work / "debian.img"
    path.write_bytes(partitioned(work, table, {2048: image}, size=50 * MIB))
    return path


def test_debian_boots_from_its_disk_to_its_shell(machine: Toolstack, debian_disk: Path) -> None:
    """By grub-mkconfig's own configuration; what it booted from is its root disk, and can be written."""
    linux = Installed(machine, Firmware("dcn"), (Disk(0, str(debian_disk)),)).boot()
    line = linux.run("cat /proc/cmdline")
    assert line.startswith("BOOT_IMAGE=/boot/vmlinuz-6") and line.endswith(
        "root=/dev/xvda1 ro quiet loglevel=4 console=hvc0"
    )
    assert linux.run("mount -t ext4 /dev/xvda1 /mnt && cat /mnt/etc/hostname") == "debian"
    linux.run("echo written > /mnt/etc/motd && umount /mnt")
    machine.destroy(linux.uuid)
    assert run("debugfs", "-R", "cat /etc/motd", f"{debian_disk}?offset=1048576") == "written\n"


def test_debian_boots_by_pygrub(machine: Toolstack, debian_disk: Path) -> None:
    """With the kernel that the symbolic link in / names, and the arguments that are asked for."""
    arguments = "--kernel=/vmlinuz --ramdisk=/initrd.img --args='console=hvc0 loglevel=3'"
    boot = BootLoader(arguments, "marker=1", "pvh")
    linux = Installed(machine, boot, (Disk(0, str(debian_disk)),)).boot()
    assert linux.run("cat /proc/cmdline") == "console=hvc0 loglevel=3 marker=1"
    machine.destroy(linux.uuid)


def test_pygrub_finds_the_entries_that_grub_mkconfig_made(linux_files: LinuxFiles, debian_disk: Path) -> None:
    """By title through the submenu; the older kernel is none, and that is told."""
    version, older = versions(linux_files)
    disk = MemoryDisk(debian_disk.read_bytes())
    title = f"Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux {version}"
    boot = bootloader.pygrub(disk, f"--entry '{title}'", kind="pvh")
    assert boot.origin == f"disk 0 partition 1, /boot/grub/grub.cfg, Debian GNU/Linux, with Linux {version}"
    selector = f"gnulinux-advanced-{ROOT}>gnulinux-{older}-advanced-{ROOT}"
    with pytest.raises(BootError, match=f"vmlinuz-{older} on disk 0 partition 1: the kernel is neither"):
        bootloader.pygrub(disk, f"--entry '{selector}'", kind="pvh")
    assert bootloader.pygrub(disk, kind="pv").origin.endswith("Debian GNU/Linux")


def test_debian_boots_from_a_disc_by_isolinux(machine: Toolstack, linux_files: LinuxFiles, tmp_path: Path) -> None:
    """As an installer's disc is laid out; the disc is there in the guest."""
    files: dict[str, bytes | str] = {
        "isolinux/isolinux.cfg": "default vesamenu.c32\nprompt 0\ninclude txt.cfg\n",
        "isolinux/txt.cfg": "label install\n\tmenu label ^Install\n\tkernel /install.amd/vmlinuz\n"
        "\tappend vga=788 loglevel=4 initrd=/install.amd/initrd.gz --- quiet\n",
        "install.amd/vmlinuz": linux_files.kernel.read_bytes(),
        "install.amd/initrd.gz": initrd(linux_files, DISK_MODULES),
        ".disk/info": "a disc\n",
    }
    path = tmp_path / "disc.iso"
    path.write_bytes(iso(tmp_path, files, "-R", "-J", "-V", "INSTALL"))
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(MIB))
    disks = (Disk(0, str(empty)), Disk(3, str(path), read_only=True, is_cdrom=True))
    linux = Installed(machine, Firmware("cd"), disks).boot()
    assert "--- quiet console=hvc0" in linux.run("cat /proc/cmdline")
    assert linux.run("dd if=/dev/xvdd bs=1 skip=32808 count=7 2>/dev/null") == "INSTALL"
    machine.destroy(linux.uuid)


def console_of(machine: Toolstack, config: DomainConfig, wanted: bytes) -> bytes:
    """Build and start a domain; return its console's text when `wanted` is in it."""
    guest = machine.build(config)
    heard, news = bytearray(), threading.Event()

    def hear(data: bytes) -> None:
        heard.extend(data)
        if wanted in heard:
            news.set()

    guest.console.listen(hear)
    machine.unpause(config.uuid)
    assert news.wait(30), bytes(heard)
    assert guest.domain.life.state is State.RUNNING
    machine.destroy(config.uuid)
    return bytes(heard)


def config(boot: Boot, *disks: Disk) -> DomainConfig:
    return DomainConfig(str(uuid.uuid4()), "guest", 2 * DEMO_MEMORY, 2 * DEMO_MEMORY, 1, boot, disks)


def test_the_network_boots_what_the_host_offers(machine: Toolstack, tmp_path: Path) -> None:
    """The demo guest, where the disk has nothing."""
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(MIB))
    boot = Firmware("cdn", DirectBoot(str(DEMO_KERNEL)))
    assert b"Kronos demo guest" in console_of(machine, config(boot, Disk(0, str(empty))), DEMO_PROMPT)


def test_a_disk_boots_our_own_guest_by_extlinux(machine: Toolstack, tmp_path: Path) -> None:
    """The smallest installed system there is: an ELF kernel on ext2, no initrd."""
    files: dict[str, bytes | str] = {
        "extlinux.conf": "default demo\nlabel demo\nkernel demo.elf\nappend test\n",
        "demo.elf": DEMO_KERNEL.read_bytes(),
    }
    path = tmp_path / "disk.img"
    path.write_bytes(ext(tmp_path, files, kind="ext2"))
    assert b"Kronos demo guest" in console_of(machine, config(Firmware("c"), Disk(0, str(path))), DEMO_PROMPT)


def test_no_bootable_device_is_said_on_the_console_and_the_domain_stays(machine: Toolstack, tmp_path: Path) -> None:
    """As on a machine whose firmware found nothing."""
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(MIB))
    text = console_of(machine, config(Firmware("cdn"), Disk(0, str(empty))), b"configured\r\n").decode()
    assert text.startswith(
        "No bootable device.\r\n  disk 0: no boot configuration that is known (whole: no file system"
    )
    assert text.endswith("\r\n  CD: there is none in a drive\r\n  network: no kernel is configured\r\n")


def test_a_boot_loader_that_finds_nothing_makes_no_domain(machine: Toolstack, tmp_path: Path) -> None:
    """VM.start fails with the reason, as with pygrub on a host."""
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(MIB))
    with pytest.raises(HostError, match="pygrub: disk 0: no boot configuration"):
        machine.build(config(BootLoader(), Disk(0, str(empty))))
    assert machine.guests == {}
