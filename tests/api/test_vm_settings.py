"""VM's settings: memory limits in their order, vCPUs, delays, types, strings; the backend is a fake."""

from __future__ import annotations

from typing import Any

import pytest

from hypervisor.api import Code, HostError
from tests.api.test_power import make_vm, running
from tests.conftest import Pool
from xapi.datamodel.types import NULL

MIB = 1 << 20


@pytest.fixture
def vm(pool: Pool) -> Any:
    return make_vm(pool)


def limits(vm: Any) -> tuple[int, int, int, int]:
    """Return the four limits in MiB."""
    found = (vm.memory_static_min, vm.memory_dynamic_min, vm.memory_dynamic_max, vm.memory_static_max)
    return found[0] // MIB, found[1] // MIB, found[2] // MIB, found[3] // MIB


def set_limits(pool: Pool, vm: Any, *mib: int) -> None:
    least, low, high, most = (each * MIB for each in mib)
    pool("VM.set_memory_limits", vm._ref, str(least), str(most), str(low), str(high))


# Memory of a halted VM


def test_all_limits_are_set_at_once(pool: Pool, vm: Any) -> None:
    """The target follows the dynamic minimum."""
    set_limits(pool, vm, 16, 32, 48, 128)
    assert limits(vm) == (16, 32, 48, 128)
    assert vm.memory_target == 32 * MIB


def test_limits_out_of_order_are_refused(pool: Pool, vm: Any) -> None:
    """And nothing changes."""
    before = limits(vm)
    for name, *values in (
        ("VM.set_memory_limits", 16, 128, 48, 32),
        ("VM.set_memory_limits", 64, 32, 64, 32),
        ("VM.set_memory_static_max", 32),
        ("VM.set_memory_static_min", 65),
        ("VM.set_memory_dynamic_max", 65),
        ("VM.set_memory_dynamic_min", 8),
        ("VM.set_memory_dynamic_range", 48, 32),
        ("VM.set_memory", 8),
    ):
        wanted = [str(value * MIB) for value in values]
        assert pool.fails(name, vm._ref, *wanted) == ["MEMORY_CONSTRAINT_VIOLATION_ORDER"], name
    assert limits(vm) == before


def test_static_max_is_raised_before_dynamic_max(pool: Pool, vm: Any) -> None:
    """Each setter holds the other ends as they are."""
    pool("VM.set_memory_static_max", vm._ref, str(96 * MIB))
    pool("VM.set_memory_dynamic_max", vm._ref, str(80 * MIB))
    pool("VM.set_memory_dynamic_min", vm._ref, str(20 * MIB))
    pool("VM.set_memory_static_min", vm._ref, str(20 * MIB))
    assert limits(vm) == (20, 20, 80, 96)


def test_set_memory_pins(pool: Pool, vm: Any) -> None:
    """All but the static minimum become the value."""
    pool("VM.set_memory", vm._ref, str(40 * MIB))
    assert limits(vm) == (16, 40, 40, 40)


@pytest.mark.parametrize(
    ("name", "values"),
    [("VM.set_memory_limits", [16, 64, 64, 64]), ("VM.set_memory", [32]), ("VM.set_memory_static_range", [16, 64])],
)
def test_static_limits_are_of_halted_vms(pool: Pool, name: str, values: list[int]) -> None:
    """The state table refuses others."""
    vm = running(pool)
    wanted = [str(value * MIB) for value in values]
    assert pool.fails(name, vm._ref, *wanted) == ["VM_BAD_POWER_STATE", vm._ref, "halted", "running"]


def test_control_domains_and_nested_virtualisation_are_pinned(pool: Pool, vm: Any) -> None:
    """With the reason."""
    dom0 = next(row for row in pool.db.VM if row.is_control_domain)
    fault = pool.fails("VM.set_memory_dynamic_min", dom0._ref, str(dom0.memory_dynamic_min - MIB))
    assert fault == ["MEMORY_CONSTRAINT_VIOLATION_MAXPIN", "control domain"]
    with pool.db.atomic():
        pool.db.VM_metrics[vm.metrics].nested_virt = True
    fault = pool.fails("VM.set_memory_limits", vm._ref, str(16 * MIB), str(64 * MIB), str(32 * MIB), str(64 * MIB))
    assert fault == ["MEMORY_CONSTRAINT_VIOLATION_MAXPIN", "nested virt"]


def test_a_control_domain_has_its_new_memory_after_a_reboot(pool: Pool) -> None:
    """And says so."""
    dom0 = next(row for row in pool.db.VM if row.is_control_domain)
    pool("VM.set_memory", dom0._ref, str(dom0.memory_static_max + 64 * MIB))
    assert dom0.requires_reboot


def test_the_overhead_follows_what_it_depends_on(pool: Pool, vm: Any) -> None:
    """Whoever changes it; compute_memory_overhead says the same."""
    seen = {vm.memory_overhead}
    pool("VM.set_memory_static_max", vm._ref, str(8192 * MIB))
    seen.add(vm.memory_overhead)
    pool("VM.set_HVM_shadow_multiplier", vm._ref, 4.0)
    seen.add(vm.memory_overhead)
    pool("VM.set_VCPUs_max", vm._ref, "16")
    seen.add(vm.memory_overhead)
    pool("VM.set_domain_type", vm._ref, "pv_in_pvh")
    seen.add(vm.memory_overhead)
    assert len(seen) == 5
    assert pool("VM.compute_memory_overhead", vm._ref) == vm.memory_overhead


def test_maximise_memory_finds_the_largest_that_fits(pool: Pool, vm: Any) -> None:
    """To the MiB; an approximate answer is smaller."""
    total = 1000 * MIB + 12345
    most = pool("VM.maximise_memory", vm._ref, str(total), False)
    assert most % MIB == 0
    pool("VM.set_memory", vm._ref, str(most))
    assert most + vm.memory_overhead <= total
    pool("VM.set_memory", vm._ref, str(most + MIB))
    assert most + MIB + vm.memory_overhead > total
    assert pool("VM.maximise_memory", vm._ref, str(total), True) < most
    assert pool("VM.maximise_memory", vm._ref, "1000", False) == 0


# Memory of a VM that runs


def test_the_balloon_follows_the_dynamic_range(pool: Pool) -> None:
    """Our hosts lend no memory twice, so the guest gets all it may have."""
    vm = running(pool)
    pool("VM.set_memory_dynamic_range", vm._ref, str(32 * MIB), str(48 * MIB))
    assert pool.backend.doms[vm.uuid].target == vm.memory_target == 48 * MIB
    assert limits(vm) == (16, 32, 48, 64)


def test_a_balloon_that_cannot_be_told_leaves_the_limits(pool: Pool) -> None:
    """As they were."""
    vm = running(pool)
    before = limits(vm), vm.memory_target
    pool.backend.fail["adjust"] = HostError(Code.FAILED, "by the test")
    assert pool.fails("VM.set_memory_dynamic_min", vm._ref, str(32 * MIB)) == ["INTERNAL_ERROR", "failed: by the test"]
    assert (limits(vm), vm.memory_target) == before


def test_a_dynamic_minimum_that_the_host_cannot_keep_is_refused(pool: Pool) -> None:
    """In KiB, as xapi says it here."""
    vm = running(pool)
    pool("VM.set_memory_dynamic_min", vm._ref, str(32 * MIB))
    free = pool("host.compute_free_memory", vm.resident_on)
    other = make_vm(pool, memory_static_max=free, memory_dynamic_min=16 * MIB, memory_dynamic_max=free)
    pool("VM.set_memory_dynamic_min", other._ref, str((free - other.memory_overhead) // MIB * MIB - 8 * MIB))
    pool("VM.start", other._ref, False, False)
    left = pool("host.compute_free_memory", vm.resident_on)
    assert left < 16 * MIB
    expected = ["HOST_NOT_ENOUGH_FREE_MEMORY", str(32 * 1024), str(left // 1024)]
    assert pool.fails("VM.set_memory_dynamic_min", vm._ref, str(64 * MIB)) == expected


def test_waiting_for_the_balloon_ends_when_it_is_there(pool: Pool) -> None:
    """To a MiB, and VM_metrics knows."""
    vm = running(pool)
    domain = pool.backend.doms[vm.uuid]
    domain.actual = 64 * MIB
    pool("VM.set_memory_dynamic_range", vm._ref, str(32 * MIB), str(32 * MIB))
    waiting = pool.start("VM.wait_memory_target_live", pool.session, vm._ref)
    pool.clock.advance(1)
    assert not waiting.called
    domain.actual = 33 * MIB
    pool.clock.advance(1)
    pool.outcome(waiting)
    assert pool.db.VM_metrics[vm.metrics].memory_actual == 33 * MIB


def test_waiting_for_a_stubborn_balloon_ends_too(pool: Pool) -> None:
    """After 256 seconds, with the task's reference."""
    vm = running(pool)
    pool.backend.doms[vm.uuid].actual = 32 * MIB
    failed: list[Any] = []
    pool.start("VM.wait_memory_target_live", pool.session, vm._ref).addErrback(lambda f: failed.append(f.value))
    pool.turn()
    for _ in range(256):
        pool.clock.advance(1)
    assert not failed
    pool.clock.advance(1)
    pool.turn()
    assert failed[0].code == "VM_MEMORY_TARGET_WAIT_TIMEOUT"
    assert dict(vm.current_operations) == {}


def test_old_messages_about_the_target(pool: Pool) -> None:
    """They answer as xapi's do: one does nothing, the other is always true."""
    vm = running(pool)
    pool("VM.set_memory_target_live", vm._ref, str(32 * MIB))
    assert "adjust" not in pool.backend.calls
    assert pool("VM.get_cooperative", vm._ref) is True


def test_shadow_multipliers_are_at_least_one(pool: Pool, vm: Any) -> None:
    """Halted and live."""
    assert pool.fails("VM.set_HVM_shadow_multiplier", vm._ref, 0.5) == ["INVALID_VALUE", "multiplier", "0.5"]
    live = running(pool)
    before = live.memory_overhead
    pool("VM.set_shadow_multiplier_live", live._ref, 8.0)
    assert live.memory_overhead > before
    assert pool.fails("VM.set_shadow_multiplier_live", live._ref, 1e6)[0] == "HOST_NOT_ENOUGH_FREE_MEMORY"
    assert live.HVM_shadow_multiplier == 8.0


# vCPUs


def test_vcpus_keep_their_order(pool: Pool, vm: Any) -> None:
    """0 < VCPUs_at_startup <= VCPUs_max."""
    rule = "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max"
    assert pool.fails("VM.set_VCPUs_at_startup", vm._ref, "2") == ["INVALID_VALUE", rule, "2"]
    pool("VM.set_VCPUs_max", vm._ref, "4")
    pool("VM.set_VCPUs_at_startup", vm._ref, "3")
    assert pool.fails("VM.set_VCPUs_max", vm._ref, "2") == ["INVALID_VALUE", rule, "2"]
    assert pool.fails("VM.set_VCPUs_at_startup", vm._ref, "0") == ["INVALID_VALUE", rule, "0"]
    assert (vm.VCPUs_max, vm.VCPUs_at_startup) == (4, 3)


def test_vcpus_of_dom0_are_not_set(pool: Pool) -> None:
    """They are the host's."""
    dom0 = next(row for row in pool.db.VM if row.is_control_domain)
    text = "set_VCPUs_at_startup is not allowed on dom0"
    assert pool.fails("VM.set_VCPUs_at_startup", dom0._ref, "1") == ["OPERATION_NOT_ALLOWED", text]


def test_vcpus_are_plugged_live(pool: Pool) -> None:
    """Up to VCPUs_max; the VM starts with as many from then on. An error names the number that would be right."""
    vm = running(pool, VCPUs_max=4, VCPUs_at_startup=2)
    metrics = pool.db.VM_metrics[vm.metrics]
    for number in ("4", "1", "1"):
        pool("VM.set_VCPUs_number_live", vm._ref, number)
        assert (vm.VCPUs_at_startup, metrics.VCPUs_number) == (int(number), int(number))
    rule = "VCPU values must satisfy: 0 < VCPUs ≤ VCPUs_max"
    for number in ("5", "0", "-1"):
        assert pool.fails("VM.set_VCPUs_number_live", vm._ref, number) == ["INVALID_VALUE", rule, "4"]
    assert (vm.VCPUs_at_startup, metrics.VCPUs_number) == (1, 1)


def test_nobody_waits_for_a_guest_that_plugs_no_vcpus(pool: Pool) -> None:
    """VM_metrics tells how many it has, and what it does later by itself."""
    vm = running(pool, VCPUs_max=4, VCPUs_at_startup=2)
    metrics = pool.db.VM_metrics[vm.metrics]
    pool.backend.deaf = True
    pool("VM.set_VCPUs_number_live", vm._ref, "3")
    assert (vm.VCPUs_at_startup, metrics.VCPUs_number) == (3, 2)
    pool.backend.doms[vm.uuid].vcpus = 3
    pool.backend.attention(vm.uuid)
    pool.clock.advance(0)
    assert metrics.VCPUs_number == 3


def test_a_guest_that_cannot_have_another_vcpu_lacks_the_feature(pool: Pool) -> None:
    """A PV guest, whatever VCPUs_max says; its record stays as it was."""
    vm = running(pool, VCPUs_max=4, VCPUs_at_startup=2)
    pool.backend.fail["adjust"] = HostError(Code.NO_VCPU, "3 vCPUs asked for, the domain can have 1")
    assert pool.fails("VM.set_VCPUs_number_live", vm._ref, "3") == ["VM_LACKS_FEATURE", vm._ref]
    assert vm.VCPUs_at_startup == 2


def test_scheduling_of_a_vm_that_runs(pool: Pool) -> None:
    """Weight, cap and mask take effect at once and are kept."""
    vm = running(pool)
    for key, value in (("weight", "512"), ("cap", "50"), ("mask", "0,1"), ("weight", "128")):
        pool("VM.add_to_VCPUs_params_live", vm._ref, key, value)
    config = pool.backend.doms[vm.uuid].config
    assert (config.weight, config.cap, config.affinity) == (128, 50, (0, 1))
    assert vm.VCPUs_params == {"weight": "128", "cap": "50", "mask": "0,1"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight", "0"),
        ("weight", "x"),
        ("weight", "9" * 5000),
        ("mask", "0," + "9" * 5000),
        ("cap", "101"),
        ("mask", "0,x"),
        ("mask", ""),
        ("other", "1"),
    ],
)
def test_scheduling_that_means_nothing_is_refused(pool: Pool, key: str, value: str) -> None:
    """Before the guest hears of it."""
    vm = running(pool)
    assert pool.fails("VM.add_to_VCPUs_params_live", vm._ref, key, value) == ["INVALID_VALUE", key, value]
    assert vm.VCPUs_params == {}


@pytest.mark.parametrize("number", ["9" * 5000, "²", "1_0", "-1", "1e3"])
def test_numbers_in_maps_that_are_none_are_as_if_not_there(pool: Pool, number: str) -> None:
    """Whatever they are: the VM starts, with what holds where nothing is said."""
    vm = running(
        pool,
        VCPUs_params={"weight": number, "cap": number, "mask": f"{number},1"},
        platform={"videoram": number, "pvfb": "1"},
    )
    config = pool.backend.doms[vm.uuid].config
    assert (config.weight, config.cap, config.affinity) == (256, 0, (1,))
    assert config.display is not None and config.display.memory == 4 << 20


# Others


@pytest.mark.parametrize("name", ["order", "start_delay", "shutdown_delay"])
def test_order_and_delays_are_not_negative(pool: Pool, vm: Any, name: str) -> None:
    """Which the message says."""
    pool(f"VM.set_{name}", vm._ref, "7")
    assert pool.fails(f"VM.set_{name}", vm._ref, "-1") == ["INVALID_VALUE", f"{name} must be non-negative", "-1"]
    assert getattr(vm, name) == 7


def test_domain_type_and_boot_policy_follow_each_other(pool: Pool, vm: Any) -> None:
    """For clients of both ages."""
    pool("VM.set_domain_type", vm._ref, "hvm")
    assert vm.HVM_boot_policy == "BIOS order"
    pool("VM.set_HVM_boot_policy", vm._ref, "")
    assert vm.domain_type == "pv"
    pool("VM.set_HVM_boot_policy", vm._ref, "BIOS order")
    assert vm.domain_type == "hvm"
    assert pool.fails("VM.set_domain_type", vm._ref, "unspecified") == ["INVALID_VALUE", "domain_type", "unspecified"]


def test_the_vendor_device_needs_new_hardware(pool: Pool, vm: Any) -> None:
    """And a halted VM."""
    pool("VM.set_has_vendor_device", vm._ref, True)
    assert (vm.has_vendor_device, vm.hardware_platform_version) == (True, 2)
    live = running(pool)
    expected = ["VM_BAD_POWER_STATE", live._ref, "halted", "running"]
    assert pool.fails("VM.set_has_vendor_device", live._ref, True) == expected


def test_bios_strings_are_set_once(pool: Pool, vm: Any) -> None:
    """What is not given is generic; bad ones are named."""
    for key, value, why in (
        ("hp-rombios", "x", "Unknown key"),
        ("bios-vendor", "", "Value provided is empty"),
        ("bios-vendor", "x" * 513, "x" * 513 + " has length more than 512 characters"),
        ("bios-vendor", "é", "é has non-printable ASCII characters"),
    ):
        assert pool.fails("VM.set_bios_strings", vm._ref, {key: value}) == ["INVALID_VALUE", key, why]
    pool("VM.set_bios_strings", vm._ref, {"bios-vendor": "ACME"})
    assert (vm.bios_strings["bios-vendor"], vm.bios_strings["system-product-name"]) == ("ACME", "HVM domU")
    assert len(vm.bios_strings) == 16
    assert pool.fails("VM.set_bios_strings", vm._ref, {}) == ["VM_BIOS_STRINGS_ALREADY_SET"]


def test_bios_strings_of_a_host_draw_the_vm_to_it(pool: Pool, vm: Any) -> None:
    """By its affinity."""
    host = next(iter(pool.db.host))
    pool("VM.copy_bios_strings", vm._ref, host._ref)
    assert (vm.bios_strings, vm.affinity) == (host.bios_strings, host._ref)
    assert pool.fails("VM.copy_bios_strings", vm._ref, host._ref) == ["VM_BIOS_STRINGS_ALREADY_SET"]


def test_nvram_is_of_halted_vms(pool: Pool, vm: Any) -> None:
    """While they run it is the firmware's."""
    pool("VM.set_NVRAM", vm._ref, {"a": "1"})
    pool("VM.add_to_NVRAM", vm._ref, "b", "2")
    pool("VM.remove_from_NVRAM", vm._ref, "a")
    assert vm.NVRAM == {"b": "2"}
    assert pool.fails("VM.add_to_NVRAM", vm._ref, "b", "3")[0] == "MAP_DUPLICATE_KEY"
    live = running(pool)
    assert pool.fails("VM.set_NVRAM", live._ref, {})[0] == "VM_BAD_POWER_STATE"


def test_a_guest_that_runs_finds_new_xenstore_data(pool: Pool) -> None:
    """Only what is below vm-data, as on a real host."""
    vm = running(pool)
    pool("VM.set_xenstore_data", vm._ref, {"vm-data/a": "1", "other": "2"})
    assert pool.backend.doms[vm.uuid].config.xenstore == {"vm-data/a": "1"}
    assert vm.xenstore_data == {"vm-data/a": "1", "other": "2"}
    pool.backend.fail["adjust"] = HostError(Code.FAILED, "by the test")
    assert pool.fails("VM.set_xenstore_data", vm._ref, {})[0] == "INTERNAL_ERROR"
    assert vm.xenstore_data == {"vm-data/a": "1", "other": "2"}


def test_ha_priorities(pool: Pool, vm: Any) -> None:
    """A VM that runs is protected from then on, a halted one when it starts."""
    assert pool.fails("VM.set_ha_restart_priority", vm._ref, "9") == ["INVALID_VALUE", "ha_restart_priority", "9"]
    pool("VM.set_ha_restart_priority", vm._ref, "restart")
    assert (vm.ha_restart_priority, vm.ha_always_run) == ("restart", False)
    live = running(pool)
    pool("VM.set_ha_always_run", live._ref, True)
    assert (live.ha_restart_priority, live.ha_always_run) == ("restart", True)
    pool("VM.set_ha_restart_priority", live._ref, "best-effort")
    assert live.ha_always_run is False


def test_groups_and_appliances_are_for_plain_vms(pool: Pool, vm: Any) -> None:
    """Of groups a VM has one."""
    group, other = (pool("VM_group.create", {"name_label": each, "placement": "anti_affinity"}) for each in "ab")
    appliance = pool("VM_appliance.create", {"name_label": "a", "name_description": ""})
    pool("VM.set_groups", vm._ref, [group])
    pool("VM.set_appliance", vm._ref, appliance)
    assert (tuple(vm.groups), vm.appliance) == ((group,), appliance)
    assert pool("VM_group.get_VMs", group) is not None
    assert pool.fails("VM.set_groups", vm._ref, [group, other]) == ["TOO_MANY_GROUPS"]
    template = next(row for row in pool.db.VM if row.is_a_template)
    assert pool.fails("VM.set_groups", template._ref, [group])[0] == "OPERATION_NOT_ALLOWED"
    assert pool.fails("VM.set_appliance", template._ref, appliance)[0] == "OPERATION_NOT_ALLOWED"
    pool("VM.set_appliance", vm._ref, NULL)
    assert vm.appliance == NULL


def test_sysrq_and_triggers_are_refused_as_by_xapi(pool: Pool, vm: Any) -> None:
    """After the power state has been checked."""
    live = running(pool)
    for name, argument in (("send_sysrq", "h"), ("send_trigger", "nmi")):
        assert pool.fails(f"VM.{name}", vm._ref, argument)[0] == "VM_BAD_POWER_STATE"
        assert pool.fails(f"VM.{name}", live._ref, argument) == ["NOT_IMPLEMENTED", name]


def test_operations_are_asked_for_without_starting_them(pool: Pool, vm: Any) -> None:
    """The answer is what a call would get."""
    pool("VM.assert_operation_valid", vm._ref, "start")
    expected = ["VM_BAD_POWER_STATE", vm._ref, "running", "halted"]
    assert pool.fails("VM.assert_operation_valid", vm._ref, "pause") == expected
    before = vm.allowed_operations
    pool("VM.update_allowed_operations", vm._ref)
    assert vm.allowed_operations == before


def test_the_boot_record_is_the_record(pool: Pool) -> None:
    """Of a VM with a domain."""
    vm = running(pool)
    assert pool("VM.get_boot_record", vm._ref).row is vm
    assert pool.fails("VM.get_boot_record", make_vm(pool)._ref)[0] == "VM_BAD_POWER_STATE"


def test_workload_balancing_is_not_there(pool: Pool, vm: Any) -> None:
    """As in a pool that was never joined to a server of it."""
    assert pool.fails("VM.retrieve_wlb_recommendations", vm._ref) == ["WLB_NOT_INITIALIZED"]


def test_a_suspend_image_is_replaced_by_an_equal_one_only(pool: Pool, vm: Any) -> None:
    """And only of a suspended VM."""
    vdi = next(iter(pool.db.VDI), None) or pool.db.VDI.create(name_label="image")
    pool.turn()
    expected = ["VM_BAD_POWER_STATE", vm._ref, "suspended", "halted"]
    assert pool.fails("VM.set_suspend_VDI", vm._ref, vdi._ref) == expected
    with pool.db.atomic():
        vm.power_state, vm.suspend_VDI = "Suspended", vdi._ref
    pool("VM.set_suspend_VDI", vm._ref, vdi._ref)
    assert vm.suspend_VDI == vdi._ref


def test_recovery_asks_for_the_srs_of_disks(pool: Pool, vm: Any) -> None:
    """Those that are attached nowhere."""
    sr = pool.db.SR.create(name_label="lost", type="ext")
    vdi = pool.db.VDI.create(name_label="disk", SR=sr._ref)
    pool.db.VBD.create(VM=vm._ref, VDI=vdi._ref, userdevice="0", type="Disk", mode="RW", empty=False)
    pool.turn()
    assert pool.fails("VM.assert_can_be_recovered", vm._ref, pool.session) == ["VM_REQUIRES_SR", vm._ref, sr._ref]
    assert list(pool("VM.get_SRs_required_for_recovery", vm._ref, pool.session)) == [sr._ref]
    assert pool.fails("VM.assert_can_be_recovered", vm._ref, "OpaqueRef:no")[0] == "SESSION_INVALID"
