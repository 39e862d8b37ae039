"""What is cancelled at any moment loses no guest: real guests, which take their time."""

from __future__ import annotations

from typing import Any

import pytest

from hypervisor.api import Shutdown
from hypervisor.toolstack.control import Progress
from tests.durability.test_many_cycles import agree, guest
from tests.real_pool import RealPool
from xapi.datamodel.errors import Fault

MOMENTS = 40
"""Turns, of some 1 ms, after which the call is cancelled."""


def quiet(pool: RealPool, vm: Any) -> bool:
    """Tell whether nobody does anything, and all that the guest did is known."""
    reconciler = pool.daemon.reconciler
    return not (vm.current_operations or reconciler._following or reconciler._waiting) and pool._calls.empty()


@pytest.mark.parametrize("message", ["VM.suspend", "VM.checkpoint", "VM.pool_migrate"])
def test_a_guest_whose_suspending_is_cancelled_goes_on(pool: RealPool, message: str) -> None:
    """Also one that has heard of it, and suspends itself when nobody waits any more."""
    vm: Any = pool.db.VM[guest(pool, 0)]
    pool("VM.start", vm._ref, False, False)
    pool.until(lambda: "suspend" in vm.allowed_operations)
    more: dict[str, tuple[Any, ...]] = {"VM.checkpoint": ("copy",), "VM.pool_migrate": (vm.resident_on, {})}
    for moment in range(MOMENTS):
        call = pool.start(message, pool.session, vm._ref, *more.get(message, ()))
        for _ in range(moment):
            pool.turn()
        call.cancel()
        try:
            pool.outcome(call)
        except Fault as fault:
            assert fault.code in ("TASK_CANCELLED", "VM_BAD_POWER_STATE")  # it suspends itself for the call before
        pool.until(lambda: quiet(pool, vm))
        assert vm.power_state in ("Running", "Suspended"), moment
        if vm.power_state == "Suspended":
            pool("VM.resume", vm._ref, False, False)
        agree(pool)
        pool.until(lambda: "suspend" in vm.allowed_operations)
    assert not [vdi for vdi in pool.db.VDI if vdi.type == "suspend" and vdi._ref not in _kept(pool)]


def test_a_guest_that_suspends_itself_for_nobody_any_more_goes_on(pool: RealPool) -> None:
    """It was asked, and nobody waits for it; as often as that happens."""
    vm: Any = pool.db.VM[guest(pool, 0)]
    pool("VM.start", vm._ref, False, False)
    (backend,) = pool.real.values()
    domid = vm.domid
    for _ in range(3):
        pool.until(lambda: "suspend" in vm.allowed_operations)
        asked = backend.toolstack.request(vm.uuid, Shutdown.SUSPEND)
        while asked.progress is Progress.WAITING:
            pool.turn()
        asked.withdraw()
        pool.until(lambda: not (vm.domid == domid and backend.toolstack.guest(vm.uuid).control.suspends))
        pool.until(lambda: quiet(pool, vm))
        assert (vm.power_state, vm.domid) == ("Running", domid)
        agree(pool)


def _kept(pool: RealPool) -> set[str]:
    """Return the memories that VMs and snapshots have."""
    return {vm.suspend_VDI for vm in pool.db.VM}
