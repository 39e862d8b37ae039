"""File systems and partition tables as the real tools make them."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from pathlib import Path

import pytest

from hypervisor.bootloader import tree
from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.filesystems import open_volume
from hypervisor.bootloader.partitions import EFI_SYSTEM, EXTENDED_BOOT, partitions
from hypervisor.bootloader.places import Places
from hypervisor.bootloader.volume import Budget, Volume
from hypervisor.disks.disk import SECTOR
from tests.unit.bootloader_images import MIB, MemoryDisk, ext, fat, iso, lay_out, partitioned, run

BIG = random.Random(4).randbytes(3_000_001)
FILES: dict[str, bytes | str] = {
    "boot/vmlinuz-6.1": BIG,
    "boot/grub/grub.cfg": "set default=0\n",
    "boot/A name that is long and has spaces.txt": "long",
    "boot/empty": b"",
    "boot/medium": "medium" * 20,
    **{f"few/entry-number-{number}": str(number) for number in range(6)},
    **{f"many/file-number-{number}": str(number) for number in range(500)},
}
LINKS: dict[str, bytes | str] = {
    "vmlinuz": "-> boot/vmlinuz-6.1",
    "boot/current": "-> /boot/vmlinuz-6.1",
    "boot/up": "-> ../vmlinuz",
    "long": "-> " + "./" * 50 + "boot/empty",
    "loop": "-> loop2",
    "loop2": "-> loop",
}


def opened(image: bytes | bytearray) -> tree.FileSystem:
    return open_volume(Volume(MemoryDisk(image), Budget()))


def digest(files: tree.FileSystem, path: str) -> str:
    return hashlib.sha256(tree.read(files, path, 16 * MIB)).hexdigest()


def check_files(files: tree.FileSystem) -> None:
    """All of FILES are there with their contents."""
    assert digest(files, "/boot/vmlinuz-6.1") == hashlib.sha256(BIG).hexdigest()
    assert tree.read(files, "/boot/grub/grub.cfg", 100) == b"set default=0\n"
    assert tree.read(files, "boot//./A name that is long and has spaces.txt", 4) == b"long"
    assert tree.read(files, "/boot/grub/../empty", 0) == b""
    assert tree.read(files, "/boot/medium", 200) == b"medium" * 20
    assert tree.names(files, "/few") == [f"entry-number-{number}" for number in range(6)]
    assert tree.read(files, "/few/entry-number-5", 1) == b"5"
    assert tree.names(files, "/many") == sorted(f"file-number-{number}" for number in range(500))
    assert [tree.read(files, f"/many/file-number-{number}", 3) for number in (0, 77, 499)] == [b"0", b"77", b"499"]
    with pytest.raises(BootError, match="there is no /boot/other"):
        tree.read(files, "/boot/other", 100)
    with pytest.raises(BootError, match="there is no /boot/empty/x"):
        tree.read(files, "/boot/empty/x", 100)
    with pytest.raises(BootError, match="is not a file"):
        tree.read(files, "/boot", 100)
    with pytest.raises(BootError, match="3000001 bytes is too large"):
        tree.read(files, "/boot/vmlinuz-6.1", 3_000_000)


def check_links(files: tree.FileSystem) -> None:
    for path in ("/vmlinuz", "/boot/current", "/boot/up"):
        assert digest(files, path) == hashlib.sha256(BIG).hexdigest()
    assert tree.read(files, "/long", 10) == b""
    with pytest.raises(BootError, match="too many symbolic links"):
        tree.read(files, "/loop", 10)


EXT = {
    "ext2": ("ext2", ()),
    "ext2 with 1 KiB blocks": ("ext2", ("-b", "1024", "-I", "128")),
    "ext2 of revision 0": ("ext2", ("-r", "0", "-O", "none")),
    "ext3": ("ext3", ("-J", "size=1")),
    "ext4": ("ext4", ()),
    "ext4 with 64 bit": ("ext4", ("-O", "64bit,metadata_csum")),
    "ext4 with inline data": ("ext4", ("-O", "inline_data", "-I", "256")),
    "ext4 with meta_bg": ("ext4", ("-O", "meta_bg,^resize_inode,64bit", "-g", "256", "-b", "1024")),
    "ext4 without extents": ("ext4", ("-O", "^extents,^64bit")),
    "ext4 with hash trees": ("ext4", ("-O", "dir_index,large_dir")),
    "ext4 with 64 KiB blocks": ("ext4", ("-b", "65536", "-O", "^has_journal")),
}


@pytest.mark.parametrize("name", EXT)
def test_ext_file_systems_are_read(name: str, tmp_path: Path) -> None:
    """Each way in which data, directories and descriptors can lie."""
    kind, options = EXT[name]
    size = 64 * MIB if "64 KiB" in name else 16 * MIB
    files = opened(ext(tmp_path, FILES | LINKS, *options, "-F", "-L", "root", kind=kind, size=size))
    assert files.label == "root"
    check_files(files)
    check_links(files)


def test_the_uuid_of_ext_is_what_mke2fs_gave(tmp_path: Path) -> None:
    """As in root=UUID=…"""
    name = "0fc63daf-8483-4772-8e79-3d69d8477de4"
    assert opened(ext(tmp_path, {}, "-U", name)).uuid == name


def test_a_hashed_directory_of_ext4_is_listed(tmp_path: Path) -> None:
    """The kernel is not there to build the tree; e2fsck is."""
    names = {f"d/{'x' * 200}{number}": str(number) for number in range(300)}
    image = tmp_path / "image"
    image.write_bytes(ext(tmp_path, names, "-b", "1024"))
    run("e2fsck", "-fyD", str(image)) if Path("/usr/sbin/e2fsck").exists() else pytest.skip("no e2fsck")
    files = opened(image.read_bytes())
    assert len(tree.names(files, "/d")) == 300
    assert tree.read(files, f"/d/{'x' * 200}299", 3) == b"299"


@pytest.mark.parametrize(("kind", "block"), [("ext4", 4096), ("ext4", 1024), ("ext2", 4096), ("ext2", 1024)])
def test_holes_are_zeros(kind: str, block: int, tmp_path: Path) -> None:
    """In files so torn that trees of extents are two levels deep, and pointers three times indirect."""
    expected = bytearray(70 * MIB)
    for number in range(600):
        at = number * (len(expected) // 600) // 8192 * 8192
        expected[at : at + 6] = b"%06d" % number
    root = lay_out(tmp_path / "ext-root", {})
    with (root / "sparse").open("wb") as file:
        for number in range(600):
            file.seek(number * (len(expected) // 600) // 8192 * 8192)
            file.write(b"%06d" % number)
        file.truncate(len(expected))
    files = opened(ext(tmp_path, {}, "-b", str(block), kind=kind, size=64 * MIB))
    assert tree.read(files, "/sparse", 70 * MIB) == expected


@pytest.mark.parametrize(("width", "size", "options"), [(12, 4, ()), (16, 32, ()), (32, 64, ("-s", "1"))])
def test_fat_file_systems_are_read(width: int, size: int, options: tuple[str, ...], tmp_path: Path) -> None:
    """All widths, with long names and a directory of many clusters."""
    image = fat(tmp_path, FILES, "-F", str(width), "-n", "BOOT", "-i", "1234ABCD", *options, size=size * MIB)
    files = opened(image)
    assert (files.name, files.uuid, files.label) == (f"FAT{width}", "1234-ABCD", "BOOT")
    check_files(files)
    assert tree.read(files, "/BOOT/GRUB/Grub.CFG", 100) == b"set default=0\n"


ISO = {
    "rock ridge": ("-R",),
    "rock ridge and joliet": ("-R", "-J", "-joliet-long"),
    "joliet": ("-J", "-joliet-long", "--norock"),
}


@pytest.mark.parametrize("name", ISO)
def test_discs_are_read(name: str, tmp_path: Path) -> None:
    """Names as they were written, whichever extension has them."""
    rock_ridge = "rock ridge" in name
    image = iso(tmp_path, FILES | (LINKS if rock_ridge else {}), *ISO[name], "-V", "DEBIAN")
    files = opened(image)
    assert files.label == "DEBIAN"
    assert files.name.endswith("rock ridge" if rock_ridge else "joliet")
    check_files(files)
    if rock_ridge:
        check_links(files)


def test_a_disc_without_extensions_is_read_in_any_case(tmp_path: Path) -> None:
    """isolinux.cfg says /isolinux/vmlinuz of what is ISOLINUX/VMLINUZ.;1."""
    files = opened(iso(tmp_path, {"isolinux/vmlinuz": BIG, "isolinux/isolinux.cfg": "x"}, "--norock"))
    assert files.name == "ISO 9660"
    assert digest(files, "/isolinux/vmlinuz") == hashlib.sha256(BIG).hexdigest()
    assert tree.names(files, "/ISOLINUX") == ["ISOLINUX.CFG", "VMLINUZ"]


def test_directories_that_are_too_deep_for_a_disc_are_found(tmp_path: Path) -> None:
    """Rock Ridge moves what is deeper than eight levels, and long links go on in other records."""
    deep = "/".join(f"level{number}" for number in range(12))
    files = opened(iso(tmp_path, {f"{deep}/file": "deep", "link": "-> " + "./" * 200 + deep + "/file"}, "-R"))
    assert tree.read(files, f"/{deep}/file", 10) == b"deep"
    assert tree.read(files, "/link", 10) == b"deep"


@pytest.mark.parametrize(
    ("offset", "content", "text"),
    [(0, b"XFSB", "XFS"), (3, b"NTFS    ", "Windows"), (65600, b"_BHRfS_M", "btrfs"), (536, b"LVM2 001", "LVM")],
)
def test_what_is_not_read_is_named(offset: int, content: bytes, text: str) -> None:
    """So that people know why nothing boots."""
    image = bytearray(MIB)
    image[offset : offset + len(content)] = content
    with pytest.raises(BootError, match=text):
        opened(image)


# Partition tables


def table(image: bytes | bytearray, sector_size: int = SECTOR) -> list[tuple[int, int, int, str, bool]]:
    found = partitions(Volume(MemoryDisk(image, sector_size), Budget()))
    return [
        (part.number, part.volume.start // sector_size, part.volume.size // sector_size, part.type, part.active)
        for part in found
    ]


MBR = """label: dos
label-id: 0x1234abcd
1: start=2048, size=2048, type=83
2: start=4096, size=2048, type=83, bootable
3: start=8192, size=40960, type=5
5: start=10240, size=2048, type=83
6: start=14336, size=4096, type=c
7: start=20480, size=2048, type=83
"""
GPT = f"""label: gpt
1: start=2048, size=2048, type={EFI_SYSTEM}, uuid=00000000-1111-2222-3333-444444444444
3: start=8192, size=4096, type={EXTENDED_BOOT}
"""


def test_an_mbr_is_read_with_its_logical_partitions(tmp_path: Path) -> None:
    """Numbers as Linux gives them."""
    disk = partitioned(tmp_path, MBR)
    assert table(disk) == [
        (1, 2048, 2048, "83", False),
        (2, 4096, 2048, "83", True),
        (5, 10240, 2048, "83", False),
        (6, 14336, 4096, "0c", False),
        (7, 20480, 2048, "83", False),
    ]
    assert partitions(Volume(MemoryDisk(disk), Budget()))[0].uuid == "1234abcd-01"


def test_a_gpt_is_read_and_its_backup_when_it_is_damaged(tmp_path: Path) -> None:
    """Either header, either array."""
    disk = partitioned(tmp_path, GPT)
    expected = [(1, 2048, 2048, EFI_SYSTEM, False), (3, 8192, 4096, EXTENDED_BOOT, False)]
    assert table(disk) == expected
    assert partitions(Volume(MemoryDisk(disk), Budget()))[0].uuid == "00000000-1111-2222-3333-444444444444"
    for byte in (SECTOR + 24, 2 * SECTOR + 40):
        damaged = bytearray(disk)
        damaged[byte] ^= 1
        assert table(damaged) == expected


def test_a_gpt_without_a_good_header_has_no_partitions_but_the_protective_one(tmp_path: Path) -> None:
    """A disk whose both headers are damaged is one that has nothing to boot, not a crash."""
    disk = partitioned(tmp_path, GPT)
    disk[SECTOR + 24] ^= 1
    disk[-SECTOR + 24] ^= 1
    assert [(number, kind) for number, _, _, kind, _ in table(disk)] == [(1, "ee")]


def test_an_extended_partition_that_leads_back_ends() -> None:
    """The links of the chain must go forward."""
    disk = bytearray(64 * SECTOR)

    def entry(at: int, kind: int, start: int, count: int) -> None:
        disk[at : at + 16] = struct.pack("<B3sB3sII", 0, b"", kind, b"", start, count)

    for sector in (0, 10, 20):
        disk[sector * SECTOR + 510 : sector * SECTOR + 512] = b"\x55\xaa"
    entry(446, 5, 10, 50)
    for sector in (10, 20):
        entry(sector * SECTOR + 446, 0x83, 1, 2)
        entry(sector * SECTOR + 462, 5, 10, 10)  # from 20 on: itself
    assert [number for number, _, _, _, _ in table(disk)] == [5, 6]


def test_partitions_beyond_the_disk_are_cut() -> None:
    """And can be read no further than the disk goes."""
    disk = bytearray(64 * SECTOR)
    disk[510:512] = b"\x55\xaa"
    disk[446:478] = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 60, 1000) + struct.pack(
        "<B3sB3sII", 0, b"", 0x83, b"", 0xFFFFFFF0, 0xFFFFFFFF
    )
    assert [(start, size) for _, start, size, _, _ in table(disk)] == [(60, 4), (64, 0)]


def test_a_gpt_on_large_sectors_is_read() -> None:
    """A disk of 4 KiB sectors has its table at 4096 (UEFI specification, 5.3)."""
    disk = bytearray(64 * 4096)
    disk[446:462] = struct.pack("<B3sB3sII", 0, b"", 0xEE, b"", 1, 63)
    disk[510:512] = b"\x55\xaa"
    kind = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
    entries = (kind + bytes(15) + b"\1" + struct.pack("<QQQ", 10, 19, 4)).ljust(128 * 128, b"\0")
    disk[2 * 4096 : 2 * 4096 + len(entries)] = entries
    form = "<8sIIIIQQQQ16sQIII"
    head = [b"EFI PART", 0x10000, 92, 0, 0, 1, 63, 6, 57, bytes(16), 2, 128, 128, zlib.crc32(entries)]
    head[3] = zlib.crc32(struct.pack(form, *head))
    disk[4096 : 4096 + 92] = struct.pack(form, *head)
    assert table(disk, 4096) == [(1, 10, 10, EFI_SYSTEM, True)]


def test_a_file_system_on_the_bare_disk_is_no_table(tmp_path: Path) -> None:
    """FAT's boot sector has the same signature as an MBR."""
    assert table(fat(tmp_path, {}, size=4 * MIB)) == []
    assert table(bytes(MIB)) == table(b"") == []


def test_places_have_grub_s_names(tmp_path: Path) -> None:
    """The active partition is looked at first, the disk as a whole last."""
    disk = MemoryDisk(partitioned(tmp_path, MBR, {2048: ext(tmp_path, {"a": "x"}, "-U", "clear", size=MIB)}))
    found = Places([disk], [MemoryDisk(b"")], Budget())
    assert [place.name for place in found.on("hd0")][:3] == ["hd0,msdos2", "hd0,msdos1", "hd0,msdos5"]
    assert found.on("hd0")[-1].name == "hd0"
    assert found.named("hd0,1") is found.named("hd0,msdos1") is found.search("file", "/a")
    partition = found.named("hd,5").partition
    assert partition is not None and partition.number == 5
    assert found.named("cd0").title == "CD 0"
    with pytest.raises(BootError, match=r"no device \(hd1\)"):
        found.named("hd1")
