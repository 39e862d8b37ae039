"""Telling those who wait that the daemon serves: a line on standard output, a descriptor, a file, and systemd.

The line is ``Ready: `` and the addresses that are served, at every log level; the file and the descriptor get one line
of JSON: ``url`` and ``https_url`` (an empty text where there is none), ``socket``, ``addresses``, ``pid``, ``version``.
An address of every interface is told as the loopback's, so that a client can connect to it.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall

from xapi.process.config import Config, ConfigError, version

_EVERYWHERE = {"//0.0.0.0:": "//127.0.0.1:", "//[::]:": "//[::1]:"}


class Systemd:
    """The service manager behind NOTIFY_SOCKET, or nobody (sd_notify(3))."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = environment.get("WATCHDOG_USEC", "")
        self.watchdog = int(watched) / 1e6 if ours and self._address and watched.isdecimal() else 0.0
        """Seconds within which it wants to hear that we live; 0 for never."""

    def tell(self, *lines: str) -> None:
        """Send assignments such as ``READY=1``; a manager that does not listen is no error of ours."""
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as wire:
                wire.sendto("\n".join(lines).encode(), self._address)


class Readiness(Service):
    """Tells that the daemon begins, serves, lives and ends. `say` prints a line.

    Raises ConfigError for a descriptor or a file that cannot be written to.
    """

    def __init__(
        self, config: Config, reactor: Any, say: Callable[[str], None], environment: Mapping[str, str] = os.environ
    ) -> None:
        self._fd, self._file, self._say = config.ready_fd, config.ready_file, say
        self._systemd = Systemd(environment)
        self._told = False
        self._alive = LoopingCall(self._systemd.tell, "WATCHDOG=1")
        self._alive.clock = reactor
        if self._fd is not None:
            try:
                os.write(self._fd, b"")
            except OSError as error:
                raise ConfigError(f"ready_fd {self._fd}: {error.strerror}") from error
        if self._file is not None:
            try:
                self._file.unlink(missing_ok=True)  # what an earlier daemon has left
                _write(self._file, b"")
                self._file.unlink()
            except OSError as error:
                raise ConfigError(f"{self._file}: {error.strerror}") from error
        self._systemd.tell("STATUS=Starting")

    def serves(self, addresses: Sequence[str], path: Path) -> None:
        """Tell that all addresses are served, and of the socket of local root at a path. Raises OSError."""
        line = json.dumps(told(addresses, path)).encode() + b"\n"
        if self._file is not None:
            _write(self._file, line)
            self._told = True
        if self._fd is not None:
            with suppress(BrokenPipeError):  # who wanted to know has gone
                os.write(self._fd, line)
            if self._fd > 2:
                os.close(self._fd)
        with suppress(OSError):
            self._say(f"Ready: {' '.join(addresses)}")
        self._systemd.tell("READY=1", f"STATUS=Serving {' '.join(addresses)}")
        if self._systemd.watchdog:
            self._alive.start(self._systemd.watchdog / 2)

    def stopService(self) -> None:
        """Tell that the daemon ends; the file goes."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._systemd.tell("STOPPING=1", "STATUS=Stopping")
        if self._alive.running:
            self._alive.stop()
        if self._told and self._file is not None:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)


def told(addresses: Sequence[str], path: Path) -> dict[str, object]:
    """Return what is told of a daemon that serves at addresses, and of local root's socket at a path."""
    reachable = [_reachable(address) for address in addresses]

    def first(scheme: str) -> str:
        return next((each.rstrip("/") for each in reachable if each.startswith(f"{scheme}://")), "")

    return {
        "url": first("http"),
        "https_url": first("https"),
        "socket": str(path),
        "addresses": list(addresses),
        "pid": os.getpid(),
        "version": version(),
    }


def _reachable(address: str) -> str:
    """Return an address that a client can connect to."""
    return re.sub("|".join(map(re.escape, _EVERYWHERE)), lambda match: _EVERYWHERE[match.group()], address)


def _write(path: Path, data: bytes) -> None:
    """Make a file that is there whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
