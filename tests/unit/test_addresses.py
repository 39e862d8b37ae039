"""Where a daemon is reached, of what it listens at; and the rows that say so."""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.conftest import NOW, in_memory
from tests.journal import Journal
from xapi.hosts import addresses
from xapi.hosts.addresses import Endpoint, Interface
from xapi.inventory import declaration, fresh, management
from xapi.process.config import address_of
from xapi.store.memory import Store
from xapi.vms.consoles import Door


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two addresses."""
    card = [Interface("eth0", "192.0.2.7", 24), Interface("eth0", "2001:db8::7", 64), Interface("lo", "127.0.0.1", 8)]
    monkeypatch.setattr(addresses, "interfaces", lambda: card)
    monkeypatch.setattr(addresses, "outward", lambda: "192.0.2.7")


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("192.0.2.1:443", "192.0.2.1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("8443", "127.0.0.1"),
        (":443", ""),
        ("tcp:443:interface=192.0.2.1", "192.0.2.1"),
        (r"tcp6:443:interface=2001\:db8\:\:1", "2001:db8::1"),
        ("tcp:443", ""),
        ("systemd:domain=INET:index=0", ""),
    ],
)
def test_an_endpoint_names_an_address_or_any(endpoint: str, address: str) -> None:
    assert addresses.listened(endpoint, address_of(endpoint)) == address


@pytest.mark.parametrize(
    ("served", "advertised", "expected"),
    [
        (("http 127.0.0.1 80", "https 127.0.0.2 443"), "", "https 127.0.0.2 443"),
        (("http 192.0.2.9 80", "https 127.0.0.1 443"), "", "http 192.0.2.9 80"),
        (("http 0.0.0.0 80", "https 127.0.0.1 443"), "", "http 192.0.2.7 80"),
        (("http 0.0.0.0 80", "https :: 443"), "", "https 192.0.2.7 443"),
        (("https 127.0.0.1 8443",), "nat.example", "https nat.example 8443"),
        ((), "nat.example", None),
    ],
)
def test_the_best_door_is_not_loopback_and_has_tls(
    outside: None, served: tuple[str, ...], advertised: str, expected: str | None
) -> None:
    """In this order: what others cannot reach is no use to them."""
    found = addresses.door([endpoint(text) for text in served], advertised)
    assert found == (expected and endpoint(expected))


def endpoint(text: str) -> Endpoint:
    scheme, address, port = text.split()
    return Endpoint(scheme, address, int(port))


def test_a_certificate_is_for_every_address_that_is_listened_at(outside: None) -> None:
    assert addresses.names(["127.0.0.2", "0.0.0.0"], "nat") == [
        "nat", "127.0.0.2", "192.0.2.7", "2001:db8::7", "127.0.0.1"
    ]  # fmt: skip


# Rows


def installed(text: str = "") -> tuple[Store, Journal]:
    """Return a fresh pool of a declaration."""
    journal = Journal()
    store = in_memory(Clock(), journal)
    declared = declaration.parse_declaration(text, "test")
    fresh.populate(store, declared, rng=random.Random(1), now=NOW)
    return store, journal


def reached_at(store: Store, address: str, listening: str = "") -> Any:
    """Tell a machine's one address, and return the management card."""
    own = Interface("eth0", "192.0.2.7", 26)
    management.reached_at(
        store,
        address,
        listening or address,
        interface=lambda wanted: own if wanted == own.address else None,
        gateway=lambda interface: "192.0.2.1",
    )
    return next(pif for pif in store.PIF if pif.management)


def test_the_coordinators_card_has_the_address_with_netmask_and_gateway() -> None:
    store, _ = installed()
    pif = reached_at(store, "192.0.2.7")
    assert next(iter(store.host)).address == "192.0.2.7"
    assert (pif.IP, pif.netmask, pif.gateway) == ("192.0.2.7", "255.255.255.192", "192.0.2.1")


def test_a_name_is_the_hosts_and_the_card_has_what_is_listened_at() -> None:
    store, _ = installed()
    pif = reached_at(store, "nat.example", "192.0.2.7")
    assert (next(iter(store.host)).address, pif.IP) == ("nat.example", "192.0.2.7")


def test_what_is_declared_beside_the_same_address_stays() -> None:
    """And a start that changes nothing writes nothing."""
    store, journal = installed(
        "[[host]]\naddress = '192.0.2.7'\nnic = [{ netmask = '255.255.0.0', gateway = '192.0.2.9' }]\n"
    )
    before = len(journal.changes)
    pif = reached_at(store, "192.0.2.7")
    assert (pif.IP, pif.netmask, pif.gateway) == ("192.0.2.7", "255.255.0.0", "192.0.2.9")
    assert len(journal.changes) == before


def test_other_hosts_keep_their_addresses() -> None:
    store, _ = installed("[[host]]\n[[host]]\nname = 'b'\naddress = '192.0.2.8'\n")
    reached_at(store, "192.0.2.7")
    assert [host.address for host in store.host] == ["192.0.2.7", "192.0.2.8"]


def test_a_door_with_an_address_is_that_of_all_hosts() -> None:
    """One process serves the consoles of all."""
    assert Door("https", 8443, "::1").url("192.0.2.8", "uuid=x") == "https://[::1]:8443/console?uuid=x"
    assert Door().url("192.0.2.8", "uuid=x") == "https://192.0.2.8/console?uuid=x"
