"""The reactor: Twisted's epoll one, with short turns.

Twisted takes all ready sockets in one turn; with a thousand listeners that all have news, a turn is then as
long as a thousand answers, and timers and the writer's news wait for it. Ours takes a few at a time. epoll is
level-triggered and rotates, so the rest is ready in the next turn, and nobody is passed over.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import main
from twisted.internet.epollreactor import EPollReactor

READY = 16
"""Sockets served in one turn at most."""


class _Few:
    """An epoll object whose `poll` returns at most `READY` events."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller

    def poll(self, timeout: float, most: int) -> Any:
        """Wait as epoll.poll does."""
        return self._poller.poll(timeout, min(most, READY))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)


class ShortTurnReactor(EPollReactor):
    """An epoll reactor with at most `READY` sockets a turn."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._poller = _Few(self._poller)


def install() -> None:
    """Make it the process's reactor, unless the program that runs us has chosen one."""
    if "twisted.internet.reactor" not in sys.modules:
        main.installReactor(ShortTurnReactor())
