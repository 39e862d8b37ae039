"""Plugins and extensions of hosts: programs of the administrator's, run apart from the daemon.

A plugin is an executable file of the plugin directory. It gets an XML-RPC call as its one argument, of the function's
name, the caller's session and a struct of strings, and prints an XML-RPC answer: the protocol of XCP's
XenAPIPlugin.py, of which there is one in `xapi/plugin_modules` on its path; XAPI_SOCKET names the daemon's socket. An
extension is one of the extension directory; it gets any call on standard input.

Each runs in a process group of its own, which is killed when it takes too long, prints too much, or its call is
cancelled.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.wire import xmlrpc
from xapi.wire.xmlrpc import AnswerError, AnswerFault

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

OUTPUT = 4 << 20
"""Bytes that a plugin may print."""
_KEPT = 64 << 10
"""Bytes of its standard error that are kept, and of either that an error tells."""
_GRACE = 1.0
"""Seconds for which what a program left running in the background may hold its output open."""
_MODULES = Path(__file__).parent.parent / "plugin_modules"
_LEADER = "import os,sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"
"""Makes a program the leader of a process group before it begins."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended. `why` is empty for exit status 0."""

    why: str
    stdout: bytes
    stderr: bytes


Run = Callable[[Path, Sequence[str], bytes], Awaitable[Finished]]
"""Runs a program with arguments and standard input to its end."""


class Plugins:
    """The programs of two directories."""

    def __init__(self, plugins: Path, extensions: Path, run: Run) -> None:
        self._plugins = plugins
        self._extensions = extensions
        self._run = run
        self.agent_calls: dict[str, float] = {}
        """When VM.call_plugin was last called for a VM."""

    async def call(self, name: str, function: str, session: str, arguments: Mapping[str, str]) -> str:
        """Return what a function of a plugin answers. Raises Fault."""
        path = _find(self._plugins, name)
        if path is None:
            raise errors.XENAPI_MISSING_PLUGIN(name)
        request = xmlrpc.call(function, [session, dict(arguments)])
        done = await self._run(_checked(path), [request.decode()], b"")
        if done.why:
            raise _failed(done.why, done)
        try:
            value = answer(done.stdout)
        except AnswerFault as fault:
            raise errors.XENAPI_PLUGIN_FAILURE("fault", fault.code, fault.text) from None
        except AnswerError as error:
            raise errors.XENAPI_PLUGIN_FAILURE(
                "failed to parse plugin output", _shown(done.stdout), str(error)
            ) from None
        if not isinstance(value, str):
            raise _failed("unexpected XMLRPC result", done)
        return value

    def has_extension(self, name: str) -> bool:
        """Tell whether there is an extension of a name."""
        return _find(self._extensions, name) is not None

    async def call_extension(self, method: str, parameters: Sequence[object]) -> Any:
        """Return what an extension answers. Raises Fault."""
        path = _find(self._extensions, method)
        if path is None:
            raise errors.MESSAGE_METHOD_UNKNOWN(method)
        done = await self._run(_checked(path), ["--xmlrpc"], xmlrpc.call(method, parameters))
        if done.why:
            raise Fault("INTERNAL_ERROR", path.name, done.why, _shown(done.stdout), _shown(done.stderr))
        try:
            return answer(done.stdout)
        except AnswerFault as fault:
            raise errors.EXTENSION_PROTOCOL_FAILURE(f"{fault.code}: {fault.text}") from None
        except AnswerError as error:
            text = "failed to parse extension output"
            raise Fault("INTERNAL_ERROR", path.name, text, _shown(done.stdout), str(error)) from None


def _find(directory: Path, name: str) -> Path | None:
    """Return a file of a directory, by a name that is nothing but a name."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        return None
    path = directory / name
    return path if os.path.lexists(path) else None


def _checked(path: Path) -> Path:
    """Return a program that can be run. Raises PERMISSION_DENIED."""
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        is_file = False
    if not is_file or not os.access(path, os.X_OK):
        raise errors.PERMISSION_DENIED(f"{path.name} cannot be executed")
    return path


def answer(output: bytes) -> object:
    """Return the value of an answer. Raises Fault for an error of the API, AnswerFault, AnswerError."""
    said = xmlrpc.parse_answer(output)
    if isinstance(said, dict):
        if said.get("Status") == "Success" and "Value" in said:
            return said["Value"]
        description = said.get("ErrorDescription")
        if isinstance(description, list) and description and said.get("Status") == "Failure":
            raise Fault(*map(str, description))
    raise AnswerError("neither Success nor Failure")


def _failed(why: str, done: Finished) -> Fault:
    return errors.XENAPI_PLUGIN_FAILURE(why, _shown(done.stdout), _shown(done.stderr))


def _shown(output: bytes) -> str:
    """Return output as text that every encoding of the API can carry."""
    text = output[:_KEPT].decode("utf-8", "replace")
    return "".join(
        character if character >= " " or character in "\t\n\r" else "\N{REPLACEMENT CHARACTER}" for character in text
    )


# Processes


class Runner:
    """Runs programs as children of the reactor's process."""

    def __init__(self, reactor: Any, socket: Path, seconds: float) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self._running: set[_Watched] = set()
        path = os.environ.get("PATH", os.defpath)
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(_MODULES),
            "XAPI_SOCKET": str(socket),
        }

    async def run(self, path: Path, arguments: Sequence[str], sent: bytes) -> Finished:
        """Run a program to its end; who is cancelled has it killed."""
        watched = _Watched(self._reactor, self._seconds, sent)
        command = [sys.executable, "-I", "-S", "-c", _LEADER, str(path), *arguments]
        encoded = [each.encode("utf-8", "replace").replace(b"\0", b"?") for each in command]
        self._reactor.spawnProcess(watched, sys.executable, encoded, env=self._environment, path="/")
        self._running.add(watched)
        try:
            return await watched.finished
        finally:
            self._running.discard(watched)

    def stop(self) -> None:
        """Kill all that runs."""
        for watched in list(self._running):
            watched.end("the daemon stops")


class _Watched(ProcessProtocol):
    """A program that runs: what it has printed, and how long it still may."""

    def __init__(self, clock: IReactorTime, seconds: float, sent: bytes) -> None:
        self.finished: Deferred[Finished] = Deferred(self._cancelled)
        self._clock = clock
        self._sent = sent
        self._stdout, self._stderr = bytearray(), bytearray()
        self._why = ""
        self._timers = [clock.callLater(seconds, self.end, "time limit exceeded")]

    def connectionMade(self) -> None:
        self.transport.write(self._sent)  # type: ignore[union-attr]
        self.transport.closeStdin()  # type: ignore[union-attr]

    def outReceived(self, data: bytes) -> None:
        self._stdout += data
        if len(self._stdout) > OUTPUT:
            self.end("output limit exceeded")

    def errReceived(self, data: bytes) -> None:
        self._stderr += data[: _KEPT - len(self._stderr)]

    def _cancelled(self, _: object) -> None:
        self.end("cancelled")

    def end(self, why: str) -> None:
        """Kill the program and all that it has begun."""
        self._why = self._why or why
        pid = self.transport.pid  # type: ignore[union-attr]
        if pid is not None:
            for kill in (os.killpg, os.kill):  # at its very beginning it leads no group yet
                with suppress(ProcessLookupError, PermissionError):
                    kill(pid, signal.SIGKILL)
        self.transport.loseConnection()  # type: ignore[union-attr]

    def processExited(self, reason: Failure) -> None:
        self._timers.append(self._clock.callLater(_GRACE, self.transport.loseConnection))  # type: ignore[union-attr]

    def processEnded(self, reason: Failure) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        status = reason.value
        if not self._why and (ended_by := getattr(status, "signal", None)) is not None:
            self._why = f"signal: {signal.Signals(ended_by).name}"
        elif not self._why and getattr(status, "exitCode", None):
            self._why = "non-zero exit"
        if not self.finished.called:
            self.finished.callback(Finished(self._why, bytes(self._stdout), bytes(self._stderr)))
