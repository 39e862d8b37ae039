"""A host whose file system fails, or whose process dies, at the n-th change that it is asked for."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from hypervisor.disks import image_file


class Killed(BaseException):
    """The process is gone: nothing that it does from now on has an effect."""


class FailingHost:
    """Counts what changes the file system; syncing is counted, not done."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fds: set[int] = set()
        self.calls = 0
        self.fail_at = 0  # 0: never
        self.error: int | None = None  # None: the process is killed
        self.die_at = 0  # never
        self.dead = False
        for name in ("link", "rename", "unlink", "pwrite", "write", "ftruncate", "mkdir", "rmdir"):
            patch.setattr(os, name, self._changing(getattr(os, name)))
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, self._changing(lambda fd: None))
        patch.setattr(image_file._libc, "fallocate", self._changing(image_file._libc.fallocate))
        self._open, self._close = os.open, os.close
        patch.setattr(os, "open", self._opening)
        patch.setattr(os, "close", self._closing)

    def _count(self) -> None:
        if self.dead:
            raise Killed
        self.calls += 1
        if self.calls == self.die_at:
            self.dead = True
            raise Killed
        if self.calls == self.fail_at:
            if self.error is None:
                self.dead = True
                raise Killed
            raise OSError(self.error, os.strerror(self.error))

    def _changing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._count()
            return call(*arguments, **named)

        return counted

    def _opening(self, path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & (os.O_CREAT | os.O_TRUNC):
            self._count()
        fd = self._open(path, flags, *arguments, **named)
        self.fds.add(fd)
        return fd

    def _closing(self, fd: int) -> None:
        self.fds.discard(fd)
        self._close(fd)

    @contextmanager
    def failing(self, at: int, error: int | None = None, die_at: int = 0) -> Iterator[None]:
        """Fail at the `at`-th change from here on: with an errno, once, or by the death of the process.

        `die_at`: let the process that was told of an error die at a later change.
        """
        self.calls, self.fail_at, self.error, self.die_at = 0, at, error, die_at
        try:
            with suppress(Killed):
                yield
        finally:
            self.fail_at = self.die_at = 0

    def restart(self) -> None:
        """Let the kernel close all that the dead process had open, and go on as another."""
        for fd in list(self.fds):
            with suppress(OSError):
                self._closing(fd)
        self.dead = False


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingHost]:
    """A host that does not fail yet."""
    host = FailingHost(monkeypatch)
    yield host
    host.restart()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a file system in memory, where there is one: these tests make thousands of files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield Path(path)


FULL = errno.ENOSPC
BROKEN = errno.EIO
