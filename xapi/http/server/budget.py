"""How many connections may be open at once: files, disks and the database need descriptors too.

When all are taken the one that is needed least gives way to a new one: first what is closing, then who asks nothing,
the longest idle first, then who is slow to ask. A request that is being answered never does. Finding them takes a look
at all connections, so some are let go at once; an ordinary request costs nothing.
"""

from __future__ import annotations

import heapq
import resource
from typing import Protocol

from twisted.logger import Logger

MOST = 4096
"""Connections that are enough for everybody."""
_AT_ONCE = 64
"""One in so many gives way when one must."""
_log = Logger()


class Connection(Protocol):
    """What can be asked of a connection."""

    def spare(self) -> tuple[int, float] | None:
        """Return how much it is needed, the least first; None while it must stay."""

    def give_way(self) -> None:
        """End at once."""


def affordable() -> int:
    """Return how many connections the process can have: half of the files that it may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else min(MOST, files // 2)


class Budget:
    """The connections of some listening ports together."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._open: dict[Connection, None] = {}
        self._told = False

    def admit(self, connection: Connection) -> bool:
        """Tell whether there is room for one more; it counts until it has `left`."""
        if len(self._open) >= self._most:
            self._make_room()
            if len(self._open) >= self._most:
                return False
        self._open[connection] = None
        return True

    def left(self, connection: Connection) -> None:
        """Hear that a connection is gone."""
        self._open.pop(connection, None)
        if self._told and len(self._open) < self._most * 3 // 4:
            self._told = False

    def _make_room(self) -> None:
        ranked = ((rank, number, each) for number, each in enumerate(self._open) if (rank := each.spare()) is not None)
        least = heapq.nsmallest(max(1, self._most // _AT_ONCE), ranked)
        for _, _, each in least:
            del self._open[each]
            each.give_way()
        if not self._told:
            self._told = True
            _log.warn(
                "all {most} connections are taken: {gone} idle ones were closed", most=self._most, gone=len(least)
            )
