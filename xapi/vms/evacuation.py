"""Whether VMs can leave their host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.operations.refusal import refusal
from xapi.vms.placement import assert_can_boot_here

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.store.memory import Store


def staying(db: Store, host: records.host) -> dict[str, Fault]:
    """Return the VMs that cannot leave a host, each with the reason: all, as no guest reaches another host yet."""
    guests = [vm for ref in host.resident_VMs if not (vm := db.VM[ref]).is_control_domain]
    others = [other for other in db.host if other.enabled and other is not host]
    return {vm._ref: _why_it_stays(db, vm, others) for vm in guests}


def _why_it_stays(db: Store, vm: records.VM, others: list[records.host]) -> Fault:
    if not others:
        return Fault("NO_HOSTS_AVAILABLE", vm._ref)
    try:
        for other in others:
            assert_can_boot_here(db, vm, other, enough_memory=False)
    except Fault as fault:
        return fault
    return refusal(db, vm, "pool_migrate") or errors.NOT_IMPLEMENTED("host.evacuate")
