"""What holds for every inventory, whatever is declared, whatever the seed."""

import random
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.journal import store_at_once
from tests.property.follower import references
from xapi.datamodel.types import NULL, MapType, RefType, SetType, Type
from xapi.inventory.declaration import NIC, SR, VDI, VM, Declaration, Disk, Host, HostNIC, Network, Pool
from xapi.inventory.fresh import populate
from xapi.inventory.scale import grow
from xapi.inventory.templates import default_templates, read_size
from xapi.store.memory import Store
from xapi.vms.devices import mac_address
from xapi.vms.memory import memory_overhead

NOW = datetime(2026, 1, 31, 9, 5, 7, tzinfo=UTC)


def populated(declared: Declaration, seed: int) -> Store:
    store = store_at_once()
    populate(store, declared, rng=random.Random(seed), now=NOW)
    return store


def wire(kind: Type, value: Any) -> Any:
    """Return what a client would send: sets and maps of the wire."""
    if isinstance(kind, SetType):
        return [wire(kind.item, item) for item in value]
    if isinstance(kind, MapType):
        return {key: wire(kind.value, item) for key, item in value.items()}
    return str(value) if isinstance(kind, RefType) else value


def assert_sound(store: Store) -> None:
    """Every value is of its type, and every reference leads to an object of the right class.

    Roles are left out: they are always the same, and a dozen thousand references.
    """
    for table in (table for table in store.tables.values() if table.name != "role"):
        for row in table:
            for field in table.cls.fields.values():
                value = getattr(row, field.name)
                read = field.type.decode(wire(field.type, value))
                assert read == (tuple(value) if isinstance(field.type, SetType) else value), (table.name, field.name)
                for target, ref in references(field.type, value):
                    assert ref == NULL or ref in store.tables[target], (table.name, field.name, ref)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=8)
names = st.lists(st.text("abcdefgh", min_size=1, max_size=4), unique=True, max_size=3)
sizes = st.integers(1, 2**42)


@st.composite
def declarations(draw: st.DrawFn) -> Declaration:
    """Any small inventory that reading a file could have given."""
    networks = tuple(Network(name, mtu=draw(st.sampled_from((1500, 9000)))) for name in draw(names))
    srs = tuple(
        SR(name, type=draw(st.sampled_from(("nfs", "iso", "smb"))), size=draw(st.sampled_from((0, 2**40))))
        for name in draw(names)
    )
    images = tuple(VDI(f"image {name}", draw(sizes)) for name in draw(names))
    shelf = SR("shelf", vdis=images)
    hosts = tuple(
        Host(
            name=f"host-{at}",
            address=f"127.0.0.{at + 1}",
            description=draw(texts),
            cpus=draw(st.integers(1, 4)),
            local_storage=draw(st.sampled_from((0, 2**40))),
            local_storage_type=draw(st.sampled_from(("ext", "file"))),
            nics=(*(HostNIC(network=network.name) for network in networks), HostNIC()),
        )
        for at in range(draw(st.integers(1, 3)))
    )
    disks = st.one_of(
        st.builds(Disk, size=sizes, sr=st.just("shelf")),
        st.builds(Disk, vdi=st.sampled_from([image.name for image in images] or [""]), cd=st.just(True)),
    )
    vms = st.builds(
        VM,
        name=texts,
        description=texts,
        from_=st.sampled_from(sorted(default_templates())),
        template=st.booleans(),
        host=st.sampled_from(["", "host-0"]),
        memory=st.integers(0, 2**36),
        vcpus=st.integers(0, 64),
        tags=st.lists(texts, max_size=2).map(tuple),
        disks=st.lists(disks, max_size=3).map(tuple),
        nics=st.lists(st.builds(NIC), max_size=3).map(tuple),
    )
    pool = Pool(default_sr=draw(st.sampled_from((None, "", "shelf"))), name=draw(texts))
    return Declaration(pool, hosts, networks, (*srs, shelf), tuple(draw(st.lists(vms, max_size=3))))


@settings(max_examples=15, deadline=None)
@given(declarations(), st.integers(0, 2**32))
def test_every_pool_is_sound(declared: Declaration, seed: int) -> None:
    """Types and references, for what is declared and after growing."""
    store = populated(declared, seed)
    list(grow(store, hosts=len(declared.hosts) + 1, vms=3, rng=random.Random(seed + 1), now=NOW))
    assert_sound(store)


@settings(max_examples=15, deadline=None)
@given(declarations(), st.integers(0, 2**32))
def test_every_pool_has_unique_bridges_and_addresses(declared: Declaration, seed: int) -> None:
    """Two networks never meet on one bridge, two cards never under one address."""
    store = populated(declared, seed)
    bridges = [network.bridge for network in store.network]
    addresses = [card.MAC for table in (store.PIF, store.VIF) for card in table]
    assert len(set(bridges)) == len(bridges)
    assert len(set(addresses)) == len(addresses)


@given(st.text(max_size=40), st.integers(0, 15))
def test_generated_addresses_are_local_and_unicast(seed: str, device: int) -> None:
    """The two low bits of the first octet say so."""
    address = mac_address(seed, device)
    assert len(address) == 17
    assert int(address[:2], 16) & 3 == 2


@given(st.sampled_from(("hvm", "pv", "pv_in_pvh", "pvh")), st.integers(0, 2**42), st.integers(1, 64), st.floats(1, 8))
def test_memory_overhead_is_whole_mebibytes_and_never_less_for_more(
    kind: str, static_max: int, vcpus: int, multiplier: float
) -> None:
    """More memory or more vCPUs never need less."""
    overhead = memory_overhead(kind, static_max, vcpus, multiplier)
    assert overhead > 0 and overhead % 2**20 == 0
    assert memory_overhead(kind, static_max + 2**20, vcpus, multiplier) >= overhead
    assert memory_overhead(kind, static_max, vcpus + 1, multiplier) >= overhead


@given(st.integers(0, 2**20), st.sampled_from((("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40))))
def test_sizes_are_read_with_their_unit(number: int, unit: tuple[str, int]) -> None:
    """A number of bytes stands for itself."""
    assert read_size(f"{number} {unit[0]}") == read_size(number << unit[1]) == number << unit[1]
