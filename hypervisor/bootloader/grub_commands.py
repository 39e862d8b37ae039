"""GRUB 2's commands: each is given the script that runs and its arguments, and returns a status, 0 for true."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.bootloader import entries, grub_test
from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.menu import Menu

if TYPE_CHECKING:
    from hypervisor.bootloader.grub import Grub

_ENVIRONMENT = "# GRUB Environment Block\n"
WITHOUT_EFFECT = frozenset(
    {
        *("insmod", "rmmod", "nativedisk", "export", "save_env", "echo", "cat", "clear", "sleep", "play", "true"),
        *("loadfont", "terminal", "terminal_output", "terminal_input", "serial", "keymap", "gettext", "videoinfo"),
        *("background_image", "background_color", "hiddenentry", "normal", "cpuid", "badram", "cutmem", "boot"),
        *("halt", "reboot", "fwsetup"),
    }
)


class Return(Exception):
    """The command return, up to its function."""


class Endless(BootError):
    """A limit that is reached: the end of the script, not only a command that fails."""


def _set(grub: Grub, arguments: list[str]) -> int:
    for argument in arguments:
        name, mark, value = argument.partition("=")
        if mark:
            grub.set(name, value)
    return 0


def _unset(grub: Grub, arguments: list[str]) -> int:
    for name in arguments:
        grub.variables.pop(name, None)
    return 0


def _test(grub: Grub, arguments: list[str]) -> int:
    if arguments and arguments[-1] == "]":
        arguments = arguments[:-1]
    return int(not grub_test.holds(arguments, grub.look))


def _search(by: str) -> Callable[[Grub, list[str]], int]:
    kinds = {"--fs-uuid": "uuid", "-u": "uuid", "--label": "label", "-l": "label", "--file": "file", "-f": "file"}

    def search(grub: Grub, arguments: list[str]) -> int:
        kind, variable, plain = by, "" if not by else "root", []
        for word in arguments:
            option, _, value = word.partition("=")
            if option in kinds:
                kind = kinds[option]
            elif option in ("--set", "-s"):
                variable = value or "root"
            elif not option.startswith("-"):
                plain.append(word)
        if by and len(plain) > 1:  # search.fs_uuid UUID VARIABLE HINTS
            variable = plain[1]
        place = grub.places.search(kind or "file", plain[0]) if plain else None
        if place is None:
            return 1
        if variable:
            grub.set(variable, place.name)
        return 0

    return search


def _configfile(grub: Grub, arguments: list[str]) -> int:
    """Go to another configuration: its menu is the menu."""
    if not arguments:
        return 1
    grub.file(arguments[0])
    grub.menu = Menu()
    grub.run_file(arguments[0])
    return 0


def _source(grub: Grub, arguments: list[str]) -> int:
    if not arguments:
        return 1
    grub.run_file(arguments[0])
    return grub.status


def _load_env(grub: Grub, arguments: list[str]) -> int:
    """Take variables from an environment block."""
    name, wanted, words = f"{grub.value('prefix')}/grubenv", [], arguments[::-1]
    while words:
        word = words.pop()
        if word in ("-f", "--file"):
            name = words.pop() if words else name
        elif word.startswith("--file="):
            name = word[7:]
        elif not word.startswith("-"):
            wanted.append(word)
    file = grub.file(name)
    text = file.place.read(file.path)
    if not text.startswith(_ENVIRONMENT):
        return 1
    for line in text.replace("\\\n", "\0").split("\n"):
        key, mark, value = line.replace("\0", "\\\n").partition("=")
        if mark and not key.startswith("#") and (not wanted or key in wanted):
            grub.set(key, re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL))
    return 0


def _blscfg(grub: Grub, arguments: list[str]) -> int:
    """Add the entries of the Boot Loader Specification, as Fedora's GRUB does."""

    def expand(text: str) -> str:
        return " ".join(re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: grub.value(found[1] or found[2]), text).split())

    for root in dict.fromkeys((grub.value("boot") or grub.value("root"), grub.value("root"))):
        place = grub.device(root)
        for directory in (grub.value("blsdir"), "/loader/entries", "/boot/loader/entries"):
            found = entries.read(place, directory, expand) if directory else []
            for choice in found:
                grub.menu.add(choice)
            if found:
                return 0
    return 1


def _setparams(grub: Grub, arguments: list[str]) -> int:
    grub.arguments = arguments
    return 0


def _increment(by: int) -> Callable[[Grub, list[str]], int]:
    def change(grub: Grub, arguments: list[str]) -> int:
        for name in arguments:
            grub.set(name, str(grub_test.number(grub.value(name)) + by))
        return 0

    return change


def _return(grub: Grub, arguments: list[str]) -> int:
    if arguments:
        grub.status = int(grub_test.number(arguments[0]) != 0)
    raise Return


def _probe(grub: Grub, arguments: list[str]) -> int:
    """Tell a device's uuid or label: probe --set=VARIABLE -u DEVICE."""
    variable = next((word[6:] for word in arguments if word.startswith("--set=")), "")
    devices = [word for word in arguments if not word.startswith("-")]
    if not variable or not devices:
        return 1
    files = grub.device(devices[0]).files
    grub.set(variable, files.label if {"-l", "--label"} & set(arguments) else files.uuid)
    return 0


COMMANDS: dict[str, Callable[[Grub, list[str]], int]] = {
    "set": _set,
    "unset": _unset,
    "[": _test,
    "test": _test,
    "search": _search(""),
    "search.fs_uuid": _search("uuid"),
    "search.fs_label": _search("label"),
    "search.file": _search("file"),
    "configfile": _configfile,
    "source": _source,
    ".": _source,
    "load_env": _load_env,
    "blscfg": _blscfg,
    "setparams": _setparams,
    "increment": _increment(1),
    "decrement": _increment(-1),
    "return": _return,
    "probe": _probe,
}
