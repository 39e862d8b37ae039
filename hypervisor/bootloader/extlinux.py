"""Configurations of SYSLINUX, ISOLINUX and EXTLINUX (doc/syslinux.txt and menu.txt there).

Menus (UI) are not shown: what counts is DEFAULT, or the label with MENU DEFAULT. A default that is a menu
program, such as vesamenu.c32, has no kernel; then the first label is it.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field

from hypervisor.bootloader.errors import BootError, one_line
from hypervisor.bootloader.menu import Choice, Entry, Menu
from hypervisor.bootloader.places import File, Place

_DEEPEST, _MOST_FILES = 8, 64
_KERNELS = ("linux", "kernel")
_OTHER = ("com32", "boot", "bss", "pxe", "fdimage", "comboot", "localboot", "config")


@dataclass(slots=True)
class _Label:
    name: str
    title: str = ""
    kernel: str = ""
    append: str | None = None
    initrd: str = ""
    other: str = ""


@dataclass(slots=True)
class _Reader:
    place: Place
    directory: str
    labels: list[_Label] = field(default_factory=list)
    default: str = ""
    preferred: str = ""
    append: str = ""
    files: int = 0

    def read(self, path: str, depth: int = 0) -> None:
        """Take the lines of a file and of those that it includes."""
        self.files += 1
        if depth > _DEEPEST or self.files > _MOST_FILES:
            raise BootError("the configuration includes too many files")
        for line in self.place.read(path).split("\n"):
            self.place.volume.budget.step()
            key, _, value = line.strip().replace("\t", " ").partition(" ")
            self._line(key.lower(), value.strip(), depth)

    def _line(self, key: str, value: str, depth: int) -> None:
        label = self.labels[-1] if self.labels else None
        if key == "include" and value:
            self.read(self.path(value), depth + 1)
        elif key == "default":
            self.default = value
        elif key == "label" and value:
            if len(self.labels) >= 1000:
                raise BootError("the configuration has too many labels")
            self.labels.append(_Label(value))
        elif key == "menu":
            self._menu(label, *_split(value), depth)
        elif key == "append" and label is None:
            self.append = value
        elif label is not None:
            self._of_label(label, key, value)

    def _menu(self, label: _Label | None, key: str, value: str, depth: int) -> None:
        if key == "include" and value:
            self.read(self.path(value.split()[0]), depth + 1)
        elif label is not None and key == "default":
            self.preferred = label.name
        elif label is not None and key == "label":
            label.title = value.replace("^", "", 1)

    def _of_label(self, label: _Label, key: str, value: str) -> None:
        if key in _KERNELS:
            label.kernel = value
        elif key == "append":
            label.append = value
        elif key == "initrd":
            label.initrd = value
        elif key in _OTHER:
            label.other = key

    def path(self, name: str) -> str:
        """Return a file's full path; names are relative to the configuration's directory."""
        return posixpath.join(self.directory, name)


def _split(line: str) -> tuple[str, str]:
    key, _, value = line.partition(" ")
    return key.lower(), value.strip()


def read(place: Place, path: str) -> Menu:
    """Return the menu of a configuration file. Raises BootError."""
    reader = _Reader(place, posixpath.dirname(path))
    reader.read(path)
    menu = Menu()
    for label in reader.labels:
        menu.add(_choice(reader, label))
    words = reader.default.split(None, 1)
    default = words[0] if words else ""
    plain = [label.name for label in reader.labels if not _problem(label)]
    known = {label.name.lower(): label.name for label in reader.labels}
    if default and default.lower() not in known and not default.lower().endswith(".c32"):
        # DEFAULT may be a command line of its own.
        menu.add(_choice(reader, _Label(default, kernel=default, append=words[1] if len(words) > 1 else "")))
        known[default.lower()] = default
    menu.defaults = [name for name in (reader.preferred, known.get(default.lower(), "")) if name] + plain[:1]
    return menu


def _problem(label: _Label) -> str:
    """Return why a label starts no Linux, or ""."""
    if label.other and not label.kernel:
        return f"the label {one_line(label.name, 40)} has {label.other.upper()}, not a kernel"
    name = label.kernel.lower().split(",")[0].split(" ")[0]
    if not name:
        return f"the label {one_line(label.name, 40)} has no kernel"
    if name.endswith((".c32", ".com", ".cbt", ".bin", ".bss", ".0")):
        return f"{one_line(name, 60)} is a program of the boot loader, not a kernel"
    return ""


def _choice(reader: _Reader, label: _Label) -> Choice:
    def start() -> Entry:
        problem = _problem(label)
        if problem:
            raise BootError(problem)
        append = reader.append if label.append is None else label.append
        words = [] if append == "-" else append.split()
        initrds = label.initrd
        for word in words:  # the loader's own way to name initrds
            if word.startswith("initrd="):
                initrds = word[7:]
        files = tuple(File(reader.place, reader.path(name)) for name in initrds.split(",") if name)
        kernel = File(reader.place, reader.path(label.kernel.split()[0]))
        line = " ".join([f"BOOT_IMAGE={label.kernel.split()[0]}", *words])
        return Entry(label.title or label.name, kernel, files, line)

    return Choice(label.title or label.name, (label.name,), start)
