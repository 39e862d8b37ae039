"""The other end of `xapi.host.remote`: connections to the host of this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import ServerFactory

from hypervisor.api import Backend
from xapi.host.remote import INSTANCE, TERMS
from xapi.host.wire.connection import Connection
from xapi.host.wire.interface import interface_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IReactorTime


class Served(ServerFactory):
    """Makes connections to one host; `instance` is a text of this process's life, `stopped` is called by `stop`.

    So it is when nobody has been connected for `patience` seconds, None for as long as it may be.
    """

    noisy = False
    terms = TERMS

    def __init__(
        self,
        backend: Backend,
        clock: IReactorTime,
        instance: str,
        stopped: Callable[[], None],
        patience: float | None = None,
    ) -> None:
        interface = interface_of(Backend)
        host: Any = _Host(backend, stopped)
        self._served = {"": (interface, host)}
        self._served |= {name: (part, getattr(backend, name)) for name, part in interface.parts.items()}
        self._clock = clock
        self._facts = {INSTANCE: instance}
        self._open: set[Connection] = set()
        self._stopped = stopped
        self._patience = patience
        self._leaving: Any = None
        self._look()

    def buildProtocol(self, address: IAddress | None) -> Connection:
        """Return one end of a connection."""
        connection = Connection(self.terms, self._clock, self._served, self._facts)
        connection.ready.addCallbacks(self._came, lambda failure: None)
        connection.on_lost = lambda lost: self._went(connection)
        return connection

    def _came(self, connection: Connection) -> None:
        self._open.add(connection)
        self._look()

    def _went(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._look()

    def _look(self) -> None:
        """Wait for somebody, where nobody is connected."""
        if self._leaving is not None and self._leaving.active():
            self._leaving.cancel()
        if self._patience is not None and not self._open:
            self._leaving = self._clock.callLater(self._patience, self._stopped)

    def close(self, why: str) -> None:
        """End the connections."""
        for connection in list(self._open):
            connection.close(why)


class _Host:
    """A host as it is served: to leave it is its client's affair, to stop it ends its process."""

    def __init__(self, backend: Backend, stopped: Callable[[], None]) -> None:
        self._backend = backend
        self._stopped = stopped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def leave(self) -> None:
        """Do nothing: whoever comes next starts the host again."""

    async def stop(self) -> None:
        """Stop the host, and the process when that is told."""
        await self._backend.stop()
        self._stopped()
