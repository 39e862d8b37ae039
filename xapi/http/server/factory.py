"""The protocols of the connections of a listening port, and their end."""

from __future__ import annotations

from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime

from xapi.http.server.budget import Budget
from xapi.http.server.exchange import Application, Limits
from xapi.http.server.protocol import HTTPServer


class HTTPFactory(protocol.Factory):
    """Make the protocol of each connection."""

    noisy = False

    def __init__(
        self,
        application: Application,
        clock: IReactorTime,
        limits: Limits | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._application = application
        self._clock = clock
        self._limits = limits or Limits()
        self._budget = budget or Budget()
        self._open: set[HTTPServer] = set()
        self._closed: Deferred[None] | None = None

    def opened(self, server: HTTPServer) -> None:
        """Hear that a connection has begun."""
        self._open.add(server)

    def lost(self, server: HTTPServer) -> None:
        """Hear that a connection has ended."""
        self._open.discard(server)
        if self._closed is not None and not self._open and not self._closed.called:
            self._closed.callback(None)

    def close(self) -> Deferred[None]:
        """End all connections; the Deferred fires when they have ended."""
        self._closed = Deferred()
        for server in list(self._open):
            server.abort()
        if not self._open and not self._closed.called:
            self._closed.callback(None)
        return self._closed

    def buildProtocol(self, addr: IAddress | None) -> HTTPServer:
        """Serve one more connection."""
        server = HTTPServer(self._application, self._clock, self._limits, self._budget, self)
        server.factory = self
        return server
