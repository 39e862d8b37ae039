"""A store on a real database without a reactor, whose turns the test takes, and values of every type."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable
from datetime import UTC
from typing import Any

from hypothesis import strategies as st

from xapi import datamodel
from xapi.datamodel import Model
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import BoolType, DateTimeType, EnumType, FloatType, IntType, MapType, RefType, SetType, Type
from xapi.store.ballast import Ballast
from xapi.store.database import Database, open_database
from xapi.store.memory import Change, Store
from xapi.store.tables import kept_fields, persistent
from xapi.store.writer import Writer

WHOLE = datamodel.load()
FEW = ("VM", "VDI", "VBD", "network", "secret", "role", "session")
MODEL = dataclasses.replace(WHOLE, classes={name: WHOLE.classes[name] for name in FEW})
"""A few classes, each whole: a database of all takes ten times as long to open."""

PATIENCE = 30.0
"""Seconds after which a test gives up on the writer's thread."""


class Loop:
    """What the reactor is to the store: one function at a time, when the test says so."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = queue.SimpleQueue()

    def from_thread(self, function: Callable[..., object], *arguments: Any) -> None:
        self.calls.put((function, arguments))

    def soon(self, function: Callable[[], None]) -> None:
        self.calls.put((function, ()))

    def turn(self) -> None:
        """Run the next call, waiting for it."""
        function, arguments = self.calls.get(timeout=PATIENCE)
        function(*arguments)

    def until(self, happened: Callable[[], object]) -> None:
        """Take turns until something is true."""
        while not happened():
            self.turn()


class Opened:
    """A loaded store with its database, writer and loop."""

    def __init__(
        self,
        url: str,
        *,
        model: Model = MODEL,
        retry_interval: float = 0.01,
        ballast: Ballast | None = None,
        **options: Any,
    ) -> None:
        self.loop = Loop()
        self.database: Database = open_database(url, model, **options)
        self.writer = Writer(self.database, self.loop.from_thread, retry_interval, ballast)
        self.store = Store(model, self.writer, self.loop.soon, self.database.generation)
        self.database.load(self.store)
        self.store.loaded()

    def __enter__(self) -> Opened:
        self.writer.start(self.store)
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.stop()

    def flush(self) -> Fault | None:
        """Wait until the store's changes so far are durable; return the fault when they were undone."""
        told: list[Fault | None] = []
        self.store.when_flushed(self.store.generation, told.append)
        self.loop.until(lambda: told)
        return told[0]


def contents(store: Store) -> dict[str, dict[str, dict[str, Any]]]:
    """Return all that must survive a restart: class, reference, field, value."""
    return {
        cls.name: {
            row._ref: {field.name: getattr(row, field.name) for field in kept_fields(cls)}
            for row in store.tables[cls.name]
        }
        for cls in store.model.stored
        if persistent(cls)
    }


def discard(store: Store) -> list[tuple[int, list[Change]]]:
    """Replace the journal of a store by a list, which is returned."""
    written: list[tuple[int, list[Change]]] = []

    class List:
        def write(self, generation: int, changes: list[Change]) -> None:
            written.append((generation, changes))

    store.journal = List()
    return written


_REFS = st.uuids().map(lambda value: f"OpaqueRef:{value}") | st.just("OpaqueRef:NULL")
# What types.decode lets through of a str: control characters but tab, LF and CR are taken out.
_TEXTS = st.text(
    st.characters(
        exclude_categories=["Cs"], exclude_characters=[*map(chr, {*range(32)} - {9, 10, 13}), "\ufffe", "\uffff"]
    )
)


def values(kind: Type) -> st.SearchStrategy[Any]:
    """Return a strategy for the values in memory of a type."""
    if isinstance(kind, SetType):
        return st.lists(values(kind.item), max_size=4).map(tuple)
    if isinstance(kind, MapType):
        return st.dictionaries(values(kind.key), values(kind.value), max_size=4)
    if isinstance(kind, EnumType):
        return st.sampled_from(list(kind.values))
    if isinstance(kind, RefType):
        return _REFS
    if isinstance(kind, IntType):
        return st.integers(-(2**63), 2**63 - 1)
    if isinstance(kind, BoolType):
        return st.booleans()
    if isinstance(kind, FloatType):
        return st.floats()
    if isinstance(kind, DateTimeType):
        return st.datetimes(timezones=st.just(UTC))
    return _TEXTS
