"""The devices of one domain by kind and number: from what a toolstack describes to what the guest's drivers meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from hypervisor.api import Code, Device, DeviceState, HostError
from hypervisor.toolstack import devices
from hypervisor.toolstack.devices.plugged import Plugged, Slot

Kind = TypeVar("Kind", bound=Plugged[Any])


@cache
def kinds() -> Mapping[type[Device], type[Plugged[Any]]]:
    """Return the kinds of devices by what describes them: those of the modules of this package."""
    for module in iter_modules(devices.__path__):
        import_module(f"{devices.__name__}.{module.name}")
    return {kind.describes: kind for kind in Plugged.__subclasses__()}


class Devices:
    """The devices of one domain. Blocks for the work itself, for files too; any thread may call."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._plugged: dict[tuple[type[Device], int], Plugged[Any]] = {}

    def plug(self, described: Device) -> None:
        """Offer a device to the guest. Raises HostError, with nothing left behind."""
        key = type(described), described.number
        if key in self._plugged:
            raise HostError(Code.DEVICE_EXISTS, f"device {described.number} is plugged already")
        try:
            plugged = kinds()[type(described)](self._slot, described)
        except ValueError as error:
            raise HostError(Code.FAILED, f"device {described.number}: {error}") from error
        plugged.offer()
        self._plugged[key] = plugged

    def unplug(self, kind: type[Device], number: int, done: Callable[[], None], *, force: bool = False) -> None:
        """Take a device away; `done` is called, on some thread, when it is gone and its disk closed.

        Without `force` that is when the guest agrees, which it may never do. Raises HostError.
        """

        def gone() -> None:
            self._plugged.pop((kind, number), None)
            done()

        self._get(kind, number).withdraw(gone, force=force)

    def change(self, described: Device, done: Callable[[], None] = lambda: None) -> None:
        """Make of a device what is described now: another CD, another network. Raises HostError.

        `done` is called when nothing that it had before is used any more.
        """
        self._get(type(described), described.number).change(described, done)

    def find(self, kind: type[Kind], number: int = 0) -> Kind:
        """Return a device. Raises HostError."""
        plugged = self._get(kind.describes, number)
        assert isinstance(plugged, kind)
        return plugged

    def _get(self, kind: type[Device], number: int) -> Plugged[Any]:
        plugged = self._plugged.get((kind, number))
        if plugged is None:
            raise HostError(Code.NO_DEVICE, f"there is no device {number}")
        return plugged

    def states(self) -> Iterator[DeviceState]:
        """Yield what is true of each disk and card; under the host's lock."""
        for plugged in list(self._plugged.values()):
            state = plugged.state()
            if state is not None:
                yield state

    def close(self) -> None:
        """Take all devices from a domain that does not run any more, and close its disks; waits for their transfers."""
        for plugged in list(self._plugged.values()):
            gone = threading.Event()
            plugged.withdraw(gone.set, force=True)
            gone.wait()
        self._plugged.clear()
