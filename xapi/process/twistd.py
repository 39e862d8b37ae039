"""The daemon as a twistd plugin: `twistd --nodaemon xapi [options]`, with the options of the command `xapi`.

It runs on the same reactor as the command, logs as its --log options say (to twistd's --logfile if that is given, or
to twistd.log when twistd leaves the terminal), and ends with status 1 and one line when it cannot start. All of it
begins after twistd has become a daemon: neither locks nor threads go over to a child.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver
from twisted.python import usage
from zope.interface import implementer

from xapi.process import config
from xapi.process.config import Config
from xapi.process.program import REFUSALS, load, reason
from xapi.process.reactor import install


class Options(usage.Options):
    """Hand the whole command line to `xapi.process.config`, so that there is one set of options."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the options, and install our reactor. Raises usage.UsageError for settings that make no sense."""
        if self.parent is not None and "nodaemon" not in self.parent:
            raise usage.UsageError("twist has chosen its reactor and its log already: use twistd, or the command xapi")
        try:
            self["config"] = config.from_command_line(list(options or []))
        except config.ConfigError as error:
            raise usage.UsageError(str(error)) from error
        install()  # twistd asks for one after this; one that its --reactor has chosen stays


def makeService(options: Options) -> IService:
    """Return the daemon as twistd's service."""
    return Launcher(options["config"], options.parent or {})


class Launcher(MultiService):
    """Makes the daemon when twistd starts its services, and ends twistd when it cannot run."""

    def __init__(self, config: Config, twistd: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._config = config
        self._twistd = twistd
        self._log = _Later()
        self._problem = ""

    def setServiceParent(self, parent: Any) -> None:
        """Have twistd log by us, unless it was told another logger."""
        if not (self._twistd["logger"] or self._twistd["syslog"]):
            parent.setComponent(ILogObserver, self._log)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        """Load the daemon and let it run."""
        from twisted.internet import reactor

        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # twistd has made them part of the log
        atexit.register(self._leave)  # so early that what others have registered is called before
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._log.begin(self._config, self._file())
            service = load(self._config, reactor)
        except REFUSALS as error:
            if not self._twistd["nodaemon"]:
                raise  # twistd has its parent tell
            self._refused(error)
            return
        service.ready.addErrback(lambda failure: self._refused(failure.value))
        service.setServiceParent(self)  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[object]:
        """End the daemon; its log is written then, for twistd may end the process by a signal."""
        ended: Deferred[object] = super().stopService()  # type: ignore[no-untyped-call]
        return ended.addCallback(self._log.flush)

    def _file(self) -> Path | None:
        """Return the log's file, None for standard error."""
        if self._config.log_file is not None:
            return self._config.log_file
        named = self._twistd["logfile"] or ("-" if self._twistd["nodaemon"] else "twistd.log")
        return None if named == "-" else Path(named).absolute()

    def _refused(self, error: object) -> None:
        from twisted.internet import reactor

        self._problem = reason(error)
        reactor.callWhenRunning(reactor.stop)

    def _leave(self) -> None:
        """Say why it could not start, and give the process the status that twistd has no way to give it."""
        if self._problem:
            print(f"xapi: {self._problem}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(1)


@implementer(ILogObserver)
class _Later:
    """A log that begins later: it keeps what is said before."""

    def __init__(self) -> None:
        self._kept: deque[Mapping[str, object]] = deque(maxlen=1000)
        self._begun: Any = None

    def __call__(self, event: Mapping[str, object]) -> None:
        """Log an event of Twisted's."""
        (self._begun or self._kept.append)(event)

    def begin(self, config: Config, file: Path | None) -> None:
        """Open the log and say what was kept. Raises LogError."""
        from xapi.log import output

        self._begun = output.open_log(config.log_level, config.log_format, file)
        while self._kept:
            self._begun(self._kept.popleft())

    def flush(self, result: object) -> object:
        """Write what has been said."""
        if self._begun is not None:
            self._begun.writer.flush()
        return result
