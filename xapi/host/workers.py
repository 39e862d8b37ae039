"""Where a host's worker is reached, which is started where nobody answers."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

log = Logger()

NOT_FOR_IT = frozenset({"XAPI_ROOT_PASSWORD", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})
"""What is said to this process in its environment, and to no other."""
TRY = 5
"""Seconds that a socket may take to be opened."""


class NotStarted(Exception):
    """A worker has ended before it served."""


def socket_of(directory: Path) -> Path:
    """Return the path of a worker's socket."""
    return directory / "socket"


def lock_of(socket: Path) -> Path:
    """Return the path of what a worker has locked while it serves at a socket; its process's id is in it."""
    return socket.with_name(f"{socket.name}.lock")


def server_of(directory: Path) -> str:
    """Return the id of the process that serves in a worker's directory, "" where none does. Raises OSError."""
    try:
        with lock_of(socket_of(directory)).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().strip() or "unknown"
    except FileNotFoundError:
        pass
    return ""


@implementer(IStreamClientEndpoint)
class WorkerEndpoint:
    """The worker of one host: its socket, lock and logs are in a directory; `options` are those of `xapi-host`."""

    def __init__(self, reactor: Any, directory: Path, options: Sequence[str]) -> None:
        self._reactor = reactor
        self._directory = directory
        self._options = options
        self._socket = socket_of(directory)
        self._started: _Started | None = None

    def __str__(self) -> str:
        return str(self._socket)

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect to the worker that there is, or to a new one. Fails with NotStarted or ConnectError."""
        return Deferred.fromCoroutine(self._connect(factory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        endpoint = UNIXClientEndpoint(self._reactor, str(self._socket), timeout=TRY)
        try:
            protocol: IProtocol = await endpoint.connect(factory)
        except ConnectError:
            await self._start()
            protocol = await endpoint.connect(factory)
        return protocol

    async def ended(self) -> None:
        """Wait until a worker has ended that was started here."""
        if self._started is not None:
            await self._started.ended

    async def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        output = self._directory / "output"
        command = [sys.executable, "-m", "xapi.host.worker", "--socket", str(self._socket)]
        command += ["--log-file", str(self._directory / "log"), *self._options]
        self._started = started = _Started(output)
        environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_IT}
        with output.open("wb") as errors, open(os.devnull, "rb") as nothing:
            files = {0: nothing.fileno(), 1: "r", 2: errors.fileno()}
            self._reactor.spawnProcess(started, command[0], command, env=environment, childFDs=files)
        await started.ready


class _Started(ProcessProtocol):
    """A worker that was started here; it may outlive this process."""

    def __init__(self, output: Path) -> None:
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self._output = output

    def outReceived(self, data: bytes) -> None:
        """Hear that it serves."""
        if not self.ready.called:
            self.ready.callback(None)

    def processEnded(self, reason: Failure) -> None:
        """Hear that it has ended."""
        said = self._output.read_text("utf-8", "replace").strip().splitlines()[-1:]
        why = " ".join([reason.getErrorMessage(), *said])
        self.ended.callback(None)
        if self.ready.called:
            log.warn("a host's worker has ended: {why}", why=why)
        else:
            self.ready.errback(NotStarted(why))
