"""Whatever is set in whatever order: a VM's limits stay in order, and equal a model of the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.test_placement import add_host
from tests.api.test_power import make_vm
from tests.conftest import Pool
from xapi.datamodel.errors import Fault
from xapi.vms import memory
from xapi.vms.placement import assert_can_boot_here, choose_host, possible_hosts

MIB = 1 << 20
NAMES = ("static_min", "dynamic_min", "dynamic_max", "static_max")
sizes = st.integers(0, 12).map(lambda value: value * 16 * MIB)


@pytest.fixture(scope="module")
def module_pool(make_pool: Callable[[], Pool]) -> Pool:
    """One pool for all examples: making it takes longer than using it."""
    return make_pool()


def steps() -> st.SearchStrategy[tuple[str, list[int]]]:
    """Return a message and its values."""
    single = [f"set_memory_{name}" for name in NAMES]
    return st.one_of(
        st.tuples(st.sampled_from([*single, "set_memory"]), st.lists(sizes, min_size=1, max_size=1)),
        st.tuples(
            st.sampled_from(["set_memory_static_range", "set_memory_dynamic_range"]),
            st.lists(sizes, min_size=2, max_size=2),
        ),
        st.tuples(st.just("set_memory_limits"), st.lists(sizes, min_size=4, max_size=4)),
    )


def wanted(now: dict[str, int], name: str, values: list[int]) -> dict[str, int]:
    """Return the limits that a message asks for."""
    if name == "set_memory":
        return now | dict.fromkeys(("dynamic_min", "dynamic_max", "static_max"), values[0])
    if name == "set_memory_limits":
        return dict(zip(("static_min", "static_max", "dynamic_min", "dynamic_max"), values, strict=True))
    if name.endswith("_range"):
        kind = name.split("_")[2]
        return now | {f"{kind}_min": values[0], f"{kind}_max": values[1]}
    return now | {name.removeprefix("set_memory_"): values[0]}


def in_order(limits: dict[str, int]) -> bool:
    return limits["static_min"] <= limits["dynamic_min"] <= limits["dynamic_max"] <= limits["static_max"]


@given(st.lists(steps(), max_size=12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_limits_follow_the_model(module_pool: Pool, todo: list[tuple[str, list[int]]], runs: bool) -> None:
    """Halted VMs take all setters, those that run the dynamic ones; what is refused changes nothing."""
    pool = module_pool
    vm = make_vm(pool)
    if runs:
        pool("VM.start", vm._ref, False, False)
    now = {name: getattr(vm, f"memory_{name}") for name in NAMES}
    for name, values in todo:
        after = wanted(now, name, values)
        allowed = in_order(after) and (not runs or "dynamic" in name)
        try:
            pool(f"VM.{name}", vm._ref, *map(str, values))
            assert allowed
            now = after
        except Fault as fault:
            assert not allowed
            halted_only = runs and "dynamic" not in name
            assert fault.code == ("VM_BAD_POWER_STATE" if halted_only else "MEMORY_CONSTRAINT_VIOLATION_ORDER")
        assert {each: getattr(vm, f"memory_{each}") for each in NAMES} == now
        assert vm.memory_overhead == memory.overhead(vm)
        if runs:
            assert now["dynamic_min"] <= vm.memory_target <= now["dynamic_max"]
            assert pool.backend.doms[vm.uuid].target == vm.memory_target
    if runs:
        pool("VM.hard_shutdown", vm._ref)
    pool.db.VM.delete(vm._ref)
    pool.turn()


hosts = st.lists(
    st.tuples(st.integers(0, 8), st.booleans(), st.booleans(), st.lists(st.integers(1, 4), max_size=3)),
    min_size=1, max_size=4,
)  # fmt: skip


@given(hosts, st.integers(1, 4), st.integers(0, 4), st.booleans(), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_no_vm_is_placed_where_it_cannot_start(
    module_pool: Pool, described: list[Any], size: int, affinity: int, apart: bool, draw: float
) -> None:
    """A host is found exactly when one passes all the checks, and it is one of those."""
    pool = module_pool
    made: list[Any] = []
    try:
        rows = []
        for at, (mib, live, enabled, guests) in enumerate(described):
            host = add_host(pool, f"host {at}", mib * 64 * MIB)
            made += [host, pool.db.host_metrics[host.metrics]]
            host.enabled = enabled
            pool.db.host_metrics[host.metrics].live = live
            rows.append(host)
            for guest in guests:
                other = make_vm(pool, **_fixed(guest))
                made += [other, pool.db.VM_metrics[other.metrics]]
                other.resident_on = host._ref
        vm = make_vm(pool, **_fixed(size))
        made += [vm, pool.db.VM_metrics[vm.metrics]]
        if affinity < len(rows):
            vm.affinity = rows[affinity]._ref
        if apart:
            group = pool.db.VM_group.create(name_label="apart", placement="anti_affinity")
            made.append(group)
            vm.groups = (group._ref,)
        coordinator = pool.db.host[next(iter(pool.db.pool)).master]
        coordinator.enabled = False
        pool.turn()
        possible = {host._ref for host in possible_hosts(pool.db, vm)}
        try:
            host = choose_host(pool.db, vm, draw=lambda: draw)
        except Fault as fault:
            assert fault.code == "NO_HOSTS_AVAILABLE"
            assert not possible
        else:
            assert_can_boot_here(pool.db, vm, host)
            assert host._ref in possible
            if vm.affinity in possible:
                assert host._ref == vm.affinity
    finally:
        for row in reversed(made):
            row._table.delete(row._ref)
        pool.turn()


def _fixed(units: int) -> dict[str, int]:
    """Return limits of so many times 32 MiB that leave a balloon no room."""
    return dict.fromkeys(("memory_static_max", "memory_dynamic_min", "memory_dynamic_max"), units * 32 * MIB)
