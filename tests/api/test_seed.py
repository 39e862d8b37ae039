"""Objects that follow from a seed: the same calls make the same ones, but for what nobody may guess."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conftest import Pool
from xapi.store.uuids import Uuids
from xapi.vms.devices import mac_address

SEED = 7


def made(pool: Pool) -> dict[str, list[str]]:
    """Do what makes objects of several classes; return their references, uuids and addresses."""
    template = next(vm._ref for vm in pool.db.VM if vm.name_label == "Other install media")
    known = {ref for table in pool.db.tables.values() for ref in table.rows}
    vm = pool("VM.clone", template, "first")
    pool("VM.set_is_a_template", vm, False)
    network = pool("network.create", {"name_label": "net", "name_description": "", "MTU": "1500", "other_config": {}})
    vif = {
        "VM": vm, "network": network, "device": "0", "MAC": "", "MTU": "1500", "other_config": {},
        "qos_algorithm_type": "", "qos_algorithm_params": {},
    }  # fmt: skip
    pool("VIF.create", vif)
    pool("VM.clone", vm, "second")
    found: dict[str, list[str]] = {}
    for name, table in pool.db.tables.items():
        new: list[Any] = [row for ref, row in table.rows.items() if ref not in known and name != "task"]
        if new:
            found[name] = [f"{row._ref} {getattr(row, 'uuid', '')} {getattr(row, 'MAC', '')}" for row in new]
    return found


def test_the_same_calls_make_the_same_objects(make_pool: Callable[[], Pool]) -> None:
    """References, uuids and the addresses that follow from a VM's seed, whatever else happens in between."""
    one, other = make_pool(), make_pool()
    one.db.uuids, other.db.uuids = Uuids(SEED, 1), Uuids(SEED, 1)
    other.login()
    other("message.create", "NOTE", 3, "pool", next(iter(other.db.pool)).uuid, "a message of somebody else")
    first = made(one)
    assert {"VM", "VM_metrics", "VIF", "network"} <= first.keys()
    assert len(first["VIF"]) == 2
    assert made(other) == first
    (vm,) = one.db.VM.by_name_label("first")
    (vif,) = vm.VIFs
    address = one.db.VIF[vif].MAC
    assert address == mac_address(vm.other_config["mac_seed"], 0)


def test_another_seed_another_start_and_no_seed_make_others(make_pool: Callable[[], Pool]) -> None:
    """A restart goes on at a later generation, so nothing comes twice."""
    all_of_them: list[str] = []
    for uuids in (Uuids(SEED, 1), Uuids(SEED, 10_000_001), Uuids(8, 1), Uuids(), Uuids()):
        pool = make_pool()
        pool.db.uuids = uuids
        all_of_them += made(pool)["VM"]
    assert len(set(all_of_them)) == len(all_of_them) == 10


def test_sessions_and_secrets_stay_random(make_pool: Callable[[], Pool]) -> None:
    """Their references let in who knows them."""
    found = []
    for pool in (make_pool(), make_pool()):
        pool.db.uuids = Uuids(SEED, 1)
        found += [pool.login(), pool("secret.create", {"value": "x", "other_config": {}})]
    assert len(set(found)) == 4
