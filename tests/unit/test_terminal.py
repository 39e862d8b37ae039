"""The console on a terminal, with pipes for the terminal and a console that the test plays."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hypervisor.command.terminal import ESCAPE, End, Terminal

MIB = 1 << 20
SECONDS = 30


class FakeConsole:
    """Takes `room` bytes at a time, and keeps them."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.domain = SimpleNamespace(host=SimpleNamespace(lock=threading.RLock()))
        self.history = bytearray(b"before ")
        self.typed = bytearray()
        self.listeners: list[Callable[[bytes], None]] = []
        self.followed = threading.Event()
        self.full = threading.Event()
        """Twelve bytes were typed."""
        self._room = room

    def listen(self, heard: Callable[[bytes], None]) -> None:
        self.listeners.append(heard)
        self.followed.set()

    def unlisten(self, heard: Callable[[bytes], None]) -> None:
        self.listeners.remove(heard)

    def write(self, data: bytes) -> int:
        self.typed += data[: self._room]
        if len(self.typed) >= 12:
            self.full.set()
        return min(self._room, len(data))


class Joined:
    """A terminal that runs on a thread; `keyboard` and `screen` are the far ends of its pipes."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.source, self.keyboard = os.pipe()
        self.screen, self.target = os.pipe()
        self.console = FakeConsole(room)
        self.terminal = Terminal(self.source, self.target)
        self.end: End | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> Joined:
        self._thread.start()
        return self

    def _run(self) -> None:
        self.end = self.terminal.run(cast(Any, self.console) if self.console else None)

    def ended(self) -> End | None:
        self._thread.join(SECONDS)
        return self.end

    def read(self) -> bytes:
        """Return all that was shown, when the terminal is closed."""
        os.close(self.target)
        self.target = -1
        with open(self.screen, "rb", closefd=False) as screen:
            return screen.read()

    def close(self) -> None:
        self.terminal.down()
        self.ended()
        self.terminal.close()
        for file in (self.source, self.keyboard, self.screen, self.target):
            if file >= 0:
                os.close(file)


@pytest.fixture
def joined() -> Iterator[Joined]:
    made = Joined()
    yield made
    made.close()


def test_what_was_printed_before_is_shown_first(joined: Joined) -> None:
    """Then what comes, to the last byte before the end."""
    joined.start()
    assert joined.console.followed.wait(SECONDS)
    joined.console.listeners[0](b"and after")
    joined.terminal.down()
    assert joined.ended() is End.DOWN and joined.read() == b"before and after"
    assert not joined.console.listeners


def test_typing_waits_for_room() -> None:
    """A guest that takes three bytes at a time gets all, in order."""
    joined = Joined(room=3).start()
    os.write(joined.keyboard, b"twelve bytes")
    assert joined.console.full.wait(SECONDS)
    assert joined.console.typed == b"twelve bytes"
    joined.close()


def test_the_escape_leaves(joined: Joined) -> None:
    """Nothing of what was typed with it reaches the guest."""
    joined.start()
    os.write(joined.keyboard, b"x" + ESCAPE)
    assert joined.ended() is End.LEFT and not joined.console.typed


def test_a_reader_that_went_ends_it(joined: Joined) -> None:
    """The next output finds nobody."""
    os.close(joined.screen)
    joined.screen = -1
    joined.start()
    assert joined.ended() is End.CLOSED


def test_a_terminal_that_does_not_read_holds_nobody(joined: Joined) -> None:
    """Output returns at once; of too much the newest is kept, and that some is missing is said."""
    for number in range(10):
        joined.terminal.show(b"%d" % number * MIB)
    joined.terminal.show(b"the last")
    joined.start()
    joined.terminal.down()
    shown = b""
    while not shown.endswith(b"before "):
        shown += os.read(joined.screen, MIB)
    assert joined.ended() is End.DOWN
    assert shown.startswith(b"\r\n[6291471 bytes of output were lost]\r\n66666") and shown.endswith(b"the lastbefore ")
    assert len(shown) == 4 * MIB + len(b"\r\n[6291471 bytes of output were lost]\r\n")


def test_without_a_console_it_waits_for_the_end() -> None:
    """Nothing is read or written."""
    joined = Joined()
    console, joined.console = joined.console, cast(Any, None)
    joined.start()
    os.write(joined.keyboard, ESCAPE)
    joined.terminal.down()
    assert joined.ended() is End.DOWN and not console.typed and joined.read() == b""
    joined.close()
