"""Messages of VM and VM_appliance that ask whether a site has what recovering them needs."""

from __future__ import annotations

from collections.abc import Iterable

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref
from xapi.wire.fragments import Refs

VM = Ref[records.VM]
Appliance = Ref[records.VM_appliance]
Session = Ref[records.session]


@message("VM.assert_can_be_recovered")
def assert_vm_can_be_recovered(call: Call, self: VM, session_to: Session) -> None:
    """Raise VM_REQUIRES_SR unless the site of a session has attached what the VM's disks are on."""
    _check_site(call, session_to)
    _assert(call, [self])


@message("VM.get_SRs_required_for_recovery")
def get_vm_srs(call: Call, self: VM, session_to: Session) -> Refs:
    """Return the SRs that the site of a session would have to attach before the VM can be recovered."""
    _check_site(call, session_to)
    return Refs(_missing(call, self))


@message("VM_appliance.assert_can_be_recovered")
def assert_appliance_can_be_recovered(call: Call, self: Appliance, session_to: Session) -> None:
    """Raise VM_REQUIRES_SR unless the site of a session has attached what the disks of all its VMs are on."""
    row = call.db.VM_appliance[self]
    _check_site(call, session_to)
    _assert(call, row.VMs)


@message("VM_appliance.get_SRs_required_for_recovery")
def get_appliance_srs(call: Call, self: Appliance, session_to: Session) -> Refs:
    """Return the SRs that the site of a session would have to attach before the appliance can be recovered."""
    row = call.db.VM_appliance[self]
    _check_site(call, session_to)
    return Refs(dict.fromkeys(sr for vm in row.VMs for sr in _missing(call, vm)))


@message("VM.recover")
def recover(call: Call, self: VM, session_to: Session, force: bool) -> None:
    """Refuse to recover a part of an appliance alone; else it comes with metadata import."""
    row = call.db.VM[self]
    if row.appliance in call.db.VM_appliance:
        raise errors.VM_IS_PART_OF_AN_APPLIANCE(self, row.appliance)
    raise errors.NOT_IMPLEMENTED("VM.recover")


def _check_site(call: Call, session: Session) -> None:
    """Raise SESSION_INVALID unless a session is one of this pool: databases of other sites cannot be opened yet."""
    if session not in call.db.session:
        raise errors.SESSION_INVALID(session)


def _assert(call: Call, vms: Iterable[str]) -> None:
    for vm in vms:
        for sr in _missing(call, vm):
            raise errors.VM_REQUIRES_SR(vm, sr)


def _missing(call: Call, vm: str) -> list[str]:
    """Return the SRs of a VM's disks that are attached nowhere."""
    db = call.db
    disks = [vbd for ref in db.VM[vm].VBDs if (vbd := db.VBD[ref]).type != "CD" and not vbd.empty]
    srs = dict.fromkeys(db.VDI[vbd.VDI].SR for vbd in disks)
    rows = [db.SR[ref] for ref in srs]
    return [
        sr._ref
        for sr in rows
        if sr.content_type != "iso" and not any(db.PBD[pbd].currently_attached for pbd in sr.PBDs)
    ]
