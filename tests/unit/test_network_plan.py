"""What networks a host is to have, and a host that makes them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from twisted.internet.task import Clock

from hypervisor.api import VLAN, Addresses, Bond, Card, Code, HostError, Network, Tunnel
from hypervisor.toolstack.networks import Networks
from tests.conftest import in_memory
from xapi.networks.plan import SWITCH, plan
from xapi.store.memory import Store

LAN = Addresses("192.0.2.0/24", "192.0.2.1", "192.0.2.10", "192.0.2.200")
OTHER = Addresses("198.51.100.0/24", "198.51.100.1", "198.51.100.9", "198.51.100.99")


class Rows:
    """A pool of one host with a card on a network."""

    def __init__(self) -> None:
        self.db: Store = in_memory(Clock())
        self.host = self.db.host.create()
        self.lan = self.network("xenbr0")
        self.card = self.pif(self.lan, "eth0")

    def network(self, bridge: str, **fields: Any) -> Any:
        return self.db.network.create(bridge=bridge, **({"other_config": {SWITCH: "false"}} | fields))

    def pif(self, network: Any, device: str, **fields: Any) -> Any:
        given: Any = {"physical": True, "VLAN": -1, "host": self.host._ref} | fields
        return self.db.PIF.create(network=network._ref, device=device, **given)

    def tagged(self, bridge: str, over: Any, tag: int) -> Any:
        network = self.network(bridge)
        pif = self.pif(network, over.device, physical=False, VLAN=tag)
        pif.VLAN_master_of = self.db.VLAN.create(tag=tag, tagged_PIF=over._ref, untagged_PIF=pif._ref)._ref
        return network

    def planned(self, *networks: Any) -> tuple[Network, ...]:
        return plan(self.db, self.host, networks)


def test_a_network_has_the_card_of_its_host_and_no_other() -> None:
    rows = Rows()
    private, other = rows.network("xapi0"), rows.db.host.create()
    rows.pif(private, "eth7", host=other._ref)
    assert rows.planned(rows.lan, private) == (Network("xenbr0", Card("eth0")), Network("xapi0"))


def test_addresses_are_those_that_a_network_s_record_names_or_of_its_cards_subnet() -> None:
    rows = Rows()
    named = {"ip_begin": "169.254.0.1", "ip_end": "169.254.255.254", "netmask": "255.255.0.0"}
    rows.lan.other_config = {}
    rows.card.IP, rows.card.netmask = "192.0.2.7", "255.255.255.0"
    first, second = rows.planned(rows.lan, rows.network("xenapi", other_config=named))
    assert first.addresses == Addresses("192.0.2.0/24", "192.0.2.128", "192.0.2.129", "192.0.2.254")
    assert second.addresses == Addresses("169.254.0.0/16", "169.254.0.1", "169.254.0.2", "169.254.255.254")


def test_a_vlan_comes_after_the_network_that_it_lies_on_and_that_comes_once() -> None:
    rows = Rows()
    one, two = rows.tagged("xapi1", rows.card, 7), rows.tagged("xapi2", rows.card, 8)
    assert rows.planned(one, two, rows.lan) == (
        Network("xenbr0", Card("eth0")),
        Network("xapi1", VLAN("xenbr0", 7)),
        Network("xapi2", VLAN("xenbr0", 8)),
    )


def test_a_bond_has_its_primary_card_first_and_carries_vlans() -> None:
    rows = Rows()
    second = rows.pif(rows.network("xenbr1"), "eth1")
    bonded = rows.network("xapi3")
    master = rows.pif(bonded, "bond0", physical=False)
    slaves = (rows.card._ref, second._ref)
    made: Any = {"mode": "lacp", "properties": {"hashing_algorithm": "src_mac"}}
    bond = rows.db.Bond.create(master=master._ref, primary_slave=second._ref, **made)
    for ref in slaves:
        rows.db.PIF[ref].bond_slave_of = bond._ref
    assert rows.planned(rows.tagged("xapi4", master, 9)) == (
        Network("xapi3", Bond(("eth1", "eth0"), "lacp", {"hashing_algorithm": "src_mac"})),
        Network("xapi4", VLAN("xapi3", 9)),
    )


def test_a_tunnel_comes_after_the_network_that_it_crosses() -> None:
    rows = Rows()
    network = rows.network("xapi5")
    access = rows.pif(network, "tunnel0", physical=False)
    rows.db.tunnel.create(access_PIF=access._ref, transport_PIF=rows.card._ref, protocol="vxlan")
    assert rows.planned(network) == (Network("xenbr0", Card("eth0")), Network("xapi5", Tunnel("xenbr0", "vxlan")))


# A host


def networks() -> Networks:
    return Networks(threading.RLock(), clock=lambda: 0)


def test_networks_that_are_as_they_are_to_be_are_left_alone() -> None:
    """What was given out stays so; another range is another service, none is none."""
    host = networks()
    host.bring_up((Network("a", Card("eth0"), LAN), Network("b")))
    service, switch = host.service("a"), host.switch("b")
    host.bring_up((Network("a", Card("eth0"), LAN), Network("b")))
    assert service is not None and host.service("a") is service and host.switch("b") is switch
    host.bring_up((Network("a", Card("eth0"), OTHER),))
    assert host.service("a") not in (None, service) and host.switch("b") is switch
    host.bring_up((Network("a"),))
    assert host.service("a") is None


@pytest.mark.parametrize(("network", "code"), [
    (Network("b", VLAN("a", 7)), Code.UNSUPPORTED),
    (Network("b", Bond(("eth0", "eth1"))), Code.UNSUPPORTED),
    (Network("b", Tunnel("a")), Code.UNSUPPORTED),
    (Network("b", None, Addresses("192.0.2.0/24", "x", "y", "z")), Code.BAD_ADDRESSES),
])  # fmt: skip
def test_a_plan_that_cannot_be_changes_nothing(network: Network, code: Code) -> None:
    host = networks()
    host.bring_up((Network("a", None, LAN),))
    before = host.service("a")
    with pytest.raises(HostError, match=r"^b: ") as caught:
        host.bring_up((Network("a", None, OTHER), network))
    assert (caught.value.code, host.service("a")) == (code, before)
