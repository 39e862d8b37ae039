"""How long the peer of a connection is waited for.

Deadlines are computed when the one timer of a connection fires, so an ordinary request never touches the timer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xapi.http.server.incoming import BODY
from xapi.http.server.outgoing import Pulled

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from xapi.http.server.exchange import Limits
    from xapi.http.server.protocol import HTTPServer


class Patience:
    """The deadlines of one connection, by what it is doing."""

    __slots__ = ("_began", "_clock", "_fresh", "_limits", "_lingers", "_server", "_since", "_stopped", "_timer")

    def __init__(self, server: HTTPServer, clock: IReactorTime, limits: Limits) -> None:
        self._server = server
        self._clock = clock
        self._limits = limits
        self._since = 0.0
        self._began = 0.0  # when the request that is being received began to come
        self._fresh = True  # no request has been answered yet
        self._lingers: float | None = None  # until when a client is heard that was answered while it sent
        self._timer: IDelayedCall | None = None
        self._stopped = False

    def touch(self) -> None:
        """Note that the peer does something, or begins to be waited for."""
        self._since = self._clock.seconds()

    def began(self) -> None:
        """Note that the connection has begun."""
        self.touch()
        self.arm()

    def got_on(self, begins: bool) -> None:
        """Note that a request has got on, or begins to come."""
        self.touch()
        if begins:
            self._began = self._since
        self.arm()

    def settled(self) -> None:
        """Note that all requests are answered."""
        self._fresh = False
        self._since = self._began = self._clock.seconds()
        if self._server.incoming.stage or self._timer is None:
            self.arm()

    def heard(self) -> None:
        """Note that the peer goes on sending what nobody reads."""
        if self._lingers is not None:
            self.touch()

    def linger(self) -> None:
        """Hear out, but not for ever, who may still be sending."""
        self.touch()
        self._lingers = self._since + self._limits.linger_seconds
        self.arm()

    def closing(self) -> None:
        """Note that the connection is being closed."""
        self.touch()
        self.arm()

    def stop(self) -> None:
        """Wait for nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stopped = True
        del self._server  # it has us, and garbage in circles stays long

    def rank(self) -> tuple[int, float] | None:
        """Return how much the connection is needed, the least first; None while somebody waits for an answer."""
        server = self._server
        if self._lingers is not None:
            return 0, self._since
        if server.busy or server.closing:
            return None
        return (2, self._began) if server.incoming.stage else (1, self._since)

    def _due(self) -> float | None:
        """Return when the patience with the peer ends; None while it waits for us."""
        server, limits = self._server, self._limits
        if self._lingers is not None:
            return min(self._lingers, self._since + limits.linger_rest)
        outgoing = server.outgoing
        if server.closing or isinstance(outgoing, Pulled) or (outgoing is not None and outgoing.is_held):
            return self._since + limits.unread_seconds
        incoming = server.incoming
        if server.busy:
            stream = incoming.stream
            return None if stream is None or not stream.is_awaited else self._since + stream.rest_seconds
        if incoming.stage == BODY:
            whole = self._began + incoming.received() / limits.body_rate
            return min(self._since, whole) + limits.body_seconds
        if incoming.stage:
            return self._since + limits.head_seconds
        return self._since + (min(limits.head_seconds, limits.idle_seconds) if self._fresh else limits.idle_seconds)

    def arm(self) -> None:
        """Make sure that the timer fires no later than the deadline; firing early is harmless."""
        due = None if self._stopped else self._due()
        if due is None:
            return
        delay = max(0, due - self._clock.seconds())
        if self._timer is None:
            self._timer = self._clock.callLater(delay, self._tick)
        elif self._timer.getTime() > due:
            self._timer.reset(delay)

    def _tick(self) -> None:
        self._timer = None
        server = self._server
        due = self._due()
        if due is None:
            return
        if self._clock.seconds() < due:
            self.arm()
        elif self._lingers is not None:
            self._lingers = None
            server.wire.loseConnection()
            self.closing()
        elif server.closing or server.outgoing is not None:
            server.abort()
        elif server.busy or (server.incoming.stage and server.incoming.stream is None):
            server.time_out()
        else:
            server.close()
