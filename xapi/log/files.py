"""Where lines end up: standard error, or a file that is rotated.

A file is rotated here when it is full: FILE.1 is the newest of the old ones. Who would rather have logrotate do it
needs no signal and no `copytruncate`: when the name has got another file, or none, it is opened anew.
"""

from __future__ import annotations

import faulthandler
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

BYTES, KEPT = 16 << 20, 5
"""A log file is rotated before it grows over so many bytes, and so many old ones are kept."""


class LogError(Exception):
    """A log or an audit trail cannot be written; the text is one line for people."""


class Sink(Protocol):
    """Take whole lines, on the writer's thread."""

    def write(self, data: bytes) -> None:
        """Write some lines, or raise OSError: then none of them, or the first of them, are written."""

    def close(self) -> None:
        """Write nothing any more."""


class Nowhere:
    """A sink for a process that keeps no log."""

    def write(self, data: bytes) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Do nothing."""


class Descriptor:
    """An open descriptor, such as standard error, that is not closed."""

    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, data: bytes) -> None:
        """Write some lines; blocks as long as the reader of a pipe does not read."""
        _write(self._number, data)

    def close(self) -> None:
        """Leave it open: it is not ours."""


class RotatedFile:
    """A file that only its owner can read, with up to `kept` old ones beside it.

    Raises OSError where it cannot be opened. With `crashes`, what Python says of a fatal signal goes there too.
    """

    def __init__(self, path: Path, size: int = BYTES, kept: int = KEPT, *, crashes: bool = False) -> None:
        self.path = path
        self._most, self._kept, self._crashes = size, kept, crashes
        self._torn = False
        self._open()

    def _open(self) -> None:
        self._number = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        known = os.fstat(self._number)
        self._identity, self._size = (known.st_dev, known.st_ino), known.st_size
        if self._crashes:
            faulthandler.enable(self._number)

    def write(self, data: bytes) -> None:
        """Write some lines, into a new file where they would make this one too large, or where it was moved."""
        if self._is_moved():
            self._reopen()
        elif self._size and self._size + len(data) > self._most:
            self._rotate()
        if self._torn:
            data = b"\n" + data
        before = self._size
        try:
            self._size += _write(self._number, data)
            self._torn = False
        except OSError:
            self._size = os.fstat(self._number).st_size
            self._torn = self._torn or self._size != before
            raise

    def _is_moved(self) -> bool:
        try:
            known = os.stat(self.path)
        except OSError:
            return True
        return (known.st_dev, known.st_ino) != self._identity

    def _rotate(self) -> None:
        for number in range(self._kept, 0, -1):
            newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            with suppress(FileNotFoundError):
                os.replace(newer, self.path.with_name(f"{self.path.name}.{number}"))
        self._reopen()

    def _reopen(self) -> None:
        old = self._number
        self._open()  # if it fails, the old one still is there
        os.close(old)
        self._torn = False

    def close(self) -> None:
        """Close the file."""
        if self._crashes:
            faulthandler.enable(2)
        os.close(self._number)


def _write(number: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]
    return len(data)
