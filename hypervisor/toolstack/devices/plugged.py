"""A device of a domain's as its toolstack has it: the same small face for every kind.

A kind is a module of this package with one subclass of `Plugged`; `table` finds it by what it `describes`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Generic, TypeVar

from hypervisor.api import Code, Device, DeviceState, HostError
from hypervisor.domains.domain import Domain
from hypervisor.split.block_queue import Execute
from hypervisor.split.xenbus import Backend, BusState, DeviceClass
from hypervisor.storage.repositories import Volumes
from hypervisor.toolstack.networks import Networks
from hypervisor.xenstore.errors import XenstoreError
from hypervisor.xenstore.store import Store

Described = TypeVar("Described", bound=Device)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where devices of one domain are plugged, and what they are made from.

    `execute` runs transfers, and closes disks; `changed` hears of a device that came, connected or went.
    """

    domain: Domain
    store: Store
    networks: Networks
    volumes: Volumes
    execute: Execute
    changed: Callable[[], None]


class Plugged(ABC, Generic[Described]):
    """A device that a guest has, or is to have; made, it is not offered yet. Any thread may call, none is waited for.

    Making one raises HostError, and ValueError for a description of what cannot be.
    """

    describes: ClassVar[type[Device]]

    def __init__(self, slot: Slot, described: Described) -> None:
        self.slot = slot
        self.described = described
        """As it is now. This is all that another host needs to plug it again: a front connects anew to a new back."""
        self._backs: tuple[Backend, ...] = ()
        self._left: set[Backend] = set()
        self._freeing = self._freed = False
        self._done: list[Callable[[], None]] = []

    def offer(self) -> None:
        """Show the device to the guest. Raises HostError, with nothing left behind."""
        offered: list[Backend] = []
        try:
            self.prepare()
            self._backs = tuple(self._back(device, number) for device, number in self.parts().items())
            for back in self._backs:
                back.plug()
                offered.append(back)
        except (ValueError, XenstoreError) as error:
            for back in offered:
                back.remove()
            freed = threading.Event()
            self.free(freed.set)
            freed.wait()
            raise HostError(Code.FAILED, f"device {self.described.number}: {error}") from error
        self._left = set(self._backs)

    def _back(self, device: DeviceClass, number: int) -> Backend:
        changed = self.slot.changed  # not this device, which has its back ends: all comes apart when a domain ends
        return Backend(self.slot.domain, self.slot.store, device, number, lambda _: changed())

    def withdraw(self, done: Callable[[], None], *, force: bool = False) -> None:
        """Take the device away; `done` is called, on some thread, when it is gone and what it had is free.

        Without `force` that is when the guest agrees, which it may never do.
        """
        with self.slot.domain.host.lock:
            if self._freed:
                done()
                return
            self._done.append(done)
            for back in self._backs:
                (back.remove if force else back.unplug)(partial(self._gone, back))

    def _gone(self, back: Backend) -> None:
        self._left.discard(back)
        if not self._left and not self._freeing:
            self._freeing = True
            self.free(self._end)

    def _end(self) -> None:
        with self.slot.domain.host.lock:
            self._freed = True
            waiting, self._done = self._done, []
        for done in waiting:
            done()

    @property
    def connected(self) -> bool:
        """Tell whether the guest's driver serves it."""
        return bool(self._backs) and all(back.state is BusState.CONNECTED for back in self._backs)

    # What a kind says

    @abstractmethod
    def parts(self) -> Mapping[DeviceClass, int]:
        """Return what the guest's drivers meet, with the number that each has in xenstore."""

    def prepare(self) -> None:
        """Have what the host keeps for the device, before it is offered. Raises ValueError and XenstoreError."""

    def free(self, done: Callable[[], None]) -> None:
        """Give back all that the device has of the host's; call `done` then, at once or on another thread."""
        done()

    def change(self, described: Described, done: Callable[[], None]) -> None:
        """Make it what is described now; `done` is called when nothing of before is in use. Raises HostError."""
        raise HostError(Code.FAILED, f"device {described.number} cannot be changed while it is plugged")

    def state(self) -> DeviceState | None:
        """Return what is true of it now, under the host's lock; None for a kind that counts nothing."""
        return None
