"""What a client that follows `event.from` ends with, and references in values: for state machines over a pool."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from tests.conftest import Pool
from xapi.datamodel.types import MapType, RefType, SetType, Type
from xapi.wire.fragments import Fragments


class Follower:
    """A client that follows the events of some classes from the beginning."""

    def __init__(self, pool: Pool, classes: Collection[str]) -> None:
        self.pool = pool
        self.classes = list(classes)
        self.fragments = Fragments(pool.db, 1 << 20)
        self.view: dict[tuple[str, str], bytes] = {}
        self.token = ""
        self.follow()

    def follow(self) -> None:
        """Take what has happened since the last time."""
        batch = self.pool("event.from", self.classes, self.token, 0.0)
        self.token = str(batch.token)
        for event in batch.events:
            key = event.table.name, event.ref
            if event.row is None:
                self.view.pop(key, None)
            else:
                self.view[key] = self.fragments.xml_record(event.row)

    def truth(self) -> dict[tuple[str, str], bytes]:
        """Return what there is."""
        tables = (self.pool.db.tables[name] for name in self.classes)
        return {(table.name, row._ref): self.fragments.xml_record(row) for table in tables for row in table}


def references(kind: Type, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the classes and references in a value."""
    if isinstance(kind, RefType):
        yield kind.target, value
    elif isinstance(kind, SetType):
        for item in value:
            yield from references(kind.item, item)
    elif isinstance(kind, MapType):
        for key, item in value.items():
            yield from references(kind.key, key)
            yield from references(kind.value, item)
