"""GRUB's command test, also called [ (GRUB manual, "test")."""

from __future__ import annotations

import re
from collections.abc import Callable

from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.tree import Kind

_MOST_WORDS, _DEEPEST = 200, 20
_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "-eq": lambda left, right: left == right,
    "-ne": lambda left, right: left != right,
    "-lt": lambda left, right: left < right,
    "-le": lambda left, right: left <= right,
    "-gt": lambda left, right: left > right,
    "-ge": lambda left, right: left >= right,
}
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda left, right: left == right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
    "<=": lambda left, right: left <= right,
    ">=": lambda left, right: left >= right,
}
_FILES = ("-d", "-e", "-f", "-s")

Look = Callable[[str], tuple[Kind, int] | None]
"""Return kind and size of what is at a path, None for nothing."""


def number(text: str) -> int:
    """Return the number that a text begins with, 0 for none, as strtoul does."""
    match = re.match(r"\s*(-?\d{1,18})", text, re.ASCII)
    return int(match[1]) if match else 0


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts versions: numbers by value, the rest by its characters."""
    pieces: list[str] = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(p[0] in "0123456789", int(p[:18]) if p[0] in "0123456789" else 0, p) for p in pieces]


def holds(words: list[str], look: Look) -> bool:
    """Tell whether an expression is true. Raises BootError for one that is endless."""
    if len(words) > _MOST_WORDS:
        raise BootError("an expression of test is too long")
    return _Test(words, look).either()


class _Test:
    """Read an expression once: -o binds least, then -a, then !."""

    def __init__(self, words: list[str], look: Look) -> None:
        self._words, self._look, self._at, self._depth = words, look, 0, 0

    def either(self) -> bool:
        result = self._both()
        while self._take("-o"):
            result = self._both() or result
        return result

    def _both(self) -> bool:
        result = self._one()
        while self._at < len(self._words) and self._words[self._at] not in ("-o", ")"):
            self._take("-a")
            result = self._one() and result
        return result

    def _take(self, word: str) -> bool:
        if self._at < len(self._words) and self._words[self._at] == word:
            self._at += 1
            return True
        return False

    def _one(self) -> bool:
        left = self._words[self._at :]
        if len(left) >= 3 and left[1] in _TEXTS:
            self._at += 3
            return _TEXTS[left[1]](left[0], left[2])
        if len(left) >= 3 and left[1] in _NUMBERS:
            self._at += 3
            return _NUMBERS[left[1]](number(left[0]), number(left[2]))
        if len(left) >= 2 and left[0] in ("-n", "-z"):
            self._at += 2
            return bool(left[1]) == (left[0] == "-n")
        if len(left) >= 2 and left[0] in _FILES:
            self._at += 2
            return self._file(left[0], left[1])
        if left[:1] in (["!"], ["("]):
            return self._inner()
        self._at += 1
        return bool(left and left[0])

    def _inner(self) -> bool:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BootError("an expression of test is nested too deep")
        if self._take("!"):
            return not self._one()
        self._at += 1
        result = self.either()
        self._take(")")
        return result

    def _file(self, operator: str, path: str) -> bool:
        found = self._look(path)
        if found is None or operator == "-e":
            return found is not None
        kind, size = found
        return size > 0 if operator == "-s" else kind is (Kind.DIRECTORY if operator == "-d" else Kind.FILE)


def newest_first(names: list[str]) -> list[str]:
    """Sort names by the versions in them, the highest first."""
    return sorted(names, key=natural, reverse=True)
