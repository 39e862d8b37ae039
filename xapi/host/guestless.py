"""A host in this process that cannot run guests: storage and networks are there, and no domain ever is."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import NoReturn

from hypervisor.api import (
    Change,
    Code,
    Device,
    DomainConfig,
    HostError,
    Listener,
    Network,
    Shutdown,
    Storage,
    Truth,
    VolumeHandle,
)


class GuestlessBackend:
    """One host without a CPU for guests, for `why`. What needs a domain raises HostError."""

    def __init__(self, memory: int, storage: Storage, why: str) -> None:
        self.storage = storage
        self._memory = memory
        self._why = why
        self._sequence = count(1)

    async def start(self, listener: Listener) -> None:
        """Tell `listener` that the host is up; no domain ever changes."""
        listener.up(restarted=False)

    async def leave(self) -> None:
        """Do nothing: there is nothing to end."""

    async def stop(self) -> None:
        """Do nothing: there is nothing to end."""

    async def stat(self, uuid: str) -> Truth:
        """Return that there is no domain."""
        return Truth(next(self._sequence), None)

    async def truths(self) -> Mapping[str, Truth]:
        """Return nothing: there are no domains."""
        return {}

    async def domains(self) -> tuple[str, ...]:
        """Return that there are none."""
        return ()

    async def free_memory(self) -> int:
        """Return all of the memory."""
        return self._memory

    async def log(self) -> str:
        """Return why there is no hypervisor."""
        return f"{self._why}\n"

    async def networks(self, plan: tuple[Network, ...]) -> None:
        """Do nothing: a network without guests is nothing but its record."""

    async def destroy(self, uuid: str) -> None:
        """Do nothing: there is no domain."""

    async def build(self, config: DomainConfig, *, paused: bool = False) -> NoReturn:
        """Raise HostError NO_GUESTS."""
        raise HostError(Code.NO_GUESTS, self._why)

    async def restore(self, config: DomainConfig, image: VolumeHandle) -> NoReturn:
        """Raise HostError NO_GUESTS."""
        raise HostError(Code.NO_GUESTS, self._why)

    def _no(self, uuid: str) -> NoReturn:
        raise HostError(Code.NO_DOMAIN, f"there is no domain {uuid}")

    async def suspend(self, uuid: str, image: VolumeHandle) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)

    async def resume(self, uuid: str) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)

    async def unpause(self, uuid: str) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)

    async def pause(self, uuid: str) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)

    async def shutdown(self, uuid: str, how: Shutdown) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)

    async def plug(self, uuid: str, device: Device) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)

    async def unplug(self, uuid: str, device: Device, force: bool) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)

    async def adjust(self, uuid: str, change: Change) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)

    async def console(self, uuid: str) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)

    async def screen(self, uuid: str) -> NoReturn:
        """Raise HostError NO_DOMAIN."""
        self._no(uuid)
