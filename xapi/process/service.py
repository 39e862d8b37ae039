"""The daemon as a process: state directory, database, network, timers and signals around `Daemon`.

`make_service` does all that can fail before anything listens, so that a daemon that cannot run says so in
one line and leaves everything as it was.
"""

from __future__ import annotations

import os
import random
import resource
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cryptography import x509
from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint, serverFromString
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import LoopingCall, cooperate
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.threadpool import ThreadPool

from hypervisor.api import Backend
from xapi import datamodel
from xapi.access.directory import Directory
from xapi.access.passwords import verify_password
from xapi.datamodel.lexical import moment
from xapi.host.machine import load, make_host, why_no_guests
from xapi.host.storage import LocalStorage
from xapi.host.threads import Threads
from xapi.hosts import addresses, availability
from xapi.hosts.plugins import Plugins, Runner
from xapi.http import tls
from xapi.http.budget import Budget, affordable
from xapi.http.protocol import HTTPFactory
from xapi.http.rpc import RPC
from xapi.inventory import declaration, fresh, management, processors, product, scale
from xapi.inventory.storage import renew_drivers
from xapi.log.keeping import Keeping
from xapi.process import certificates, garbage
from xapi.process.config import IN_MEMORY, Config, ConfigError, address_of, version
from xapi.process.daemon import SWEEP, Daemon, make_store
from xapi.process.state import State
from xapi.store import sqlite
from xapi.store.ballast import Ballast
from xapi.store.database import open_database
from xapi.store.forgetful import Forgetful
from xapi.store.kind import DatabaseError
from xapi.store.memory import Store
from xapi.store.uuids import Uuids
from xapi.store.writer import Writer
from xapi.vms import lifecycle, metrics
from xapi.vms.consoles import Door

if TYPE_CHECKING:
    from xapi.datamodel import Model

log = Logger()

RESERVE_EVERY = 10.0
BACKLOG = 1024
"""Clients that may wait for being accepted."""
THREADS = 8
BALLAST = 8
"""The part of the reserve that is really allocated."""
SWITCH_INTERVAL = 0.0005
"""Seconds that another thread may keep the reactor's from Python; 5 ms, Python's own, is half a long turn."""


class XapiService(MultiService):
    """A whole daemon: what `make_service` has loaded, listening and writing while it runs."""

    def __init__(
        self,
        config: Config,
        state: State,
        daemon: Daemon,
        writer: Writer | Forgetful,
        pool: ThreadPool,
        reactor: Any,
        alone: bool,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.config = config
        self.state = state
        self.daemon = daemon
        self.writer = writer
        self.growth: Iterator[Any] = iter(())
        self.programs: Runner | None = None
        self.keeping: Keeping | None = None
        self.keep_back: Callable[[Path, int], None] = lambda path, count: None
        self._rpc = RPC(daemon)
        self._pool = pool
        self._reactor = reactor
        self._alone = alone
        self._factories: list[HTTPFactory] = []
        self._ports: list[IListeningPort] = []
        self._timers: list[LoopingCall] = []
        self._budget = Budget()
        self._served = False
        self.afterwards = ExitStack()
        """What is to be done when all has ended."""
        self.ready: Deferred[list[str]] = Deferred()
        """Fires with the addresses when all of them are served."""

    def startService(self) -> None:
        """Write, finish a large first inventory, then listen."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._alone:
            sys.setswitchinterval(SWITCH_INTERVAL)
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each layer of an open disk takes one
        self._budget = Budget(affordable())
        self._pool.start()
        self.writer.start(self.daemon.db)
        self._keep_back(self.config.reserve)
        Deferred.fromCoroutine(self._begin()).addErrback(self._cannot_begin)

    async def _begin(self) -> None:
        await cooperate(self.growth).whenDone()
        db = self.daemon.db
        durable: Deferred[None] = Deferred()
        db.when_flushed(db.last_written, lambda fault: durable.errback(fault) if fault else durable.callback(None))
        await durable
        self._look_at_the_machine()
        lifecycle.forget_lost_domains(self.daemon)
        availability.started(db)
        await lifecycle.undo_unfinished(self.daemon)
        if self._alone:
            garbage.settle()
        served = [await self._listen(endpoint, b"") for endpoint in self.config.listen]
        if self.config.tls:
            now = datetime.fromtimestamp(self._reactor.seconds(), UTC)
            pem = self.state.certificate(now, self._names()).read_bytes()
            self.daemon.certificate = certificates.pem(x509.load_pem_x509_certificate(pem))
            served += [await self._listen(endpoint, pem) for endpoint in self.config.tls]
        self._say_where()
        socket = self.state.fresh_socket()
        endpoint = UNIXServerEndpoint(self._reactor, str(socket), mode=0o600, wantPID=False, backlog=BACKLOG)
        self._ports.append(await endpoint.listen(self._factory(Budget(max(16, affordable() // 4)))))
        served.append(f"unix:{socket}")
        ticks: list[tuple[float, Callable[[], object]]] = [
            (SWEEP, self.daemon.sweep),
            (metrics.EVERY, self.daemon.metrics.tick),
            (RESERVE_EVERY, self._reserve),
        ]
        if self._alone:
            ticks.append((garbage.EVERY, garbage.Collector().look))
        for seconds, tick in ticks:
            timer = LoopingCall(tick)
            timer.clock = self._reactor
            timer.start(seconds, now=False)
            self._timers.append(timer)
        self._served = True
        self.state.keep()
        log.info("Ready: {addresses}", addresses=" ".join(served))
        self.ready.callback(served)
        lifecycle.begin(self.daemon)

    def _look_at_the_machine(self) -> None:
        """Have the hosts say whether guests can run, which differs when the state comes from another machine."""
        why = why_no_guests()
        if why:
            log.warn("guests cannot run here: {why}; all else is served", why=why)
        else:
            load()
        product.offer_guests(self.daemon.db, not why)
        processors.tell(self.daemon.db)

    def _names(self) -> list[str]:
        """Return what clients of TLS may call this daemon."""
        listened = [addresses.listened(text, address_of(text)) for text in self.config.tls]
        return addresses.names(listened, self.config.host_address)

    def _say_where(self) -> None:
        """Have the coordinator and the consoles say where they are reached."""
        plain = len(self.config.listen)
        served = [
            addresses.Endpoint("http" if at < plain else "https", address.host, address.port)
            for at, address in enumerate(port.getHost() for port in self._ports)
            if isinstance(address, IPv4Address | IPv6Address)
        ]
        best, own = addresses.door(served, self.config.host_address), addresses.door(served, "")
        if best is not None and own is not None:
            management.reached_at(self.daemon.db, best.address, own.address)
            self.daemon.consoles.served_at(Door(best.scheme, best.port, best.address))

    def _cannot_begin(self, failure: Any) -> None:
        if self._alone:  # else who has started it hears of it
            log.critical("cannot start: {error}", error=failure.value)
        self.ready.errback(failure)

    def _keep_back(self, count: int) -> None:
        """Have guests' disks leave so much to the state and the database."""
        if self.config.database == IN_MEMORY:
            return
        for path in filter(None, (self.config.state, self.writer.file)):
            self.keep_back(path, count)

    def _reserve(self) -> None:
        self.writer.reserve(self.daemon.db.generation)

    def _factory(self, budget: Budget) -> HTTPFactory:
        self._factories.append(HTTPFactory(self._rpc, self._reactor, budget=budget))
        return self._factories[-1]

    async def _listen(self, text: str, pem: bytes) -> str:
        """Serve at one endpoint, with TLS when there is a certificate, and return the address."""
        factory: Any = self._factory(self._budget)
        if pem:
            factory = TLSMemoryBIOFactory(tls.options(pem), False, factory)
        port = await endpoint_of(text, self._reactor).listen(factory)
        self._ports.append(port)
        address: Any = port.getHost()
        host = getattr(address, "host", "")
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if pem else "http"
        return f"{scheme}://{shown}:{address.port}/" if host else f"{scheme}+{address}"

    def stopService(self) -> Deferred[None]:
        """Stop listening, let running work end, and write what is queued."""
        log.info("Stopping")
        children = super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._end(children))

    async def _end(self, children: Deferred[Any]) -> None:
        await children
        for timer in self._timers:
            timer.stop()
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self.programs is not None:
            self.programs.stop()
        self.daemon.tasks.end_all()
        for backend in self.daemon.backends.made():
            await deferToThreadPool(self._reactor, self._pool, cast("Any", backend).stop)
        await deferToThreadPool(self._reactor, self._pool, self.writer.stop)
        for factory in self._factories:
            await factory.close()
        self._pool.stop()
        self.config.socket.unlink(missing_ok=True)
        self._keep_back(0)
        log.info("Stopped")
        if self.keeping is not None:
            self.keeping.close()
        if not self._served:  # nobody has been told anything: as if it had not been tried
            self.writer.abandon()
        self.state.abandon()
        self.afterwards.close()


def endpoint_of(text: str, reactor: Any) -> IStreamServerEndpoint:
    """Return the endpoint of an address as `xapi.config` reads it, or of Twisted's own notation. Raises ConfigError."""
    address = address_of(text)
    if address is not None:
        host, port = address
        kind = TCP6ServerEndpoint if ":" in host else TCP4ServerEndpoint
        return kind(reactor, port, backlog=BACKLOG, interface=host)
    has_own = ":backlog=" in text or not text.startswith(("tcp:", "tcp6:", "ssl:", "unix:"))
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text if has_own else f"{text}:backlog={BACKLOG}")
    except (ValueError, TypeError, IndexError, KeyError, OSError) as error:
        raise ConfigError(f"endpoint {text}: {error}") from error
    return endpoint


def make_service(
    config: Config, reactor: Any, announce: Callable[[str], None] = print, *, alone: bool = True
) -> XapiService:
    """Return a daemon, loaded and ready to be started.

    `announce` tells people of a password that was invented. `alone` is whether the process is the daemon's, which then
    sets up Python's collector and the process's limits. Raises ConfigError, StateError, DatabaseError,
    DeclarationError, DirectoryError, SchemaError.
    """
    for endpoint in (*config.listen, *config.tls):
        endpoint_of(endpoint, reactor)
    declared = declaration.read_declaration(config.inventory) if config.inventory else declaration.Declaration()
    directory = Directory(config.directory) if config.directory else None
    state = State(config.state)
    with ExitStack() as undo:
        undo.callback(state.abandon)
        given = _given_password(config)
        model = datamodel.load()
        if alone:
            garbage.hold()
        writer, store = _stored(config, model, reactor, state, undo)
        growth = _first_inventory(store, config, declared, reactor)
        passwords, invented = state.passwords(given)
        if given is not None and not verify_password(given, passwords.stored("root")):
            log.warn(
                "the given password of root is ignored: {directory} has another one already. Change it by "
                "session.change_password, or remove passwords.json there before a start",
                directory=config.state,
            )
        pool = ThreadPool(0, THREADS, "xapi")

        def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            return deferToThreadPool(reactor, pool, function, *arguments)

        threads = Threads(in_thread, reactor.callFromThread, reactor.callLater)
        storage = LocalStorage(in_thread, reactor.callFromThread, lambda: int(reactor.seconds() * 1e9))
        state.makes(config.audit_log)
        keeping = Keeping(store, reactor.seconds, config.audit_log)
        undo.callback(keeping.close)
        programs = Runner(reactor, config.socket, config.plugin_seconds)
        daemon = Daemon(
            model,
            store,
            reactor,
            passwords,
            in_thread,
            pool_secret=state.pool_secret(),
            directory_path=config.directory,
            fragment_budget=config.fragment_budget,
            make_backend=lambda host: _make_backend(store, host, threads, storage, config),
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
    service = XapiService(config, state, daemon, writer, pool, reactor, alone)
    service.growth = growth
    service.programs = programs
    service.keeping = keeping
    service.keep_back = storage.keep_back
    return service


def _stored(
    config: Config, model: Model, reactor: Any, state: State, undo: ExitStack
) -> tuple[Writer | Forgetful, Store]:
    """Return what writes, and the store that it writes for, with what the database has."""

    def soon(tell: Callable[[], None]) -> Any:
        return reactor.callLater(0, tell)

    if config.database == IN_MEMORY:
        forgetful = Forgetful(soon)
        store = make_store(model, forgetful, soon)
        store.uuids = Uuids(config.seed, store.generation)
        store.loaded()
        return forgetful, store
    database = open_database(config.database_url, model, used=state.used)
    undo.callback(database.abandon)
    for line in database.upgraded:
        log.info("database upgraded: {line}", line=line)
    writer = Writer(database, reactor.callFromThread, ballast=_ballast(database.file, config))
    store = make_store(model, writer, soon, database.generation)
    store.uuids = Uuids(config.seed, database.generation)
    database.load(store)
    if state.used and not database.new and not len(store.pool):
        raise DatabaseError(f"{database.location}: is damaged (the pool is gone); restore it from a backup")
    lifecycle.renew_metrics(store)
    store.loaded()
    return writer, store


def _ballast(database: Path | None, config: Config) -> Ballast | None:
    """Return what keeps room for a database on this machine even where others fill its file system."""
    size = config.reserve // BALLAST
    return Ballast(Path(f"{database}{sqlite.RESERVE}"), size) if database is not None and size else None


def _make_backend(store: Store, host: Any, threads: Threads, storage: LocalStorage, config: Config) -> Backend:
    """Return an emulated host with the memory that its record says, running."""
    metrics = store.host_metrics.get(host.metrics)
    memory = metrics.memory_total if metrics is not None else 0
    return make_host(memory, threads, storage, config.network_boot, host.cpu_info.get("modelname", ""))


def _first_inventory(store: Store, config: Config, declared: Any, reactor: Any) -> Iterator[Any]:
    """Fill an empty store; return what is left to do of a large inventory."""
    seed = secrets.randbits(128) if config.seed is None else config.seed
    if len(store.pool):
        fresh.create_roles(store)
        renew_drivers(store)
        for name in fresh.upgrade(store, rng=random.Random(f"{seed}/{store.generation}")):
            log.info("new default template: {name}", name=name)
        return iter(())
    rng = random.Random(seed)
    now = moment(reactor.seconds())
    fresh.populate(store, declared, rng=rng, now=now)
    return iter(scale.grow(store, hosts=config.hosts, vms=config.vms, rng=rng, now=now))


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
