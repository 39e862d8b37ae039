"""Devices of a domain that runs: plugged, unplugged and changed on the VM's host, with the rows following.

The callers hold the device's operation. What fails is undone, and then the rows say again what is true.
"""

from __future__ import annotations

from contextlib import suppress

from hypervisor.api import Change, Code, Device, HostError
from xapi.calls.work import Work
from xapi.cancelling import to_its_end
from xapi.datamodel import errors, records
from xapi.hosts.backends import Backends
from xapi.vms import power
from xapi.vms.faults import fault_of
from xapi.vms.reconcile import Reconciler


def is_plugged(work: Work, row: records.VBD | records.VIF) -> bool:
    """Tell whether a VBD or VIF is part of a domain now; a suspended VM keeps `currently_attached` without one."""
    vm = work.db.VM.get(row.VM)
    return row.currently_attached and vm is not None and vm.power_state in ("Running", "Paused")


async def plug(work: Work, row: records.VBD | records.VIF, device: Device) -> None:
    """Connect what a VBD or VIF stands for. Raises Fault."""
    vm = work.db.VM[row.VM]
    host = work.db.host[vm.resident_on]
    backend = work[Backends].of(host)
    try:
        work[Reconciler].write(vm, host, await backend.plug(vm.uuid, device))
    except HostError as error:
        raise fault_of(error, vm, row) from error
    except BaseException:
        with suppress(HostError):
            await to_its_end(backend.unplug(vm.uuid, device, True))
        await to_its_end(work[Reconciler].look(vm))
        raise
    if not row.currently_attached:  # the domain has ended meanwhile
        raise errors.INTERNAL_ERROR(f"Unable to plug {row._table.name} {row._ref}")


async def unplug(work: Work, row: records.VBD | records.VIF, device: Device, *, force: bool) -> None:
    """Take a device away, with `force` whether the guest agrees or not. Raises Fault."""
    vm = work.db.VM[row.VM]
    try:
        await power.backend(work, vm).unplug(vm.uuid, device, force)
    except HostError as error:
        if error.code is not Code.NO_DEVICE:
            raise fault_of(error, vm, row) from error
    finally:
        await to_its_end(work[Reconciler].look(vm))


async def adjust(work: Work, row: records.VBD | records.VIF, change: Change) -> None:
    """Change a device; one that has gone needs no change. Raises Fault."""
    vm = work.db.VM[row.VM]
    try:
        await power.backend(work, vm).adjust(vm.uuid, change)
    except HostError as error:
        if error.code not in (Code.NO_DEVICE, Code.NO_DOMAIN):
            raise fault_of(error, vm, row) from error
