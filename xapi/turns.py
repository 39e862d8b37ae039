"""Long work on the reactor's thread, cut so that no turn of the reactor is long."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import DeferredLock

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

TURN = 0.002
"""Seconds of long work in one turn of the reactor, all of it together."""
SLICE = 8
"""Steps between two looks at the clock, of some 30 us each."""


class Turns:
    """What is long and goes on at the same time takes turns: who has had one waits for all others."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._turn = DeferredLock()

    async def take(self, steps: Iterator[T]) -> list[T]:
        """Take all steps of an iterator, `TURN` seconds of them at a time, and return what they yield.

        Other things happen between two steps. Who is cancelled takes no further step, and keeps nobody waiting.
        """
        taken: list[T] = []
        while True:
            await self._turn.acquire()
            try:
                end = self._clock.seconds() + TURN
                while True:
                    some = list(islice(steps, SLICE))
                    if not some:
                        return taken
                    taken += some
                    if self._clock.seconds() >= end:
                        break
            finally:  # until the next turn of the reactor nobody else has one
                self._clock.callLater(0, self._turn.release)
