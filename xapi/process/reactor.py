"""The reactor: Twisted's epoll one, with short turns.

Twisted serves all ready sockets and all that threads have to tell in one turn. With a thousand listeners that all
have news, or eight clients that each start a VM, timers and everybody else then wait as long as all of that takes.
Ours takes a few at a time, and ends a turn that lasts: what is left comes first in the next, so nobody is passed over.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import monotonic
from typing import Any, TypeVar

from twisted.internet import main
from twisted.internet.epollreactor import EPollReactor
from twisted.logger import Logger

log = Logger()

READY = 16
"""Sockets served in one turn at most."""
LASTING = 0.003
"""Seconds after which a turn takes no further socket; and as long again until it takes no further news of threads."""

_Item = TypeVar("_Item")


class _Few:
    """An epoll object whose `poll` returns at most `READY` events, and of these as many as a turn has time for."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._left: dict[int, int] = {}
        """What the last turn had no time for, by file descriptor."""

    def poll(self, timeout: float, most: int) -> Iterator[tuple[int, int]]:
        """Wait as epoll.poll does, unless there is something left; what is not taken stays for the next call."""
        ready = list(self._left.items()) or self._poller.poll(timeout, min(most, READY))
        self._left.clear()
        return self._while_there_is_time(ready)

    def _while_there_is_time(self, ready: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        end = monotonic() + LASTING
        for taken, event in enumerate(ready, 1):
            yield event
            if monotonic() > end:
                self._left = dict(ready[taken:])
                return

    def modify(self, number: int, events: int) -> None:
        """Wait for other events of a file; what is left of it may not be wanted any more, and epoll tells it again."""
        self._left.pop(number, None)
        self._poller.modify(number, events)

    def unregister(self, number: int) -> None:
        """Wait no more for a file; the next of that number has nothing to do with it."""
        self._left.pop(number, None)
        self._poller.unregister(number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)


class _News(list[_Item]):
    """Twisted's list of what threads want to be called: it goes through it, and removes as many as it has come by."""

    def __iter__(self) -> Iterator[_Item]:
        end = monotonic() + LASTING
        for item in super().__iter__():
            yield item
            if monotonic() > end:
                return


class ShortTurnReactor(EPollReactor):
    """An epoll reactor whose turns are short, unless one thing alone takes long."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._poller = _Few(self._poller)
        self.threadCallQueue = _News(self.threadCallQueue)

    def doPoll(self, timeout: float | None) -> None:
        """Wait for what is ready, and serve it.

        Twisted's own does so in a logging context of each socket, which takes a fifth of a small call.
        """
        selectables: Any = self._selectables
        serve: Any = self._doReadOrWrite
        for number, event in self._poller.poll(-1 if timeout is None else timeout, len(selectables)):
            selectable = selectables.get(number)
            if selectable is None:
                continue  # what was served before it in this turn has closed it
            try:
                serve(selectable, number, event)
            except Exception:
                log.failure("serving {socket} failed", socket=selectable)

    doIteration = doPoll

    def stop(self) -> None:
        """End; who asks again, as a second signal does that comes before the first is heeded, makes no error."""
        if not self._stopped:
            super().stop()


def install() -> None:
    """Make it the process's reactor, unless the program that runs us has chosen one."""
    if "twisted.internet.reactor" not in sys.modules:
        main.installReactor(ShortTurnReactor())
