"""A disk for stores that are in memory alone."""

from __future__ import annotations

from twisted.internet.task import Clock

from xapi import datamodel
from xapi.datamodel import Model
from xapi.store.memory import Change, Store


class Journal:
    """Has written each change at once, on a clock in the next turn; and nothing while it is `held`. Set its `store`."""

    store: Store

    def __init__(self, clock: Clock | None = None) -> None:
        self.changes: list[tuple[int, list[Change]]] = []
        """All that it has been given, by generation."""
        self.held = False
        self._clock = clock

    def write(self, generation: int, changes: list[Change]) -> None:
        self.changes.append((generation, changes))
        if self.held:
            return
        if self._clock is None:
            self.store.written(generation)
        else:
            self._clock.callLater(0, self.store.written, generation)


def store_at_once(model: Model | None = None) -> Store:
    """Return an empty store, of all classes or those of a model, whose changes are durable at once."""
    journal = Journal()
    journal.store = Store(model or datamodel.load(), journal, call_soon=lambda tell: None)
    return journal.store
