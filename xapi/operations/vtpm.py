"""When an operation of a VTPM may start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.operations.guest import look
from xapi.operations.sources import Guests, Source, own, when

if TYPE_CHECKING:
    from xapi.datamodel.records import VTPM
    from xapi.store.memory import Store


def refuse(db: Store, vtpm: VTPM, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None; a VTPM of a suspended VM can go, though it is not said."""
    state = look(db, db.VM.get(vtpm.VM), "").state
    if state == "Halted" or (called and state == "Suspended"):
        return None
    return errors.VM_BAD_POWER_STATE(vtpm.VM, "halted;suspended", state.lower())


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what a VTPM's list follows from."""
    return {"VTPM": own("VM"), "VM": when("power_state", lambda vm: list(vm.VTPMs))}
