"""Where VMs may run and where they shall: every check by its error, and the choice among hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from operator import truediv
from typing import Any

import pytest

from tests.api.test_power import make_vm, running
from tests.conftest import Pool
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.vms import memory
from xapi.vms.placement import assert_can_boot_here, choose_host

MIB = 1 << 20
GIB = 1 << 30


def coordinator(pool: Pool) -> Any:
    return pool.db.host[next(iter(pool.db.pool)).master]


def add_host(pool: Pool, name: str, size: int = 8 * GIB) -> Any:
    """Return the row of a host like the first, with so many bytes for guests."""
    like = coordinator(pool)
    with pool.db.atomic():
        metrics = pool.db.host_metrics.create(live=True, memory_total=size)
        return pool.db.host.create(
            name_label=name, metrics=metrics._ref, enabled=True, capabilities=like.capabilities,
            cpu_info=like.cpu_info, memory_overhead=0,
            virtual_hardware_platform_versions=like.virtual_hardware_platform_versions,
        )  # fmt: skip


@pytest.fixture
def vm(pool: Pool) -> Any:
    return make_vm(pool)


def why_not(pool: Pool, vm: Any, host: Any) -> list[str]:
    """Return the description of what keeps a VM from a host."""
    pool.turn()
    with pytest.raises(Fault) as caught:
        assert_can_boot_here(pool.db, vm, host)
    return caught.value.description


# Reasons


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"VCPUs_max": 0}, ["INVALID_VALUE", "VCPUs_max", "0"]),
        ({"VCPUs_at_startup": 0}, ["INVALID_VALUE", "VCPUs-at-startup", "0"]),
        ({"VCPUs_at_startup": 2},
         ["VALUE_NOT_SUPPORTED", "VCPUs-at-startup", "2", "value greater than VCPUs-max"]),
        ({"memory_static_min": 65 * MIB}, ["MEMORY_CONSTRAINT_VIOLATION"]),
        ({"memory_dynamic_min": 65 * MIB}, ["MEMORY_CONSTRAINT_VIOLATION"]),
        ({"HVM_shadow_multiplier": 0.5}, ["INVALID_VALUE", "HVM_shadow_multiplier", "0.5"]),
        ({"actions_after_crash": "rename_restart"}, ["VALUE_NOT_SUPPORTED", "VM.actions_after_crash"]),
        ({"actions_after_crash": "coredump_and_destroy"}, ["VALUE_NOT_SUPPORTED", "VM.actions_after_crash"]),
        ({"hardware_platform_version": 9}, ["VM_HOST_INCOMPATIBLE_VIRTUAL_HARDWARE_PLATFORM_VERSION"]),
        ({"VCPUs_max": 9999}, ["HOST_NOT_ENOUGH_PCPUS", "9999"]),
    ],
)  # fmt: skip
def test_settings_with_which_a_vm_cannot_start(
    pool: Pool, vm: Any, fields: dict[str, Any], expected: list[str]
) -> None:
    """Each has its error; no host is found either."""
    host = coordinator(pool)
    with pool.db.atomic():
        for name, value in fields.items():
            setattr(vm, name, value)
    assert why_not(pool, vm, host)[: len(expected)] == expected
    assert pool.fails("VM.assert_can_boot_here", vm._ref, host._ref)[: len(expected)] == expected
    assert pool.fails("VM.start", vm._ref, False, False) == ["NO_HOSTS_AVAILABLE"]
    assert list(pool("VM.get_possible_hosts", vm._ref)) == []


def test_more_vcpus_than_processors_when_somebody_says_so(pool: Pool, vm: Any) -> None:
    """By a key of its platform."""
    with pool.db.atomic():
        vm.VCPUs_max, vm.platform = 9999, {"vcpu-unrestricted": "true"}
    assert_can_boot_here(pool.db, vm, coordinator(pool))


def test_a_host_must_live_and_be_enabled(pool: Pool, vm: Any) -> None:
    """In this order."""
    host = coordinator(pool)
    host.enabled = False
    assert why_not(pool, vm, host) == ["HOST_DISABLED", host._ref]
    pool.db.host_metrics[host.metrics].live = False
    assert why_not(pool, vm, host) == ["HOST_NOT_LIVE"]
    assert pool.fails("VM.start", vm._ref, False, False) == ["NO_HOSTS_AVAILABLE"]


def test_a_disk_needs_its_sr_on_the_host(pool: Pool, vm: Any) -> None:
    """An empty drive needs nothing."""
    host = coordinator(pool)
    sr = pool.db.SR.create(name_label="elsewhere", type="ext")
    vdi = pool.db.VDI.create(name_label="disk", SR=sr._ref)
    pool.db.VBD.create(VM=vm._ref, userdevice="3", type="CD", mode="RO", empty=True)
    assert_can_boot_here(pool.db, vm, host)
    pool.db.VBD.create(VM=vm._ref, VDI=vdi._ref, userdevice="0", type="Disk", mode="RW", empty=False)
    assert why_not(pool, vm, host) == ["VM_REQUIRES_SR", vm._ref, sr._ref]
    pool.db.PBD.create(host=host._ref, SR=sr._ref, currently_attached=True)
    pool.turn()
    assert_can_boot_here(pool.db, vm, host)


def add_card(pool: Pool, vm: Any, network: Any) -> None:
    pool.db.VIF.create(VM=vm._ref, network=network._ref, device="0", MAC="02:00:00:00:00:01")
    pool.turn()


def test_a_card_needs_its_network_on_the_host(pool: Pool, vm: Any) -> None:
    """By a card of the host's own that is free."""
    host, other = coordinator(pool), add_host(pool, "other")
    pif = next(pif for pif in pool.db.PIF if pif.host == host._ref)
    network = pool.db.network[pif.network]
    add_card(pool, vm, network)
    assert_can_boot_here(pool.db, vm, host)
    assert why_not(pool, vm, other) == ["VM_REQUIRES_NETWORK", vm._ref, network._ref]
    pif.bond_slave_of = pool.db.Bond.create()._ref
    assert why_not(pool, vm, host) == ["HOST_CANNOT_ATTACH_NETWORK", host._ref, network._ref]


def test_a_network_without_cards_is_where_its_first_vm_runs(pool: Pool, vm: Any) -> None:
    """Unless it is said to be everywhere."""
    host, other = coordinator(pool), add_host(pool, "other")
    network = pool.db.network.create(name_label="private", managed=True, bridge="xapi9")
    add_card(pool, vm, network)
    assert_can_boot_here(pool.db, vm, other)
    neighbour = make_vm(pool)
    add_card(pool, neighbour, network)
    with pool.db.atomic():
        neighbour.power_state, neighbour.resident_on = "Running", host._ref
    assert_can_boot_here(pool.db, vm, host)
    assert why_not(pool, vm, other) == ["VM_REQUIRES_NETWORK", vm._ref, network._ref]
    network.other_config = {"assume_network_is_shared": "true"}
    pool.turn()
    assert_can_boot_here(pool.db, vm, other)


def test_only_pv_guests_do_without_hvm(pool: Pool, vm: Any) -> None:
    """Which the host's capabilities tell."""
    host = coordinator(pool)
    host.capabilities = ("xen-3.0-x86_64",)
    assert why_not(pool, vm, host) == ["VM_HVM_REQUIRED", vm._ref]
    vm.domain_type = "pv"
    pool.turn()
    assert_can_boot_here(pool.db, vm, host)


def test_a_suspended_guest_wants_the_processor_it_has_seen(pool: Pool, vm: Any) -> None:
    """Vendor and features."""
    host = coordinator(pool)
    host.cpu_info = host.cpu_info | {"vendor": "GenuineIntel", "features_hvm": "0000000f-00000001"}
    vm.power_state = "Suspended"
    for flags, text in (
        ({"vendor": "AuthenticAMD"}, "different vendor"),
        ({"vendor": "GenuineIntel", "features": "0000001f-00000001"}, "features this host's CPU does not have"),
    ):
        vm.last_boot_CPU_flags = flags
        code, *parameters = why_not(pool, vm, host)
        assert (code, parameters[:2]) == ("VM_INCOMPATIBLE_WITH_THIS_HOST", [vm._ref, host._ref])
        assert text in parameters[2]
    vm.last_boot_CPU_flags = {"vendor": "GenuineIntel", "features": "00000003-00000001"}
    pool.turn()
    assert_can_boot_here(pool.db, vm, host)


def test_memory_that_is_promised_is_not_free(pool: Pool, vm: Any) -> None:
    """To a VM that runs or is expected; but a VM does not stand in its own way."""
    host = add_host(pool, "small", 256 * MIB)
    assert_can_boot_here(pool.db, vm, host)
    others = [make_vm(pool, memory_static_max=80 * MIB, memory_dynamic_min=80 * MIB, memory_dynamic_max=80 * MIB)
              for _ in range(2)]  # fmt: skip
    others[0].resident_on = host._ref
    others[1].scheduled_to_be_resident_on = host._ref
    free = 256 * MIB - 160 * MIB - sum(each.memory_overhead for each in others)
    assert memory.free(pool.db, host) == free
    vm.memory_static_max = vm.memory_dynamic_max = vm.memory_dynamic_min = 96 * MIB
    pool.turn()
    needed = 96 * MIB + vm.memory_overhead
    assert why_not(pool, vm, host) == ["HOST_NOT_ENOUGH_FREE_MEMORY", str(needed), str(free)]
    others[1].scheduled_to_be_resident_on = NULL
    vm.scheduled_to_be_resident_on = host._ref
    pool.turn()
    assert_can_boot_here(pool.db, vm, host)


def test_a_guest_counts_with_what_its_balloon_can_be_told_to_keep(pool: Pool, vm: Any) -> None:
    """So more may start than fit at full size."""
    host = add_host(pool, "small", 256 * MIB)
    before = memory.free(pool.db, host)
    other = make_vm(pool, memory_dynamic_min=16 * MIB, memory_dynamic_max=200 * MIB, memory_static_max=200 * MIB)
    other.resident_on = host._ref
    pool.turn()
    assert before - memory.free(pool.db, host) == 16 * MIB + other.memory_overhead
    assert pool("host.compute_free_memory", host._ref) == memory.free(pool.db, host)
    assert pool("host.compute_memory_overhead", coordinator(pool)._ref) == coordinator(pool).memory_overhead


# The choice


def chosen(pool: Pool, vm: Any, draws: int = 200) -> Counter[str]:
    """Return how often each host is chosen when every draw is as likely as another."""
    pool.turn()
    return Counter(choose_host(pool.db, vm, draw=partial(truediv, at, draws)).name_label for at in range(draws))


@pytest.fixture
def alone(pool: Pool) -> Callable[[], None]:
    """Take the coordinator out of the choice."""

    def take() -> None:
        coordinator(pool).enabled = False
        pool.turn()

    return take


def test_the_affinity_host_is_preferred_while_it_can(pool: Pool, vm: Any) -> None:
    """And left when it cannot."""
    hosts = [add_host(pool, name) for name in "ab"]
    vm.affinity = hosts[1]._ref
    assert set(chosen(pool, vm)) == {"b"}
    hosts[1].enabled = False
    assert "b" not in chosen(pool, vm)


def test_more_free_memory_makes_a_host_likelier(pool: Pool, vm: Any, alone: Callable[[], None]) -> None:
    """But leaves none out."""
    alone()
    for name, size in (("small", 4), ("large", 16), ("middle", 8)):
        add_host(pool, name, size * GIB)
    counts = chosen(pool, vm)
    assert counts["large"] > counts["middle"] > counts["small"] > 0


def test_the_coordinator_counts_half(pool: Pool, vm: Any) -> None:
    """Unless the pool says that it is like the others."""
    like = memory.free(pool.db, coordinator(pool))
    add_host(pool, "other", like - GIB)
    name = coordinator(pool).name_label
    assert chosen(pool, vm)["other"] > chosen(pool, vm)[name]
    next(iter(pool.db.pool)).coordinator_bias = False
    assert chosen(pool, vm)["other"] < chosen(pool, vm)[name]


def test_a_host_that_must_squeeze_its_guests_comes_last(pool: Pool, vm: Any, alone: Callable[[], None]) -> None:
    """However it is drawn."""
    alone()
    add_host(pool, "roomy", 512 * MIB)
    full = add_host(pool, "full", 8 * GIB)
    other = make_vm(pool, memory_dynamic_min=16 * MIB, memory_dynamic_max=9 * GIB, memory_static_max=9 * GIB)
    other.resident_on = full._ref
    assert set(chosen(pool, vm)) == {"roomy"}


def test_anti_affinity_spreads_a_group(pool: Pool, vm: Any, alone: Callable[[], None]) -> None:
    """Fewest members first; those that are paused do not count."""
    alone()
    hosts = {name: add_host(pool, name) for name in "abc"}
    group = pool.db.VM_group.create(name_label="apart", placement="anti_affinity")
    for where, state in (("a", "Running"), ("a", "Running"), ("b", "Running"), ("c", "Paused")):
        member = make_vm(pool, groups=(group._ref,))
        member.power_state, member.resident_on = state, hosts[where]._ref
    vm.groups = (group._ref,)
    assert set(chosen(pool, vm)) == {"c"}
    hosts["c"].enabled = False
    assert set(chosen(pool, vm)) == {"b"}
    vm.affinity = hosts["a"]._ref
    assert set(chosen(pool, vm)) == {"a"}


def test_a_host_that_is_being_evacuated_is_left_alone(pool: Pool, vm: Any) -> None:
    """Until that is over."""
    coordinator(pool).current_operations = {"OpaqueRef:t": "evacuate"}
    pool.turn()
    with pytest.raises(Fault, match="NO_HOSTS_AVAILABLE"):
        choose_host(pool.db, vm)


def test_no_memory_anywhere_is_no_host(pool: Pool) -> None:
    """And one host says why."""
    vm = make_vm(pool, **dict.fromkeys(("memory_static_max", "memory_dynamic_min", "memory_dynamic_max"), 1 << 50))
    assert pool.fails("VM.start", vm._ref, False, False) == ["NO_HOSTS_AVAILABLE"]
    fault = pool.fails("VM.start_on", vm._ref, coordinator(pool)._ref, False, False)
    assert fault[0] == "HOST_NOT_ENOUGH_FREE_MEMORY"


def test_possible_hosts(pool: Pool, vm: Any) -> None:
    """All that pass, or the one that expects it."""
    other = add_host(pool, "other")
    assert set(pool("VM.get_possible_hosts", vm._ref)) == {coordinator(pool)._ref, other._ref}
    vm.scheduled_to_be_resident_on = other._ref
    assert list(pool("VM.get_possible_hosts", vm._ref)) == [other._ref]


def test_a_vm_that_runs_may_stay_on_a_disabled_host(pool: Pool) -> None:
    """The check is for arrivals."""
    vm = running(pool)
    host = coordinator(pool)
    host.enabled = False
    pool.turn()
    assert_can_boot_here(pool.db, vm, host)


def test_an_agile_vm_could_run_everywhere(pool: Pool, vm: Any) -> None:
    """Its disks are shared and its networks too."""
    pool("VM.assert_agile", vm._ref)
    host = coordinator(pool)
    sr = pool.db.SR.create(name_label="local", type="ext", shared=False)
    vdi = pool.db.VDI.create(name_label="disk", SR=sr._ref)
    pool.db.PBD.create(host=host._ref, SR=sr._ref, currently_attached=True)
    pool.db.VBD.create(VM=vm._ref, VDI=vdi._ref, userdevice="0", type="Disk", mode="RW", empty=False)
    assert pool.fails("VM.assert_agile", vm._ref) == ["HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED", sr._ref]
    sr.shared = True
    pool("VM.assert_agile", vm._ref)
    network = pool.db.network.create(name_label="private", bridge="xapi9")
    add_card(pool, vm, network)
    assert pool.fails("VM.assert_agile", vm._ref) == ["HA_CONSTRAINT_VIOLATION_NETWORK_NOT_SHARED", network._ref]
