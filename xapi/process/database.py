"""The daemon's database: opened, loaded and filled before anything starts, written while the daemon runs."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import cooperate
from twisted.logger import Logger

from xapi.access.checks import InThread
from xapi.datamodel.lexical import moment
from xapi.inventory import fresh, scale
from xapi.inventory.storage import renew_drivers
from xapi.process.config import IN_MEMORY, Config
from xapi.process.daemon import make_store
from xapi.process.stages import Stage
from xapi.store import sqlite
from xapi.store.ballast import Ballast
from xapi.store.database import open_database
from xapi.store.forgetful import Forgetful
from xapi.store.kind import DatabaseError
from xapi.store.memory import Store
from xapi.store.uuids import Uuids
from xapi.store.writer import Writer
from xapi.vms import lifecycle

if TYPE_CHECKING:
    from xapi.datamodel import Model
    from xapi.inventory.declaration import Declaration
    from xapi.process.state import State

log = Logger()

BALLAST = 8
"""The part of the reserve that is really allocated."""


class Writing(Stage):
    """Writes what changes; it has started when a first inventory is whole, be it large, and on disk."""

    def __init__(
        self,
        writer: Writer | Forgetful,
        db: Store,
        growth: Iterator[object],
        in_thread: InThread,
    ) -> None:
        self._writer = writer
        self._db = db
        self._growth = growth
        self._in_thread = in_thread

    async def start(self) -> None:
        self._writer.start(self._db)
        growing = cooperate(self._growth)
        try:
            await growing.whenDone()
        except CancelledError:
            growing.stop()
            raise
        durable: Deferred[None] = Deferred()
        self._db.when_flushed(
            self._db.last_written, lambda fault: durable.errback(fault) if fault else durable.callback(None)
        )
        await durable

    async def stop(self) -> None:
        """Write what is queued."""
        await self._in_thread(self._writer.stop)


class Reserve(Stage):
    """Has guests' disks leave `count` bytes of the file systems of some paths to the state and the database."""

    def __init__(self, keep_back: Callable[[Path, int], None], paths: Sequence[Path], count: int) -> None:
        self._keep_back = keep_back
        self._paths = paths
        self._count = count

    async def start(self) -> None:
        for path in self._paths:
            self._keep_back(path, self._count)

    async def stop(self) -> None:
        for path in self._paths:
            self._keep_back(path, 0)


def stored(
    config: Config, model: Model, reactor: Any, state: State, undo: ExitStack
) -> tuple[Writer | Forgetful, Store]:
    """Return what writes, and the store that it writes for, with what the database has; `undo` forgets a new one.

    Raises DatabaseError.
    """

    def soon(tell: Callable[[], None]) -> object:
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


def first_inventory(store: Store, config: Config, declared: Declaration, reactor: Any) -> Iterator[object]:
    """Fill an empty store; return what is left to do of a large inventory."""
    seed = secrets.randbits(128) if config.seed is None else config.seed
    if len(store.pool):
        renew_drivers(store)
        for name in fresh.upgrade(store, rng=random.Random(f"{seed}/{store.generation}")):
            log.info("new default template: {name}", name=name)
        return iter(())
    rng = random.Random(seed)
    now = moment(reactor.seconds())
    fresh.populate(store, declared, rng=rng, now=now)
    return iter(scale.grow(store, hosts=config.hosts, vms=config.vms, rng=rng, now=now))
