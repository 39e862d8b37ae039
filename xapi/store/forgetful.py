"""A journal that keeps nothing: what is said to be durable lasts as long as the process."""

from __future__ import annotations

from collections.abc import Callable

from xapi.store.memory import Change, Store


class Forgetful:
    """The journal of a store in memory alone, in the place of `Writer`. `soon` runs a function in a later turn."""

    file = None

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self._soon = soon
        self._store: Store | None = None
        self._newest = 0
        self._told = True

    def start(self, store: Store) -> None:
        """Begin to tell a loaded store that its changes are written."""
        self._store = store
        self._tell_soon()

    def write(self, generation: int, changes: list[Change]) -> None:
        """Take the changes of one generation for written, as many as come in a turn at once."""
        self._newest = generation
        self._told = False
        self._tell_soon()

    def _tell_soon(self) -> None:
        if self._store is not None and not self._told:
            self._told = True
            self._soon(self._tell)

    def _tell(self) -> None:
        assert self._store is not None
        self._store.written(self._newest)

    def reserve(self, generation: int) -> None:
        """Do nothing: no later process goes on counting."""

    def stop(self) -> None:
        """Do nothing."""

    def abandon(self) -> None:
        """Do nothing."""
