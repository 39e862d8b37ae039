"""The daemon as a program: its log, signals and exit status around the service."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from twisted.internet.error import CannotListenError

from xapi.access.directory import DirectoryError
from xapi.datamodel import SchemaError
from xapi.datamodel.errors import Fault
from xapi.inventory.declaration import DeclarationError
from xapi.log import output
from xapi.log.files import LogError
from xapi.process.config import IN_MEMORY, Config, ConfigError
from xapi.process.reactor import install
from xapi.process.readiness import Readiness
from xapi.process.state import StateError
from xapi.store.kind import DatabaseError

if TYPE_CHECKING:
    from xapi.process.service import XapiService

REFUSALS = (
    ConfigError, LogError, StateError, DatabaseError, DeclarationError, DirectoryError, SchemaError, CannotListenError,
)  # fmt: skip
"""What a daemon that cannot run says in one line."""


def run(config: Config) -> int:
    """Run the daemon until it is told to stop; return 0 after a clean end, 1 when it could not start."""
    install()
    from twisted.internet import reactor

    problems: list[str] = []
    try:
        output.start(config.log_level, config.log_format, config.log_file)
        service = load(config, reactor)
    except REFUSALS as error:
        print(f"xapi: {error}", file=sys.stderr)
        return 1

    def refused(failure: object) -> None:
        problems.append(reason(getattr(failure, "value", failure)))
        reactor.stop()

    service.ready.addErrback(refused)
    reactor.addSystemEventTrigger("before", "shutdown", _told_to_stop)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.callWhenRunning(service.startService)
    reactor.run()
    for problem in problems:
        print(f"xapi: {problem}", file=sys.stderr)
    return 1 if problems else 0


def load(config: Config, reactor: Any) -> XapiService:
    """Return the process's daemon, which tells those who wait when it serves. Raises one of `REFUSALS`.

    The state directory of an ephemeral one goes when it has ended, or when the process does without a start.
    """
    directory = None
    if config.ephemeral:
        directory = TemporaryDirectory(prefix="kronos-", ignore_cleanup_errors=True)
        config = replace(config, state=Path(directory.name), database=IN_MEMORY)
    from xapi.process.service import make_service

    say = partial(print, flush=True)
    readiness = Readiness(config, reactor, say)
    service = make_service(config, reactor, say)
    if directory is not None:
        service.afterwards.callback(directory.cleanup)
    readiness.setServiceParent(service)  # type: ignore[no-untyped-call]

    def serves(addresses: list[str]) -> list[str]:
        readiness.serves(addresses, config.socket)
        return addresses

    service.ready.addCallback(serves)
    return service


def reason(error: object) -> str:
    """Return in one line why the daemon could not start."""
    known = isinstance(error, (*REFUSALS, Fault, OSError))
    return str(error) if known else f"{type(error).__name__}: {error}"


def _told_to_stop() -> None:
    """Let no second request disturb a clean end, but a second Ctrl-C end it at once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
