"""What rows say of domains, whatever comes late, whatever cannot be stored, and whoever loses whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from hypervisor.api import Code, HostError, Power, Shutdown
from tests.api.storage_pool import Disks, Threads, fit
from tests.api.test_power import make_vm, running
from tests.conftest import Pool
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL

FULL = errors.OUT_OF_SPACE("/state/xapi.db")


def agree(pool: Pool) -> bool:
    """Tell whether each VM has a domain when its row says so, and the same."""
    states = {"Running": Power.RUNNING, "Paused": Power.PAUSED}
    said = {
        vm.uuid: (vm.domid, states[vm.power_state])
        for vm in pool.db.VM
        if vm.power_state in states and not vm.is_control_domain
    }
    return said == {uuid: (domain.domid, domain.state) for uuid, domain in pool.backend.doms.items()}


def release(pool: Pool, name: str) -> None:
    """Let what is held of a call of the backend's go on."""
    pool.backend.held.pop(name).callback(None)
    pool.turn()


def hold(pool: Pool, name: str) -> None:
    pool.backend.held[name] = Deferred()


# What comes late


def test_that_there_is_no_domain_is_not_written_while_one_is_made(pool: Pool) -> None:
    """The old domain is gone and the new one is not there yet: that is the reboot's to write."""
    vm = running(pool)
    hold(pool, "build")
    reboot = pool.start("VM.hard_reboot", pool.session, vm._ref)
    pool.turn()
    pool.backend.attention(vm.uuid)
    pool.turn()
    assert vm.power_state == "Running"
    release(pool, "build")
    pool.outcome(reboot)
    assert vm.power_state == "Running" and agree(pool)


def test_that_there_was_no_domain_is_not_written_over_a_new_one(pool: Pool) -> None:
    """Somebody looked between the two domains of a reboot, and heard the answer after it."""
    vm = running(pool)
    hold(pool, "build")
    reboot = pool.start("VM.hard_reboot", pool.session, vm._ref)
    pool.turn()
    hold(pool, "stat")
    pool.backend.attention(vm.uuid)
    pool.turn()
    release(pool, "build")
    pool.outcome(reboot)
    release(pool, "stat")
    assert vm.power_state == "Running" and agree(pool)


def test_an_old_domain_is_not_written_over_a_new_one(pool: Pool) -> None:
    """Nor that it was paused."""
    vm = running(pool)
    pool.backend.doms[vm.uuid].state = Power.PAUSED
    hold(pool, "stat")
    pool.backend.attention(vm.uuid)
    pool.turn()
    pool("VM.hard_reboot", vm._ref)
    release(pool, "stat")
    assert vm.power_state == "Running" and agree(pool)


def test_an_old_domain_is_not_written_over_none(pool: Pool) -> None:
    """The VM was shut down meanwhile, and started again."""
    vm = running(pool)
    hold(pool, "stat")
    pool.backend.attention(vm.uuid)
    pool.turn()
    pool("VM.hard_shutdown", vm._ref)
    pool("VM.start", vm._ref, True, False)
    release(pool, "stat")
    assert vm.power_state == "Paused" and agree(pool)


def test_an_old_sample_is_not_written_over_what_is_known_since(pool: Pool) -> None:
    """The five-second look is one of those who look."""
    vm = running(pool)
    pool.backend.doms[vm.uuid].actual = 1
    hold(pool, "stat")
    pool.daemon.metrics.tick()
    pool.backend.doms[vm.uuid].actual = 2
    late = pool.backend.held.pop("stat")
    pool.backend.attention(vm.uuid)
    pool.turn()
    late.callback(None)
    pool.turn()
    assert pool.db.VM_metrics[vm.metrics].memory_actual == 2


# What cannot be stored


def refuse(pool: Pool) -> None:
    """Let the journal fail: what is not stored is undone, and changes are refused."""
    pool.journal.held = False
    pool.db.failed(FULL)
    pool.turn()


def recover(pool: Pool) -> None:
    pool.db.recovered()
    pool.turn()


@pytest.mark.parametrize(
    ("why", "after"), [(Shutdown.POWEROFF, "Halted"), (Shutdown.CRASH, "Halted"), (Shutdown.REBOOT, "Running")]
)
def test_a_guest_that_goes_down_while_changes_are_refused_is_followed_afterwards(
    pool: Pool, why: Shutdown, after: str
) -> None:
    """Nobody tells of it a second time."""
    vm = running(pool, actions_after_reboot="restart", actions_after_shutdown="destroy", actions_after_crash="destroy")
    domid = vm.domid
    refuse(pool)
    pool.backend.goes_down(vm.uuid, why)
    pool.turn()
    assert vm.power_state == "Running"
    recover(pool)
    assert (vm.power_state, vm.domid == domid) == (after, False)
    assert agree(pool)


def test_a_guest_is_not_rebooted_while_changes_are_refused(pool: Pool) -> None:
    """It would be lost, as what it becomes cannot be written."""
    vm = running(pool)
    refuse(pool)
    assert pool.fails("VM.hard_reboot", vm._ref) == FULL.description
    recover(pool)
    assert vm.power_state == "Running" and agree(pool)


@pytest.mark.parametrize("message", ["VM.hard_shutdown", "VM.pause"])
def test_what_was_done_to_a_domain_while_changes_are_refused_is_known_afterwards(pool: Pool, message: str) -> None:
    """The client hears why it failed; the domain is as it is."""
    vm = running(pool)
    refuse(pool)
    assert pool.fails(message, vm._ref) == FULL.description
    recover(pool)
    assert agree(pool)
    assert not vm.current_operations


def undone(pool: Pool, name: str, *params: Any) -> None:
    """Call what cannot be made durable."""
    pool.journal.held = True
    call = pool.start(name, pool.session, *params)
    pool.turn()
    assert not call.called
    refuse(pool)
    with pytest.raises(Fault, match="OUT_OF_SPACE"):
        pool.outcome(call)


def test_the_domain_of_a_start_that_is_undone_is_ended(pool: Pool) -> None:
    """Also while nothing can be written: it would hold memory and disks, and be nobody's."""
    vm = make_vm(pool)
    undone(pool, "VM.start", vm._ref, False, False)
    assert (vm.power_state, pool.backend.doms) == ("Halted", {})
    recover(pool)
    pool("VM.start", vm._ref, False, False)
    assert agree(pool)


@pytest.mark.parametrize("message", ["VM.hard_shutdown", "VM.hard_reboot", "VM.clean_shutdown", "VM.clean_reboot"])
def test_an_end_that_is_undone_is_known_afterwards(pool: Pool, message: str) -> None:
    """The rows were taken back, the domain was not."""
    vm = running(pool)
    undone(pool, message, vm._ref)
    recover(pool)
    assert agree(pool)
    assert vm.power_state == ("Running" if message.endswith("reboot") else "Halted")


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return fit(Pool(tmp_path), Threads())


def guest(disks: Disks) -> Any:
    """Return the row of a demo guest that runs."""
    template = disks.db.VM.by_name_label("Demo guest")[0]
    vm = disks.db.VM[disks("VM.clone", template._ref, "guest")]
    disks("VM.set_is_a_template", vm._ref, False)
    disks("VM.start", vm._ref, False, False)
    return vm


def later(disks: Disks, name: str, moment: str, *params: Any) -> None:
    """Call what cannot be made durable from a moment on: when a call of the backend's is reached."""
    hold(disks, moment)
    call = disks.start(name, disks.session, *params)
    disks.turn()
    disks.journal.held = True
    disks.backend.held.pop(moment).callback(None)
    disks.turn()
    assert not call.called
    refuse(disks)
    with pytest.raises(Fault, match="OUT_OF_SPACE"):
        disks.outcome(call)


def test_a_guest_is_not_lost_when_it_cannot_be_stored_that_it_is_suspended(disks: Disks) -> None:
    """It goes on, as its domain is ended only when its memory is known durably."""
    vm = guest(disks)
    later(disks, "VM.suspend", "save", vm._ref)
    assert agree(disks) and vm.power_state == "Running"
    recover(disks)
    assert agree(disks) and vm.power_state == "Running"


def test_a_guest_that_was_suspended_is_so_when_only_the_end_could_not_be_stored(disks: Disks) -> None:
    """Its memory is known already."""
    vm = guest(disks)
    hold(disks, "destroy")
    call = disks.start("VM.suspend", disks.session, vm._ref)
    disks.turn()
    refuse(disks)
    release(disks, "destroy")
    with pytest.raises(Fault, match="OUT_OF_SPACE"):
        disks.outcome(call)
    recover(disks)
    assert (vm.power_state, disks.backend.doms) == ("Suspended", {})
    disks("VM.resume", vm._ref, False, False)
    assert vm.power_state == "Running" and agree(disks)


def test_a_guest_does_not_go_on_when_it_cannot_be_stored_that_its_memory_is_used(disks: Disks) -> None:
    """It would go on twice from one image, the second time with other disks than it knows."""
    vm = guest(disks)
    disks("VM.suspend", vm._ref)
    asked = len(disks.backend.calls)
    later(disks, "VM.resume", "restore", vm._ref, False, False)
    assert "unpause" not in disks.backend.calls[asked:]
    assert (vm.power_state, disks.backend.doms) == ("Suspended", {})
    recover(disks)
    disks("VM.resume", vm._ref, False, False)
    assert vm.power_state == "Running" and agree(disks)
    assert [vdi for vdi in disks.db.VDI if vdi.type == "suspend"] == []


# Who loses whom


def test_a_domain_without_a_vm_is_ended(pool: Pool) -> None:
    """Whatever brought it about: at the latest a minute later."""
    vm = running(pool)
    with pool.db.atomic():
        vm.power_state, vm.resident_on, vm.domid = "Halted", NULL, -1
    pool.daemon.sweep()
    pool.turn()
    assert pool.backend.doms == {}


def test_a_domain_of_an_operation_that_is_under_way_is_not_ended(pool: Pool) -> None:
    """Its VM does not say yet that it runs."""
    vm = make_vm(pool)
    hold(pool, "unpause")
    start = pool.start("VM.start", pool.session, vm._ref, False, False)
    pool.turn()
    assert vm.uuid in pool.backend.doms
    pool.daemon.sweep()
    pool.turn()
    release(pool, "unpause")
    pool.outcome(start)
    assert agree(pool) and vm.power_state == "Running"


def test_a_vm_without_a_domain_is_halted(pool: Pool) -> None:
    """Also when nobody told of it."""
    vm = running(pool)
    pool.backend.doms.clear()
    pool.daemon.sweep()
    pool.turn()
    assert (vm.power_state, vm.resident_on) == ("Halted", NULL)


def test_a_domain_that_cannot_be_ended_is_ended_later(pool: Pool) -> None:
    """A start failed, and so did its undoing."""
    vm = make_vm(pool)
    pool.backend.fail |= {"unpause": HostError(Code.FAILED, "a"), "destroy": HostError(Code.FAILED, "b")}
    assert pool.fails("VM.start", vm._ref, False, False)[0] == "INTERNAL_ERROR"
    pool.backend.fail.clear()
    assert pool.backend.doms
    pool.daemon.sweep()
    pool.turn()
    assert pool.backend.doms == {}
    pool("VM.start", vm._ref, False, False)
    assert agree(pool)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_memory_that_is_kept_for_nobody_is_given_back(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """An operation could not write that its VM does not come; however long a turn is."""
    monkeypatch.setattr("xapi.turns.TURN", seconds)
    vm = make_vm(pool)
    vm.scheduled_to_be_resident_on = next(iter(pool.db.host))._ref
    pool.daemon.survey.unsettled()
    for _ in range(len(pool.db.VM)):
        pool.turn()
    assert vm.scheduled_to_be_resident_on == NULL


def test_nothing_is_kept_of_vms_that_have_ended(pool: Pool) -> None:
    """What is known of their last domain goes with the next sweep."""
    for _ in range(3):
        vm = running(pool)
        pool("VM.hard_shutdown", vm._ref)
        pool("VM.destroy", vm._ref)
    kept = running(pool)
    pool.daemon.sweep()
    pool.turn()
    assert set(pool.daemon.reconciler.truths._written) == {kept._ref}


def test_a_vm_is_not_held_up_by_operations_that_do_not_touch_its_domain(pool: Pool) -> None:
    """A copy may take hours; that the guest is down is true at once."""
    vm = running(pool, actions_after_shutdown="destroy")
    vm.current_operations = {"OpaqueRef:task": "snapshot"}
    pool.backend.goes_down(vm.uuid, Shutdown.POWEROFF)
    pool.turn()
    assert vm.power_state == "Halted"


@pytest.mark.parametrize("moment", ["attend", "metrics"])
def test_looks_at_a_domain_that_vanishes_raise_nothing(pool: Pool, moment: str) -> None:
    """As when a domain ends while somebody looks at it."""
    vm = running(pool)
    hold(pool, "stat")
    if moment == "attend":
        pool.backend.attention(vm.uuid)
    else:
        pool.daemon.metrics.tick()
    pool.turn()
    pool("VM.hard_shutdown", vm._ref)
    pool("VM.destroy", vm._ref)
    release(pool, "stat")
    assert pool.backend.doms == {}
