"""Loader entries of the Boot Loader Specification (uapi-group.org), type 1: one small file a kernel.

systemd-boot reads them from the EFI or extended boot partition, and Fedora's GRUB by its command blscfg.
Entries of type 2, kernels in one EFI program with their initrd, are those of `unified`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator

from hypervisor.bootloader import unified
from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.grub_test import natural
from hypervisor.bootloader.menu import Choice, Entry, Menu
from hypervisor.bootloader.places import File, Place

_MOST_FILES = 200
Fields = list[tuple[str, str]]


def read(place: Place, directory: str, expand: Callable[[str], str]) -> list[Choice]:
    """Return the choices in a directory, the newest version first. `expand` fills in variables of options."""
    found: list[tuple[str, Fields]] = []
    names = [name for name in place.names(directory) if name.endswith(".conf")]
    for name in names[:_MOST_FILES]:
        try:
            found.append((name.removesuffix(".conf"), fields(place.read(f"{directory}/{name}"))))
        except BootError:
            place.volume.budget.step()
    found.sort(key=lambda entry: _order(*entry), reverse=True)
    return [_choice(place, name, entry, expand) for name, entry in found]


def _order(name: str, entry: Fields) -> tuple[object, ...]:
    """Return a key that sorts by version where entries have a sort-key, and by file name else."""
    values = dict(entry)
    # Entries that were tried in vain too often, "+0" in the name's end, come last.
    good = not name.rpartition("+")[2].startswith("0") if "+" in name else True
    return good, "sort-key" in values, natural(values.get("version", "")), natural(name)


def fields(text: str) -> Fields:
    """Return keys and values in the file's order; a key may come more than once."""
    found = []
    for line in text.split("\n"):
        key, _, value = line.strip().replace("\t", " ").partition(" ")
        if key and not key.startswith("#"):
            found.append((key.lower(), value.strip()))
    return found


def _all(entry: Fields, key: str) -> Iterator[str]:
    return (value for found, value in entry if found == key and value)


def _choice(place: Place, name: str, entry: Fields, expand: Callable[[str], str]) -> Choice:
    title = next(_all(entry, "title"), name)

    def start() -> Entry:
        kernel = next(_all(entry, "linux"), "")
        if not kernel:
            image = next(_all(entry, "uki"), "") or next(_all(entry, "efi"), "")
            if not image:
                raise BootError(f"the entry {name} names no kernel")
            return unified.entry(File(place, image), title, " ".join(_all(entry, "options")))
        images = [path for line in _all(entry, "initrd") for path in expand(line).split()]
        line = " ".join(expand(options) for options in _all(entry, "options"))
        return Entry(title, File(place, expand(kernel)), tuple(File(place, path) for path in images), line)

    identity = next(_all(entry, "id"), "")
    return Choice(title, tuple(part for part in (name, f"{name}.conf", identity) if part), start)


def systemd_boot(place: Place) -> Menu | None:
    """Return the menu of systemd-boot on a partition, None where there is none."""
    menu = Menu()
    for choice in read(place, "/loader/entries", lambda text: text):
        menu.add(choice)
    for name in reversed([name for name in place.names("/EFI/Linux") if name.lower().endswith(".efi")][:_MOST_FILES]):
        menu.add(_unified(place, name))
    if not menu.choices:
        return None
    try:
        settings = dict(fields(place.read("/loader/loader.conf")))
    except BootError:
        settings = {}
    pattern = settings.get("default", "")
    if pattern:
        menu.defaults = [name for choice in menu.choices for name in choice.names if fnmatch.fnmatch(name, pattern)]
    return menu


def _unified(place: Place, name: str) -> Choice:
    return Choice(name, (name,), lambda: unified.entry(File(place, f"/EFI/Linux/{name}"), name, ""))
