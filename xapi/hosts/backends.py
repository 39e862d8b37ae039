"""The host backends of a pool: what acts for each of its hosts, and what is heard of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from xapi.datamodel import errors

if TYPE_CHECKING:
    from hypervisor.api import Backend
    from xapi.datamodel import records

log = Logger()


class Hearer(Protocol):
    """Who hears what hosts tell by themselves."""

    def attend(self, uuid: str) -> None:
        """Hear that something about a domain has changed."""

    def reached(self, host: str) -> None:
        """Hear that a host is reached again that was lost, or restarted: anything may have changed on it."""

    def lost(self, host: str) -> None:
        """Hear that a host is not reached: what is known of it is as it was."""


class Backends:
    """One backend a host, made by `make(host)` and started when it is first needed."""

    def __init__(self, make: Callable[[records.host], Backend], hearer: Callable[[], Hearer]) -> None:
        self._make = make
        self._hearer = hearer
        self._made: dict[str, Backend] = {}
        self._started: dict[str, Deferred[None]] = {}
        self._lost: set[str] = set()
        self.forgetting: list[Callable[[str], None]] = []
        """Called with the reference of a host that was restarted: what was brought up there has gone with it."""

    def of(self, host: records.host) -> Backend:
        """Return a host's backend. Raises HOST_OFFLINE while the host is lost."""
        backend = self._made.get(host._ref) or self._start(host)
        if host._ref in self._lost:
            raise errors.HOST_OFFLINE(host._ref)
        return backend

    async def start(self, host: records.host) -> Backend:
        """Return a host's backend once it is known whether the host is reached. Raises HOST_OFFLINE."""
        if host._ref not in self._made:
            self._start(host)
        await self._started[host._ref]
        return self.of(host)

    def _start(self, host: records.host) -> Backend:
        backend = self._made[host._ref] = self._make(host)
        started = Deferred.fromCoroutine(backend.start(_Ear(self, host._ref)))
        started.addErrback(lambda failure: log.failure("host {uuid} cannot be started", failure, uuid=host.uuid))
        self._started[host._ref] = started
        return backend

    def by_host(self) -> dict[str, Backend]:
        """Return those of hosts that are reached, by their hosts' references."""
        return {ref: backend for ref, backend in self._made.items() if ref not in self._lost}

    def made(self) -> list[Backend]:
        """Return all that there are."""
        return list(self._made.values())

    # What hosts tell

    def attention(self, uuid: str) -> None:
        """Hear that something about a domain has changed."""
        self._hearer().attend(uuid)

    def up(self, host: str, *, restarted: bool) -> None:
        """Hear that a host is reached."""
        if restarted:
            for forget in self.forgetting:
                forget(host)
        if host in self._lost or restarted:
            self._lost.discard(host)
            self._hearer().reached(host)

    def lost(self, host: str) -> None:
        """Hear that a host is not reached."""
        if host not in self._lost:
            self._lost.add(host)
            self._hearer().lost(host)


class _Ear:
    """`hypervisor.api.Listener` of one host."""

    def __init__(self, backends: Backends, host: str) -> None:
        self._backends = backends
        self._host = host

    def attention(self, uuid: str) -> None:
        self._backends.attention(uuid)

    def up(self, *, restarted: bool) -> None:
        self._backends.up(self._host, restarted=restarted)

    def lost(self) -> None:
        self._backends.lost(self._host)
