"""What hosts and pool tell of their CPUs is what guests find by CPUID, also in a state of another version."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.arch.x86_64.cpu import cpuid
from hypervisor.arch.x86_64.cpu.cpuid import Policy
from hypervisor.arch.x86_64.kinds import PV
from hypervisor.arch.x86_64.processor import processor
from hypervisor.arch.x86_64.pv.area import Area
from hypervisor.host import Host
from hypervisor.loader import pv
from tests.journal import store_at_once
from tests.x86_64 import cpu_of
from xapi.inventory import fresh, processors
from xapi.inventory.declaration import Declaration
from xapi.inventory.declaration import Host as DeclaredHost
from xapi.store.memory import Store

NAME = "Zilog Z80 @ 4 MHz"


def populated(*names: str) -> Store:
    hosts = tuple(DeclaredHost(f"host{at}", cpu_model=name) for at, name in enumerate(names))
    store = store_at_once()
    fresh.populate(store, Declaration(hosts=hosts), rng=random.Random(1), now=datetime(2026, 1, 1, tzinfo=UTC))
    return store


@pytest.mark.parametrize("is_pv", [False, True])
def test_the_featureset_is_what_a_domain_finds(is_pv: bool) -> None:
    """Words 1d, 1c, e1d and e1c of a real domain's CPUID."""
    host = Host(64 << 20, 1, cpu_name=NAME)
    if is_pv:
        domain = host.create(pv.ranges(8 << 20), kind=PV)
        pv.adopt(domain, Area(8 << 20))
    else:
        domain = host.create(((0, 4 << 20),))
    cpu = cpu_of(domain)
    leaf, more = cpu.platform.cpuid(cpu, 1, 0), cpu.platform.cpuid(cpu, 0x80000001, 0)
    name = b"".join(
        word.to_bytes(4, "little") for at in range(0x80000002, 0x80000005) for word in cpu.platform.cpuid(cpu, at, 0)
    )
    host.destroy(domain)
    told = processor(NAME)
    found = (told.features_pv if is_pv else told.features_hvm).split("-")
    assert [int(word, 16) for word in found[:4]] == [leaf[3], leaf[2], more[3], more[2]]
    assert len(found) == 18 and all(int(word, 16) == 0 for word in found[4:])
    assert name.rstrip(b"\0").decode() == told.name == NAME


def test_the_words_and_flags_of_a_processor_tell_the_same() -> None:
    told = processor()
    ecx, edx, more_ecx, more_edx = (int(word, 16) for word in told.features.split("-"))
    assert told.flags.split() == cpuid.flags(edx, more_edx, ecx, more_ecx)
    assert len(told.flags.split()) == sum(word.bit_count() for word in (ecx, edx, more_ecx, more_edx))
    signature = Policy(0, 1).leaf(0, 1, 0)[0]
    assert (told.family << 8 | (told.model & 15) << 4 | (told.model >> 4) << 16 | told.stepping) == signature


@given(name=st.text(max_size=60))
def test_any_name_becomes_one_that_a_cpu_can_say(name: str) -> None:
    said = cpuid.brand(name)
    assert 0 < len(said) < 48 and said.isascii() and said.isprintable()
    assert cpuid.brand(said) == said


def test_hosts_cpus_and_pool_tell_what_guests_find() -> None:
    """Each host by the name that was declared for it."""
    store = populated("", NAME)
    for host, name in zip(store.host, ("Kronos virtual CPU", NAME)):
        told = processor(name)
        info: Mapping[str, str] = host.cpu_info
        assert (info["modelname"], info["features_hvm"], info["features_pv_host"]) == (
            name, told.features_hvm, told.features_pv,
        )  # fmt: skip
        assert info["flags"] == told.flags and info["cpu_count"] == "4"
        for ref in host.host_CPUs:
            cpu: Any = store.host_cpu[ref]
            assert (cpu.modelname, cpu.features, cpu.family, cpu.model) == (name, told.features, 6, told.model)
            assert cpu.speed == told.mhz
    (pool,) = store.pool
    assert pool.cpu_info["features_hvm"] == processor().features_hvm
    assert (pool.cpu_info["cpu_count"], pool.cpu_info["vendor"]) == ("8", "GenuineIntel")


def test_an_old_state_tells_the_truth_from_its_next_start_on() -> None:
    """The name stays, for guests find it; what they never found goes."""
    store = populated("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz")
    (host,) = store.host
    old = {"features_hvm": "ffffffff-ffffffff", "flags": "fpu avx2", "model": "79"}
    host.cpu_info = {**host.cpu_info, **old}
    cpu: Any = store.host_cpu[next(iter(host.host_CPUs))]
    cpu.flags, cpu.model = "fpu avx2", 79
    processors.tell(store)
    told = processor("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz")
    (host,) = store.host
    assert (host.cpu_info["features_hvm"], host.cpu_info["flags"]) == (told.features_hvm, told.flags)
    assert (cpu.modelname, cpu.flags, cpu.model) == ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", told.flags, 54)


def test_a_start_that_changes_nothing_writes_nothing() -> None:
    store = populated(NAME)
    processors.tell(store)
    before = store.generation
    processors.tell(store)
    assert store.generation == before


@pytest.mark.parametrize(("measured", "told"), [(2446, 2445), (2444, 2445), (3100, 3100), (0, 2445)])
def test_the_same_machine_has_the_same_speed_after_a_restart(
    monkeypatch: pytest.MonkeyPatch, measured: int, told: int
) -> None:
    """A frequency is measured at each start, a little otherwise each time; another machine's is told."""
    store = populated(NAME)
    (host,) = store.host
    host.cpu_info = {**host.cpu_info, "speed": "2445.000"}
    monkeypatch.setattr(processors, "processor", lambda name: replace(processor(name), mhz=measured))
    processors.tell(store)
    (host,) = store.host
    assert host.cpu_info["speed"] == f"{told}.000"
    assert {store.host_cpu[ref].speed for ref in host.host_CPUs} == {told}
