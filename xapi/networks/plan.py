"""What networks a host is to have: made of the rows of networks, PIFs, VLANs, bonds and tunnels, for its backend.

A network with a PIF stands for a LAN of the site, where somebody gives out addresses; ours does, in the subnet of the
hosts' own cards. A network without one is private and silent, unless its other_config names a range (ip_begin, ip_end,
netmask), as that of the host internal management network does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from hypervisor.api import VLAN, Addresses, Bond, Card, Network, Tunnel, Uplink

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.store.memory import Store

SWITCH = "address-service"
"""Key of a network's other_config: "false" keeps our address service away from it."""


def plan(db: Store, host: records.host, networks: Iterable[records.network]) -> tuple[Network, ...]:
    """Return these networks as a host is to have them, each once and after those that it lies on."""
    planned: dict[str, Network] = {}

    def add(network: records.network) -> None:
        if network.bridge in planned:
            return
        pif = next((pif for ref in network.PIFs if (pif := db.PIF[ref]).host == host._ref), None)
        for below in () if pif is None else _below(db, pif):
            add(below)
        uplink = None if pif is None else _uplink(db, pif)
        planned[network.bridge] = Network(network.bridge, uplink, addresses(db, network))

    for each in networks:
        add(each)
    return tuple(planned.values())


def _below(db: Store, pif: records.PIF) -> Iterable[records.network]:
    """Yield the networks that a VLAN or tunnel lies on."""
    vlan = db.VLAN.get(pif.VLAN_master_of)
    if vlan is not None:
        yield db.network[db.PIF[vlan.tagged_PIF].network]
    for ref in pif.tunnel_access_PIF_of:
        yield db.network[db.PIF[db.tunnel[ref].transport_PIF].network]


def _uplink(db: Store, pif: records.PIF) -> Uplink:
    """Return what joins a network to the world outside of its host."""
    below = [network.bridge for network in _below(db, pif)]
    if pif.VLAN_master_of in db.VLAN:
        return VLAN(below[0], db.VLAN[pif.VLAN_master_of].tag)
    for ref in pif.tunnel_access_PIF_of:
        return Tunnel(below[0], db.tunnel[ref].protocol)
    for bond in (db.Bond[ref] for ref in pif.bond_master_of):
        first = db.PIF.get(bond.primary_slave)
        cards = dict.fromkeys(slave.device for slave in (first, *(db.PIF[ref] for ref in bond.slaves)) if slave)
        return Bond(tuple(cards), bond.mode, dict(bond.properties))
    return Card(pif.device)


def addresses(db: Store, network: records.network) -> Addresses | None:
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


def _site(network: records.network, pifs: list[records.PIF]) -> Addresses | None:
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


def _subnet(pif: records.PIF) -> IPv4Network | None:
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
