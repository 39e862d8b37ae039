"""Disks for tests of the boot loader: images made by the real tools, and file systems that are only dictionaries."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hypervisor.bootloader import tree
from hypervisor.bootloader.places import Place, Places
from hypervisor.bootloader.volume import Budget, Volume
from hypervisor.disks.disk import SECTOR, DiskError, Kind, check_range

MIB = 1 << 20
PACKAGES = {
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "xorriso": "xorriso",
    "sfdisk": "fdisk",
}


class MemoryDisk:
    """A disk that is bytes, for reading."""

    read_only = True

    def __init__(self, content: bytes | bytearray, sector_size: int = SECTOR) -> None:
        self.bytes = content
        self.sector_size = sector_size
        self.reads = 0

    @property
    def size(self) -> int:
        return len(self.bytes)

    def read(self, offset: int, length: int) -> bytes:
        check_range(self.size, offset, length)
        self.reads += 1
        return bytes(self.bytes[offset : offset + length])

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        memoryview(buffer)[:] = self.read(offset, len(buffer))

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raise DiskError(Kind.READ_ONLY, "memory")

    def discard(self, offset: int, length: int) -> None:
        raise DiskError(Kind.READ_ONLY, "memory")

    def flush(self) -> None: ...

    def close(self) -> None: ...


def run(*command: str, cwd: Path | None = None, text: str | None = None) -> str:
    """Run a tool; skip the test where it is not installed."""
    found = shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{command[0]} is not installed (Debian: {PACKAGES[command[0]]})")
    done = subprocess.run([found, *command[1:]], cwd=cwd, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def lay_out(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files into a directory; a content "-> x" makes a symbolic link."""
    for name, content in files.items():
        path = root / name.strip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("-> "):
            path.symlink_to(content[3:])
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    root.mkdir(parents=True, exist_ok=True)
    return root


def ext(work: Path, files: Mapping[str, bytes | str], *options: str, size: int = 8 * MIB, kind: str = "ext4") -> bytes:
    """Return an ext image with files, made by mke2fs."""
    root, image = lay_out(work / "ext-root", files), work / "ext.img"
    image.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", kind, *options, "-d", str(root), str(image), f"{size // 1024}k")
    shutil.rmtree(root)
    return image.read_bytes()


def fat(work: Path, files: Mapping[str, bytes | str], *options: str, size: int = 8 * MIB) -> bytes:
    """Return a FAT image with files, made by mkfs.vfat and mtools."""
    root, image = lay_out(work / "fat-root", files), work / "fat.img"
    image.unlink(missing_ok=True)
    run("mkfs.vfat", *options, "-C", str(image), str(size // 1024))
    for entry in sorted(root.iterdir()):
        run("mcopy", "-s", "-i", str(image), str(entry), "::/")
    shutil.rmtree(root)
    return image.read_bytes()


def iso(work: Path, files: Mapping[str, bytes | str], *options: str) -> bytes:
    """Return an ISO image with files, made by xorriso."""
    root, image = lay_out(work / "iso-root", files), work / "iso.img"
    image.unlink(missing_ok=True)
    run("xorriso", "-as", "mkisofs", "-quiet", *options, "-o", str(image), str(root))
    shutil.rmtree(root)
    return image.read_bytes()


def partitioned(work: Path, script: str, parts: Mapping[int, bytes] = {}, size: int = 32 * MIB) -> bytearray:
    """Return a disk partitioned by a script for sfdisk, with contents put at sectors."""
    image = work / "disk.img"
    image.write_bytes(b"")
    with image.open("r+b") as file:
        file.truncate(size)
    run("sfdisk", "-q", str(image), text=script)
    disk = bytearray(image.read_bytes())
    for sector, content in parts.items():
        disk[sector * SECTOR : sector * SECTOR + len(content)] = content
    return disk


class _Node:
    def __init__(self, files: Mapping[str, bytes | str], path: str) -> None:
        self._files, self._path = files, path

    @property
    def _raw(self) -> bytes | None:
        content = self._files.get(self._path)
        return content.encode() if isinstance(content, str) else content

    @property
    def kind(self) -> tree.Kind:
        raw = self._raw
        if raw is None:
            return tree.Kind.DIRECTORY
        return tree.Kind.LINK if raw.startswith(b"-> ") else tree.Kind.FILE

    @property
    def size(self) -> int:
        return len(self._raw or b"")

    def content(self, limit: int) -> bytes:
        raw = self._raw or b""
        tree.check_size(len(raw), limit)
        return raw[3:] if raw.startswith(b"-> ") else raw

    def names(self) -> Iterator[str]:
        start = f"{self._path}/"
        yield from {name[len(start) :].split("/")[0] for name in self._files if name.startswith(start)}

    def lookup(self, name: str) -> _Node | None:
        path = f"{self._path}/{name}"
        known = path in self._files or any(file.startswith(f"{path}/") for file in self._files)
        return _Node(self._files, path) if known else None


class DictionaryFileSystem:
    """A file system that is a dictionary of full paths."""

    name = "dictionary"

    def __init__(self, files: Mapping[str, bytes | str], budget: Budget, uuid: str = "", label: str = "") -> None:
        self.files, self.budget, self.uuid, self.label = files, budget, uuid, label
        self.root = _Node(files, "")


def places(*systems: Mapping[str, bytes | str], names: tuple[tuple[str, str], ...] = ()) -> Places:
    """Return disks hd0, hd1, … that have such files, with (uuid, label) each."""
    made = Places([], [], Budget())
    for number, files in enumerate(systems):
        uuid, label = names[number] if number < len(names) else ("", "")
        system = DictionaryFileSystem(files, made.budget, uuid, label)
        name = f"hd{number}"
        made._drives[name] = [Place(name, Volume(MemoryDisk(b""), made.budget), None, system)]
    return made
