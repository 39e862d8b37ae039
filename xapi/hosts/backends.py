"""The host backends of a pool: what acts for each of its hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xapi.datamodel import errors

if TYPE_CHECKING:
    from hypervisor.api import Backend


class Backends:
    """One backend a host, made by `make(host)` when it is first needed; `attention` hears of their domains."""

    def __init__(self, make: Callable[[Any], Backend], attention: Callable[[str], None]) -> None:
        self._make = make
        self._attention = attention
        self._made: dict[str, Backend] = {}

    def of(self, host: Any) -> Backend:
        """Return a host's backend. Raises HOST_OFFLINE where nothing acts for a host."""
        backend = self._made.get(host._ref)
        if backend is None:
            backend = self._made[host._ref] = self._make(host)
            backend.listen(self._attention)
        return backend

    def by_host(self) -> dict[str, Backend]:
        """Return those that there are, by their hosts' references."""
        return dict(self._made)

    def made(self) -> list[Backend]:
        """Return those that there are."""
        return list(self._made.values())


def nowhere(host: Any) -> Backend:
    """Stand for the backends of a pool that has none."""
    raise errors.HOST_OFFLINE(host._ref)
