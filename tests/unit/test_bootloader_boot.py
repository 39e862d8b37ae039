"""Boot orders, pygrub, and the reasons that are given when nothing is bootable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from hypervisor.bootloader.boot import Boot, find, message, pygrub
from hypervisor.bootloader.errors import BootError, NothingBootable
from hypervisor.loader import elf, pvh
from tests.unit.bootloader_images import MIB, MemoryDisk, ext, fat, iso, partitioned
from tests.unit.loader_images import compressed, kernel, note, pvh_kernel

KERNEL = pvh_kernel(b"\xf4" * 5000)
BZIMAGE = compressed("gzip", KERNEL)
CONFIG = (
    "menuentry One { linux /boot/vmlinuz root=/dev/xvda1 ro\n initrd /boot/initrd\n}\n"
    "menuentry Two { linux /boot/two }\n"
)
FILES: dict[str, bytes | str] = {
    "boot/vmlinuz": BZIMAGE,
    "boot/two": KERNEL,
    "boot/initrd": b"initrd",
    "boot/grub/grub.cfg": CONFIG,
}
MBR = "label: dos\n1: start=2048, size=16384, type=83, bootable\n2: start=20480, size=8192, type=7\n"


def disk(work: Path, files: Mapping[str, bytes | str], name: str = "ext4") -> MemoryDisk:
    """Return a disk with one partition of ext."""
    return MemoryDisk(partitioned(work, MBR, {2048: ext(work, files, kind=name)}))


def failure(order: str, disks: list[MemoryDisk], discs: list[MemoryDisk], network: Boot | None = None) -> str:
    with pytest.raises(NothingBootable) as caught:
        find(order, disks, discs, network)
    return str(caught.value)


def test_a_disk_with_a_configuration_boots_its_kernel(tmp_path: Path) -> None:
    """The ELF file is out of its bzImage, and there is a console."""
    boot = find("c", [disk(tmp_path, FILES)], [])
    assert (boot.kernel, boot.ramdisk) == (KERNEL, b"initrd")
    assert boot.command_line == "BOOT_IMAGE=/boot/vmlinuz root=/dev/xvda1 ro console=hvc0"
    assert boot.origin == "disk 0 partition 1, /boot/grub/grub.cfg, One"


def test_a_console_that_is_named_stays(tmp_path: Path) -> None:
    files = FILES | {"boot/grub/grub.cfg": "linux /boot/two console=tty0 console=hvc0,115200"}
    boot = find("c", [disk(tmp_path, files)], [])
    assert boot.command_line == "BOOT_IMAGE=/boot/two console=tty0 console=hvc0,115200"


def test_a_file_system_on_the_bare_disk_boots(tmp_path: Path) -> None:
    assert find("c", [MemoryDisk(ext(tmp_path, FILES))], []).origin.startswith("disk 0, ")


def test_the_efi_system_partition_boots(tmp_path: Path) -> None:
    """By systemd-boot's entries, on FAT in a GPT."""
    entry = "title X\nlinux /vmlinuz\ninitrd /one\ninitrd /two\noptions root=/dev/xvda2\n"
    files: dict[str, bytes | str] = {"loader/entries/x.conf": entry, "vmlinuz": BZIMAGE, "one": b"1", "two": b"22"}
    gpt = "label: gpt\n1: start=2048, size=16384, type=uefi\n"
    boot = find("c", [MemoryDisk(partitioned(tmp_path, gpt, {2048: fat(tmp_path, files)}))], [])
    assert boot.command_line == "root=/dev/xvda2 console=hvc0"
    assert boot.ramdisk == b"1\0\0\x0022"


def test_a_disc_boots_by_isolinux(tmp_path: Path) -> None:
    """Before its GRUB configuration, which is for UEFI."""
    files: dict[str, bytes | str] = {
        "isolinux/isolinux.cfg": "default x\nlabel x\nkernel /install/vmlinuz\nappend initrd=/install/initrd quiet\n",
        "boot/grub/grub.cfg": "linux /install/vmlinuz efi",
        "install/vmlinuz": BZIMAGE,
        "install/initrd": b"i",
    }
    boot = find("d", [], [MemoryDisk(iso(tmp_path, files, "-R", "-J"))])
    assert "quiet" in boot.command_line and boot.ramdisk == b"i"
    assert boot.origin == "CD 0, /isolinux/isolinux.cfg, x"


def test_the_order_decides(tmp_path: Path) -> None:
    """The first letter with something bootable wins."""
    hard = disk(tmp_path, FILES)
    disc = MemoryDisk(iso(tmp_path, {"boot/grub/grub.cfg": "linux /k", "k": KERNEL}, "-R"))
    network = Boot(Path("/kernel"), command_line="network")
    assert find("cdn", [hard], [disc], network).origin.startswith("disk 0")
    assert find("DCN", [hard], [disc], network).origin.startswith("CD 0")
    assert find("ncd", [hard], [disc], network) is network
    assert find("dcn", [MemoryDisk(bytes(MIB))], [], network) is network


def test_the_second_disk_boots_where_the_first_cannot(tmp_path: Path) -> None:
    assert find("c", [MemoryDisk(bytes(MIB)), disk(tmp_path, FILES)], []).origin.startswith("disk 1")


def test_nothing_bootable_tells_what_was_tried(tmp_path: Path) -> None:
    """All of it, in one line of printable text."""
    windows = bytearray(partitioned(tmp_path, MBR))
    windows[20480 * 512 + 3 : 20480 * 512 + 11] = b"NTFS    "
    text = failure("cdn", [MemoryDisk(windows), MemoryDisk(b"")], [])
    assert text.startswith("No bootable device. disk 0: no boot configuration that is known (partition 1: no file ")
    assert "partition 2: NTFS (Windows), which this boot loader does not read" in text
    assert "; CD: there is none in a drive; network: no kernel is configured." in text
    assert failure("", [], []) == "No bootable device. The boot order is empty."
    assert failure("x", [], []).startswith("No bootable device.")


UNFIT = {
    "a kernel without a PVH entry": (kernel(b"\xf4" * 64, note(5, b"xen")), "no PVH entry"),
    "no kernel": (b"hello", "neither an ELF file nor a bzImage"),
    "an EFI program": (b"MZ" + bytes(1000), "an EFI program, not a kernel"),
    "an empty file": (b"", "empty"),
    "a damaged bzImage": (BZIMAGE[:-100], "cut off"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_kernel_that_cannot_be_started_is_not_bootable_with_its_reason(name: str, tmp_path: Path) -> None:
    content, reason = UNFIT[name]
    text = failure("c", [disk(tmp_path, FILES | {"boot/vmlinuz": content})], [])
    assert "disk 0 partition 1, /boot/grub/grub.cfg: /boot/vmlinuz on disk 0 partition 1: " in text
    assert reason in text


def test_a_missing_initrd_is_not_bootable(tmp_path: Path) -> None:
    """A kernel without it would only panic."""
    files = {name: content for name, content in FILES.items() if name != "boot/initrd"}
    assert "there is no /boot/initrd" in failure("c", [disk(tmp_path, files)], [])


def test_what_does_not_fit_into_the_domain_is_not_read(tmp_path: Path) -> None:
    hard = disk(tmp_path, FILES | {"boot/initrd": bytes(2 * MIB)})
    with pytest.raises(NothingBootable, match=r"2097152 bytes is too large here; 1048576 is the limit"):
        find("c", [hard], [], memory=MIB)


def test_a_command_line_that_no_kernel_takes_is_not_bootable(tmp_path: Path) -> None:
    files = FILES | {"boot/grub/grub.cfg": "linux /boot/two " + "x" * 2048}
    assert "the command line is longer than 2047 bytes" in failure("c", [disk(tmp_path, files)], [])


def test_the_fallback_boots_where_the_default_cannot(tmp_path: Path) -> None:
    files = FILES | {"boot/grub/grub.cfg": "set default=0\nset fallback=1\n" + CONFIG}
    del files["boot/vmlinuz"]
    assert find("c", [disk(tmp_path, files)], []).origin.endswith("Two")


def test_the_message_is_a_kernel_that_says_it(tmp_path: Path) -> None:
    """Its text fits any command line."""
    boot = message(BootError("é" + "x" * 5000))
    assert isinstance(boot.kernel, Path)
    assert elf.parse(boot.kernel.read_bytes()).notes.phys32_entry is not None
    assert len(boot.command_line) == pvh.COMMAND_LINE and boot.command_line.startswith("?xxx")
    assert message(NothingBootable(["a", "b"])).command_line == "No bootable device.\n  a\n  b"


def test_kernels_that_unpack_for_ever_use_up_the_budget(tmp_path: Path) -> None:
    """Each of many entries may lead to a bomb; not all of them are unpacked."""
    bomb = bytearray(compressed("gzip", bytes(40 * MIB)))
    bomb[0x260:0x264] = bytes([255] * 4)
    entries: dict[str, bytes | str] = {
        f"loader/entries/{number}.conf": f"linux /bomb{number}\n" for number in range(40)
    }
    entries |= {f"bomb{number}": bytes(bomb) for number in range(40)}
    entries |= {"boot/grub/grub.cfg": "set fallback='1 2 3 4 5 6 7 8'\n" + "menuentry x { linux /bomb1 }\n" * 9}
    image = disk(tmp_path, entries)
    with pytest.raises(NothingBootable, match="gave up"):
        find("c" * 10, [image], [])


# pygrub

PV = kernel(b"\xf4" * 5000, note(1, bytes(8)) + note(5, b"xen-3.0\0"))
PV_FILES: dict[str, bytes | str] = FILES | {"boot/vmlinuz": PV, "boot/two": PV, "boot/other": PV}


def test_pygrub_boots_the_default_with_the_arguments_added(tmp_path: Path) -> None:
    boot = pygrub(disk(tmp_path, PV_FILES), "--args='single quiet' -q", "last")
    assert boot.command_line == "BOOT_IMAGE=/boot/vmlinuz root=/dev/xvda1 ro single quiet last"
    assert (boot.kernel, boot.ramdisk) == (PV, b"initrd")


def test_pygrub_s_entry_is_a_number_or_a_title(tmp_path: Path) -> None:
    image = disk(tmp_path, PV_FILES)
    assert pygrub(image, "--entry=1").origin.endswith("Two")
    assert pygrub(image, "--entry Two").origin.endswith("Two")
    with pytest.raises(BootError, match="the menu has no entry 'Three'"):
        pygrub(image, "--entry=Three")


def test_pygrub_s_kernel_needs_no_configuration(tmp_path: Path) -> None:
    image = disk(tmp_path, {"boot/other": PV, "boot/initrd": b"initrd"})
    boot = pygrub(image, "--kernel=/boot/other --ramdisk=/boot/initrd --args='root=/dev/xvda1'")
    assert (boot.kernel, boot.ramdisk, boot.command_line) == (PV, b"initrd", "root=/dev/xvda1")
    assert pygrub(image, "--kernel=/boot/other").ramdisk is None
    with pytest.raises(BootError, match="there is no /boot/none on the disk"):
        pygrub(image, "--kernel=/boot/none")


def test_pygrub_s_ramdisk_replaces_the_configuration_s(tmp_path: Path) -> None:
    files = PV_FILES | {"boot/rescue": b"rescue"}
    assert pygrub(disk(tmp_path, files), "--ramdisk=/boot/rescue").ramdisk == b"rescue"


def test_pygrub_reads_menu_lst_before_grub_cfg(tmp_path: Path) -> None:
    files = PV_FILES | {"boot/grub/menu.lst": "title Old\nroot (hd0,0)\nkernel /boot/other a=b\n"}
    assert pygrub(disk(tmp_path, files)).command_line == "a=b"


def test_pygrub_wants_the_entry_of_the_domain_s_kind(tmp_path: Path) -> None:
    """PV for PV guests, PVH for PV-in-PVH."""
    with pytest.raises(BootError, match="the kernel has no PV entry"):
        pygrub(disk(tmp_path, FILES))
    assert pygrub(disk(tmp_path, FILES), kind="pvh").kernel == KERNEL


@pytest.mark.parametrize("arguments", ["--unknown", "--kernel", "--args='", "--entry"])
def test_pygrub_refuses_arguments_that_it_does_not_know(arguments: str) -> None:
    with pytest.raises(BootError, match="pygrub: "):
        pygrub(MemoryDisk(bytes(MIB)), arguments)


def test_pygrub_tells_why_it_found_nothing() -> None:
    with pytest.raises(BootError, match=r"pygrub: disk 0: no boot configuration that is known \(whole: no file system"):
        pygrub(MemoryDisk(bytes(MIB)))
