"""The host backends of a pool: what acts for each of its hosts, and what is heard of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

if TYPE_CHECKING:
    from hypervisor.api import Backend

log = Logger()


class Hearer(Protocol):
    """Who hears what hosts tell by themselves."""

    def attend(self, uuid: str) -> None:
        """Hear that something about a domain has changed."""

    def unsettled(self) -> None:
        """Hear that anything may have changed."""


class Backends:
    """One backend a host, made by `make(host)` and started when it is first needed."""

    def __init__(self, make: Callable[[Any], Backend], hearer: Callable[[], Hearer]) -> None:
        self._make = make
        self._hearer = hearer
        self._made: dict[str, Backend] = {}

    def of(self, host: Any) -> Backend:
        """Return a host's backend."""
        backend = self._made.get(host._ref)
        if backend is None:
            backend = self._made[host._ref] = self._make(host)
            started = Deferred.fromCoroutine(backend.start(_Ear(self._hearer)))
            started.addErrback(lambda failure: log.failure("{host} cannot be started", failure, host=host.uuid))
        return backend

    def by_host(self) -> dict[str, Backend]:
        """Return those that there are, by their hosts' references."""
        return dict(self._made)

    def made(self) -> list[Backend]:
        """Return those that there are."""
        return list(self._made.values())


class _Ear:
    """`hypervisor.api.Listener` of one host."""

    def __init__(self, hearer: Callable[[], Hearer]) -> None:
        self._hearer = hearer
        self._was_lost = False

    def attention(self, uuid: str) -> None:
        self._hearer().attend(uuid)

    def up(self, *, restarted: bool) -> None:
        if self._was_lost or restarted:
            self._hearer().unsettled()
        self._was_lost = False

    def lost(self) -> None:
        self._was_lost = True
