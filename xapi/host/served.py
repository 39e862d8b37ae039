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
    """Makes connections to one host; `instance` is a text of this process's life, `stopped` is called by `stop`."""

    noisy = False
    terms = TERMS

    def __init__(self, backend: Backend, clock: IReactorTime, instance: str, stopped: Callable[[], None]) -> None:
        interface = interface_of(Backend)
        host: Any = _Host(backend, stopped)
        self._served = {"": (interface, host)}
        self._served |= {name: (part, getattr(backend, name)) for name, part in interface.parts.items()}
        self._clock = clock
        self._facts = {INSTANCE: instance}
        self._open: set[Connection] = set()

    def buildProtocol(self, address: IAddress | None) -> Connection:
        """Return one end of a connection."""
        connection = Connection(self.terms, self._clock, self._served, self._facts)
        connection.ready.addCallbacks(self._open.add, lambda failure: None)
        connection.on_lost = lambda lost: self._open.discard(connection)
        return connection

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
