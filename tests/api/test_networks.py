"""Messages of network, and the addresses that the host internal management network keeps."""

from __future__ import annotations

from typing import Any

import pytest

from hypervisor.api import NIC
from tests.api.test_devices import card, plain_network, plugged
from tests.api.test_power import make_vm, running
from tests.conftest import Pool
from xapi.networks.networks import INTERNAL
from xapi.vms.consoles import Door


def new(pool: Pool, **fields: Any) -> Any:
    return pool.db.network[pool("network.create", {"name_label": "new", "other_config": {}} | fields)]


@pytest.fixture
def internal(pool: Pool) -> Any:
    """The host internal management network, 169.254.0.0/16."""
    return next(network for network in pool.db.network if network.other_config.get(INTERNAL) == "true")


def test_a_network_without_a_bridge_gets_one(pool: Pool) -> None:
    """The next free xapiN, and a sane MTU."""
    first, second = new(pool, MTU="0"), new(pool, MTU="9000", tags=["a"])
    assert (first.bridge, second.bridge) == ("xapi0", "xapi1")
    assert (first.MTU, second.MTU, second.tags) == (1500, 9000, ("a",))
    assert first.managed and first.default_locking_mode == "unlocked"


@pytest.mark.parametrize("bridge", ["xenbr9", "xapi7", "vif1.0", "tap0", "eth0", "a-very-long-name"])
def test_bridges_of_our_own_names_are_refused(pool: Pool, bridge: str) -> None:
    """So are those that Linux could not have."""
    expected = ["INVALID_VALUE", "bridge", bridge]
    assert pool.fails("network.create", {"name_label": "new", "other_config": {}, "bridge": bridge}) == expected


def test_a_bridge_belongs_to_one_network(pool: Pool) -> None:
    """The second is told."""
    new(pool, bridge="br0")
    given = {"name_label": "new", "other_config": {}, "bridge": "br0"}
    assert pool.fails("network.create", given) == ["BRIDGE_NAME_EXISTS", "br0"]


def test_destroy_takes_cards_along_that_are_not_plugged(pool: Pool) -> None:
    """But none that are."""
    network = new(pool)
    vm = running(pool)
    row = card(pool, vm, network=network._ref)
    pool("VIF.plug", row._ref)
    assert pool.fails("network.destroy", network._ref) == ["NETWORK_CONTAINS_VIF", row._ref]
    pool("VIF.unplug", row._ref)
    pool("network.destroy", network._ref)
    assert not len(pool.db.VIF_metrics) and row._ref not in pool.db.VIF and network._ref not in pool.db.network


def test_networks_that_stay(pool: Pool, internal: Any) -> None:
    """Those with physical cards, and the pool's own."""
    network = plain_network(pool)
    assert pool.fails("network.destroy", network._ref) == ["NETWORK_CONTAINS_PIF", *network.PIFs]
    assert pool.fails("network.destroy", internal._ref) == ["CANNOT_DESTROY_SYSTEM_NETWORK", internal._ref]


def test_the_default_locking_mode_waits_for_free_cards(pool: Pool) -> None:
    """It holds for cards that are plugged later."""
    vm, network = running(pool), plain_network(pool)
    row = card(pool, vm)
    pool("VIF.plug", row._ref)
    expected = ["VIF_IN_USE", network._ref, row._ref]
    assert pool.fails("network.set_default_locking_mode", network._ref, "disabled") == expected
    pool("VIF.unplug", row._ref)
    pool("network.set_default_locking_mode", network._ref, "disabled")
    pool("VIF.plug", row._ref)
    assert plugged(pool, vm, NIC)[0].locking == "disabled"


def test_purposes_that_contradict_each_other(pool: Pool) -> None:
    """Anywhere in the pool."""
    network, other = plain_network(pool), new(pool)
    pool("network.add_purpose", network._ref, "nbd")
    pool("network.add_purpose", network._ref, "nbd")
    assert network.purpose == ("nbd",)
    expected = ["NETWORK_INCOMPATIBLE_PURPOSES", "insecure_nbd", "nbd"]
    assert pool.fails("network.add_purpose", other._ref, "insecure_nbd") == expected
    pool("network.remove_purpose", network._ref, "nbd")
    pool("network.add_purpose", other._ref, "insecure_nbd")
    stranger = new(pool, managed=False)
    assert pool.fails("network.add_purpose", stranger._ref, "nbd") == ["NETWORK_UNMANAGED", stranger._ref]


def test_attach_has_a_network_on_a_host(pool: Pool, internal: Any) -> None:
    """With its address service."""
    host = next(iter(pool.db.host))
    pool("network.attach", internal._ref, host._ref)
    service = pool.backend.up[internal.bridge].addresses
    assert service is not None and (service.address, service.first) == ("169.254.0.1", "169.254.0.2")


def test_addresses_of_the_internal_network_are_kept(pool: Pool, internal: Any) -> None:
    """From the first start of a card until it goes, and the card is told of them."""
    vm = make_vm(pool)
    first = card(pool, vm, network=internal._ref)
    second = card(pool, vm, network=internal._ref, device="1", MAC="02:00:00:00:00:02")
    assert internal.assigned_ips == {}
    pool("VM.start", vm._ref, False, False)
    kept = {first._ref: "169.254.0.2", second._ref: "169.254.0.3"}
    assert internal.assigned_ips == kept
    assert plugged(pool, vm, NIC)[1].address == "169.254.0.3"
    pool("VM.hard_shutdown", vm._ref)
    assert internal.assigned_ips == kept
    pool("VIF.destroy", first._ref)
    assert internal.assigned_ips == {second._ref: "169.254.0.3"}
    third = card(pool, vm, network=internal._ref, MAC="02:00:00:00:00:03")
    pool("VM.start", vm._ref, False, False)
    assert internal.assigned_ips == {second._ref: "169.254.0.3", third._ref: "169.254.0.2"}
    pool("VIF.move", third._ref, plain_network(pool)._ref)
    assert internal.assigned_ips == {second._ref: "169.254.0.3"}
    assert plugged(pool, vm, NIC)[0].address == ""


@pytest.mark.parametrize(
    ("door", "address", "said"),
    [
        (Door(), "10.0.0.1", "https://10.0.0.1/console?"),
        (Door("https", 8443), "10.0.0.1", "https://10.0.0.1:8443/console?"),
        (Door("http", 80), "10.0.0.1", "http://10.0.0.1/console?"),
        (Door("http", 8080), "fd00::1", "http://[fd00::1]:8080/console?"),
    ],
)
def test_consoles_are_where_they_are_served(pool: Pool, door: Door, address: str, said: str) -> None:
    """Those that there are as well as those of VMs that start later."""
    vm = make_vm(pool)
    host = next(iter(pool.db.host))
    host.address = address
    pool.daemon.consoles.served_at(door)
    pool("VM.start", vm._ref, False, False)
    own, hosts = ([pool.db.console[ref] for ref in each.consoles] for each in (vm, pool.db.VM[host.control_domain]))
    assert [console.location for console in own] == [f"{said}uuid={console.uuid}" for console in own]
    assert [console.location for console in hosts] == [f"{said}ref={console._ref}" for console in hosts]


def test_consoles_are_not_made_by_clients(pool: Pool) -> None:
    """They come with a domain, at the address of its host, and go with it."""
    vm = running(pool)
    console = next(pool.db.console[ref] for ref in vm.consoles if pool.db.console[ref].protocol == "vt100")
    host = pool.db.host[vm.resident_on]
    assert console.location == f"https://{host.address}/console?uuid={console.uuid}"
    assert pool.fails("console.create", {"other_config": {}}) == ["NOT_IMPLEMENTED", "Console.create"]
    assert pool.fails("console.destroy", console._ref) == ["NOT_IMPLEMENTED", "Console.destroy"]
    pool("VM.hard_shutdown", vm._ref)
    assert console._ref not in pool.db.console
