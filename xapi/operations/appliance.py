"""When an operation of a VM_appliance may start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.operations.busy import held
from xapi.operations.sources import Guests, Source, own, when

if TYPE_CHECKING:
    from xapi.datamodel.records import VM_appliance
    from xapi.store.memory import Store


def refuse(db: Store, appliance: VM_appliance, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None."""
    for task, running in appliance.current_operations.items():
        return held("VM_appliance", appliance._ref, task, running)
    if not appliance.VMs:
        return errors.OPERATION_NOT_ALLOWED("Appliance has no VMs.")
    states = {db.VM[ref].power_state for ref in appliance.VMs}
    if operation == "start" and "Halted" not in states:
        return errors.OPERATION_NOT_ALLOWED("There are no halted VMs in this appliance.")
    if operation == "clean_shutdown" and "Running" not in states:
        return errors.OPERATION_NOT_ALLOWED("There are no running VMs in this appliance.")
    if operation in ("hard_shutdown", "shutdown") and states == {"Halted"}:
        return errors.OPERATION_NOT_ALLOWED("All VMs in this appliance are halted.")
    return None


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what an appliance's list follows from."""
    return {
        "VM_appliance": own("current_operations VMs"),
        "VM": when("power_state", lambda vm: (vm.appliance,)),
    }
