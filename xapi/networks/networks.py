"""The networks of the emulated hosts: what a network's record says of addresses, made so on a host.

A network with a physical card stands for a LAN of the site, where somebody gives out addresses; ours does, in the
subnet of the hosts' own card. A network without one is private and silent, unless its other_config names a range
(ip_begin, ip_end, netmask), as that of the host internal management network does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import TYPE_CHECKING, Any

from hypervisor.api import Addresses

if TYPE_CHECKING:
    from xapi.hosts.backends import Backends
    from xapi.store.memory import Store

SWITCH = "address-service"
"""Key of a network's other_config: "false" keeps our address service away from it."""
INTERNAL = "is_host_internal_management_network"
"""Key of a network's other_config: "true" for the host internal management network."""


class Networks:
    """Makes networks on hosts before guests need them."""

    def __init__(self, db: Store, backends: Backends) -> None:
        self._db = db
        self._backends = backends
        self._provided: dict[tuple[str, str], Addresses | None] = {}

    async def provide(self, host: Any, networks: Iterable[Any]) -> None:
        """Have these networks on a host, each with its address service or without."""
        for network in networks:
            key, wanted = (host._ref, network.bridge), addresses(self._db, network)
            if key not in self._provided or self._provided[key] != wanted:
                await self._backends.of(host).network(network.bridge, wanted)
                self._provided[key] = wanted

    async def join(self, host: Any, vifs: Iterable[Any]) -> None:
        """Have the networks of these cards on a host, before the cards are plugged."""
        vifs = list(vifs)
        await self.provide(host, [self._db.network[vif.network] for vif in vifs])
        for vif in vifs:
            assign(self._db, vif)


def assign(db: Store, vif: Any) -> None:
    """Keep an address for a card on the host internal management network, until the card goes, as xapi does."""
    network: Any = db.network.get(vif.network)
    if network is None or network.other_config.get(INTERNAL, "").lower() != "true" or vif._ref in network.assigned_ips:
        return
    plan = addresses(db, network)
    if plan is None:
        return
    kept = {ref: ip for ref, ip in network.assigned_ips.items() if ref in db.VIF}
    taken = set(kept.values())
    first, last = int(IPv4Address(plan.first)), int(IPv4Address(plan.last))
    candidates = (str(IPv4Address(number)) for number in range(first, last + 1))
    address = next((each for each in islice(candidates, len(taken) + 1) if each not in taken), None)
    if address is not None:
        network.assigned_ips = {**kept, vif._ref: address}


def release(db: Store, vif: Any, network: Any = None) -> None:
    """Keep no address for a card any longer: it leaves its network, or another one, or goes altogether."""
    network = network or db.network.get(vif.network)
    if network is not None and vif._ref in network.assigned_ips:
        network.assigned_ips = {ref: ip for ref, ip in network.assigned_ips.items() if ref != vif._ref}


def addresses(db: Store, network: Any) -> Addresses | None:
    """Return the range that guests of a network get their addresses from, None if nobody gives out any."""
    config = network.other_config
    if config.get(SWITCH, "").lower() == "false":
        return None
    if "ip_begin" in config:
        return _declared(config["ip_begin"], config.get("ip_end", ""), config.get("netmask", ""))
    if not network.PIFs:
        return None
    return _site(network, [db.PIF[ref] for ref in network.PIFs])


def _declared(begin: str, end: str, netmask: str) -> Addresses | None:
    """Return a range given by its ends; the first address is the host's."""
    try:
        first, last, subnet = IPv4Address(begin), IPv4Address(end), IPv4Network(f"{begin}/{netmask}", strict=False)
    except ValueError:
        return None
    if not first < last or last not in subnet:
        return None
    return Addresses(str(subnet), str(first), str(first + 1), str(last))


def _site(network: Any, pifs: list[Any]) -> Addresses | None:
    """Return the upper half of the cards' own subnet, or of one that follows from the network's uuid."""
    subnet = next((found for pif in pifs if (found := _subnet(pif)) is not None), None)
    if subnet is None or subnet.num_addresses < 8:
        seed = hashlib.sha256(network.uuid.encode()).digest()
        subnet = IPv4Network((int.from_bytes(bytes([10, seed[0], seed[1], 0]), "big"), 24))
    taken = {pif.IP for pif in pifs}
    half = subnet.network_address + subnet.num_addresses // 2
    own = next(str(half + at) for at in range(len(taken) + 1) if str(half + at) not in taken)
    last = subnet.broadcast_address - 1
    first = max((IPv4Address(own), *(IPv4Address(ip) for ip in taken if _in(ip, subnet, half)))) + 1
    return Addresses(str(subnet), own, str(first), str(last)) if first <= last else None


def _subnet(pif: Any) -> IPv4Network | None:
    """Return a card's subnet, None when it has no address, or loopback's, which no guest could use."""
    try:
        found = IPv4Network(f"{pif.IP}/{pif.netmask}", strict=False)
    except ValueError:
        return None
    return None if found.is_loopback else found


def _in(text: str, subnet: IPv4Network, half: IPv4Address) -> bool:
    try:
        return half <= IPv4Address(text) < half + 32 and IPv4Address(text) in subnet
    except ValueError:
        return False
