"""Networks are brought up on hosts before guests need them; the internal one keeps addresses for cards."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from itertools import islice
from typing import TYPE_CHECKING

from hypervisor.api import Network
from xapi.networks.plan import addresses, plan

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.hosts.backends import Backends
    from xapi.store.memory import Store

INTERNAL = "is_host_internal_management_network"
"""Key of a network's other_config: "true" for the host internal management network."""


class Networks:
    """What has been brought up on which host."""

    def __init__(self, db: Store, backends: Backends) -> None:
        self._db = db
        self._backends = backends
        self._up: dict[tuple[str, str], Network] = {}
        """By host and name."""
        backends.forgetting.append(self._forget)

    def _forget(self, host: str) -> None:
        """Bring up anew what a host had that was restarted."""
        self._up = {at: network for at, network in self._up.items() if at[0] != host}

    async def bring_up(self, host: records.host, networks: Iterable[records.network]) -> None:
        """Have these networks on a host, and those that they lie on. Raises HostError."""
        wanted = [each for each in plan(self._db, host, networks) if self._up.get((host._ref, each.name)) != each]
        if wanted:
            await self._backends.of(host).networks(tuple(wanted))
            self._up |= {(host._ref, each.name): each for each in wanted}

    async def join(self, host: records.host, vifs: Iterable[records.VIF]) -> None:
        """Have the networks of these cards on a host, before the cards are plugged."""
        vifs = list(vifs)
        await self.bring_up(host, [self._db.network[vif.network] for vif in vifs])
        for vif in vifs:
            assign(self._db, vif)


def assign(db: Store, vif: records.VIF) -> None:
    """Keep an address for a card on the host internal management network, until the card goes, as xapi does."""
    network = db.network.get(vif.network)
    if network is None or network.other_config.get(INTERNAL, "").lower() != "true" or vif._ref in network.assigned_ips:
        return
    given = addresses(db, network)
    if given is None:
        return
    kept = {ref: ip for ref, ip in network.assigned_ips.items() if ref in db.VIF}
    taken = set(kept.values())
    first, last = int(IPv4Address(given.first)), int(IPv4Address(given.last))
    candidates = (str(IPv4Address(number)) for number in range(first, last + 1))
    address = next((each for each in islice(candidates, len(taken) + 1) if each not in taken), None)
    if address is not None:
        network.assigned_ips = {**kept, vif._ref: address}


def release(db: Store, vif: records.VIF, network: records.network | None = None) -> None:
    """Keep no address for a card any longer: it leaves its network, or another one, or goes altogether."""
    network = network or db.network.get(vif.network)
    if network is not None and vif._ref in network.assigned_ips:
        network.assigned_ips = {ref: ip for ref, ip in network.assigned_ips.items() if ref != vif._ref}
