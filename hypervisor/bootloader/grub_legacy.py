"""GRUB legacy's menu.lst (GRUB 0.97 manual, "Configuration"), which pygrub reads first to this day."""

from __future__ import annotations

import re

from hypervisor.bootloader.errors import BootError, one_line
from hypervisor.bootloader.menu import Choice, Entry, Menu
from hypervisor.bootloader.places import File, Place, Places

Lines = list[tuple[str, str]]
_PATH = re.compile(r"\(([^)]*)\)(.*)", re.DOTALL)
_STARTERS = {"chainloader": "another boot loader", "configfile": "another configuration"}


def read(places: Places, place: Place, path: str) -> Menu:
    """Return the menu of a configuration file. Raises BootError."""
    menu = Menu()
    lines: Lines = []
    for line in place.read(path).split("\n"):
        places.budget.step()
        # The first = or space ends the command's name.
        match = re.match(r"\s*([A-Za-z]+)\s*=?\s*(.*)", line)
        if match is None:
            continue
        key, value = match[1].lower(), match[2].strip()
        if key == "title":
            lines = []
            menu.add(_choice(places, place, value, lines))
        elif menu.choices:
            lines.append((key, value))
        elif key == "default":
            menu.defaults.insert(0, "0" if value == "saved" else value)
        elif key == "fallback":
            menu.defaults += value.split()
    return menu


def _choice(places: Places, place: Place, title: str, lines: Lines) -> Choice:
    def file(root: Place, name: str) -> File:
        match = _PATH.fullmatch(name)
        return File(device(places, match[1]), match[2]) if match else File(root, name)

    def start() -> Entry:
        root, kernel, line = place, None, ""
        initrds: list[File] = []
        for key, value in lines:
            words = value.split()
            if key in ("root", "rootnoverify", "uuid") and words:
                root = _root(places, place, key, words[0])
            elif key == "kernel":
                # --type=, --no-mem-option and the like stand before the path.
                words = words[next((n for n, word in enumerate(words) if not word.startswith("--")), len(words)) :]
                if words:
                    kernel, line = file(root, words[0]), " ".join(words[1:])
            elif key in ("initrd", "module") and words:
                initrds += [file(root, word) for word in (words if key == "initrd" else words[:1])]
            elif key in _STARTERS and kernel is None:
                raise BootError(f"{one_line(title)!r} starts {_STARTERS[key]}")
        if kernel is None:
            raise BootError(f"{one_line(title)!r} has no kernel")
        return Entry(title, kernel, tuple(initrds), line)

    return Choice(title, (), start)


def _root(places: Places, place: Place, key: str, value: str) -> Place:
    if key == "uuid":
        return places.search("uuid", value) or place
    try:
        return device(places, value.strip("()"))
    except BootError:
        return place  # the disks of the machine that wrote it were others; pygrub stays on the partition too


def device(places: Places, name: str) -> Place:
    """Return the place of a name in GRUB legacy's way, where partitions count from 0. Raises BootError."""
    disk, mark, number = name.partition(",")
    if mark and number.isascii() and number.isdigit() and len(number) < 4:
        return places.named(f"{disk},{int(number) + 1}")
    return places.named(disk)
