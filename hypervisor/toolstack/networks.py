"""The networks of a machine: a switch for each name, and for some of them somebody who gives out addresses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

from hypervisor.api import Addresses, HostError
from hypervisor.network.services import AddressPlan, AddressService
from hypervisor.network.switch import Switch
from hypervisor.network.ticker import Ticker


class Networks:
    """Switches by name, made when they are first asked for. All under the machine's lock, which methods take."""

    def __init__(self, lock: threading.RLock, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._lock = lock
        self._clock = clock
        self._switches: dict[str, Switch] = {}
        self._services: dict[str, AddressService] = {}
        self._ticker = Ticker(lock, clock)

    def start(self) -> None:
        """Let timers of networks fire, on a thread of its own."""
        self._ticker.start()

    def stop(self) -> None:
        """End the thread."""
        self._ticker.stop()

    def switch(self, name: str) -> Switch:
        """Return the switch of a network."""
        with self._lock:
            switch = self._switches.get(name)
            if switch is None:
                switch = self._switches[name] = Switch(self._clock)
                self._ticker.add(switch)
            return switch

    def serve(self, name: str, addresses: Addresses | None) -> None:
        """Give a network this address service, or none. Raises HostError for a range that is none."""
        plan = None if addresses is None else _plan(addresses)
        with self._lock:
            service = self._services.pop(name, None)
            if service is not None and service.plan == plan:
                self._services[name] = service
                return
            if service is not None:
                self._ticker.remove(service)
                service.close()
            if plan is not None:
                service = self._services[name] = AddressService(self.switch(name), self._clock, plan)
                self._ticker.add(service)

    def service(self, name: str) -> AddressService | None:
        """Return the address service of a network."""
        return self._services.get(name)


def _plan(addresses: Addresses) -> AddressPlan:
    try:
        return AddressPlan(
            network=IPv4Network(addresses.network),
            address=IPv4Address(addresses.address),
            first=IPv4Address(addresses.first),
            last=IPv4Address(addresses.last),
        )
    except ValueError as error:
        raise HostError("bad_addresses", str(error)) from error
