"""Guests whose pool's database cannot be written for a while: real databases, and hosts that are fakes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock

from hypervisor.api import Shutdown
from tests.api.test_power import make_vm
from tests.api.test_truth import agree
from tests.conftest import NOW, Pool
from tests.durability.harness import WHOLE, Loop
from tests.durability.server import Server
from xapi.access.caller import Origin
from xapi.access.passwords import CHEAP, Passwords
from xapi.datamodel.errors import Fault
from xapi.inventory import declaration, fresh
from xapi.process.daemon import make_store
from xapi.store.database import open_database
from xapi.store.writer import Writer


class Stored(Pool):
    """A pool in a real database; the test takes the reactor's turns."""

    def __init__(self, directory: Path, url: str) -> None:
        self.backends = {}
        self.clock = Clock()
        self.clock.rightNow = NOW.timestamp()
        self.loop = Loop()
        database = open_database(url, WHOLE)
        self.writer = Writer(database, self.loop.from_thread, 0.01)
        self.db = make_store(WHOLE, self.writer, self.loop.soon, database.generation)
        fresh.populate(self.db, declaration.Declaration(), rng=random.Random(1), now=NOW)
        self.passwords = Passwords(directory / "passwords", CHEAP)
        self.passwords.set("root", "xenroot")
        self.guests, self.storage_directory = directory / "guests", directory / "storage"
        self.guests.mkdir()
        self.origin = Origin()
        self.writer.start(self.db)
        self.begin()

    def turn(self) -> None:
        for _ in range(10):
            self.clock.advance(0)
            while not self.loop.calls.empty():
                self.loop.turn()

    def until(self, happened: Callable[[], object]) -> None:
        """Take turns until something is so."""
        self.turn()
        while not happened():
            self.loop.turn()
            self.turn()

    def outcome(self, deferred: Any) -> Any:
        results: list[Any] = []
        maybeDeferred(lambda: deferred).addBoth(results.append)
        self.until(lambda: results)
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        return results[0]


def go_down(pool: Stored, vms: list[Any]) -> None:
    """Let the guest of the first VM power off, and end that of the second."""
    pool.backend.goes_down(vms[0].uuid, Shutdown.POWEROFF)
    pool.turn()
    with pytest.raises(Fault):
        pool("VM.hard_shutdown", vms[1]._ref)
    assert [vm.power_state for vm in vms] == ["Running"] * 3


def all_is_known(pool: Stored, vms: list[Any]) -> None:
    """Assert that rows are true when changes can be stored again."""
    pool.until(lambda: pool.db.refusal is None)
    pool.until(lambda: [vm.power_state for vm in vms] == ["Halted", "Halted", "Running"])
    assert agree(pool)


def running_vms(pool: Stored) -> list[Any]:
    vms = [make_vm(pool, actions_after_shutdown="destroy") for _ in range(3)]
    for vm in vms:
        pool("VM.start", vm._ref, False, False)
    return vms


def test_what_becomes_of_guests_while_nothing_can_be_stored_is_known_afterwards(tmp_path: Path, url: str) -> None:
    """Commits fail, with both kinds of databases."""
    pool = Stored(tmp_path, url)
    try:
        vms = running_vms(pool)
        commit = pool.writer._commit

        def fails(net: Any) -> None:
            raise OSError(28, "No space left on device")

        pool.writer._commit = fails  # type: ignore[method-assign]
        with pytest.raises(Fault):
            pool("VM.set_name_label", vms[2]._ref, "lost")
        go_down(pool, vms)
        pool.writer._commit = commit  # type: ignore[method-assign]
        all_is_known(pool, vms)
    finally:
        pool.writer.stop()


def test_what_becomes_of_guests_while_the_server_is_away_is_known_afterwards(
    tmp_path: Path, postgresql: Server
) -> None:
    """The server is killed, and comes back."""
    pool = Stored(tmp_path, postgresql.new())
    try:
        vms = running_vms(pool)
        postgresql.kill()
        with pytest.raises(Fault):
            pool("VM.set_name_label", vms[2]._ref, "lost")
        go_down(pool, vms)
        postgresql.start()
        all_is_known(pool, vms)
    finally:
        pool.writer.stop()
