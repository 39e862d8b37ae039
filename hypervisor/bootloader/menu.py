"""What every boot configuration comes down to: a menu, and what each of its entries starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypervisor.bootloader.errors import BootError, one_line
from hypervisor.bootloader.places import File

MOST_ENTRIES = 1000
_MOST_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel, the initrds that follow each other in memory, and the command line."""

    title: str
    kernel: File
    initrds: tuple[File, ...] = ()
    command_line: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A line of a menu: `start` tells what it starts, `open` the menu below it. Both raise BootError."""

    title: str
    names: tuple[str, ...] = ()
    start: Callable[[], Entry] | None = None
    open: Callable[[], Menu] | None = None

    def load(self) -> Entry:
        """Return what it starts; of a submenu, what its default does."""
        if self.open is not None:
            return self.open().default()
        if self.start is None:
            raise BootError(f"{one_line(self.title)!r} starts nothing")
        return self.start()


@dataclass(slots=True)
class Menu:
    """The choices of one configuration; `defaults` are tried in their order."""

    choices: list[Choice] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)

    def add(self, choice: Choice) -> None:
        """Append a choice. Raises BootError when there are too many."""
        if len(self.choices) >= MOST_ENTRIES:
            raise BootError("the menu has too many entries")
        self.choices.append(choice)

    def find(self, selector: str) -> Choice | None:
        """Return the choice of a number, title, name, or path of these through submenus, as "1>2"."""
        for choice in self.choices:
            if selector == choice.title or selector in choice.names:
                return choice
        if selector.isascii() and selector.isdigit() and len(selector) < 6:
            return self.choices[int(selector)] if int(selector) < len(self.choices) else None
        head, mark, rest = selector.partition(">")
        if not mark or not rest:
            return None
        above = self.find(head)
        return above.open().find(rest) if above and above.open else None

    def select(self, selector: str) -> Entry:
        """Return what a choice starts. Raises BootError for one that there is not."""
        choice = self.find(selector)
        if choice is None:
            raise BootError(f"the menu has no entry {one_line(selector, 60)!r}")
        return choice.load()

    def candidates(self) -> list[Choice]:
        """Return what is started when nobody chooses, and after it what may be instead. Raises BootError for none."""
        if not self.choices:
            raise BootError("the configuration has no entries")
        found = [choice for selector in self.defaults[:_MOST_CANDIDATES] if (choice := self.find(selector))]
        return found or self.choices[:1]

    def default(self) -> Entry:
        """Return what the first candidate starts. Raises BootError."""
        return self.candidates()[0].load()
