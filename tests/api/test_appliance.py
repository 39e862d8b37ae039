"""Appliances: their VMs by order, together, with delays; what fails is named."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from hypervisor.api import Code, HostError
from tests.api.test_power import make_vm
from tests.conftest import Pool


@pytest.fixture
def appliance(pool: Pool) -> str:
    ref: str = pool("VM_appliance.create", {"name_label": "app", "name_description": ""})
    return ref


def member(pool: Pool, appliance: str, **fields: Any) -> Any:
    row = make_vm(pool, **fields)
    pool("VM.set_appliance", row._ref, appliance)
    return row


def states(*vms: Any) -> list[str]:
    return [vm.power_state for vm in vms]


def test_operations_follow_the_vms(pool: Pool, appliance: str) -> None:
    """None without VMs; then as they are."""
    row = pool.db.VM_appliance[appliance]
    assert tuple(row.allowed_operations) == ()
    assert pool.fails("VM_appliance.start", appliance, False) == ["OPERATION_NOT_ALLOWED", "Appliance has no VMs."]
    member(pool, appliance)
    assert tuple(row.allowed_operations) == ("start",)
    pool("VM_appliance.start", appliance, False)
    assert set(row.allowed_operations) == {"clean_shutdown", "hard_shutdown", "shutdown"}


def test_orders_start_one_after_another_each_with_its_delay(pool: Pool, appliance: str) -> None:
    """Ascending; equal orders together."""
    first = [member(pool, appliance, order=1, start_delay=10), member(pool, appliance, order=1)]
    second = member(pool, appliance, order=2, start_delay=5)
    done = pool.start("VM_appliance.start", pool.session, appliance, False)
    pool.turn()
    assert states(*first, second) == ["Running", "Running", "Halted"]
    assert list(pool.db.VM_appliance[appliance].current_operations.values()) == ["start"]
    pool.clock.advance(9)
    pool.turn()
    assert second.power_state == "Halted"
    pool.clock.advance(1)
    pool.turn()
    assert second.power_state == "Running"
    assert not done.called
    pool.clock.advance(5)
    pool.outcome(done)
    assert not pool.db.VM_appliance[appliance].current_operations


def test_equal_orders_start_at_the_same_time(pool: Pool, appliance: str) -> None:
    """The second does not wait for the first."""
    vms = [member(pool, appliance) for _ in range(3)]
    gate: Deferred[None] = Deferred()
    pool.backend.held["build"] = gate
    done = pool.start("VM_appliance.start", pool.session, appliance, False)
    pool.turn()
    assert [list(vm.current_operations.values()) for vm in vms] == [["start"]] * 3
    gate.callback(None)
    pool.outcome(done)
    assert states(*vms) == ["Running"] * 3


@pytest.mark.parametrize("name", ["clean_shutdown", "hard_shutdown"])
def test_orders_go_down_the_other_way(pool: Pool, appliance: str, name: str) -> None:
    """Each after the delay of those before."""
    low, high = member(pool, appliance, order=1), member(pool, appliance, order=2)
    pool("VM_appliance.start", appliance, False)
    high.shutdown_delay = 7
    done = pool.start(f"VM_appliance.{name}", pool.session, appliance)
    pool.turn()
    assert states(low, high) == ["Running", "Halted"]
    pool.clock.advance(7)
    pool.outcome(done)
    assert states(low, high) == ["Halted", "Halted"]


def test_shutdown_ends_guests_that_do_not_listen(pool: Pool, appliance: str) -> None:
    """Clean, then hard, as VM.shutdown does."""
    vm = member(pool, appliance)
    pool("VM_appliance.start", appliance, False)
    pool.backend.deaf = True
    pool("VM_appliance.shutdown", appliance)
    assert vm.power_state == "Halted"


def test_what_fails_is_named_and_the_rest_goes_on(pool: Pool, appliance: str) -> None:
    """Also those of later orders."""
    bad = member(pool, appliance, order=1, PV_kernel="missing")
    good = member(pool, appliance, order=2)
    fault = pool.fails("VM_appliance.start", appliance, False)
    assert fault == ["OPERATION_PARTIALLY_FAILED", "VM_appliance.start", bad._ref]
    assert states(bad, good) == ["Halted", "Running"]


def test_paused_is_a_state_of_its_own(pool: Pool, appliance: str) -> None:
    """A VM that runs already is not paused by it, and counts as failed."""
    one = member(pool, appliance)
    pool("VM_appliance.start", appliance, True)
    assert one.power_state == "Paused"
    other = member(pool, appliance)
    pool("VM.unpause", one._ref)
    fault = pool.fails("VM_appliance.start", appliance, True)
    assert fault == ["OPERATION_PARTIALLY_FAILED", "VM_appliance.start", one._ref]
    assert states(one, other) == ["Running", "Paused"]


def test_a_cancelled_start_stops_and_is_undone(pool: Pool, appliance: str) -> None:
    """The VM that was being started is halted, the next order never begins."""
    first, second = member(pool, appliance, order=1), member(pool, appliance, order=2)
    pool.backend.held["build"] = Deferred()
    task = pool("Async.VM_appliance.start", appliance, False)
    pool.turn()
    assert list(first.current_operations.values()) == ["start"]
    pool("task.cancel", task)
    pool.turn()
    assert pool.db.task[task].status == "cancelled"
    assert states(first, second) == ["Halted", "Halted"]
    assert not first.current_operations
    assert not pool.db.VM_appliance[appliance].current_operations
    assert not pool.backend.doms


def test_progress_is_told_by_orders(pool: Pool, appliance: str) -> None:
    """Of two, one is a half."""
    member(pool, appliance, order=1)
    member(pool, appliance, order=2, start_delay=3)
    task = pool("Async.VM_appliance.start", appliance, False)
    pool.turn()
    assert pool.db.task[task].progress == 0.5
    pool.clock.advance(3)
    pool.turn()
    assert (pool.db.task[task].status, pool.db.task[task].progress) == ("success", 1.0)


def test_a_second_operation_waits_and_the_tasks_of_vms_go(pool: Pool, appliance: str) -> None:
    """Nothing is left behind."""
    vm = member(pool, appliance)
    pool.backend.fail["unpause"] = HostError(Code.FAILED, "by the test")
    tasks = set(pool.db.task.rows)
    assert pool.fails("VM_appliance.start", appliance, False)[0] == "OPERATION_PARTIALLY_FAILED"
    assert set(pool.db.task.rows) == tasks
    assert vm.power_state == "Halted"


def test_a_destroyed_appliance_lets_its_vms_go(pool: Pool, appliance: str) -> None:
    """They stay as they are."""
    vm = member(pool, appliance)
    pool("VM_appliance.destroy", appliance)
    assert pool.fails("VM_appliance.start", appliance, False)[0] == "HANDLE_INVALID"
    assert vm.power_state == "Halted"
