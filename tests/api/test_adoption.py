"""Hosts that live on without the daemon, and daemons without their hosts: rows and domains agree when they meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from hypervisor.api import Code, HostError, Power, Shutdown
from tests.api.test_consoles import Wire
from tests.api.test_power import MIB, alerts, make_vm, running
from tests.conftest import Pool
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.storage.faults import answering


def reborn(pool: Pool, directory: Path) -> Pool:
    """Return a new daemon over what the old one has stored; its hosts have lived on."""
    pool.storage_directory.mkdir(exist_ok=True)
    after = pool.crashed(directory)
    after.backends = pool.backends
    after.begin()
    after.outcome(Deferred.fromCoroutine(after.daemon.survey.adopt()))
    after.turn()
    return after


def live(pool: Pool) -> bool:
    host = next(iter(pool.db.host))
    return pool.db.host_metrics[host.metrics].live


def of(pool: Pool, vm: Any) -> Any:
    return pool.db.VM[vm._ref]


def test_a_guest_that_lives_goes_on(pool: Pool, tmp_path: Path) -> None:
    """Its VM is what it was, with its consoles, metrics and start; it can be used."""
    vm = running(pool)
    kept = ("power_state", "domid", "resident_on", "consoles", "metrics", "guest_metrics", "memory_target")
    before = [getattr(vm, name) for name in kept]
    metrics = pool.db.VM_metrics[vm.metrics]
    after = reborn(pool, tmp_path / "after")
    again = of(after, vm)
    assert [getattr(again, name) for name in kept] == before and again is not vm
    assert {after.db.console[ref].uuid for ref in vm.consoles} == {pool.db.console[ref].uuid for ref in vm.consoles}
    told = after.db.VM_metrics[again.metrics]
    assert (told.start_time, told.current_domain_type, told.hvm) == (metrics.start_time, "pvh", True)
    assert (told.memory_actual, alerts(after)) == (64 * MIB, ["VM_STARTED"])
    after("VM.pause", vm._ref)
    assert (again.power_state, pool.backend.doms[vm.uuid].state) == ("Paused", Power.PAUSED)
    after("VM.unpause", vm._ref)
    after("VM.hard_shutdown", vm._ref)
    assert (again.power_state, pool.backend.doms) == ("Halted", {})


def test_its_console_works(pool: Pool, tmp_path: Path) -> None:
    """At the address that it had."""
    vm = running(pool)
    console = next(pool.db.console[ref] for ref in vm.consoles if pool.db.console[ref].protocol == "vt100")
    after = reborn(pool, tmp_path / "after")
    wire = Wire(after)
    assert wire.connect(f"uuid={console.uuid}&session_id={after.session}").startswith(b"HTTP/1.1 200")
    wire.send(b"typed")
    assert pool.backend.typed == b"typed"


def test_a_guest_that_changed_meanwhile_is_what_it_is(pool: Pool, tmp_path: Path) -> None:
    """It was paused, and another device is plugged than before."""
    vm = running(pool)
    domain = pool.backend.doms[vm.uuid]
    domain.state, domain.vcpus = Power.PAUSED, 3
    after = reborn(pool, tmp_path / "after")
    again = of(after, vm)
    assert (again.power_state, after.db.VM_metrics[again.metrics].VCPUs_number) == ("Paused", 3)


def test_a_guest_that_has_gone_is_halted(pool: Pool, tmp_path: Path) -> None:
    """And one that was never stored is ended, as nobody claims it."""
    vm = running(pool)
    domain = pool.backend.doms.pop(vm.uuid)
    after = reborn(pool, tmp_path / "after")
    assert (of(after, vm).power_state, of(after, vm).resident_on) == ("Halted", NULL)
    pool.backend.doms[vm.uuid] = domain
    other = running(after)
    last = reborn(after, tmp_path / "last")
    assert list(pool.backend.doms) == [other.uuid] and of(last, vm).power_state == "Halted"


@pytest.mark.parametrize(("why", "state"), [(Shutdown.POWEROFF, "Halted"), (Shutdown.REBOOT, "Running")])
def test_a_guest_that_went_down_meanwhile_is_followed(pool: Pool, tmp_path: Path, why: Shutdown, state: str) -> None:
    """As its VM's actions say."""
    vm = running(pool, actions_after_shutdown="destroy", actions_after_reboot="restart")
    domain = pool.backend.doms[vm.uuid]
    domain.state, domain.shutdown = Power.SHUTDOWN, why
    pool.clock.advance(300)
    after = reborn(pool, tmp_path / "after")
    after.clock.advance(60)
    after.turn()
    assert of(after, vm).power_state == state
    assert [each.domid for each in pool.backend.doms.values()] == ([domain.domid + 1] if state == "Running" else [])


def test_a_guest_whose_memory_was_saved_is_suspended(pool: Pool, tmp_path: Path) -> None:
    """The daemon ended after that was stored, before the domain was ended."""
    vm = running(pool)
    with pool.db.atomic():
        vm.suspend_VDI = pool.db.VDI.create(type="suspend")._ref
    domain = pool.backend.doms[vm.uuid]
    domain.state, domain.shutdown = Power.SHUTDOWN, Shutdown.SUSPEND
    after = reborn(pool, tmp_path / "after")
    assert (of(after, vm).power_state, pool.backend.doms) == ("Suspended", {})


def test_a_vm_that_was_coming_does_not_come(pool: Pool, tmp_path: Path) -> None:
    """Its start was not stored: its domain is ended, the memory that was kept for it is given back."""
    vm = make_vm(pool)
    pool.backend.held["unpause"] = Deferred()
    pool.start("VM.start", pool.session, vm._ref, False, False)
    pool.turn()
    assert of(pool, vm).scheduled_to_be_resident_on != NULL
    assert pool.backend.doms
    after = reborn(pool, tmp_path / "after")
    assert (of(after, vm).scheduled_to_be_resident_on, pool.backend.doms) == (NULL, {})


# A host that is lost


def test_a_host_that_is_not_reached_at_the_start_keeps_its_vms(pool: Pool, tmp_path: Path) -> None:
    """They are as they were last known; what became of them is written when it is reached."""
    vm, gone = running(pool), running(pool)
    pool.backend.is_lost = True
    after = reborn(pool, tmp_path / "after")
    assert (of(after, vm).power_state, live(after)) == ("Running", False)
    host = next(iter(after.db.host))
    assert after.fails("VM.pause", vm._ref) == ["HOST_OFFLINE", host._ref]
    del pool.backend.doms[gone.uuid]
    pool.backend.come_back()
    after.turn()
    assert (of(after, vm).power_state, of(after, gone).power_state, live(after)) == ("Running", "Halted", True)
    after("VM.pause", vm._ref)


def test_a_host_that_is_lost_keeps_its_vms_until_it_is_back(pool: Pool) -> None:
    """Nothing can be done with them, and nothing new is started there."""
    vm, idle = running(pool), make_vm(pool)
    host = next(iter(pool.db.host))
    pool.backend.lose()
    pool.daemon.sweep()
    pool.turn()
    assert (vm.power_state, vm.resident_on, live(pool)) == ("Running", host._ref, False)
    for name in ("pause", "hard_shutdown", "clean_shutdown", "suspend"):
        assert pool.fails(f"VM.{name}", vm._ref) == ["HOST_OFFLINE", host._ref], name
    assert pool.fails("VM.start", idle._ref, False, False)[0] == "NO_HOSTS_AVAILABLE"
    assert pool.fails("host.dmesg", host._ref) == ["HOST_OFFLINE", host._ref]
    pool.backend.come_back()
    pool.turn()
    assert live(pool)
    pool("VM.pause", vm._ref)
    pool("VM.start", idle._ref, False, False)


def test_what_was_under_way_on_a_host_that_is_lost_fails(pool: Pool) -> None:
    """Whether it was done is seen when the host is back: a domain that came of it is ended."""
    vm = make_vm(pool)
    pool.backend.held["unpause"] = Deferred()
    start = pool.start("VM.start", pool.session, vm._ref, False, False)
    pool.turn()
    pool.backend.lose()
    pool.backend.held.pop("unpause").callback(None)
    with pytest.raises(Fault) as caught:
        pool.outcome(start)
    assert caught.value.description == ["HOST_OFFLINE", next(iter(pool.db.host))._ref]
    assert (vm.power_state, list(pool.backend.doms)) == ("Halted", [vm.uuid])
    pool.backend.come_back()
    pool.turn()
    assert (vm.power_state, pool.backend.doms) == ("Halted", {})


def test_a_host_that_was_restarted_has_no_guests_any_more(pool: Pool) -> None:
    """What it says from then on is believed, though its sequence begins anew; it gets its networks again."""
    vm = running(pool)
    network = next(each for each in pool.db.network if each.bridge == "xenbr0")
    with pool.db.atomic():
        pool.db.VIF.create(VM=vm._ref, network=network._ref, device="0", MAC="02:00:00:00:00:01")
    pool("VM.hard_reboot", vm._ref)
    assert "xenbr0" in pool.backend.up
    for _ in range(5):
        pool.daemon.reconciler.attend(vm.uuid)
        pool.turn()
    pool.backend.lose()
    pool.backend.come_back(restarted=True)
    pool.turn()
    assert (vm.power_state, live(pool), pool.backend.up) == ("Halted", True, {})
    pool("VM.start", vm._ref, False, False)
    assert vm.power_state == "Running" and "xenbr0" in pool.backend.up


def test_a_console_ends_with_the_reach_of_its_host(pool: Pool) -> None:
    """Its client connects anew when the host is back."""
    vm = running(pool)
    wire = Wire(pool)
    wire.connect(f"ref={vm._ref}&session_id={pool.session}")
    pool.backend.lose()
    pool.turn()
    assert wire.transport.disconnecting
    again = Wire(pool)
    assert again.connect(f"ref={vm._ref}&session_id={pool.session}").startswith(b"HTTP/1.1 404")
    pool.backend.come_back()
    pool.turn()
    last = Wire(pool)
    assert last.connect(f"ref={vm._ref}&session_id={pool.session}").startswith(b"HTTP/1.1 200")


def test_storage_of_a_host_that_is_lost_meanwhile_says_so() -> None:
    """Which one it was the message knows that asked."""
    with pytest.raises(Fault, match="HOST_OFFLINE"), answering():
        raise HostError(Code.LOST, "lost by the test")
