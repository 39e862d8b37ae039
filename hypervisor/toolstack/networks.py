"""The networks of a machine: a switch for each name, and for some of them somebody who gives out addresses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network

from hypervisor.api import Card, Code, HostError, Network
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

    def bring_up(self, networks: Iterable[Network]) -> None:
        """Have all of these networks as they are described, or change none. Raises HostError.

        A card of the host is where address services are; frames do not leave the process by it.
        """
        planned = [(network.name, _plan(network)) for network in networks]
        with self._lock:
            for name, plan in planned:
                self._serve(name, plan)

    def _serve(self, name: str, plan: AddressPlan | None) -> None:
        """Give a network this address service, or none; one that has it already keeps what it has given out."""
        switch, service = self.switch(name), self._services.get(name)
        if service is not None and service.plan == plan:
            return
        if service is not None:
            del self._services[name]
            self._ticker.remove(service)
            service.close()
        if plan is not None:
            service = self._services[name] = AddressService(switch, self._clock, plan)
            self._ticker.add(service)

    def service(self, name: str) -> AddressService | None:
        """Return the address service of a network."""
        return self._services.get(name)


def _plan(network: Network) -> AddressPlan | None:
    """Return who gives addresses out on a network. Raises HostError for one that cannot be made here."""
    if network.uplink is not None and not isinstance(network.uplink, Card):
        kind = type(network.uplink).__name__
        raise HostError(Code.UNSUPPORTED, f"{network.name}: this host makes no network of the kind {kind}")
    addresses = network.addresses
    if addresses is None:
        return None
    try:
        return AddressPlan(
            network=IPv4Network(addresses.network),
            address=IPv4Address(addresses.address),
            first=IPv4Address(addresses.first),
            last=IPv4Address(addresses.last),
        )
    except ValueError as error:
        raise HostError(Code.BAD_ADDRESSES, f"{network.name}: {error}") from error
