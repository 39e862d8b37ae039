"""A guest's console on the terminal: what it prints goes to standard output, what is typed to the guest.

The guest's output is kept until the terminal takes it, the newest of it when that is slow: nothing here makes the
guest, or anybody who wants the host's lock, wait for a terminal.
"""

from __future__ import annotations

import os
import select
import termios
import threading
import tty
from contextlib import ExitStack, suppress
from enum import Enum

from hypervisor.split.console import Console

ESCAPE = b"\x1d"
"""Ctrl-]: leave."""
_KEPT = 4 << 20
"""Bytes of output that may wait for the terminal."""
_AT_ONCE = 4096
"""Bytes written at a time: as many as a pipe that has room takes without blocking (PIPE_BUF)."""


class End(Enum):
    """Why `Terminal.run` returned."""

    DOWN = "down"
    LEFT = "left"
    CLOSED = "closed"
    """Nobody reads the output any more."""


class Terminal:
    """Two file descriptors joined to a guest; `source` may be None, for a guest that nobody types to."""

    def __init__(self, source: int | None, target: int) -> None:
        self._source = source
        self._target = target
        self._output = bytearray()
        self._lost = 0
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self._down = False

    def close(self) -> None:
        """Close what was opened here."""
        os.close(self._wake_read)
        os.close(self._wake_write)

    def up(self) -> None:
        """Begin anew, for a guest that is about to run."""
        self._down = False

    def down(self) -> None:
        """Hear, from any thread, that the guest is down."""
        self._down = True
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # it is full of calls that were not heard yet
            os.write(self._wake_write, b"x")

    def show(self, data: bytes) -> None:
        """Take output, from any thread, without waiting."""
        with self._lock:
            waited = bool(self._output)
            self._output += data
            excess = len(self._output) - _KEPT
            if excess > 0:
                del self._output[:excess]
                self._lost += excess
        if not waited:
            self._wake()

    def run(self, console: Console | None) -> End:
        """Join the console until the guest is down, Ctrl-] is typed, or the output is closed; None only waits."""
        if console is None:
            while not self._down:
                select.select([self._wake_read], [], [])
                os.read(self._wake_read, _AT_ONCE)
            return End.DOWN
        with ExitStack() as undo:
            if self._source is not None and os.isatty(self._source):
                before = termios.tcgetattr(self._source)
                tty.setraw(self._source)
                undo.callback(termios.tcsetattr, self._source, termios.TCSADRAIN, before)
            with console.domain.host.lock:
                if console.history:
                    self.show(bytes(console.history))
                console.listen(self.show)
            undo.callback(console.unlisten, self.show)
            try:
                return self._join(console)
            except (BrokenPipeError, ConnectionResetError):
                return End.CLOSED

    def _join(self, console: Console) -> End:
        sources = [self._wake_read] if self._source is None else [self._wake_read, self._source]
        typed = b""
        while True:
            if self._down and not self._output:
                return End.DOWN
            # Typing that the guest has no room for waits, and so does what is typed after it.
            readable = [source for source in sources if source == self._wake_read or not typed]
            wait = 0.05 if typed else None
            ready, writable, _ = select.select(readable, [self._target] if self._output else [], [], wait)
            if self._wake_read in ready:
                os.read(self._wake_read, _AT_ONCE)
            if writable:
                self._write()
            if self._source in ready and self._source is not None:
                data = self._read(self._source)
                if not data:  # the end of the input: go on showing what the guest does
                    sources.remove(self._source)
                if ESCAPE in data:
                    return End.LEFT
                typed += data
            if typed:
                typed = typed[console.write(typed) :]

    def _read(self, source: int) -> bytes:
        try:
            return os.read(source, _AT_ONCE)
        except OSError:  # a terminal that was hung up
            return b""

    def _write(self) -> None:
        with self._lock:
            data = bytes(self._output[:_AT_ONCE])
            del self._output[: len(data)]
            if self._lost:
                data = b"\r\n[%d bytes of output were lost]\r\n%b" % (self._lost, data)
                self._lost = 0
        written = os.write(self._target, data)
        with self._lock:
            self._output[:0] = data[written:]
