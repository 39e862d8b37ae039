"""The daemon as a process: a row of services around `Daemon`, each standing on those before it.

`make_service` does all that can fail before anything listens, so that a daemon that cannot run says so in
one line and leaves everything as it was.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from xapi import datamodel
from xapi.access.directory import Directory
from xapi.access.passwords import verify_password
from xapi.host.machine import Site
from xapi.host.storage import LocalStorage
from xapi.host.threads import Threads
from xapi.hosts.plugins import Plugins, Runner
from xapi.inventory import declaration
from xapi.log.keeping import Keeping
from xapi.process import garbage
from xapi.process.config import IN_MEMORY, Config, ConfigError, version
from xapi.process.daemon import SWEEP, Daemon
from xapi.process.database import Reserve, Writing, first_inventory, stored
from xapi.process.hosts import Hosts, check_workers, make_backend, make_worker
from xapi.process.listeners import Connections, Listeners, endpoint_of
from xapi.process.stages import Doing, Stage, Stages, Timer
from xapi.process.state import State
from xapi.store.forgetful import Forgetful
from xapi.store.writer import Writer
from xapi.vms import lifecycle, metrics

T = TypeVar("T")
log = Logger()

RESERVE_EVERY = 10.0
THREADS = 8
SWITCH_INTERVAL = 0.0005
"""Seconds that another thread may keep the reactor's from Python; 5 ms, Python's own, is half a long turn."""


class XapiService(MultiService):
    """A whole daemon: what `make_service` has loaded, listening and writing while it runs.

    Children that are added to it start and end beside the daemon's own.
    """

    def __init__(self, daemon: Daemon, remains: Remains, stages: Stages, listeners: Listeners, alone: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.daemon = daemon
        self.remains = remains
        self._stages = stages
        self._listeners = listeners
        self._alone = alone
        self.afterwards = ExitStack()
        """What is to be done when all has ended."""
        self.ready: Deferred[list[str]] = Deferred()
        """Fires with the addresses when all of them are served; never, if the end comes first."""
        stages.setServiceParent(self)  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        """Start all stages, then say that the daemon serves, and start the VMs that start with it."""
        super().startService()  # type: ignore[no-untyped-call]
        self._stages.begun.addCallback(self._serves).addErrback(self._cannot_start)

    def _serves(self, _: None) -> None:
        self.remains.keep()
        log.info("Ready: {addresses}", addresses=" ".join(self._listeners.served))
        self.ready.callback(self._listeners.served)
        lifecycle.start_automatic(self.daemon.subsystems)

    def _cannot_start(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if self._alone:  # else who has started it hears of it
            log.critical("cannot start: {error}", error=failure.value)
        self.ready.errback(failure)

    def stopService(self) -> Deferred[None]:
        """Stop listening, let running work end, and write what is queued."""
        log.info("Stopping")
        ended: Deferred[object] = super().stopService()  # type: ignore[no-untyped-call]
        return ended.addCallback(lambda _: self.afterwards.close())


class Remains(Stage):
    """What stays of a daemon when it has ended: all, or nothing if it ends before it has served anybody."""

    def __init__(self, config: Config, state: State, writer: Writer | Forgetful, keeping: Keeping) -> None:
        self.state = state
        self.writer = writer
        self.keeping = keeping
        self._socket = config.socket
        self._served = False

    def keep(self) -> None:
        """Hear that the daemon serves. Raises StateError."""
        self._served = True
        self.state.keep()

    async def stop(self) -> None:
        """Close what was open longest."""
        self._socket.unlink(missing_ok=True)
        log.info("Stopped")
        self.keeping.close()
        if not self._served:
            self.writer.abandon()
        self.state.abandon()


def make_service(
    config: Config, reactor: Any, announce: Callable[[str], None] = print, *, alone: bool = True
) -> XapiService:
    """Return a daemon, loaded and ready to be started.

    `announce` tells people of a password that was invented. `alone` is whether the process is the daemon's, which then
    sets up Python's collector and the process's limits. Raises ConfigError, LogError, StateError,
    DatabaseError, DeclarationError, DirectoryError, SchemaError.
    """
    for endpoint in (*config.listen, *config.tls):
        endpoint_of(endpoint, reactor)
    check_workers(config)
    declared = declaration.read_declaration(config.inventory) if config.inventory else declaration.Declaration()
    directory = Directory(config.directory) if config.directory else None
    state = State(config.state)
    with ExitStack() as undo:
        undo.callback(state.abandon)
        given = _given_password(config)
        model = datamodel.load()
        if alone:
            garbage.hold()
        writer, store = stored(config, model, reactor, state, undo)
        growth = first_inventory(store, config, declared, reactor)
        passwords, invented = state.passwords(given)
        if given is not None and not verify_password(given, passwords.stored("root")):
            log.warn(
                "the given password of root is ignored: {directory} has another one already. Change it by "
                "session.change_password, or remove passwords.json there before a start",
                directory=config.state,
            )
        pool = ThreadPool(0, THREADS, "xapi")

        def in_thread(function: Callable[..., T], /, *arguments: object) -> Deferred[T]:
            begun: Deferred[T] = deferToThreadPool(reactor, pool, function, *arguments)
            return begun

        threads = Threads(in_thread, reactor.callFromThread, reactor.callLater)
        storage = LocalStorage(config.storage, in_thread, reactor.callFromThread, lambda: int(reactor.seconds() * 1e9))
        state.makes(config.audit_log)
        keeping = Keeping(store, reactor.seconds, config.audit_log)
        undo.callback(keeping.close)
        programs = Runner(reactor, config.socket, config.plugin_seconds)
        site = Site()
        filled = [] if config.database == IN_MEMORY else list(filter(None, (config.state, writer.file)))
        daemon = Daemon(
            model,
            store,
            reactor,
            passwords,
            in_thread,
            pool_secret=state.pool_secret(),
            directory_path=config.directory,
            fragment_budget=config.fragment_budget,
            make_backend=lambda host: (
                make_worker(store, host, reactor, filled, config)
                if config.workers
                else make_backend(store, host, threads, storage, site, config)
            ),
            guest_directory=config.guests,
            storage_directory=config.storage,
            plugins=Plugins(config.plugins, config.extensions, programs.run),
            calls=keeping.calls,
        )
        undo.pop_all()  # from here on they are the service's
    if any(host.external_auth_type == "file" for host in store.host):
        daemon.sessions.directory = directory
    if invented is not None:
        announce(f"root's password is {invented} (kept in {config.state / 'root-password'})")
    log.info(
        "Kronos {version}: state {state}, {database}, hosts: {hosts}, VMs: {vms}",
        version=version(), state=config.state, database=config.database_url.partition(":")[0], hosts=len(store.host),
        vms=sum(not (vm.is_a_template or vm.is_control_domain) for vm in store.VM),
    )  # fmt: skip
    remains = Remains(config, state, writer, keeping)
    connections = Connections(daemon, reactor)
    listeners = Listeners(config, state, daemon, connections, reactor)
    stages = Stages(
        remains,
        *([Doing(_widen)] if alone else []),
        Doing(pool.start, pool.stop),
        connections,
        Writing(writer, store, growth, in_thread),
        Reserve(storage.keep_back, filled, config.reserve),
        Doing(stop=site.close),
        Hosts(daemon, config),
        Doing(stop=programs.stop),
        *([Doing(garbage.settle), Timer(garbage.EVERY, garbage.Collector().look, reactor)] if alone else []),
        listeners,
        Timer(SWEEP, daemon.sweep, reactor),
        Timer(metrics.EVERY, daemon.metrics.tick, reactor),
        Timer(RESERVE_EVERY, lambda: writer.reserve(store.generation), reactor),
    )
    return XapiService(daemon, remains, stages, listeners, alone)


def _widen() -> None:
    """Set up Python and the kernel for a process that is the daemon's."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each layer of an open disk takes one


def _given_password(config: Config) -> str | None:
    """Return root's password for the first start, if the environment or a file has one."""
    if config.root_password_file is not None:
        try:
            password = config.root_password_file.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config.root_password_file}: {getattr(error, 'strerror', None) or error}") from error
        if not password:
            raise ConfigError(f"{config.root_password_file}: is empty; root must have a password")
        return password
    return os.environ.get("XAPI_ROOT_PASSWORD") or None
