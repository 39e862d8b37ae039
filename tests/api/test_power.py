"""A VM's power: what each message does to rows, domains and claims; the backend is a fake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from hypervisor.api import Code, DirectBoot, Display, Firmware, HostError, Power, Shutdown, VolumeHandle
from tests.conftest import Pool
from tests.fakes import SavedDomains
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL

MIB = 1 << 20


def make_vm(pool: Pool, **fields: Any) -> Any:
    """Return the row of a halted VM that boots the demo guest."""
    given: dict[str, Any] = {
        "name_label": "guest", "domain_type": "pvh", "PV_kernel": "demo", "memory_static_min": 16 * MIB,
        "memory_static_max": 64 * MIB, "memory_dynamic_min": 64 * MIB, "memory_dynamic_max": 64 * MIB,
        "VCPUs_max": 1, "VCPUs_at_startup": 1, "power_state": "Halted", "domid": -1,
    }  # fmt: skip
    with pool.db.atomic():
        metrics = pool.db.VM_metrics.create()
        row = pool.db.VM.create(**(given | {"metrics": metrics._ref} | fields))
    pool.turn()
    return row


@pytest.fixture
def vm(pool: Pool) -> Any:
    return make_vm(pool)


def running(pool: Pool, **fields: Any) -> Any:
    row = make_vm(pool, **fields)
    pool("VM.start", row._ref, False, False)
    return row


def alerts(pool: Pool) -> list[str]:
    return [row.name for row in pool.db.message]


def test_a_started_vm_runs(pool: Pool, vm: Any) -> None:
    """Its rows say where, since when and as what."""
    pool("VM.start", vm._ref, False, False)
    host = next(iter(pool.db.host))
    assert (vm.power_state, vm.domid, vm.resident_on) == ("Running", 1, host._ref)
    assert (vm.scheduled_to_be_resident_on, dict(vm.current_operations)) == (NULL, {})
    metrics = pool.db.VM_metrics[vm.metrics]
    assert (metrics.current_domain_type, metrics.memory_actual, metrics.VCPUs_number) == ("pvh", 64 * MIB, 1)
    assert pool.db.VM_guest_metrics[vm.guest_metrics].os_version == {"name": "fake"}
    assert {pool.db.console[ref].protocol for ref in vm.consoles} == {"rfb", "vt100"}
    assert alerts(pool) == ["VM_STARTED"]
    assert pool.backend.doms[vm.uuid].config.boot == DirectBoot("demo", "", "", "pvh")


def test_start_paused_leaves_it_paused(pool: Pool, vm: Any) -> None:
    """Until unpause."""
    pool("VM.start", vm._ref, True, False)
    assert vm.power_state == "Paused"
    pool("VM.unpause", vm._ref)
    assert vm.power_state == "Running"
    pool("VM.pause", vm._ref)
    assert vm.power_state == "Paused"


def test_start_of_a_running_vm_is_refused(pool: Pool) -> None:
    """The state table, not the message, refuses."""
    vm = running(pool)
    expected = ["VM_BAD_POWER_STATE", vm._ref, "halted", "running"]
    assert pool.fails("VM.start", vm._ref, False, False) == expected


@pytest.mark.parametrize("step", ["networks", "build", "unpause"])
def test_a_start_that_fails_leaves_nothing(pool: Pool, vm: Any, step: str) -> None:
    """No domain, no claim, no host that expects it."""
    network = next(iter(pool.db.network))
    with pool.db.atomic():
        pool.db.VIF.create(VM=vm._ref, device="0", MAC="02:00:00:00:00:01", network=network._ref)
    pool.backend.fail[step] = HostError(Code.FAILED, "by the test")
    assert pool.fails("VM.start", vm._ref, False, False) == ["INTERNAL_ERROR", "failed: by the test"]
    assert (vm.power_state, vm.resident_on, vm.scheduled_to_be_resident_on) == ("Halted", NULL, NULL)
    assert not pool.backend.doms
    assert not any(row.current_operations for table in ("VM", "VIF", "host") for row in pool.db.claimable(table))
    del pool.backend.fail[step]
    pool("VM.start", vm._ref, False, False)
    assert vm.power_state == "Running"


@pytest.mark.parametrize(
    ("code", "fault"),
    [(Code.BAD_KERNEL, "BOOTLOADER_FAILED"), (Code.BOOTLOADER_FAILED, "BOOTLOADER_FAILED"),
     (Code.NO_MEMORY, "HOST_NOT_ENOUGH_FREE_MEMORY"), (Code.BAD_DISK, "SR_BACKEND_FAILURE_46")],
)  # fmt: skip
def test_what_the_host_cannot_do_has_its_error(pool: Pool, vm: Any, code: Code, fault: str) -> None:
    """As xapi names it."""
    pool.backend.fail["build"] = HostError(code, "text")
    assert pool.fails("VM.start", vm._ref, False, False)[0] == fault


@pytest.mark.parametrize("code", [Code.NO_DOMAIN, Code.NOT_RUNNING])
def test_a_guest_that_goes_down_before_it_can_be_asked_is_down(pool: Pool, code: Code) -> None:
    """The call has found it running a moment ago."""
    vm = running(pool)
    pool.backend.fail["shutdown"] = HostError(code, "it went down")
    assert pool.fails("VM.clean_shutdown", vm._ref) == ["VM_BAD_POWER_STATE", vm._ref, "running", "halted"]


def seen(pool: Pool, vm: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Return what clients can see of a VM, change after change: its power, and what is being done to it."""
    states: list[tuple[str, list[str]]] = []
    forget = pool.db.forget

    def changed(row: Any) -> None:
        forget(row)
        now = (vm.power_state, list(vm.current_operations.values()))
        if row is vm and now not in states[-1:]:
            states.append(now)

    monkeypatch.setattr(pool.db, "forget", changed)
    return states


@pytest.mark.parametrize(("kind", "features"), [("pvh", "features_hvm"), ("pv", "features_pv")])
def test_a_running_vm_tells_the_cpu_that_it_was_started_on(pool: Pool, vm: Any, kind: str, features: str) -> None:
    """In xapi's keys; what it has at its start it keeps while it runs."""
    with pool.db.atomic():
        vm.domain_type = kind
    pool("VM.start", vm._ref, False, False)
    info = next(iter(pool.db.pool)).cpu_info
    assert vm.last_boot_CPU_flags == {"vendor": info["vendor"], "features": info[features]}
    assert len(info[features].split("-")) == 18
    with pool.db.atomic():
        next(iter(pool.db.pool)).cpu_info = {**info, features: "0"}
    pool("VM.hard_reboot", vm._ref)
    assert vm.last_boot_CPU_flags["features"] == info[features]
    pool("VM.hard_shutdown", vm._ref)
    pool("VM.start", vm._ref, False, False)
    assert vm.last_boot_CPU_flags["features"] == "0"


def test_a_start_is_a_few_changes(pool: Pool, vm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each derives lists and makes events. The VM runs before its operation is over, as in xapi."""
    network = next(iter(pool.db.network))
    with pool.db.atomic():
        vif: Any = pool.db.VIF.create(VM=vm._ref, device="0", MAC="02:00:00:00:00:01", network=network._ref)
    states, before = seen(pool, vm, monkeypatch), pool.db.generation
    pool("VM.start", vm._ref, False, False)
    assert pool.db.generation - before <= 8
    assert states == [("Halted", ["start"]), ("Running", ["start"]), ("Running", [])]
    assert vif.currently_attached and not vif.current_operations


def test_a_guest_that_goes_down_as_it_starts_is_followed(pool: Pool, vm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its VM has run, however shortly."""
    states = seen(pool, vm, monkeypatch)

    async def dies(uuid: str) -> None:
        pool.backend.goes_down(uuid, Shutdown.POWEROFF)

    monkeypatch.setattr(pool.backend, "unpause", dies)
    pool("VM.start", vm._ref, False, False)
    pool.turn()
    assert ("Running", []) in states
    assert vm.power_state == "Halted" and not pool.backend.doms


def test_a_clean_shutdown_halts(pool: Pool) -> None:
    """Consoles go, guest metrics stay until the next start."""
    vm = running(pool)
    pool("VM.clean_shutdown", vm._ref)
    assert (vm.power_state, vm.domid, vm.resident_on, list(vm.consoles)) == ("Halted", -1, NULL, [])
    assert vm.guest_metrics in pool.db.VM_guest_metrics
    assert not pool.backend.doms
    assert "VM_SHUTDOWN" in alerts(pool)


def test_a_deaf_guest_is_not_shut_down(pool: Pool) -> None:
    """The VM goes on, and can be shut down hard."""
    vm = running(pool)
    pool.backend.deaf = True
    assert pool.fails("VM.clean_shutdown", vm._ref) == ["VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", vm._ref]
    assert (vm.power_state, dict(vm.current_operations)) == ("Running", {})
    pool("VM.hard_shutdown", vm._ref)
    assert vm.power_state == "Halted"


def test_shutdown_ends_a_guest_that_takes_longer_than_its_vm_says(pool: Pool) -> None:
    """It has heard, and is on its way down."""
    vm = running(pool)
    vm.shutdown_delay = 30
    pool.backend.held["shutdown"] = Deferred()
    call = pool.start("VM.shutdown", pool.session, vm._ref)
    pool.clock.advance(29)
    assert vm.power_state == "Running"
    pool.clock.advance(1)
    pool.outcome(call)
    assert str(vm.power_state) == "Halted"


def test_shutdown_ends_a_deaf_guest(pool: Pool) -> None:
    """Clean, then hard."""
    vm = running(pool)
    pool.backend.deaf = True
    pool("VM.shutdown", vm._ref)
    assert vm.power_state == "Halted"


@pytest.mark.parametrize("name", ["VM.clean_reboot", "VM.hard_reboot"])
def test_a_reboot_makes_a_new_domain_on_the_same_host(pool: Pool, name: str) -> None:
    """The domid changes, resident_on does not."""
    vm = running(pool)
    where, domid = vm.resident_on, vm.domid
    pool(name, vm._ref)
    assert (vm.power_state, vm.resident_on) == ("Running", where)
    assert vm.domid != domid
    assert "VM_REBOOTED" in alerts(pool)


def test_a_reboot_that_fails_halts(pool: Pool) -> None:
    """The old domain is gone by then."""
    vm = running(pool)
    pool.backend.fail["build"] = HostError(Code.BAD_KERNEL, "gone")
    assert pool.fails("VM.hard_reboot", vm._ref)[0] == "BOOTLOADER_FAILED"
    assert (vm.power_state, vm.resident_on) == ("Halted", NULL)


def test_a_call_waits_for_the_operation_that_is_in_its_way(pool: Pool, vm: Any) -> None:
    """As with xapi, the second caller sees no error."""
    gate: Deferred[None] = Deferred()
    pool.backend.held["build"] = gate
    first = pool.start("VM.start", pool.session, vm._ref, False, False)
    pool.turn()
    assert list(vm.current_operations.values()) == ["start"]
    second = pool.start("VM.hard_shutdown", pool.session, vm._ref)
    third = pool.start("VM.pause", pool.session, vm._ref)
    results: list[Any] = []
    third.addBoth(results.append)
    pool.turn()
    second.addErrback(lambda failure: failure.value)
    gate.callback(None)
    pool.outcome(first)
    pool.turn()
    assert results, "it still waits"


@pytest.mark.parametrize("other", ["VM.clean_reboot", "VM.clean_shutdown", "VM.shutdown"])
@pytest.mark.parametrize("hard", ["VM.hard_reboot", "VM.hard_shutdown"])
def test_what_is_done_hard_cancels_what_waits_for_the_guest(pool: Pool, hard: str, other: str) -> None:
    """It does so before it ends the domain: else both would make a new one."""
    vm = running(pool)
    pool.backend.held["shutdown"] = Deferred()
    failed: list[Any] = []
    pool.start(other, pool.session, vm._ref).addBoth(failed.append)
    pool.turn()
    pool(hard, vm._ref)
    assert [failure.value.code for failure in failed] == ["TASK_CANCELLED"]
    assert vm.power_state == ("Running" if hard == "VM.hard_reboot" else "Halted")
    assert not vm.current_operations


def test_an_object_that_stays_held_is_told_in_the_end(pool: Pool, vm: Any) -> None:
    """After the call's patience."""
    pool.backend.held["build"] = Deferred()
    pool.start("VM.start", pool.session, vm._ref, False, False)
    pool.turn()
    failed: list[Any] = []
    pool.start("VM.start", pool.session, vm._ref, False, False).addErrback(lambda failure: failed.append(failure.value))
    for _ in range(20):
        pool.clock.advance(20)
    assert isinstance(failed[0], Fault)
    assert failed[0].description[:3] == ["OTHER_OPERATION_IN_PROGRESS", "VM", vm._ref]


@pytest.mark.parametrize(
    ("why", "field", "action", "after"),
    [
        (Shutdown.POWEROFF, "actions_after_shutdown", "destroy", "Halted"),
        (Shutdown.POWEROFF, "actions_after_shutdown", "restart", "Running"),
        (Shutdown.REBOOT, "actions_after_reboot", "restart", "Running"),
        (Shutdown.REBOOT, "actions_after_reboot", "destroy", "Halted"),
        (Shutdown.CRASH, "actions_after_crash", "destroy", "Halted"),
        (Shutdown.CRASH, "actions_after_crash", "restart", "Running"),
        (Shutdown.CRASH, "actions_after_crash", "coredump_and_restart", "Running"),
        (Shutdown.CRASH, "actions_after_crash", "coredump_and_destroy", "Halted"),
        (Shutdown.WATCHDOG, "actions_after_reboot", "restart", "Running"),
        (Shutdown.WATCHDOG, "actions_after_reboot", "destroy", "Halted"),
        (Shutdown.SOFT_RESET, "actions_after_softreboot", "soft_reboot", "Running"),
        (Shutdown.SOFT_RESET, "actions_after_softreboot", "destroy", "Halted"),
        (Shutdown.SUSPEND, "actions_after_shutdown", "restart", "Halted"),
    ],
)
def test_a_guest_that_goes_down_by_itself_is_followed(
    pool: Pool, why: Shutdown, field: str, action: str, after: str
) -> None:
    """As the VM's actions say. Only a crash is told of: what a guest does by itself is no news, as in xapi."""
    vm = running(pool, domain_type="pv", **{field: action})
    domid = vm.domid
    pool.backend.goes_down(vm.uuid, why)
    pool.turn()
    assert vm.power_state == after
    assert vm.domid != domid
    assert alerts(pool)[1:] == (["VM_CRASHED"] if why is Shutdown.CRASH else [])


@pytest.mark.parametrize("field", ["actions_after_softreboot", "actions_after_crash"])
def test_a_preserved_domain_stays_paused(pool: Pool, field: str) -> None:
    """For whoever wants to look at it; it is followed once."""
    vm = running(pool, **{field: "preserve"})
    why = {"softreboot": Shutdown.SOFT_RESET, "crash": Shutdown.CRASH}
    pool.backend.goes_down(vm.uuid, why[field.rpartition("_")[2]])
    pool.turn()
    told = alerts(pool)
    pool.backend.attention(vm.uuid)
    pool.turn()
    assert (vm.power_state, vm.domid, alerts(pool)) == ("Paused", pool.backend.doms[vm.uuid].domid, told)
    pool("VM.unpause", vm._ref)
    assert vm.power_state == "Running"
    pool("VM.hard_shutdown", vm._ref)
    assert (vm.power_state, pool.backend.doms) == ("Halted", {})


def test_a_guest_that_crashes_soon_after_its_start_is_not_started_again(pool: Pool) -> None:
    """It would crash again, for ever."""
    vm = running(pool, actions_after_crash="restart")
    pool.backend.start_time = pool.clock.seconds() - 119
    pool.backend.goes_down(vm.uuid, Shutdown.CRASH)
    pool.turn()
    assert (vm.power_state, pool.backend.doms) == ("Halted", {})


@pytest.mark.parametrize("why", [Shutdown.REBOOT, Shutdown.WATCHDOG])
def test_a_guest_that_reboots_soon_after_its_start_waits(pool: Pool, why: Shutdown) -> None:
    """A guest that reboots for ever does so once in 15 seconds."""
    vm = running(pool, actions_after_reboot="restart")
    domid, pool.backend.start_time = vm.domid, pool.clock.seconds() - 119
    pool.backend.goes_down(vm.uuid, why)
    pool.turn()
    pool.clock.advance(14.9)
    assert (vm.power_state, vm.domid) == ("Running", domid)
    pool.clock.advance(0.1)
    pool.turn()
    assert vm.power_state == "Running"
    assert vm.domid == pool.backend.doms[vm.uuid].domid != domid


@pytest.mark.parametrize("operation", ["clean_shutdown", "clean_reboot"])
def test_what_needs_a_guest_finds_none_while_it_waits_to_reboot(pool: Pool, operation: str) -> None:
    """The record still says Running: the guest is down, and will come again by itself."""
    vm = running(pool, actions_after_reboot="restart")
    pool.backend.start_time = pool.clock.seconds()
    pool.backend.goes_down(vm.uuid, Shutdown.REBOOT)
    pool.turn()
    assert pool.fails(f"VM.{operation}", vm._ref) == ["VM_BAD_POWER_STATE", vm._ref, "running", "halted"]
    pool.clock.advance(15)
    pool.turn()
    assert (vm.power_state, vm.domid) == ("Running", pool.backend.doms[vm.uuid].domid)


def test_a_call_prevails_over_a_guest_that_waits_to_reboot(pool: Pool) -> None:
    """Nothing is started again that a client has shut down."""
    vm = running(pool, actions_after_reboot="restart")
    pool.backend.start_time = pool.clock.seconds()
    pool.backend.goes_down(vm.uuid, Shutdown.REBOOT)
    pool.turn()
    pool("VM.hard_shutdown", vm._ref)
    pool.clock.advance(15)
    pool.turn()
    assert (vm.power_state, pool.backend.doms) == ("Halted", {})


def test_a_guest_that_goes_down_while_it_is_followed_is_followed_again(pool: Pool) -> None:
    """News of the new domain comes while the old one is still dealt with."""
    vm = running(pool, actions_after_reboot="restart")
    held = pool.backend.held["build"] = Deferred()
    pool.backend.goes_down(vm.uuid, Shutdown.REBOOT)
    pool.turn()
    attention = pool.backend.truth

    def dies_at_once(uuid: str) -> Any:
        truth = attention(uuid)
        pool.backend.goes_down(uuid, Shutdown.POWEROFF)
        pool.backend.truth = attention  # type: ignore[method-assign]
        return truth

    pool.backend.truth = dies_at_once  # type: ignore[method-assign]
    del pool.backend.held["build"]
    held.callback(None)
    pool.turn()
    assert (vm.power_state, pool.backend.doms) == ("Halted", {})


def test_the_net_of_ha_forgets_a_guest_that_went_down_by_itself_where_the_pool_says_so(pool: Pool) -> None:
    """As in xapi."""
    next(iter(pool.db.pool)).ha_reboot_vm_on_internal_shutdown = False
    vm = running(pool, ha_always_run=True, actions_after_shutdown="destroy")
    pool.backend.goes_down(vm.uuid, Shutdown.POWEROFF)
    pool.turn()
    assert (vm.power_state, vm.ha_always_run) == ("Halted", False)


@pytest.mark.parametrize(("policy", "kind"), [("", "pv"), ("BIOS order", "hvm")])
def test_a_vm_of_unspecified_type_becomes_what_its_boot_policy_says(pool: Pool, policy: str, kind: str) -> None:
    """Record, domain and metrics agree, as in xapi (ensure_domain_type_is_specified)."""
    vm = running(pool, domain_type="unspecified", HVM_boot_policy=policy)
    boot = pool.backend.doms[vm.uuid].config.boot
    assert vm.domain_type == kind == ("hvm" if isinstance(boot, Firmware) else boot.kind)
    assert pool.db.VM_metrics[vm.metrics].current_domain_type == kind


@pytest.mark.parametrize("kind", ["hvm", "pv", "pvh", "pv_in_pvh"])
def test_metrics_say_what_the_domain_is(pool: Pool, kind: str) -> None:
    """Not what it was to be."""
    pool.backend.kind = kind
    metrics = pool.db.VM_metrics[running(pool).metrics]
    assert (metrics.current_domain_type, metrics.hvm) == (kind, kind != "pv")


def test_a_pv_guest_in_a_pvh_domain_is_asked_for_as_one(pool: Pool) -> None:
    """Or the domain could not say what it is."""
    vm = running(pool, domain_type="pv_in_pvh")
    boot = pool.backend.doms[vm.uuid].config.boot
    assert isinstance(boot, DirectBoot) and boot.kind == "pv_in_pvh"


def test_a_domain_that_vanished_halts_its_vm(pool: Pool) -> None:
    """Whatever took it away."""
    vm = running(pool)
    del pool.backend.doms[vm.uuid]
    pool.backend.attention(vm.uuid)
    pool.turn()
    assert (vm.power_state, vm.resident_on) == ("Halted", NULL)


def test_what_the_guest_says_reaches_its_metrics(pool: Pool) -> None:
    """Addresses under the names that clients look for."""
    vm = running(pool)
    pool.backend.doms[vm.uuid].guest["attr/vif/0/ipv4/0"] = "192.0.2.7"
    pool.backend.attention(vm.uuid)
    pool.turn()
    networks = pool.db.VM_guest_metrics[vm.guest_metrics].networks
    assert networks == {"0/ip": "192.0.2.7", "0/ipv4/0": "192.0.2.7"}


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "/boot/guest/../../etc/passwd", "missing"])
def test_a_kernel_outside_the_guest_directory_is_refused(pool: Pool, name: str) -> None:
    """Nothing else of the host's is read."""
    (pool.guests.parent / "secret").write_bytes(b"")
    vm = make_vm(pool, PV_kernel=name)
    assert pool.fails("VM.start", vm._ref, False, False)[:2] == ["BOOTLOADER_FAILED", vm._ref]
    assert vm.power_state == "Halted"


def test_a_kernel_of_the_guest_directory_is_booted(pool: Pool) -> None:
    """By its name, or by the path that it would have on an XCP host."""
    (pool.guests / "vmlinuz").write_bytes(b"")
    for name in ("vmlinuz", "/boot/guest/vmlinuz", str(pool.guests / "vmlinuz")):
        vm = running(pool, PV_kernel=name, PV_args="quiet")
        boot = pool.backend.doms[vm.uuid].config.boot
        assert boot == DirectBoot(str(pool.guests / "vmlinuz"), "", "quiet", "pvh")


@pytest.mark.parametrize(
    ("kind", "platform", "mib"),
    [
        ("hvm", {}, 4),
        ("hvm", {"vga": "std", "videoram": "8", "pvfb": "false"}, 8),
        ("hvm", {"videoram": "4096"}, 128),
        ("pvh", {"vga": "std"}, None),
        ("pvh", {"pvfb": "true", "videoram": "much"}, 4),
    ],
)
def test_a_guest_has_the_screen_that_its_platform_says(
    pool: Pool, kind: str, platform: dict[str, str], mib: int | None
) -> None:
    """HVM guests always, others by pvfb, as in xapi."""
    vm = running(pool, domain_type=kind, platform=platform)
    assert pool.backend.doms[vm.uuid].config.display == (None if mib is None else Display(memory=mib << 20))


_STORAGE = {
    "make": "make_suspend_image",
    "written": "suspend_image_written",
    "destroy": "destroy",
    "image": "suspend_image",
}


@pytest.fixture
def images(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the memory of suspended VMs be kept in a file."""

    async def make(call: Any, vm: Any, host: Any) -> Any:
        return pool.db.VDI.create(type="suspend", SR=next(iter(pool.db.SR))._ref), VolumeHandle("saved", "image")

    async def written(call: Any, vdi: Any) -> None:
        assert (tmp_path / "image").exists()

    async def destroy(call: Any, vdi: Any) -> None:
        pool.db.VDI.delete(vdi._ref)

    async def image(call: Any, vdi: Any, host: Any) -> VolumeHandle:
        return VolumeHandle("saved", "image")

    pool.backend.storage.repositories.attach("saved", SavedDomains(tmp_path))
    for function in (make, written, destroy, image):
        monkeypatch.setattr(pool.daemon.storage, _STORAGE[function.__name__], function)


@pytest.mark.usefixtures("images")
def test_news_of_a_domain_that_an_operation_ends_is_the_operations_to_write(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM that is suspended is never seen halted."""
    vm = running(pool)
    states, destroy = seen(pool, vm, monkeypatch), pool.backend.destroy

    async def told_of(uuid: str) -> None:
        await destroy(uuid)
        pool.backend.attention(uuid)
        pool.clock.advance(0)

    monkeypatch.setattr(pool.backend, "destroy", told_of)
    pool("VM.suspend", vm._ref)
    pool.turn()
    assert states == [("Running", ["suspend"]), ("Suspended", ["suspend"]), ("Suspended", [])]


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("step", ["shutdown", "save"])
def test_a_suspend_that_fails_lets_the_guest_go_on(pool: Pool, step: str) -> None:
    """No image is left, and the domain runs."""
    vm = running(pool)
    disks = len(pool.db.VDI)
    pool.backend.fail[step] = HostError(Code.NO_SPACE, "full")
    assert pool.fails("VM.suspend", vm._ref)[0] == "SR_FULL"
    assert (vm.power_state, dict(vm.current_operations), len(pool.db.VDI)) == ("Running", {}, disks)
    assert pool.backend.doms[vm.uuid].shutdown is None
    del pool.backend.fail[step]
    pool("VM.suspend", vm._ref)
    assert vm.power_state == "Suspended"


@pytest.mark.usefixtures("images")
def test_a_guest_that_was_seen_on_its_way_back_from_a_failed_suspend_is_known_to_run(pool: Pool) -> None:
    """It is held for a moment before it goes on, and nothing tells when that is over."""
    vm = running(pool)
    domain = pool.backend.doms[vm.uuid]
    pool.backend.fail["save"] = HostError(Code.NO_SPACE, "full")
    back = pool.backend.held["resume"] = Deferred()
    suspending = pool.start("VM.suspend", pool.session, vm._ref)
    pool.turn()
    domain.state = Power.PAUSED
    pool.backend.attention(vm.uuid)
    pool.turn()
    assert vm.power_state == "Paused"
    back.callback(None)
    with pytest.raises(Fault):
        pool.outcome(suspending)
    assert (vm.power_state, domain.state) == ("Running", Power.RUNNING)


@pytest.mark.usefixtures("images")
def test_a_guest_that_suspends_itself_for_nobody_any_more_goes_on(pool: Pool) -> None:
    """It has read the request before the suspend was cancelled."""
    vm = running(pool)
    disks, domid = len(pool.db.VDI), vm.domid
    pool.backend.held["shutdown"] = Deferred()
    task = pool("Async.VM.suspend", vm._ref)
    pool.turn()
    pool("task.cancel", task)
    pool.turn()
    assert (pool.db.task[task].status, len(pool.db.VDI)) == ("cancelled", disks)
    pool.backend.doms[vm.uuid].asked = True
    pool.backend.goes_down(vm.uuid, Shutdown.SUSPEND)
    pool.turn()
    assert pool.backend.doms[vm.uuid].state is Power.RUNNING
    assert (vm.power_state, vm.domid, dict(vm.current_operations)) == ("Running", domid, {})


@pytest.mark.usefixtures("images")
def test_a_migration_to_its_own_host_takes_a_guest_into_a_new_domain(pool: Pool) -> None:
    """As in xapi: the VM runs on, under another domid, and no image of its memory is left."""
    vm = running(pool)
    before, disks = vm.domid, len(pool.db.VDI)
    pool("VM.pool_migrate", vm._ref, vm.resident_on, {"live": "true"})
    domain = pool.backend.doms[vm.uuid]
    assert (vm.power_state, vm.domid, vm.suspend_VDI) == ("Running", domain.domid, NULL) and vm.domid != before
    assert len(pool.db.VDI) == disks and "VM_MIGRATED" in alerts(pool)
    assert not vm.current_operations and not pool.db.host[vm.resident_on].current_operations


@pytest.mark.usefixtures("images")
def test_a_migration_whose_new_domain_fails_leaves_the_vm_suspended(pool: Pool) -> None:
    """Nothing of the guest is lost."""
    vm = running(pool)
    pool.backend.fail["restore"] = HostError(Code.NO_MEMORY, "none")
    assert pool.fails("VM.pool_migrate", vm._ref, vm.resident_on, {})
    assert (vm.power_state, vm.suspend_VDI in pool.db.VDI) == ("Suspended", True)


def test_a_migration_is_refused_by_state_and_to_other_hosts(pool: Pool, vm: Any) -> None:
    """The list tells it before: in a pool of several hosts it has no migration."""
    own = next(iter(pool.db.host))
    other = pool.db.host.create(metrics=own.metrics)
    assert pool.fails("VM.pool_migrate", vm._ref, own._ref, {})[0] == "VM_BAD_POWER_STATE"
    assert pool.fails("VM.pool_migrate", vm._ref, "OpaqueRef:none", {}) == ["HANDLE_INVALID", "host", "OpaqueRef:none"]
    pool("VM.start_on", vm._ref, own._ref, False, False)
    assert pool.fails("VM.pool_migrate", vm._ref, other._ref, {}) == ["NOT_IMPLEMENTED", "VM.pool_migrate"]
    assert (vm.power_state, "pool_migrate" in vm.allowed_operations) == ("Running", False)


def test_a_pool_of_one_host_lists_the_migration_to_it(pool: Pool) -> None:
    vm = running(pool)
    assert "pool_migrate" in vm.allowed_operations
    assert "vm_migrate" in pool.db.host[vm.resident_on].allowed_operations


def test_power_state_reset_is_refused_while_there_is_a_domain(pool: Pool) -> None:
    """Else a VM could run twice."""
    vm = running(pool)
    assert pool.fails("VM.power_state_reset", vm._ref) == ["DOMAIN_EXISTS", vm._ref, str(vm.domid)]


def test_the_toolstack_that_starts_again_halts_what_ran_in_the_old_one(pool: Pool) -> None:
    """The guests lived in that process."""
    vm = running(pool)
    pool.backend.doms.clear()
    pool.outcome(Deferred.fromCoroutine(pool.daemon.survey.adopt()))
    assert (vm.power_state, vm.domid, vm.resident_on) == ("Halted", -1, NULL)


def test_vms_start_with_their_host_when_pool_and_vm_say_so(pool: Pool) -> None:
    """And only they."""
    from xapi.vms import lifecycle

    wanted, other = make_vm(pool, other_config={"auto_poweron": "true"}), make_vm(pool)
    lifecycle.start_automatic(pool.daemon.subsystems)
    pool.turn()
    assert wanted.power_state == "Halted"
    with pool.db.atomic():
        next(iter(pool.db.pool)).other_config = {"auto_poweron": "true"}
    lifecycle.start_automatic(pool.daemon.subsystems)
    pool.turn()
    assert (wanted.power_state, other.power_state) == ("Running", "Halted")
