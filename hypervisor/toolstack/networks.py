"""The networks of a host: a switch for each name, and for some of them somebody who gives out addresses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network

from hypervisor.api import Card, Code, HostError, Network
from hypervisor.network.services import AddressPlan, AddressService
from hypervisor.network.site import Plug, Site
from hypervisor.network.switch import Switch
from hypervisor.network.ticker import Ticker


class Networks:
    """Switches by name, made when they are first asked for. All under the host's lock, which methods take."""

    def __init__(
        self, lock: threading.RLock, site: Site | None = None, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """`site` is what networks with a card are joined to, and None for a host that is alone."""
        self._lock = lock
        self._site = site
        self._clock = clock
        self._switches: dict[str, Switch] = {}
        self._services: dict[str, AddressService] = {}
        self._plans: dict[str, AddressPlan | None] = {}
        self._plugs: dict[str, Plug] = {}
        self._chosen: set[str] = set()
        """Networks whose LAN this host serves."""
        self._ticker = Ticker(lock, clock)

    def start(self) -> None:
        """Let timers of networks fire, on a thread of its own."""
        self._ticker.start()

    def stop(self) -> None:
        """End the thread, and leave the LANs of the site."""
        self._ticker.stop()
        with self._lock:
            for name in list(self._plugs):
                self._unplug(name)

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

        A network with a card is on the LAN of its name; one host of a LAN has its address service.
        """
        planned = [(network, _plan(network)) for network in networks]
        with self._lock:
            for network, plan in planned:
                self._plans[network.name] = plan
                if self._site is None or network.uplink is None:
                    self._unplug(network.name)
                    self._serve(network.name, plan)
                elif network.name in self._plugs:
                    self._serve(network.name, plan if network.name in self._chosen else None)
                else:
                    self._plug(self._site, network.name)

    def _plug(self, site: Site, name: str) -> None:
        """Join a network to its LAN."""

        def serve(chosen: bool) -> None:
            (self._chosen.add if chosen else self._chosen.discard)(name)
            self._serve(name, self._plans[name] if chosen else None)

        self._serve(name, None)
        self._plugs[name] = site.join(name, self.switch(name), self._lock, serve)

    def _unplug(self, name: str) -> None:
        plug = self._plugs.pop(name, None)
        if plug is not None and self._site is not None:
            self._site.leave(plug)

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
