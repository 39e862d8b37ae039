"""Where the daemon is reached: its ports and socket, and the connections that have come by them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cryptography import x509
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint, serverFromString
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.protocols.tls import TLSMemoryBIOFactory

from xapi.hosts import addresses
from xapi.http.routes import Routes
from xapi.http.server import tls
from xapi.http.server.budget import Budget, affordable
from xapi.http.server.factory import HTTPFactory
from xapi.inventory import management
from xapi.process import certificates
from xapi.process.config import Config, ConfigError, address_of
from xapi.process.stages import Stage
from xapi.vms.consoles import Door

if TYPE_CHECKING:
    from xapi.process.daemon import Daemon
    from xapi.process.state import State

BACKLOG = 1024
"""Clients that may wait for being accepted."""


class Connections(Stage):
    """The connections of all ports. They last until what their clients wait for is written."""

    def __init__(self, daemon: Daemon, reactor: Any) -> None:
        self._routes = Routes(daemon.subsystems)
        self._reactor = reactor
        self._factories: list[HTTPFactory] = []

    def factory(self, budget: Budget) -> HTTPFactory:
        """Return what makes the connections of one port."""
        self._factories.append(HTTPFactory(self._routes, self._reactor, budget=budget))
        return self._factories[-1]

    async def stop(self) -> None:
        for factory in self._factories:
            await factory.close()


class Listeners(Stage):
    """The ports and local root's socket. `served` has their addresses."""

    def __init__(self, config: Config, state: State, daemon: Daemon, connections: Connections, reactor: Any) -> None:
        self.served: list[str] = []
        self._config = config
        self._state = state
        self._daemon = daemon
        self._connections = connections
        self._reactor = reactor
        self._ports: list[IListeningPort] = []

    async def start(self) -> None:
        """Listen, and have the records say where. Raises StateError, CannotListenError."""
        budget = Budget(affordable())
        for endpoint in self._config.listen:
            await self._listen(endpoint, budget, b"")
        if self._config.tls:
            now = datetime.fromtimestamp(self._reactor.seconds(), UTC)
            pem = self._state.certificate(now, self._names()).read_bytes()
            self._daemon.certificate.pem = certificates.pem(x509.load_pem_x509_certificate(pem))
            for endpoint in self._config.tls:
                await self._listen(endpoint, budget, pem)
        self._say_where()
        socket = self._state.fresh_socket()
        local = UNIXServerEndpoint(self._reactor, str(socket), mode=0o600, wantPID=False, backlog=BACKLOG)
        self._ports.append(await local.listen(self._connections.factory(Budget(max(16, affordable() // 4)))))
        self.served.append(f"unix:{socket}")

    async def stop(self) -> None:
        """Take no more connections."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)

    async def _listen(self, text: str, budget: Budget, pem: bytes) -> None:
        """Serve at one endpoint, with TLS when there is a certificate."""
        factory: Any = self._connections.factory(budget)
        if pem:
            factory = TLSMemoryBIOFactory(tls.options(pem), False, factory)
        port = await endpoint_of(text, self._reactor).listen(factory)
        self._ports.append(port)
        address: Any = port.getHost()
        host = getattr(address, "host", "")
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if pem else "http"
        self.served.append(f"{scheme}://{shown}:{address.port}/" if host else f"{scheme}+{address}")

    def _names(self) -> list[str]:
        """Return what clients of TLS may call this daemon."""
        listened = [addresses.listened(text, address_of(text)) for text in self._config.tls]
        return addresses.names(listened, self._config.host_address)

    def _say_where(self) -> None:
        """Have the coordinator and the consoles say where they are reached."""
        plain = len(self._config.listen)
        served = [
            addresses.Endpoint("http" if at < plain else "https", address.host, address.port)
            for at, address in enumerate(port.getHost() for port in self._ports)
            if isinstance(address, IPv4Address | IPv6Address)
        ]
        best, own = addresses.door(served, self._config.host_address), addresses.door(served, "")
        if best is not None and own is not None:
            management.reached_at(self._daemon.db, best.address, own.address)
            self._daemon.consoles.served_at(Door(best.scheme, best.port, best.address))


def endpoint_of(text: str, reactor: Any) -> IStreamServerEndpoint:
    """Return the endpoint of an address as `Config` has it, or in Twisted's own notation. Raises ConfigError."""
    address = address_of(text)
    if address is not None:
        host, port = address
        kind = TCP6ServerEndpoint if ":" in host else TCP4ServerEndpoint
        return kind(reactor, port, backlog=BACKLOG, interface=host)
    has_own = ":backlog=" in text or not text.startswith(("tcp:", "tcp6:", "ssl:", "unix:"))
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text if has_own else f"{text}:backlog={BACKLOG}")
    except (ValueError, TypeError, IndexError, KeyError, OSError) as error:
        raise ConfigError(f"endpoint {text}: {error}") from error
    return endpoint
