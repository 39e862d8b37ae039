"""Whatever is on a guest's disk, the boot loader finds a kernel or raises BootError, in bounded time and memory."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisor.bootloader import entries, extlinux, grub, grub_legacy, tree, unified
from hypervisor.bootloader.boot import find, pygrub
from hypervisor.bootloader.errors import BootError, NothingBootable
from hypervisor.bootloader.grub_syntax import Command, parse
from hypervisor.bootloader.menu import Menu
from hypervisor.bootloader.places import Places
from hypervisor.bootloader.volume import Budget
from tests.unit.bootloader_images import MIB, MemoryDisk, ext, fat, iso, partitioned, places
from tests.unit.loader_images import compressed, pvh_kernel

SECONDS = 30
"""No look takes longer, on a machine that does other things too; a used-up budget is some 3 s of it."""
KERNEL = compressed("gzip", pvh_kernel(b"\xf4" * 20_000, size=0x8000))
INITRD = bytes(range(256)) * 40
FILES: dict[str, bytes | str] = {
    "boot/vmlinuz": KERNEL,
    "boot/initrd": INITRD,
    "boot/grub/grub.cfg": "search --set=root --file /boot/vmlinuz\nlinux /boot/vmlinuz a\ninitrd /boot/initrd\n",
    "loader/entries/x.conf": "linux /boot/vmlinuz\n",
    **{f"boot/a long file name {number}": "x" for number in range(40)},
}
LINKS: dict[str, bytes | str] = {"vmlinuz": "-> boot/vmlinuz", "boot/self": "-> ../boot"}
KINDS = ("ext4", "inline", "ext2", "fat12", "fat32", "rock ridge", "joliet", "mbr", "gpt")


def make(work: Path, kind: str) -> bytes:
    match kind:
        case "ext4":
            return ext(work, FILES | LINKS, "-O", "64bit")
        case "inline":
            return ext(work, FILES | LINKS, "-O", "inline_data,^has_journal", "-I", "256", size=2 * MIB)
        case "ext2":
            return ext(work, FILES | LINKS, kind="ext2", size=2 * MIB)
        case "fat12" | "fat32":
            return fat(work, FILES, "-F", kind[3:], "-s", "1", size=(1 if kind == "fat12" else 40) * MIB)
        case "rock ridge":
            return iso(work, FILES | LINKS, "-R", "-J", "-joliet-long")
        case "joliet":
            return iso(work, FILES, "-J", "-joliet-long", "--norock")
        case "mbr":
            table = "label: dos\n1: start=64, size=64\n2: start=2048, size=20000, type=5\n5: start=4096, size=5000\n"
            return bytes(partitioned(work, table, {4096: make(work, "ext2")}, size=16 * MIB))
        case _:
            table = "label: gpt\n2: start=2048, size=5000\n"
            return bytes(partitioned(work, table, {2048: make(work, "ext2")}, size=8 * MIB))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, list[int]]]:
    """Return images with the places of what is not zero in them, without the files' contents."""
    work = tmp_path_factory.mktemp("images")
    made = {}
    for kind in KINDS:
        image = make(work, kind)
        content = set()
        for data in (KERNEL, INITRD):
            start = image.find(data[:2000])
            content |= set(range(start // 64 + 1, (start + len(data)) // 64 - 1)) if start >= 0 else set()
        used = [at for at in range(0, len(image), 64) if at // 64 not in content and any(image[at : at + 64])]
        made[kind] = image, used
    return made


def explore(files: tree.FileSystem) -> None:
    """Look at everything in a file system, up to some hundred nodes; each may be damaged by itself."""
    waiting: list[tree.Node] = [files.root]
    for _ in range(300):
        if not waiting:
            return
        node = waiting.pop()
        with contextlib.suppress(BootError):
            if node.kind is tree.Kind.DIRECTORY:
                for name in list(node.names())[:60]:
                    child = node.lookup(name)
                    waiting += [child] if child is not None else []
            elif node.kind is not tree.Kind.OTHER:
                assert len(node.content(MIB)) <= MIB
        files.budget.step()


def look(image: bytes | bytearray, disc: bool) -> None:
    """Do all that the boot loader does with a disk."""
    disk = MemoryDisk(image)
    started = time.monotonic()
    with contextlib.suppress(NothingBootable):
        find("d" if disc else "c", [] if disc else [disk], [disk] if disc else [], memory=4 * MIB)
    with contextlib.suppress(BootError):
        pygrub(disk, memory=4 * MIB)
    with contextlib.suppress(BootError):
        for place in Places([disk], [], Budget(100 * MIB, 200_000)).all():
            with contextlib.suppress(BootError):
                explore(place.files)
            place.volume.budget.step()
    assert time.monotonic() - started < SECONDS
    assert disk.reads < 500_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_boot_when_they_are_whole(kind: str, images: dict[str, tuple[bytes, list[int]]]) -> None:
    """Else the tests below would damage nothing that matters."""
    image, used = images[kind]
    disc = kind in ("rock ridge", "joliet")
    boot = find("d" if disc else "c", [] if disc else [MemoryDisk(image)], [MemoryDisk(image)] if disc else [])
    assert boot.ramdisk == INITRD
    assert len(used) > 20


VALUES = st.one_of(
    st.sampled_from([b"\0", b"\xff", b"\x80", b"\x7f", b"\xff\xff\xff\xff", bytes(4)]), st.binary(max_size=8)
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_images_are_errors_and_nothing_else(
    kind: str, images: dict[str, tuple[bytes, list[int]]], data: st.DataObject
) -> None:
    """Bytes of superblocks, tables, inodes, directories and records, some at a time."""
    image, used = images[kind]
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.sampled_from(used)) + data.draw(st.integers(0, 63))
        value = data.draw(VALUES)[: len(damaged) - at]
        damaged[at : at + len(value)] = value
    look(damaged, kind in ("rock ridge", "joliet"))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_images_that_are_cut_off_are_errors_and_nothing_else(
    kind: str, images: dict[str, tuple[bytes, list[int]]], data: st.DataObject
) -> None:
    """A disk that is shorter than what is on it believes."""
    image, used = images[kind]
    look(image[: data.draw(st.sampled_from(used)) + data.draw(st.integers(0, 63))], kind in ("rock ridge", "joliet"))


@settings(max_examples=100, deadline=None)
@given(boot=st.binary(min_size=510, max_size=510), rest=st.binary(max_size=3000))
def test_noise_is_not_bootable(boot: bytes, rest: bytes) -> None:
    """With the signature of a boot sector, so that a table is looked for."""
    with pytest.raises(NothingBootable):
        find("c", [MemoryDisk(boot + b"\x55\xaa" + rest)], [])


def test_a_huge_sparse_file_costs_no_memory(tmp_path: Path) -> None:
    """A hole of a terabyte is refused by its size; the limit is the caller's."""
    files = {name: content for name, content in FILES.items() if not name.startswith("loader")}
    image = bytearray(ext(tmp_path, files, "-O", "^metadata_csum"))
    disk = MemoryDisk(image)
    place = next(Places([disk], [], Budget()).all())
    at = image.find(place.files.inode(_inode(place.files, "boot/initrd"))[:128])  # type: ignore[attr-defined]
    image[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    image[at + 108 : at + 112] = b"\xff\0\0\0"
    tracemalloc.start()
    try:
        with pytest.raises(NothingBootable, match="too large"):
            find("c", [disk], [], memory=64 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def _inode(files: tree.FileSystem, path: str) -> int:
    """Return an inode's number, which nodes do not tell."""
    folder, name = path.rsplit("/", 1)
    entries: Iterator[tuple[int, bytes]] = tree.find(files, folder)._entries()  # type: ignore[attr-defined]
    return next(number for number, found in entries if found == name.encode())


# Configurations

WORDS = st.sampled_from(
    [
        *("if", "then", "else", "elif", "fi", "for", "in", "do", "done", "while", "until", "function", "menuentry"),
        *("submenu", "set", "a=$a$a", "a", "$a", "${a}", "$1", "$@", "$?", "'", '"', "\\", "{", "}", "{ ", " }", ";"),
        *("\n", "[", "]", "=", "!", "-a", "-o", "(", ")", "linux", "/k", "initrd", "search", "--set=root", "--file"),
        *("configfile", "source", "/boot/grub/grub.cfg", "true", "false", "f", "return", "blscfg", "load_env"),
        *("default=1", "1>0", "unset", "#"),
    ]
)
SCRIPTS = st.one_of(st.text(max_size=300), st.lists(WORDS, max_size=60).map(" ".join))
KEYS = (
    *("default", "label", "kernel", "linux", "append", "initrd", "include", "menu", "menu default", "menu include"),
    *("title", "root", "fallback", "chainloader", "module", "options", "efi", "uuid", "version", "sort-key", "com32"),
)
MEANT = ("", "x", "0", "/k", "-", "initrd=a,b", "(hd0,0)/k", "/c", "1", "(", "x.c32", "saved")
LINES = st.lists(
    st.tuples(st.sampled_from(KEYS), st.one_of(st.sampled_from(MEANT), st.text(max_size=20))), max_size=30
).map(lambda lines: "\n".join(f"{key} {value}" for key, value in lines))


def start_all(menu: Menu) -> None:
    """Load every choice of a menu, as far as it can be."""
    for choice in menu.choices[:20]:
        with contextlib.suppress(BootError):
            choice.load()
    with contextlib.suppress(BootError):
        menu.default()


@settings(max_examples=300, deadline=None)
@given(script=SCRIPTS)
def test_any_grub_script_ends(script: str) -> None:
    """Well formed or not."""
    files = {"/boot/grub/grub.cfg": script, "/k": "kernel", "/loader/entries/a.conf": "linux /k\noptions $a\n"}
    found = places(files)
    found.budget = budget = Budget(steps=20_000)
    system = found.named("hd0").files
    system.budget = found.named("hd0").volume.budget = budget  # type: ignore[misc]
    with contextlib.suppress(BootError):
        start_all(grub.read(found, found.named("hd0"), "/boot/grub/grub.cfg"))


@settings(max_examples=150, deadline=None)
@given(text=LINES)
def test_any_configuration_of_lines_ends(text: str) -> None:
    """The same lines as menu.lst, extlinux.conf and loader entries."""
    found = places({"/c": text, "/k": "kernel", "/loader/entries/a.conf": text, "/loader/loader.conf": text})
    place = found.named("hd0")
    with contextlib.suppress(BootError):
        start_all(grub_legacy.read(found, place, "/c"))
    with contextlib.suppress(BootError):
        start_all(extlinux.read(place, "/c"))
    with contextlib.suppress(BootError):
        start_all(entries.systemd_boot(place) or Menu())


@given(
    words=st.lists(st.text(st.characters(exclude_characters="'\0", codec="utf-8"), min_size=1), min_size=1, max_size=5)
)
def test_quoted_words_arrive_as_they_were_written(words: list[str]) -> None:
    """Single quotes keep everything."""
    (command,) = parse("echo " + " ".join(f"'{word}'" for word in words))
    assert isinstance(command, Command)
    assert ["".join(part.text for part in word) for word in command.words] == ["echo", *words]


@given(image=st.binary(max_size=400))
def test_any_efi_program_is_taken_apart_or_not(image: bytes) -> None:
    for start, size in unified.sections(b"MZ".ljust(60, b"\0") + b"\x40\0\0\0PE\0\0" + image).values():
        assert start >= 0 and size >= 0


@given(arguments=st.text(max_size=60))
def test_any_arguments_of_pygrub_are_an_error_or_none(arguments: str) -> None:
    with pytest.raises(BootError):
        pygrub(MemoryDisk(bytes(2048)), arguments)
