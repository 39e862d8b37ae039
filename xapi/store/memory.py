"""The objects of the pool: rows in memory, the truth that every message reads and writes.

One `Store` holds one `Table` a stored class, and a table one `Row` an object. Reading is attribute
access on a row. Writing is assignment to one, inside `Store.atomic()` or, alone, as an atomic change
of its own. When the outermost `atomic` ends, in this order:

1. derived fields are brought up to date (`Derivation`; relation sets follow at each write already);
2. the change gets the next *generation*, the number that event tokens are made of, and every touched
   row is stamped with it;
3. what must survive a restart goes to the `Journal` (`xapi.store.writer` in the daemon), which
   reports each generation when it is on disk, or that it could not be written. Where the database fails,
   all that is not on disk is undone, and changes are refused until the journal can write again; where it
   cannot hold a change, that one is undone with what builds on it, and the rest goes on.

An exception inside `atomic` undoes all of it. Writing the value that is there already is no change.
Everything here runs on the reactor thread. Costs: a read 30 ns, a one-field change some 5 µs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from xapi.datamodel import Model, errors
from xapi.datamodel.records import Tables
from xapi.store.rows import Grave, R, Row, Table
from xapi.store.uuids import Uuids

if TYPE_CHECKING:
    from xapi.datamodel.records import Claimable

GRAVES = 50_000
"""How many deleted objects of a class are remembered for clients that poll events."""


class Change(NamedTuple):
    """What the journal is told of one row. `values` holds only kept, assigned fields."""

    table: str
    ref: str
    action: str
    """insert, update or delete"""
    values: dict[str, object]


class Journal(Protocol):
    """Where changes become durable. It answers by `Store.written`, `failed` or `refused`, never from `write`."""

    def write(self, generation: int, changes: list[Change]) -> None:
        """Store the changes of one generation, after those of all earlier ones."""


@dataclass(frozen=True, eq=False)
class Derivation:
    """A field that follows from others.

    `sources` maps a class to a function from a changed row of it, and the names of the fields that
    changed, to the references of the rows to derive anew; `compute` gives the value for one row.
    """

    table: str
    field: str
    compute: Callable[[Store, Any], object]
    sources: Mapping[str, Callable[[Any, Collection[str]], Iterable[str]]]


LogEntry = tuple[str, Row, str, object]
"""What was done to which row, to which field of it, and what that held before."""


class _Transaction:
    """What one outermost `atomic` has done so far, and how to undo it."""

    __slots__ = ("log", "touched")

    def __init__(self) -> None:
        self.log: list[LogEntry] = []
        self.touched: dict[Row, set[str]] = {}


class _Pending(NamedTuple):
    generation: int
    log: list[LogEntry]


class Store(Tables):
    """All tables of one pool; each is also an attribute, `store.VM`.

    `call_soon` runs a function in a later turn of the reactor: listeners hear of all the changes of
    one turn at once. `generation` is where counting goes on after a restart.
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        call_soon: Callable[[Callable[[], None]], object],
        generation: int = 1,
    ) -> None:
        self.model = model
        self.journal = journal
        self.generation = generation
        """Number of the last change."""
        self.flushed = generation
        """All changes up to this one are durable."""
        self.oldest = generation
        """Tokens before this generation cannot be served: deletions since are forgotten."""
        self.refusal: errors.Fault | None = None
        """Why changes to durable objects are refused at present, if they are."""
        self.shortage: errors.Fault | None = None
        """Why nothing new is made at present, if so: what frees and what the hosts report goes on."""
        self.forget: Callable[[Row], None] = lambda row: None
        """Called for each row whose rendered fragments are stale."""
        self.unsettled: Callable[[], None] = lambda: None
        """Called when changes have been undone that were accepted, and when changes are accepted again after that:
        what they say of things outside must be looked at."""
        self.uuids = Uuids()
        """Those of new objects, and of their references."""
        self._call_soon = call_soon
        self._transaction: _Transaction | None = None
        self._pending: deque[_Pending] = deque()
        self._waiting: deque[tuple[int, Callable[[errors.Fault | None], None]]] = deque()
        self._listeners: dict[Callable[[], None], None] = {}
        self._telling = False
        self._derivations: dict[str, list[Derivation]] = {}
        self._unmet: dict[str, dict[tuple[Row, str], None]] = {}
        """References to objects that are not there, with the rows and fields that hold them."""
        self.tables: dict[str, Table[Row]] = {}
        for cls in model.stored:
            self.tables[cls.name] = Table(self, cls)

    if not TYPE_CHECKING:  # which knows the tables, and refuses any other name

        def __getattr__(self, name: str) -> Table[Row]:
            try:
                table = self.__dict__["tables"][name]
            except KeyError:
                raise AttributeError(name) from None
            self.__dict__[name] = table
            return table

    def derive(self, derivation: Derivation) -> None:
        """Register a derived field. The rows that exist already get it at their next change."""
        for source in derivation.sources:
            self._derivations.setdefault(source, []).append(derivation)

    def claimable(self, name: str) -> Table[Claimable]:
        """Return the objects of a class that has operations."""
        table: Table[Claimable] = getattr(self, name)
        return table

    def find(self, ref: str) -> Row | None:
        """Return the object of whatever class that has this reference."""
        for table in self.tables.values():
            row = table.rows.get(ref)
            if row is not None:
                return row
        return None

    # Loading, before the first change.

    def load(self, table: Table[R], rows: Iterable[R]) -> None:
        """Take rows as they come from the database; follow with `loaded()`."""
        for row in rows:
            table.rows[row._ref] = row
            table._index(row)

    def loaded(self) -> None:
        """Fill the relation sets and derived fields of all loaded rows."""
        for table in self.tables.values():
            for field in table._assigned_relations:
                table._relate_all(field)
        for derivation in dict.fromkeys(one for several in self._derivations.values() for one in several):
            table = self.tables[derivation.table]
            put, compute = table.set[derivation.field], derivation.compute
            for row in table.rows.values():
                put(row, compute(self, row))
        for table in self.tables.values():
            put_created, put_modified = table.set["_created"], table.set["_modified"]
            for row in table.rows.values():
                put_created(row, self.generation)
                put_modified(row, self.generation)
            table.changes = dict.fromkeys(table.rows.values())

    # Changing.

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Make all changes inside one change; an exception undoes them. Nested ones join the outer.

        No `await` may stand inside: nothing else runs between the first change and the last.
        """
        outer = self._transaction
        if outer is not None:
            mark = len(outer.log)
            try:
                yield
            except BaseException:
                self._undo(outer.log, mark)
                raise
            return
        self._transaction = transaction = _Transaction()
        try:
            yield
            self._derive(transaction)
            self._commit(transaction)
        except BaseException:
            self._undo(transaction.log, 0)
            raise
        finally:
            self._transaction = None

    def _assign(self, row: Row, name: str, value: object) -> None:
        table = row._table
        if name not in table.fit:
            field = table.cls.fields.get(name)
            if field is None:
                raise AttributeError(f"{table.name} has no {name}")
            raise AttributeError(f"{table.name}.{name} follows from {field.inverse}: assign that")
        value = table.fitted(name, value)
        old = getattr(row, name)
        if old == value:
            return
        transaction = self._transaction
        if transaction is None:
            with self.atomic():
                self._assign(row, name, value)
            return
        if name == "uuid" and value in (table._by_uuid or ()):
            raise errors.DB_UNIQUENESS_CONSTRAINT_VIOLATION(table.name, name, str(value))
        transaction.log.append(("update", row, name, old))
        table.put(row, name, value)
        self._touch(row, name)

    def _create(self, row: Row) -> None:
        assert self._transaction is not None
        self._transaction.log.append(("insert", row, "", None))
        self._touch(row, *row._table.cls.fields)
        row._table._insert(row)

    def _delete(self, row: Row) -> None:
        assert self._transaction is not None
        self._transaction.log.append(("delete", row, "", None))
        row._table._remove(row)
        self._touch(row)

    def _touch(self, row: Row, *names: str) -> None:
        if self._transaction is not None:
            self._transaction.touched.setdefault(row, set()).update(names)

    def touch(self, row: Row) -> None:
        """Give a row the next generation, as if it had changed; nothing is written."""
        with self.atomic():
            self._touch(row)

    def _undo(self, log: list[LogEntry], mark: int) -> None:
        while len(log) > mark:
            action, row, name, old = log.pop()
            table = row._table
            if action == "update":
                table.put(row, name, old)
            elif action == "insert":
                table._remove(row)
            else:
                table._insert(row)

    def _derive(self, transaction: _Transaction) -> None:
        todo = list(transaction.touched.items())
        while todo:
            stale: dict[tuple[str, str], Derivation] = {}
            for row, names in todo:
                for derivation in self._derivations.get(row._table.name, ()):
                    for ref in derivation.sources[row._table.name](row, names):
                        stale[ref, derivation.field] = derivation
            todo = []
            for (ref, name), derivation in stale.items():
                target = self.tables[derivation.table].rows.get(ref)
                if target is None:
                    continue
                value = self._computed(derivation, target)
                if getattr(target, name) != value:
                    self._assign(target, name, value)
                    todo.append((target, {name}))

    def _computed(self, derivation: Derivation, target: Row) -> object:
        try:
            return derivation.compute(self, target)
        except (ArithmeticError, ValueError) as error:  # such as the product of two numbers that are both allowed
            raise errors.VALUE_NOT_SUPPORTED(f"{derivation.table}.{derivation.field}", "", str(error)) from error

    def _commit(self, transaction: _Transaction) -> None:
        touched = transaction.touched
        changes = self._changes(transaction.log)
        if not touched:
            return
        if changes and self.refusal is not None:
            raise self.refusal
        if changes and self.shortage is not None and any(map(self._is_new, changes)):
            raise self.shortage
        generation = self.generation = self.generation + 1
        for row in touched:
            self._stamp(row, generation)
        if changes:
            # Only what the journal has can be lost: tasks and sessions of the same change stay.
            kept = [entry for entry in transaction.log if entry[2] in entry[1]._table.kept_or_whole]
            self._pending.append(_Pending(generation, kept))
            self.journal.write(generation, changes)
        elif not self._pending:
            self.flushed = generation
        self._tell_soon()

    def _is_new(self, change: Change) -> bool:
        """Tell whether a change makes what clients ask for: an object of theirs, or a setting."""
        table = self.tables[change.table]
        if change.action == "insert":
            return table.asked_for
        return not table.settings.isdisjoint(change.values)

    def _stamp(self, row: Row, generation: int) -> None:
        table = row._table
        self.forget(row)
        if table.rows.get(row._ref) is row:
            if not row._created:
                table.set["_created"](row, generation)
            table.set["_modified"](row, generation)
            table.changes.pop(row, None)
            table.changes[row] = None
        else:
            table.changes.pop(row, None)
            if row._created:
                graves = table.graves
                graves.append(Grave(generation, row._created, row._ref))
                table.set["_created"](row, 0)
                if len(graves) > GRAVES:
                    self.oldest = max(self.oldest, graves.popleft().deleted)

    def _changes(self, log: list[LogEntry]) -> list[Change]:
        """Return what the journal must know: one change a row, with its newest values."""
        first: dict[Row, str] = {}
        names: dict[Row, set[str]] = {}
        for action, row, name, _ in log:
            first.setdefault(row, action)
            if name:
                names.setdefault(row, set()).add(name)
        changes = []
        for row, action in first.items():
            table = row._table
            if not table.kept:
                continue
            alive = table.rows.get(row._ref) is row
            if action == "insert":
                if alive:
                    values = {name: getattr(row, name) for name in table.kept}
                    changes.append(Change(table.name, row._ref, "insert", values))
            elif not alive:
                changes.append(Change(table.name, row._ref, "delete", {}))
            else:
                values = {name: getattr(row, name) for name in names.get(row, ()) if name in table.kept}
                if values:
                    changes.append(Change(table.name, row._ref, "update", values))
        return changes

    # Durability and news.

    @property
    def last_written(self) -> int:
        """The generation of the last change that the journal has been given."""
        return self._pending[-1].generation if self._pending else self.flushed

    def when_flushed(self, generation: int, tell: Callable[[errors.Fault | None], None]) -> None:
        """Call `tell(None)` once the change is durable, or `tell(fault)` when it was undone."""
        if generation <= self.flushed:
            tell(None)
        else:
            self._waiting.append((generation, tell))

    def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard` after changes, when they are durable, until `unlisten`; changes coalesce."""
        self._listeners[heard] = None

    def unlisten(self, heard: Callable[[], None]) -> None:
        """Stop `listen`; harmless when it has stopped already."""
        self._listeners.pop(heard, None)

    def written(self, generation: int) -> None:
        """Hear from the journal that all changes up to this generation are durable."""
        while self._pending and self._pending[0].generation <= generation:
            self._pending.popleft()
        self.flushed = self._pending[0].generation - 1 if self._pending else self.generation
        self._tell()

    def failed(self, refusal: errors.Fault) -> None:
        """Hear from the journal that nothing since the last `written` is durable: undo it all.

        Until `recovered`, changes to durable objects are refused with this error.
        """
        pending, self._pending = list(self._pending), deque()
        waiting, self._waiting = list(self._waiting), deque()
        self.refusal = refusal
        self._take_back(pending)
        self.flushed = self.generation
        for _, tell in waiting:
            tell(refusal)
        self._tell_soon()
        self.unsettled()

    def refused(self, faults: Mapping[int, errors.Fault]) -> None:
        """Hear from the journal that these generations, and none that builds on them, are not durable: undo them.

        What follows from the rows they touched is derived anew, which is a change of its own.
        """
        lost = [change for change in self._pending if change.generation in faults]
        self._pending = deque(change for change in self._pending if change.generation not in faults)
        waiting, self._waiting = self._waiting, deque()
        derived = self._take_back(lost)
        changes = self._changes(derived)
        if changes:
            self._pending.append(_Pending(self.generation, derived))
            self.journal.write(self.generation, changes)
        for generation, tell in waiting:
            if generation in faults:
                tell(faults[generation])
            else:
                self._waiting.append((generation, tell))
        self._tell_soon()
        self.unsettled()

    def _take_back(self, lost: list[_Pending]) -> list[LogEntry]:
        """Undo changes as one new generation; return what was derived anew."""
        self._transaction = transaction = _Transaction()
        try:
            for change in reversed(lost):
                for _, row, name, _ in change.log:
                    self._touch(row, *filter(None, [name]))
                self._undo(change.log, 0)
            self._derive(transaction)
            if transaction.touched:
                self.generation += 1
                for row in transaction.touched:
                    if not row._created and row._ref in row._table.rows:  # only now: it told the sources
                        row._table.exhume(row)
                    self._stamp(row, self.generation)
        finally:
            self._transaction = None
        return [entry for entry in transaction.log if entry[2] in entry[1]._table.kept_or_whole]

    def scarce(self, shortage: errors.Fault | None) -> None:
        """Hear from the journal that room is scarce, or, with None, that there is enough again."""
        self.shortage = shortage

    def recovered(self) -> None:
        """Hear from the journal that it can write again."""
        self.refusal = None
        self.unsettled()

    def _tell_soon(self) -> None:
        if not self._telling:
            self._telling = True
            self._call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        waiting = self._waiting
        later = []
        while waiting:
            generation, tell = waiting.popleft()
            if generation <= self.flushed:
                tell(None)
            else:
                later.append((generation, tell))
        waiting.extend(later)
        for heard in list(self._listeners):
            heard()
