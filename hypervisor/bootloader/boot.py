"""Find what a guest boots: the host's boot loader, which stands in for firmware and for boot loaders on disks.

A guest that is started "by its disk" is started by the PVH entry of the kernel that the boot loader on that disk
would have started: the loader's configuration is read, not its code run. So there is no menu to choose from,
and what has no such configuration or no Linux kernel with a PVH entry (Windows, BSDs, old distributions) is not
bootable, for a reason that is told. `find` follows a boot order, `pygrub` does what the program of that name does
on a Xen host: it starts the PV guests of a disk.

The disk is a hostile guest's: whatever is on it, a `BootError` comes within seconds (see `volume`).
"""

from __future__ import annotations

import getopt
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from hypervisor.bootloader import entries, extlinux, grub, grub_legacy
from hypervisor.bootloader.errors import BootError, NothingBootable, one_line
from hypervisor.bootloader.menu import Entry, Menu
from hypervisor.bootloader.places import File, Place, Places
from hypervisor.bootloader.tree import Content, Kind
from hypervisor.bootloader.volume import Budget
from hypervisor.disks.disk import Disk
from hypervisor.guests import UNBOOTABLE_KERNEL
from hypervisor.loader import bzimage, elf, pvh
from hypervisor.loader.elf import Image, LoadError

LARGEST_FILE, LARGEST_KERNEL = 512 << 20, 128 << 20
"""Most bytes of all initrds together, and of a kernel as it is on the disk."""
_UNPACKED = 1024
"""Bytes of an unpacked kernel that cost a step of the budget."""
_BAD_PAYLOAD = 100_000
"""Steps that a bzImage costs which cannot be unpacked: it may have kept us for a second."""

_GRUB = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg")
_LEGACY = ("/boot/grub/menu.lst", "/boot/grub/grub.conf", "/grub/menu.lst", "/grub/grub.conf")
_EXTLINUX = (
    *("/boot/extlinux/extlinux.conf", "/extlinux/extlinux.conf", "/boot/extlinux.conf", "/extlinux.conf"),
    *("/boot/syslinux/syslinux.cfg", "/syslinux/syslinux.cfg", "/syslinux.cfg"),
    *("/boot/isolinux/isolinux.cfg", "/isolinux/isolinux.cfg", "/isolinux.cfg"),
)
_EFI = "/EFI"
_MOST_VENDORS = 32
_PIECES = 4
"""Initrds that follow each other begin at multiples of so many bytes, as cpio archives need."""


@dataclass(frozen=True, slots=True)
class Boot:
    """What to start. `kernel` is an ELF file, taken out of its bzImage already, or a path of the host's."""

    kernel: Image | os.PathLike[str]
    ramdisk: Image | os.PathLike[str] | None = None
    command_line: str = ""
    origin: str = ""
    """Where it is from, for people: "disk 0 partition 1, /boot/grub/grub.cfg, Debian GNU/Linux"."""


Reader = Callable[[Places, Place, str], Menu]
_GRUB2_READ: tuple[tuple[str, Reader], ...] = tuple((path, grub.read) for path in _GRUB)
_LEGACY_READ: tuple[tuple[str, Reader], ...] = tuple((path, grub_legacy.read) for path in _LEGACY)
_EXTLINUX_READ: tuple[tuple[str, Reader], ...] = tuple(
    (path, lambda places, place, path: extlinux.read(place, path)) for path in _EXTLINUX
)


def find(
    order: str, disks: Sequence[Disk], discs: Sequence[Disk], network: Boot | None = None, *, memory: int = 1 << 40
) -> Boot:
    """Return what a domain boots by its boot order: letters c (disks), d (CDs) and n (network).

    Disks are tried in their order. `memory` bytes is what the domain has: more cannot be loaded. A kernel
    whose command line names no console of a domain's gets it, the only one that there is. Raises NothingBootable.
    """
    places = Places(disks, discs, Budget())
    search = _Search(places, min(memory, LARGEST_FILE), "pvh")
    for letter in order.lower():
        if letter == "n":
            if network is not None:
                return network
            search.tried.append("network: no kernel is configured")
        elif letter in "cd":
            drives = [f"hd{number}" for number in range(len(disks))]
            if letter == "d":
                drives = [f"cd{number}" for number in range(len(discs))]
            if not drives:
                search.tried.append("disk: there is none" if letter == "c" else "CD: there is none in a drive")
            for drive in drives:
                found = search.drive(drive, _EXTLINUX_READ + _GRUB2_READ + _LEGACY_READ if letter == "d" else _READERS)
                if found is not None:
                    return replace(found, command_line=_with_console(found.command_line))
    raise NothingBootable(search.tried)


_READERS = _GRUB2_READ + _LEGACY_READ + _EXTLINUX_READ


def _with_console(line: str) -> str:
    """Add the domain's console, last, which makes it /dev/console."""
    wanted = line if re.search(r"(^|\s)console=hvc", line) else f"{line} console=hvc0".strip()
    return wanted if len(wanted.encode("utf-8", "replace")) <= pvh.COMMAND_LINE else line


def message(error: BootError) -> Boot:
    """Return a kernel that only says on the console why nothing was booted, and then waits for ever."""
    said = str(error)
    if isinstance(error, NothingBootable):
        said = "\n".join(("No bootable device.", *(f"  {reason}" for reason in error.tried)))
    text = said.encode("ascii", "replace")[: pvh.COMMAND_LINE].decode("ascii")
    return Boot(UNBOOTABLE_KERNEL, None, text, "boot loader")


def pygrub(disk: Disk, arguments: str = "", append: str = "", *, kind: str = "pv", memory: int = 1 << 40) -> Boot:
    """Return what pygrub finds on a disk. Raises BootError.

    `arguments` are those of PV_bootloader_args: ``--kernel``, ``--ramdisk`` (paths on the disk, instead of a
    configuration's), ``--args`` (added to the command line), ``--entry`` (number, title or name); `append` is
    PV_args. `kind` is the entry that the kernel must have, ``pv`` or ``pvh``.
    """
    options = _options(arguments)
    extra = " ".join(part for part in (options.get("args", ""), append) if part)
    places = Places([disk], [], Budget())
    search = _Search(places, min(memory, LARGEST_FILE), kind)
    if "kernel" in options:
        return _named(search, options["kernel"], options.get("ramdisk", ""), extra)
    search.selector, search.ramdisk, search.extra = options.get("entry", ""), options.get("ramdisk", ""), extra
    found = search.drive("hd0", _LEGACY_READ + _GRUB2_READ + _EXTLINUX_READ)
    if found is None:
        raise BootError("pygrub: " + "; ".join(search.tried))
    return found


def _options(arguments: str) -> dict[str, str]:
    """Return pygrub's options; those about menus and output have no effect here. Raises BootError."""
    known = ("kernel=", "ramdisk=", "args=", "entry=")
    ignored = ("quiet", "interactive", "not-really", "list-entries", "offset=", "output=", "output-format=")
    others = ("output-directory=", "isconfig", "debug", "default_args=", "limit-output-directory-size=", "help")
    try:
        options, _ = getopt.gnu_getopt(shlex.split(arguments), "qilnh", [*known, *ignored, *others])
    except (getopt.GetoptError, ValueError) as error:
        raise BootError(f"pygrub: {one_line(error)}") from None
    return {name[2:]: value for name, value in options if f"{name[2:]}=" in known}


def _named(search: _Search, kernel: str, ramdisk: str, line: str) -> Boot:
    """Return a kernel given by its path, from the first partition that has it."""
    for place in search.places.on("hd0"):
        if place.kind(kernel) is Kind.FILE:
            initrds = (File(place, ramdisk),) if ramdisk else ()
            return search.load(Entry("--kernel", File(place, kernel), initrds, line), place.title)
    raise BootError(f"pygrub: there is no {one_line(kernel)} on the disk")


class _Search:
    """One look for something to boot; `tried` says of each thing why it was not it."""

    def __init__(self, places: Places, limit: int, kind: str) -> None:
        self.places, self.limit, self.kind = places, limit, kind
        self.tried: list[str] = []
        self.selector = self.ramdisk = self.extra = ""

    def drive(self, name: str, readers: tuple[tuple[str, Reader], ...]) -> Boot | None:
        """Return what is bootable on a drive, None when nothing is."""
        before = len(self.tried)
        states = [self.places.problems[name]] if name in self.places.problems else []
        try:
            for place in self.places.on(name):
                for path, menu in self._menus(place, readers):
                    found = self._menu(f"{place.title}, {path}", menu)
                    if found is not None:
                        return found
                states.append(_state(place))
        except BootError as error:  # the budget's end
            self.tried.append(f"{_drive_title(name)}: {error}")
            return None
        if len(self.tried) == before:
            self.tried.append(f"{_drive_title(name)}: no boot configuration that is known ({', '.join(states)})")
        return None

    def _menus(self, place: Place, readers: tuple[tuple[str, Reader], ...]) -> Iterator[tuple[str, Callable[[], Menu]]]:
        """Yield the configurations that there are in a place."""
        for path, read in readers:
            if place.kind(path) is Kind.FILE:
                yield path, lambda read=read, path=path: read(self.places, place, path)  # type: ignore[misc]
        menu = entries.systemd_boot(place)
        if menu is not None:
            yield "/loader", lambda: menu
        for vendor in place.names(_EFI)[:_MOST_VENDORS]:
            path = f"{_EFI}/{vendor}/grub.cfg"
            if place.kind(path) is Kind.FILE:
                yield path, lambda path=path: grub.read(self.places, place, path)  # type: ignore[misc]

    def _menu(self, title: str, read: Callable[[], Menu]) -> Boot | None:
        """Return what a configuration starts, None when that cannot be started."""
        try:
            menu = read()
            if self.selector:
                return self.load(menu.select(self.selector), title)
            for choice in menu.candidates():
                try:
                    return self.load(choice.load(), title)
                except BootError as error:
                    self.tried.append(f"{title}: {error}")
                    self.places.budget.step()
        except BootError as error:
            self.tried.append(f"{title}: {error}")
            self.places.budget.step()
        return None

    def load(self, entry: Entry, title: str) -> Boot:
        """Read what an entry starts, and see whether it can be started. Raises BootError."""
        line = " ".join(part for part in (entry.command_line, self.extra) if part)
        if len(line.encode("utf-8", "replace")) > pvh.COMMAND_LINE or "\0" in line:
            raise BootError(f"the command line is longer than {pvh.COMMAND_LINE} bytes")
        initrds = entry.initrds
        if self.ramdisk:
            initrds = (File(entry.kernel.place, self.ramdisk),)
        kernel = self._kernel(entry.kernel)
        ramdisk = _joined(initrds, self.limit)
        return Boot(kernel, ramdisk, line, ", ".join(part for part in (title, one_line(entry.title, 100)) if part))

    def _kernel(self, file: File) -> Image:
        """Return the kernel's ELF file; it must have the entry that is wanted. Raises BootError."""
        content = file.read(min(self.limit, LARGEST_KERNEL))
        try:
            image = bzimage.extract(content)
            self.places.budget.step(len(image) // _UNPACKED)
            notes = elf.parse(image).notes
        except LoadError as error:
            self.places.budget.step(_BAD_PAYLOAD if _is_bzimage(content) else 0)
            raise BootError(f"{file.title}: {_what(content) or error}") from None
        if (notes.phys32_entry if self.kind == "pvh" else notes.entry) is None:
            raise BootError(f"{file.title}: the kernel has no {self.kind.upper()} entry")
        return image


def _is_bzimage(content: Content) -> bool:
    return bytes(content[0x202:0x206]) == b"HdrS"


def _what(content: Content) -> str:
    """Return what a file is that is no Linux kernel, "" when that is not known."""
    if bytes(content[:2]) == b"MZ" and not _is_bzimage(content):
        return "an EFI program, not a kernel"
    return "" if content else "empty"


def _joined(files: tuple[File, ...], limit: int) -> Content | None:
    """Return initrds one behind the other. Raises BootError when they are too large."""
    if not files:
        return None
    if len(files) == 1:
        return files[0].read(limit)
    joined = bytearray()
    for file in files:
        joined += bytes(-len(joined) % _PIECES)
        joined += file.read(limit - len(joined))
    return joined


def _drive_title(name: str) -> str:
    return f"{'disk' if name.startswith('hd') else 'CD'} {name[2:]}"


def _state(place: Place) -> str:
    """Return what is in a place, for people."""
    what = f"partition {place.partition.number}" if place.partition else "whole"
    try:
        return f"{what}: {place.files.name}"
    except BootError as error:
        place.volume.budget.step()
        return f"{what}: {error}"
