"""A domain's console on the reactor's thread of its host's process."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from time import monotonic
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from hypervisor.split.console import Console
    from xapi.host.threads import Threads

FEW = 16
"""Who follow that are woken in one turn: each makes a socket writable, and others' sockets would wait behind those."""
TURN = 0.003
"""Seconds of waking those who follow in one turn of the reactor."""


class ConsoleStream:
    """`hypervisor.api.ByteStream` of a domain of this process, the same one for all who follow: there may be thousands.

    The domain's thread tells once that there is news. Who follows reads on from where it was, in its turn, so a guest
    that writes without pause costs each of them one wake for all that came meanwhile, and who is slow only reads less
    often; of what is no longer kept it misses the oldest.
    """

    def __init__(self, console: Console, threads: Threads) -> None:
        self._console = console
        self._threads = threads
        self._told = False
        self._waiting: dict[Deferred[None], None] = {}
        self._woken: deque[Deferred[None]] = deque()
        self._last: tuple[int, bytes, int] = (0, b"", 0)
        """What was read last: from a place, and to one."""
        console.listen(self._heard)

    async def write(self, data: bytes) -> int:
        """Type; return how many bytes were taken, when there was room for any; none once the domain has ended."""
        while not (taken := self._console.write(data)) and data and not self._console.ended:
            await self._news()
        return taken

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield what was written lately, then output as it comes, until the domain ends."""
        at = 0
        while True:
            ended = self._console.ended  # first: what was written before is still read
            data, at = self._read(at)
            if data:
                yield data
            elif ended:
                return
            else:
                await self._news()

    def _read(self, since: int) -> tuple[bytes, int]:
        start, data, end = self._last
        if start != since or not data or self._told:
            data, end = self._console.read(since)
            self._last = since, data, end
        return data, end

    async def _news(self) -> None:
        news: Deferred[None] = Deferred(self._forget)
        self._waiting[news] = None
        await news

    def _forget(self, news: Deferred[None]) -> None:
        self._waiting.pop(news, None)

    def _heard(self, data: bytes) -> None:
        """Hear of output, of room or of the end; on the domain's thread."""
        if not self._told:
            self._told = True
            self._threads.back(self._come)

    def _come(self) -> None:
        self._told = False
        idle = not self._woken
        self._woken.extend(self._waiting)
        self._waiting.clear()
        if idle:
            self._wake()

    def _wake(self) -> None:
        over = monotonic() + TURN
        for _ in range(FEW):
            if not self._woken:
                return
            news = self._woken.popleft()
            if not news.called:
                news.callback(None)
            if monotonic() >= over:
                break
        if self._woken:
            self._threads.later(0, self._wake)
