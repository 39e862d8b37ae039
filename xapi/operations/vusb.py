"""When an operation of a VUSB may start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.operations.busy import held_by_set
from xapi.operations.guest import look, refuse_unless_running, refuse_while_stopping
from xapi.operations.sources import Guests, Source, own, when

if TYPE_CHECKING:
    from xapi.datamodel.records import VUSB
    from xapi.store.memory import Store


def refuse(db: Store, vusb: VUSB, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None."""
    if vusb.current_operations:
        return held_by_set("VUSB", vusb._ref, vusb.current_operations.items())
    if operation not in ("plug", "unplug"):
        return None
    vm = look(db, db.VM.get(vusb.VM), "")
    if operation == "plug" and vm.state == "Running" and vusb.currently_attached:
        return errors.DEVICE_ALREADY_ATTACHED(vusb._ref)
    if operation == "unplug" and vm.state == "Running" and not vusb.currently_attached:
        return errors.DEVICE_ALREADY_DETACHED(vusb._ref)
    return refuse_unless_running(vm, vusb.VM) or refuse_while_stopping(vm, vusb.VM)


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what a VUSB's list follows from."""
    return {
        "VUSB": own("current_operations currently_attached VM"),
        "VM": when("power_state current_operations", lambda vm: list(vm.VUSBs)),
    }
