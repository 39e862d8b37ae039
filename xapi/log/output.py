"""The process's log: where everything that is said comes together.

`start` takes what our modules and Twisted say by `twisted.logger`, and what the hypervisor and libraries say by
`logging`; calls, which are many, come by `put`. Lines are formatted and written by `xapi.log.writer`, on its thread.

Why not a logging library more: Twisted reports failures by its logger in any case, so it has to be heard, and a second
one would only stand beside it. Measured a line of eight fields, on the thread that says it: structlog writing JSON
8.2 µs, `logging` 9.9 µs, Twisted's observers 28 to 31 µs; into a queue: structlog 2.8 µs, Twisted 4.0 µs, `logging`
13 µs, and the tuple that `put` takes 0.3 µs. So what is said now and then goes through `twisted.logger`, whose names
are everywhere, and what every call says is a tuple.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from xapi.log.files import Descriptor, LogError, RotatedFile, Sink
from xapi.log.lines import CRITICAL, DEBUG, ERROR, FORMAT, INFO, LEVELS, WARN, Render, Said
from xapi.log.writer import Stream, Writer

Excepted = Callable[[type[BaseException], BaseException, "TracebackType | None"], object]
"""What Python calls with what ends a process: see `sys.excepthook`."""
OURS = ("xapi", "hypervisor", "__main__")
"""Whose information is the operator's; what others say is noise unless it is a warning."""
_OF_TWISTED = {
    LogLevel.debug: DEBUG,
    LogLevel.info: INFO,
    LogLevel.warn: WARN,
    LogLevel.error: ERROR,
    LogLevel.critical: CRITICAL,
}


@implementer(ILogObserver)
class Log:
    """A log from a level on; called with Twisted's events, it is an observer of them."""

    def __init__(self, level: str, form: str, sink: Sink, seconds: Callable[[], float]) -> None:
        self.level = LEVELS[level]
        self._stream = Stream("the log", FORMAT[form], sink)
        self.writer = Writer(self._stream, seconds)

    def put(self, seconds: float, level: int, name: str, render: Render, values: tuple[object, ...]) -> None:
        """Write a line: what `render` makes of `values` on the writer's thread. From any thread."""
        if level >= self.level:
            self.writer.put(self._stream, (seconds, level, name, render, values))

    def __call__(self, event: dict[str, Any]) -> None:
        """Write what was said by `twisted.logger`; its failures are errors."""
        failure = event.get("log_failure")
        level = _OF_TWISTED.get(event.get("log_level", LogLevel.info), INFO)
        if failure is not None:
            level = min(level, ERROR)
        name = event.get("log_namespace", "")
        if level < WARN and not name.startswith(OURS):
            level = DEBUG
        if level >= self.level:
            known = {
                key: value if type(value) in _PLAIN else str(value)
                for key, value in event.items()
                if not key.startswith("log_") and key not in _LEGACY
            }
            self.put(event["log_time"], level, name, self._said, (formatEvent(event), known, failure))

    def record(self, record: logging.LogRecord) -> None:
        """Write what was said by `logging`."""
        level = record.levelno // 10 * 10
        if level < WARN and not record.name.startswith(OURS):
            level = DEBUG
        if level >= self.level:
            failure: Failure | None = None
            if record.exc_info is not None and record.exc_info[1] is not None:
                failure = Failure(record.exc_info[1])
            known: Mapping[str, object] = {}
            values = (record.getMessage(), known, failure)
            self.put(record.created, max(level, DEBUG), record.name, self._said, values)

    def _said(self, sentence: str, known: Mapping[str, object], failure: Failure | None) -> Said:
        if failure is None:
            return sentence, known
        traceback = failure.getTraceback().rstrip()
        return f"{sentence}\n{traceback}", {**known, "message": sentence, "traceback": traceback}

    def close(self) -> None:
        """Write what is queued, and end."""
        self.writer.close()


_PLAIN = frozenset({int, float, bool, type(None)})
_LEGACY = frozenset({"message", "time", "format", "system", "isError", "failure", "why", "logLevel", "printed"})


class _Bridge(logging.Handler):
    """Hand what is said by `logging` to a log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.record(record)
        except Exception:
            self.handleError(record)


def open_log(level: str = "info", form: str = "text", file: Path | None = None) -> Log:
    """Return the process's log, which hears `logging` from now on and is an observer of `twisted.logger`'s events.

    It goes to standard error, or to a file that is rotated. Raises LogError for a file that cannot be written.
    """
    log = Log(level, form, _sink(file), _now)
    bridge = _Bridge(log)
    root, ours = logging.getLogger(), logging.getLogger("hypervisor")
    root.addHandler(bridge)
    root.setLevel(DEBUG if log.level <= DEBUG else WARN)
    ours.setLevel(log.level)
    threading.excepthook = partial(_thread_failed, log)
    sys.excepthook = partial(_failed, log, sys.excepthook)
    os.register_at_fork(after_in_child=log.writer.forget)
    atexit.register(log.close)
    _open.append(log)
    return log


_open: list[Log] = []


def current() -> Log | None:
    """Return the process's log, if it has been opened."""
    return _open[-1] if _open else None


def _sink(file: Path | None) -> Sink:
    if file is None:
        faulthandler.enable(2)
        return Descriptor(2)
    try:
        return RotatedFile(file, crashes=True)
    except OSError as error:
        raise LogError(f"log file {file}: {error.strerror}") from error


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _thread_failed(log: Log, failed: threading.ExceptHookArgs) -> None:
    """Write what ended a thread."""
    if failed.exc_value is not None:
        name = "a thread" if failed.thread is None else f"thread {failed.thread.name}"
        log.put(_now(), ERROR, __name__, log._said, (f"{name} has ended", {}, Failure(failed.exc_value)))


def _failed(
    log: Log, otherwise: Excepted, kind: type[BaseException], error: BaseException, at: TracebackType | None
) -> None:
    """Write what ends the process, and say it where it is said without a log."""
    log.put(_now(), CRITICAL, __name__, log._said, ("the process ends", {}, Failure(error, kind, at)))
    log.writer.flush()
    otherwise(kind, error, at)


def start(level: str = "info", form: str = "text", file: Path | None = None) -> Log:
    """Send all that is said in this process from a level on to standard error, or to a file. Raises LogError."""
    log = open_log(level, form, file)
    globalLogBeginner.beginLoggingTo([log], redirectStandardIO=False)
    return log
