"""Fixtures that all tests share: a daemon in memory, on a clock that only the test moves."""

from __future__ import annotations

import gc
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from hypervisor.memory.guest_memory import Memory
from tests.fakes import FakeBackend
from tests.journal import Journal
from xapi import datamodel
from xapi.access.caller import Origin
from xapi.access.passwords import CHEAP, Passwords
from xapi.datamodel.errors import Fault
from xapi.hosts.plugins import Finished, Plugins
from xapi.inventory import declaration, fresh
from xapi.log.calls import Calls
from xapi.process.config import BUDGET
from xapi.process.daemon import Daemon, make_store
from xapi.store.memory import Store
from xapi.store.tables import kept_fields, persistent
from xapi.vms import lifecycle

# A commit passes or fails, however often it is tried; `make soak` looks for what no run has seen yet.
# How long a case takes says how busy the machine is.
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", BUSY, derandomize=True)
settings.register_profile("random", BUSY, derandomize=False)
settings.load_profile("repeatable")

NOW = datetime(2026, 1, 31, 9, 5, 7, tzinfo=UTC)


def pytest_collection_finish() -> None:
    """Take what is loaded for all tests out of the collector's sight, which would look at it again in each."""
    datamodel.load()
    gc.collect()
    gc.freeze()


def in_memory(clock: Clock, journal: Journal | None = None) -> Store:
    """Return a store on a clock with nothing but roles; what changes is durable in the next turn."""
    journal = journal or Journal(clock)
    journal.store = make_store(datamodel.load(), journal, lambda tell: clock.callLater(0, tell))
    return journal.store


class Pool:
    """A daemon in memory, and short ways to call it."""

    def __init__(self, directory: Path) -> None:
        self.backends: dict[str, FakeBackend] = {}
        self.clock = Clock()
        self.clock.rightNow = NOW.timestamp()
        self.journal = Journal(self.clock)
        self.db = in_memory(self.clock, self.journal)
        fresh.populate(self.db, declaration.Declaration(), rng=random.Random(1), now=NOW)
        self.turn()
        self.passwords = Passwords(directory / "passwords", CHEAP)
        self.passwords.set("root", "xenroot")
        self.guests = directory / "guests"
        self.guests.mkdir()
        self.storage_directory = directory / "storage"
        self.origin = Origin()
        self.begin()

    def begin(self, calls: Calls | None = None) -> None:
        """Make the daemon over the store, and log in."""
        self.daemon = Daemon(
            datamodel.load(),
            self.db,
            self.clock,
            self.passwords,
            maybeDeferred,
            pool_secret="pool-secret",
            directory_path=None,
            fragment_budget=BUDGET,
            make_backend=self.make_backend,
            guest_directory=self.guests,
            storage_directory=self.storage_directory,
            plugins=Plugins(self.guests, self.guests, self.run_plugin),
            calls=calls or Calls(self.db, self.clock.seconds),
        )
        self.session = self.login()

    def crashed(self, directory: Path) -> Pool:
        """Return what is on disk now, copied to a directory, without its daemon: `begin` makes it."""
        after: Pool = object.__new__(Pool)
        after.backends, after.clock, after.journal = {}, self.clock, Journal(self.clock)
        after.passwords, after.origin = self.passwords, self.origin
        after.guests, after.storage_directory = self.guests, directory
        shutil.copytree(self.storage_directory, directory)
        after.db = in_memory(self.clock, after.journal)
        for cls in filter(persistent, self.db.model.stored):
            kept, table = [field.name for field in kept_fields(cls)], after.db.tables[cls.name]
            rows: Any = self.db.tables[cls.name]
            after.db.load(table, [table.make(row._ref, {name: getattr(row, name) for name in kept}) for row in rows])
        lifecycle.renew_metrics(after.db)
        after.db.loaded()
        return after

    async def run_plugin(self, path: Path, arguments: Sequence[str], sent: bytes) -> Finished:
        """Run no program: those are of a pool in a process (`tests.clients.daemon`)."""
        raise AssertionError(f"{path} was to be run")

    def make_backend(self, host: Any) -> FakeBackend:
        """Return the fake behind a host; there is one for each."""
        return self.backends.setdefault(host._ref, FakeBackend(directory=self.storage_directory))

    @property
    def backend(self) -> FakeBackend:
        """The fake behind the first host."""
        return self.make_backend(next(iter(self.db.host)))

    def turn(self) -> None:
        """Let the reactor turn until nothing more is due now."""
        for _ in range(10):
            self.clock.advance(0)

    def start(self, name: str, *params: Any) -> Deferred[Any]:
        """Call a method with the parameters as on the wire; the Deferred has its result or Fault."""
        return maybeDeferred(lambda: self.daemon.dispatcher.call(name, list(params), self.origin)[1])

    def raw(self, name: str, *params: Any) -> Any:
        """Call a method that needs no time to pass, without adding the session."""
        return self.outcome(self.start(name, *params))

    def outcome(self, deferred: Deferred[Any]) -> Any:
        self.turn()
        results: list[Any] = []
        deferred.addBoth(results.append)
        assert results, "the call still waits"
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        return results[0]

    def login(self, user: str = "root", password: str = "xenroot", **origin: Any) -> str:
        session: str = self.raw("session.login_with_password", user, password)
        return session

    def __call__(self, name: str, *params: Any) -> Any:
        return self.raw(name, self.session, *params)

    def fails(self, name: str, *params: Any) -> list[str]:
        """Return the ErrorDescription of a call that must fail."""
        with pytest.raises(Fault) as caught:
            self(name, *params)
        return caught.value.description


@pytest.fixture(autouse=True)
def machines_end(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give back the memory of machines that a test only dropped; those of tests/guests end theirs themselves."""
    made: list[Memory] = []
    begin = Memory.__init__

    def remember(self: Memory, *arguments: Any, **more: Any) -> None:
        begin(self, *arguments, **more)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        if "guests" not in request.path.parts:
            patch.setattr(Memory, "__init__", remember)
        yield
    for memory in made:
        memory.close()


@pytest.fixture(scope="session")
def make_pool(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Pool]:
    return lambda: Pool(tmp_path_factory.mktemp("state"))


@pytest.fixture
def pool(make_pool: Callable[[], Pool]) -> Pool:
    """A fresh pool with root logged in."""
    return make_pool()
