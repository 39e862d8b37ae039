"""Write changes to the database, on a thread of its own, many in one transaction.

The reactor thread hands over each generation (`Writer.write`) and goes on; the thread takes all that
has gathered, joins the changes of each row, executes and commits, and tells `Store.written`. So a lone
change costs one commit, and under load hundreds share one.

**Failure.** Nothing of the batch counts and nothing queued behind it may be written, as it builds on
what is lost. The thread stops taking; on the reactor thread `_undo` empties the queue and calls
`Store.failed` in one go, so that no change falls between: what came before is undone and dropped, what
comes after is refused by the store until `Store.recovered`, hence the queue stays empty. Meanwhile the
thread tries every `retry_interval` seconds to connect anew and to make the rows of the failed batch
what memory says of them, for a commit whose answer was lost with the connection may have happened.

**No space.** If the batch fails only because the disk is full, the ballast is let go of and the batch tried again, so
that nobody hears of it; but until there is room for the ballast again the store makes nothing new (`Store.scarce`),
while what frees, and what the hosts report, goes on. If that fails too, it is a failure as above.

**Refusal.** An error of the values themselves, which should not come this far (see `xapi.store.values`), says
nothing against the database: the batch is written anew with a savepoint for each generation, and only those are
undone that it cannot hold, with the ones that build on them, be they written later or still queued.

**Generations** become event tokens, which must never repeat, not even after a crash, though changes of
memory-only classes raise the generation without being written. So the database holds a mark that no
generation ever exceeds: a store starts at the mark that it finds, and opening has moved the mark 10
million (`RESERVE`) ahead before the first token is given. When half of that is used, the next batch
moves the mark ahead again, in the same transaction. Memory-only changes alone bring no batch: for them
the daemon calls `reserve` from a timer. At 200,000 changes a second, about the most that the store can
do, half the reserve lasts 25 seconds, so every 10 seconds is enough. Only a database that fails for as
long as 5 million memory-only changes take, followed by a crash, could repeat a token.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import bindparam
from twisted.logger import Logger

from xapi.datamodel import errors
from xapi.store.ballast import Ballast
from xapi.store.database import RESERVE, Database
from xapi.store.kind import one_line
from xapi.store.memory import Change, Store

log = Logger()

BATCH = 1000
"""How many generations share one transaction at most."""
PROBE_SIZE = 65536
"""Bytes that must fit before a full database counts as usable again."""

Key = tuple[str, str]
"""Class and reference of a row."""


def _no_space() -> errors.Fault:
    return errors.OUT_OF_SPACE("the database")


class _Net(NamedTuple):
    """What a batch does to one row: delete it, insert or update it with `values`, or replace it."""

    action: str
    values: dict[str, object]


def coalesce(batch: list[list[Change]]) -> dict[Key, _Net]:
    """Join the changes of many generations into at most one a row."""
    net: dict[Key, _Net] = {}
    for changes in batch:
        for change in changes:
            key = change.table, change.ref
            joined = _join(net.pop(key, None), change)
            if joined is not None:
                net[key] = joined
    return net


def _join(before: _Net | None, change: Change) -> _Net | None:
    if before is None:
        return _Net(change.action, change.values)
    if change.action == "update":
        return _Net(before.action, before.values | change.values)
    if change.action == "delete":
        return None if before.action == "insert" else _Net("delete", {})
    return _Net("replace", change.values)  # an insert: of a reference that was deleted just before


class _Lost:
    """Generations that the database cannot hold, and those that build on them, each with what its caller hears."""

    def __init__(self) -> None:
        self.faults: dict[int, errors.Fault] = {}
        self._rows: set[Key] = set()
        self._made: set[str] = set()

    def add(self, generation: int, changes: list[Change], fault: errors.Fault) -> None:
        """Add a generation."""
        self.faults[generation] = fault
        self._rows.update((change.table, change.ref) for change in changes)
        self._made.update(change.ref for change in changes if change.action == "insert")

    def take(self, generation: int, changes: list[Change]) -> bool:
        """Add a generation if it changes a row of one of these, or refers to a row that one of these makes."""
        found = any((change.table, change.ref) in self._rows for change in changes) or any(
            self._refers(value) for change in changes for value in change.values.values()
        )
        if found:
            self.add(generation, changes, errors.INTERNAL_ERROR("an earlier change of the same object was refused"))
        return found

    def _refers(self, value: object) -> bool:
        if isinstance(value, str):
            return value in self._made
        if isinstance(value, dict):
            return any(map(self._refers, value)) or any(map(self._refers, value.values()))
        return isinstance(value, tuple) and any(map(self._refers, value))


class Writer:
    """The journal of a store. `call_from_thread` runs a function on the reactor thread, in order."""

    def __init__(
        self,
        database: Database,
        call_from_thread: Callable[..., object],
        retry_interval: float = 5.0,
        ballast: Ballast | None = None,
    ) -> None:
        self.database = database
        self._ballast = ballast
        self._next_look = 0.0
        self._call_from_thread = call_from_thread
        self._retry_interval = retry_interval
        self._store: Store | None = None
        self._thread = threading.Thread(target=self._run, name="database writer", daemon=False)
        self._lock = threading.Condition()
        # Below: guarded by the lock.
        self._queue: deque[tuple[int, list[Change]]] = deque()
        self._newest = database.generation
        self._stopping = False
        self._repair: dict[Key, dict[str, object] | None] | None = None
        self._lost: _Lost | None = None

    # On the reactor thread.

    def start(self, store: Store) -> None:
        """Begin to write for a loaded store; the database belongs to the thread from now on."""
        self._store = store
        self._thread.start()

    def write(self, generation: int, changes: list[Change]) -> None:
        """Store the changes of one generation, after those of all earlier ones."""
        with self._lock:
            self._queue.append((generation, changes))
            self._newest = generation
            self._lock.notify()

    def reserve(self, generation: int) -> None:
        """Make sure that the mark in the database is far ahead; call it every 10 seconds."""
        with self._lock:
            self._newest = max(self._newest, generation)
            self._lock.notify()

    def stop(self) -> None:
        """Write all that is queued, end the thread and close the database. Blocks until done.

        After a failure there is nothing to be written: the store has undone it. What is told to the
        store from here on runs after `stop`, if the reactor still runs.
        """
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if self._thread.ident is None:
            self.database.close()
        else:
            self._thread.join()

    @property
    def file(self) -> Path | None:
        """The file that the database is in, if it is one on this machine."""
        return self.database.file

    def abandon(self) -> None:
        """After `stop`: remove the database if it was made only now."""
        self.database.abandon()

    def _undo(self, rows: list[Key], fault: errors.Fault) -> None:
        assert self._store is not None
        with self._lock:
            self._queue.clear()
        self._store.failed(fault)
        repair = {key: self._remembered(key) for key in rows}
        with self._lock:
            self._repair = repair
            self._lock.notify()

    def _take_back(self, lost: _Lost, last: int) -> None:
        """Undo what was refused, in one go with what is queued and builds on it; all else up to `last` is written."""
        assert self._store is not None
        with self._lock:
            self._drop(lost)
            self._store.refused(lost.faults)
            self._store.written(last)
            self._lost = None
            self._lock.notify()

    def _drop(self, lost: _Lost) -> None:
        """Take out of the queue what builds on refused changes; the lock is held."""
        self._queue = deque(entry for entry in self._queue if not lost.take(*entry))

    def _remembered(self, key: Key) -> dict[str, object] | None:
        """Return the kept values of a row as memory has it, or None when there is none."""
        assert self._store is not None
        table = self._store.tables[key[0]]
        row = table.get(key[1])
        return None if row is None else {name: getattr(row, name) for name in table.kept}

    # On the writer's thread.

    def _run(self) -> None:
        assert self._store is not None
        try:
            while (batch := self._take()) is not None:
                try:
                    lost = self._store_somehow(batch)
                except Exception as error:  # whatever it is: the thread must live and clients must hear
                    self._fail(coalesce([changes for _, changes in batch]), error)
                    if not self._mend():
                        return
                    continue
                if lost.faults:
                    self._refuse(lost, batch[-1][0])
                elif batch:
                    self._call_from_thread(self._store.written, batch[-1][0])
        finally:
            self.database.close()

    def _hold_ballast(self) -> None:
        """Take the ballast, at first and when there is room for it again."""
        assert self._store is not None and self._ballast is not None
        self._next_look = time.monotonic() + self._retry_interval
        try:
            held = self._ballast.take()
        except OSError as error:
            log.warn("{path}: {text}: no room is kept for changes", path=self._ballast.path, text=error.strerror)
            self._ballast, held = None, True
        self.database.spare(not held)
        self._call_from_thread(self._store.scarce, None if held else _no_space())

    def _store_somehow(self, batch: list[tuple[int, list[Change]]]) -> _Lost:
        """Store a batch, if need be in the room that the ballast takes."""
        assert self._store is not None
        try:
            return self._store_all(batch)
        except Exception as error:
            if self._ballast is None or not self._ballast.held or not self.database.is_full(error):
                raise
        log.warn("no space is left for changes: what frees is let through, nothing new is made until there is room")
        self._ballast.release()
        self.database.spare(True)
        self._call_from_thread(self._store.scarce, _no_space())
        return self._store_all(batch)

    def _store_all(self, batch: list[tuple[int, list[Change]]]) -> _Lost:
        """Make a batch durable but for what the database cannot hold. Raises whatever else keeps it from that."""
        try:
            self._commit(coalesce([changes for _, changes in batch]))
        except Exception as error:
            if not self.database.is_unfit(error):
                raise
        else:
            return _Lost()
        lost, connection = _Lost(), self.database.connection
        with connection.begin():
            for generation, changes in batch:
                if lost.take(generation, changes):
                    continue
                try:
                    with connection.begin_nested():
                        self._execute(coalesce([changes]))
                except Exception as error:
                    if not self.database.is_unfit(error):
                        raise
                    text = one_line(getattr(error, "orig", None) or error)
                    log.error("a change is refused, as the database cannot hold it: {text}", text=text)
                    lost.add(generation, changes, errors.INTERNAL_ERROR(f"the database cannot hold this: {text}"))
        return lost

    def _refuse(self, lost: _Lost, last: int) -> None:
        """Have refused changes undone before anything else is written."""
        with self._lock:
            self._lost = lost
        self._call_from_thread(self._take_back, lost, last)
        with self._lock:
            self._lock.wait_for(lambda: self._lost is None or self._stopping)
            if self._lost is not None:  # the reactor has no turn for it before the end
                self._drop(lost)

    @property
    def _ballasted(self) -> bool:
        return self._ballast is None or self._ballast.held

    def _must_reserve(self) -> bool:
        return self.database.reserved - self._newest < RESERVE // 2

    def _take(self) -> list[tuple[int, list[Change]]] | None:
        """Wait for work; return it, empty when only the mark must move, or None when all is done."""
        while True:
            if not self._ballasted and time.monotonic() >= self._next_look:
                self._hold_ballast()
            with self._lock:
                if self._lock.wait_for(self._has_work, None if self._ballasted else self._retry_interval):
                    queue = self._queue
                    if self._stopping and not queue and not self._must_reserve():
                        return None
                    return [queue.popleft() for _ in range(min(len(queue), BATCH))]

    def _has_work(self) -> bool:
        return bool(self._queue) or self._stopping or self._must_reserve()

    def _commit(self, net: dict[Key, _Net]) -> None:
        with self._lock:
            reserved = self._newest + RESERVE if self._must_reserve() else None
        with self.database.connection.begin():
            self._execute(net)
            if reserved is not None:
                self.database.set_mark("generation", str(reserved))
        if reserved is not None:
            self.database.reserved = reserved

    def _execute(self, net: dict[Key, _Net]) -> None:
        tables = self.database.metadata.tables
        deletes: dict[str, list[dict[str, object]]] = {}
        inserts: dict[str, list[dict[str, object]]] = {}
        updates: dict[tuple[str, frozenset[str]], list[dict[str, object]]] = {}
        for (table, ref), (action, values) in net.items():
            if table not in tables:
                continue  # roles: see tables.persistent
            if action in ("delete", "replace"):
                deletes.setdefault(table, []).append({"__ref": ref})
            if action in ("insert", "replace"):
                inserts.setdefault(table, []).append({"_ref": ref, **values})
            if action == "update":
                updates.setdefault((table, frozenset(values)), []).append({"__ref": ref, **values})
        execute = self.database.connection.execute
        for table, parameters in deletes.items():
            sql = tables[table]
            execute(sql.delete().where(sql.c._ref == bindparam("__ref")), parameters)
        for table, parameters in inserts.items():
            execute(tables[table].insert().inline(), parameters)
        for (table, _), parameters in updates.items():
            sql = tables[table]
            # SQLAlchemy sets the columns that the parameters name, and keeps the compiled statement.
            execute(sql.update().where(sql.c._ref == bindparam("__ref")), parameters)

    def _fail(self, net: dict[Key, _Net], error: Exception) -> None:
        text = self.database.explain(error)
        log.error("changes cannot be stored: {text}", text=text)
        if self.database.is_full(error):
            fault = _no_space()
        else:
            fault = errors.INTERNAL_ERROR("changes cannot be stored; the log says why")
        self._call_from_thread(self._undo, list(net), fault)

    def _mend(self) -> bool:
        """Try until the database can be written and says what memory says; False when stopping."""
        assert self._store is not None
        told = ""
        while True:
            with self._lock:
                if self._lock.wait_for(lambda: self._stopping, self._retry_interval):
                    return False
                repair = self._repair
            if repair is None:
                continue
            try:
                self._probe(repair)
            except Exception as error:  # any failure means: not yet
                text = self.database.explain(error)
                if text != told:
                    log.error("changes still cannot be stored: {text}", text=text)
                told = text
                continue
            with self._lock:
                self._repair = None
            log.info("changes can be stored again")
            self._call_from_thread(self._store.recovered)
            return True

    def _probe(self, repair: dict[Key, dict[str, object] | None]) -> None:
        net = {key: _Net("delete", {}) if values is None else _Net("replace", values) for key, values in repair.items()}
        self.database.reconnect()
        with self.database.connection.begin():
            self.database.set_mark("probe", os.urandom(PROBE_SIZE // 2).hex())
        with self.database.connection.begin():
            self.database.remove_mark("probe")
        self._commit(net)
