"""Run a GRUB 2 configuration, as far as it says what is started (GRUB manual, "Commands").

The script is run, not searched for patterns: what it finds by ``search``, keeps in variables, includes by
``configfile`` and decides by ``if`` counts, so that files of grub-mkconfig (Debian, Ubuntu, Alpine, Fedora with
its blscfg) and those written by hand lead where they would on a real machine. An entry's block runs when the
entry is chosen. Nothing is displayed, nobody is waited for, and nothing is written: ``save_env`` does nothing,
so what grub-reboot chose for one start is chosen until the guest takes it back.

Everything is bounded: steps by the budget, nesting, and the bytes of all variables.
"""

from __future__ import annotations

import posixpath
import re
from contextlib import suppress

from hypervisor.bootloader import tree
from hypervisor.bootloader.errors import BootError, one_line
from hypervisor.bootloader.grub_commands import COMMANDS, WITHOUT_EFFECT, Endless, Return
from hypervisor.bootloader.grub_syntax import Command, For, Function, If, Part, Script, Statement, While, Word, parse
from hypervisor.bootloader.menu import Choice, Entry, Menu
from hypervisor.bootloader.places import File, Place, Places

_STATEMENT = 6
"""Steps of the budget that a statement costs."""
_DEEPEST = 60
"""Scripts inside of each other: blocks, functions, files, submenus; each costs some frames of Python's stack."""
_LONGEST_WORD, _MOST_WORDS = 32 << 10, 4096
_MOST_VARIABLES, _ALL_VARIABLES = 4096, 1 << 20
_FEATURES = (
    *("chainloader_bpb", "ntldr", "platform_search_hint", "default_font_path", "all_video_module"),
    *("menuentry_id", "menuentry_options", "200_final", "nativedisk_cmd", "timeout_style", "search_cryptodisk_only"),
)
_LINUX = ("linux", "linux16", "linuxefi")
_INITRD = ("initrd", "initrd16", "initrdefi")
_OTHER_STARTS = {
    **dict.fromkeys(("chainloader", "ntldr", "freedos", "appleloader"), "another boot loader"),
    **dict.fromkeys(("multiboot", "multiboot2", "xen_hypervisor"), "a multiboot kernel, such as Xen itself"),
    **dict.fromkeys(("kfreebsd", "knetbsd", "kopenbsd", "xnu_kernel64"), "a BSD or Darwin kernel"),
    "plan9": "Plan 9",
}
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_DEVICE_PATH = re.compile(r"\(([^)]*)\)(.*)", re.DOTALL)


class Grub:
    """A script being run. One object is one context: an entry that is chosen runs in a copy of its own."""

    def __init__(self, places: Places, place: Place, directory: str) -> None:
        """Start as GRUB would that finds its files in a directory of a place."""
        self.places = places
        self.menu = Menu()
        self.functions: dict[str, Script] = {}
        self.arguments: list[str] = []
        self.kernel: File | None = None
        self.line = ""
        self.initrds: list[File] = []
        self.other = ""
        self.status = 0
        self._depth = 0
        self.variables = {f"feature_{name}": "y" for name in _FEATURES}
        self.variables |= {"root": place.name, "prefix": f"({place.name}){directory}", "grub_platform": "pc"}
        self.variables |= {"grub_cpu": "i386", "cmdpath": f"({place.name})"}

    # Running

    def run_file(self, name: str) -> None:
        """Run a configuration file, given by a path of GRUB's. Raises BootError."""
        file = self.file(name)
        self.variables["config_file"] = name
        self.variables["config_directory"] = posixpath.dirname(name)
        self.run(parse(file.place.read(file.path)))

    def run(self, script: Script) -> None:
        """Run statements; `status` is that of the last."""
        if self._depth >= _DEEPEST:
            raise Endless("the configuration is nested too deep")
        self._depth += 1
        try:
            for statement in script:
                self.places.budget.step(_STATEMENT)
                self._statement(statement)
        finally:
            self._depth -= 1

    def _true(self, condition: Script) -> bool:
        self.run(condition)
        return self.status == 0

    def _statement(self, statement: Statement) -> None:
        match statement:
            case Command():
                self._command(statement)
            case If():
                body = next((body for condition, body in statement.branches if self._true(condition)), None)
                self.status = 0
                self.run(statement.otherwise if body is None else body)
            case For():
                for word in self.expand(statement.words):
                    self.set(statement.variable, word)
                    self.run(statement.body)
            case While():
                while self._true(statement.condition) == statement.wanted:
                    self.places.budget.step()
                    self.run(statement.body)
            case Function():
                self.functions[statement.name] = statement.body

    def _command(self, command: Command) -> None:
        words = self.expand(command.words)
        if not words:
            self.status = 0
            return
        name, arguments = words[0], words[1:]
        negated = name == "!" and bool(arguments)
        if negated:
            name, arguments = arguments[0], arguments[1:]
        try:
            self.status = self._call(name, arguments, command.block)
        except Endless:
            raise
        except BootError:
            # A command that fails is a false condition, not the end; a budget that is used up is.
            self.places.budget.step()
            self.status = 1
        if negated:
            self.status = int(not self.status)

    def _call(self, name: str, arguments: list[str], block: Script | None) -> int:
        assignment = _ASSIGNMENT.fullmatch(name)
        if name in self.functions:
            return self._function(name, arguments)
        if name in ("menuentry", "submenu"):
            self._entry(name, arguments, block or ())
        elif name in _LINUX:
            self._load(arguments)
        elif name in _INITRD:
            self.initrds += [self.file(argument) for argument in arguments if not argument.startswith("--")]
        elif name in _OTHER_STARTS:
            self.other = _OTHER_STARTS[name]
        elif name in COMMANDS:
            return COMMANDS[name](self, arguments)
        elif assignment:
            self.set(assignment[1], assignment[2])
        else:
            return int(name not in WITHOUT_EFFECT)
        return 0

    def _function(self, name: str, arguments: list[str]) -> int:
        outer, self.arguments = self.arguments, arguments
        self._run_to_return(self.functions[name])
        self.arguments = outer
        return self.status

    def _run_to_return(self, script: Script) -> None:
        with suppress(Return):
            self.run(script)

    # Words and variables

    def set(self, name: str, value: str) -> None:
        """Give a variable a value. Raises BootError when all are too long."""
        self.variables[name] = value
        self.places.budget.step(1 + len(value) // 1024)
        if len(self.variables) > _MOST_VARIABLES or sum(map(len, self.variables.values())) > _ALL_VARIABLES:
            raise Endless("the configuration's variables are too large")

    def value(self, name: str) -> str:
        """Return what a variable holds, "" for none."""
        if name == "?":
            return str(self.status)
        if name == "#":
            return str(len(self.arguments))
        if name in ("*", "@"):
            return " ".join(self.arguments)
        if name.isdecimal():
            number = int(name[:6])
            return self.arguments[number - 1] if 1 <= number <= len(self.arguments) else ""
        return self.variables.get(name, "")

    def expand(self, words: tuple[Word, ...]) -> list[str]:
        """Return words with their variables' values; what is not quoted is split at spaces."""
        found: list[str] = []
        for word in words:
            self._expand(word, found)
        if len(found) > _MOST_WORDS or sum(map(len, found)) > _LONGEST_WORD:
            raise Endless("a command of the configuration is too long")
        self.places.budget.step(sum(map(len, found)) // 256)
        return found

    def _expand(self, word: Word, found: list[str]) -> None:
        text: str | None = None
        for part in word:
            if part.variable and (not part.quoted or part.text == "@"):
                pieces = self._pieces(part)
                if not pieces:
                    continue
                text = (text or "") + pieces[0]
                for piece in pieces[1:]:
                    found.append(text)
                    text = piece
            else:
                text = (text or "") + (self.value(part.text) if part.variable else part.text)
            if text is not None and len(text) > _LONGEST_WORD:
                raise Endless("a word of the configuration is too long")
        if text is not None:
            found.append(text)

    def _pieces(self, part: Part) -> list[str]:
        return list(self.arguments) if part.text == "@" else self.value(part.text).split()

    # Files and devices

    def device(self, name: str) -> Place:
        """Return the place of a device's name. Raises BootError."""
        return self.places.named(name.strip("()"))

    def file(self, name: str) -> File:
        """Return the file of one of GRUB's names, (device)/path or a path on the device $root. Raises BootError."""
        match = _DEVICE_PATH.fullmatch(name)
        return File(self.device(match[1]), match[2]) if match else File(self.device(self.value("root")), name)

    def look(self, name: str) -> tuple[tree.Kind, int] | None:
        """Return kind and size of what is at a name, None for nothing."""
        try:
            file = self.file(name)
            node = tree.find(file.place.files, file.path)
        except BootError:
            self.places.budget.step()
            return None
        return node.kind, node.size

    # Menus

    def _entry(self, kind: str, arguments: list[str], block: Script) -> None:
        """Add a menu's entry; its block runs when it is chosen."""
        title, names, rest = _options(arguments)
        context = self

        def started() -> Grub:
            inner = context._copy()
            inner.arguments = [title, *rest]
            inner.variables["chosen"] = title
            inner._run_to_return(block)
            return inner

        if kind == "submenu":
            self.menu.add(Choice(title, names, open=lambda: started().finish()))
        else:
            self.menu.add(Choice(title, names, start=lambda: started().entry(title)))

    def _copy(self) -> Grub:
        """Return a context that begins where this one is."""
        self.places.budget.step(1 + len(self.variables))
        inner = Grub.__new__(Grub)
        inner.places, inner.menu, inner.functions = self.places, Menu(), dict(self.functions)
        inner.arguments, inner.kernel, inner.line, inner.initrds, inner.other = [], None, "", [], ""
        inner.status, inner._depth, inner.variables = 0, self._depth + 1, dict(self.variables)
        return inner

    def finish(self) -> Menu:
        """Return the menu, with the defaults that the variables say."""
        default = self.value("default")
        if default == "saved":
            default = self.value("saved_entry")
        self.menu.defaults = [choice for choice in (default, *self.value("fallback").split()) if choice]
        if not self.menu.choices and (self.kernel or self.other):  # a script that starts something by itself
            self.menu.add(Choice("", start=lambda: self.entry("the configuration")))
        return self.menu

    def entry(self, title: str) -> Entry:
        """Return what the commands so far start. Raises BootError."""
        if self.kernel is not None:
            return Entry(title, self.kernel, tuple(self.initrds), self.line)
        if self.menu.choices:  # the entry is another configuration
            return self.finish().default()
        if self.other:
            raise BootError(f"{one_line(title)!r} starts {self.other}")
        raise BootError(f"{one_line(title)!r} has no kernel")

    def _load(self, arguments: list[str]) -> None:
        """Note a kernel and its command line, as GRUB passes it: what has spaces or quotes is quoted."""
        if not arguments:
            raise BootError("linux without a kernel")
        self.kernel = self.file(arguments[0])
        self.initrds = []
        words = [re.sub(r"([\\'\"])", r"\\\1", word) for word in arguments[1:]]
        words = [f'"{word}"' if " " in word else word for word in words]
        self.line = " ".join([f"BOOT_IMAGE={arguments[0]}", *words])
        if self.look(arguments[0]) is None:
            raise BootError(f"there is no {one_line(arguments[0])}")


def _options(arguments: list[str]) -> tuple[str, tuple[str, ...], list[str]]:
    """Return title, id and the arguments for its block out of those of menuentry."""
    rest: list[str] = []
    names: tuple[str, ...] = ()
    left = list(arguments)[::-1]
    while left:
        word = left.pop()
        if word in ("--class", "--users", "--hotkey", "--source", "--id"):
            value = left.pop() if left else ""
            names = (value,) if word == "--id" else names
        elif word.startswith("--id="):
            names = (word[5:],)
        elif not word.startswith("--"):
            rest.append(word)
    return (rest[0] if rest else ""), names, rest[1:]


def read(places: Places, place: Place, path: str) -> Menu:
    """Return the menu of a configuration file. Raises BootError."""
    grub = Grub(places, place, posixpath.dirname(path))
    with suppress(Return):
        grub.run_file(path)
    return grub.finish()
