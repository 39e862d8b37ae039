"""A connection that is made anew whenever it is lost, and the line of proxies that outlive it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from xapi.host.wire.connection import Connection
from xapi.host.wire.errors import Lost

if TYPE_CHECKING:
    from xapi.host.wire.errors import Errors
    from xapi.host.wire.interface import Method

log = Logger()

AGAIN = backoffPolicy(0.05, 2.0, 1.5, jitter=lambda: 0.0)
"""Seconds until the next try: 0.08, then longer, up to 2."""


class Link:
    """Keeps a connection to an endpoint from `begin` to `end`; what is asked during the first try waits for it.

    `greet` is called with each new connection; when it has returned, `up` is, and calls go there. `lost` is called when
    the connection is lost, and after a first try in vain. `limit` tells in how many seconds a method must have
    answered, None for no limit.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        make: Callable[[], Connection],
        clock: IReactorTime,
        errors: Errors,
        *,
        greet: Callable[[Connection], Awaitable[None]],
        up: Callable[[Connection], None],
        lost: Callable[[], None],
        limit: Callable[[Method], float | None] = lambda method: None,
    ) -> None:
        self._endpoint, self._make, self._clock, self._errors = endpoint, make, clock, errors
        self._greet, self._up, self._lost, self._limit = greet, up, lost, limit
        self._connection: Connection | None = None
        self._work: Deferred[None] | None = None
        self._first: list[Deferred[None]] | None = None
        """Who waits for the first try, while that is under way."""
        self._why = errors.lost(Lost("it was not begun"))

    # Coming and going

    def begin(self) -> None:
        """Connect, and again whenever the connection is lost; nothing where that is under way."""
        if self._work is None:
            self._first = []
            self._work = Deferred.fromCoroutine(self._keep())
            self._work.addErrback(lambda failure: failure.trap(CancelledError))

    def end(self, why: Exception) -> None:
        """Close the connection, and make no other; whoever calls from now on is told why."""
        self._why = why
        if self._work is not None:
            work, self._work = self._work, None
            work.cancel()
            self._tried()

    def _tried(self) -> None:
        waiting, self._first = self._first or [], None
        for each in waiting:
            if not each.called:
                each.callback(None)

    @property
    def connected(self) -> bool:
        """Whether there is a connection in use."""
        return self._connection is not None

    async def _keep(self) -> None:
        tries, told = 0, ""
        while True:
            try:
                async with self._connected() as connection:
                    over: Deferred[Lost] = Deferred()
                    connection.on_lost = over.callback
                    await self._greet(connection)
                    self._connection = connection
                    log.info("{endpoint}: reached", endpoint=self._endpoint)
                    tries, told = 0, ""
                    self._up(connection)
                    self._tried()
                    raise await over
            except CancelledError:
                raise
            except Exception as error:
                self._why = self._errors.lost(Lost(f"not reached: {error}"))
                if told != str(error):
                    told = str(error)
                    log.warn("{endpoint}: not reached: {error}", endpoint=self._endpoint, error=error)
                if not tries:
                    self._lost()
                self._tried()
            tries += 1
            await self._pause(AGAIN(tries))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        """Yield a connection whose other end has greeted, and close it. Raises Lost, or what the endpoint does."""
        connection = self._make()
        await connectProtocol(self._endpoint, connection)
        try:
            yield await connection.ready
        finally:
            self._connection = None
            connection.close(str(self._why))

    async def _pause(self, seconds: float) -> None:
        over: Deferred[None] = Deferred()
        timer = self._clock.callLater(seconds, over.callback, None)
        try:
            await over
        finally:
            if timer.active():
                timer.cancel()

    # Calls

    async def ask(
        self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object]
    ) -> object:
        """Call a method and return its answer; it is late after its limit, and cancelled then."""
        asking = (await self._reached()).asking.ask(address, method, given, named)
        limit = self._limit(method)
        if limit is None:
            return await asking
        answer = Deferred.fromCoroutine(asking)
        shown = _Shown(answer)

        def late() -> None:
            shown.errback(self._errors.late(f"{method.full_name} has not answered in {limit:.0f} s"))
            answer.cancel()

        timer = self._clock.callLater(limit, late)

        def over(result: object) -> None:
            if timer.active():
                timer.cancel()
            if not shown.called:
                shown.callback(result)

        answer.addBoth(over)
        return await shown

    async def follow(
        self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object]
    ) -> AsyncIterator[object]:
        """Call a method and yield what it does."""
        connection = await self._reached()
        async for item in connection.asking.follow(address, method, given, named):
            yield item

    def tell(self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object]) -> None:
        """Call a method without waiting for it; nothing where there is no connection."""
        if self._connection is not None:
            self._connection.asking.tell(address, method, given, named)

    def released(self, number: int) -> None:
        """Do nothing: what was sent is of its connection."""

    async def _reached(self) -> Connection:
        if self._first is not None:
            tried: Deferred[None] = Deferred()
            self._first.append(tried)
            await tried
        if self._connection is None:
            raise self._why.with_traceback(None)
        return self._connection


class _Shown(Deferred[object]):
    """An answer as who asks sees it, which may be late."""

    def __init__(self, answer: Deferred[object]) -> None:
        super().__init__()
        self._answer = answer

    def cancel(self) -> None:
        """Cancel the call, and wait for what comes of it."""
        self._answer.cancel()
