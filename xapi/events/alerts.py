"""Alerts that the toolstack raises by itself: messages of the schema's `alerts.xml`, with its priorities."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from xapi import datamodel

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.store.memory import Store

MOST = 10_000
"""Alerts kept; beyond it the oldest go."""
_AT_ONCE = 100
"""Alerts that go at once where there are many too many, as in a state of before there was a limit."""


class Known(Protocol):
    """An object that clients know by a uuid."""

    uuid: str


def alert(db: Store, now: datetime, name: str, cls: str, row: Known, body: str = "") -> None:
    """Raise an alert about an object, of the class that messages call `cls`."""
    keep(db, name=name, priority=datamodel.load().alerts[name].priority, cls=cls, obj_uuid=row.uuid, body=body,
         timestamp=now)  # fmt: skip


def keep(db: Store, **values: object) -> records.message:
    """Create a message, and let go of the oldest that are too many."""
    table = db.message
    for oldest in list(islice(table, min(_AT_ONCE, max(0, len(table) - MOST + 1)))):
        table.delete(oldest._ref)
    return table.create(**values)
