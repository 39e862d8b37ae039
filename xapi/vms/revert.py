"""A VM taken back to one of its snapshots.

New disks are made first and the rows are changed in one go, before the old disks are destroyed: a revert that fails
half-way leaves the VM as it was, but for being halted. (xapi destroys first; it needs less room and may leave a wreck.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

from xapi.calls.parts import lasting, undo_all
from xapi.calls.work import Work
from xapi.cancelling import to_its_end
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL, RefType
from xapi.log.guests import named
from xapi.storage import vdis
from xapi.storage.unfinished import Making, making
from xapi.storage.volumes import declared
from xapi.vms import saved_record
from xapi.vms.copies import (
    CLONE,
    KEPT,
    copy_devices,
    copy_disks,
    copy_drive,
    copy_guest_metrics,
    copy_metrics,
    delete_devices,
    delete_drive,
    delete_metrics,
    drives,
    fresh_generation,
    names,
)

if TYPE_CHECKING:
    from xapi.datamodel.records import VDI, VM
    from xapi.datamodel.types import Ref
    from xapi.store.memory import Store

log = Logger()

TOLD = frozenset({"SR_FULL", "SR_BACKEND_FAILURE_44", "SR_BACKEND_FAILURE_109", "VDI_INCOMPATIBLE_TYPE"})
"""Errors that clients are told as they are; every other one is VM_REVERT_FAILED."""

LEFT = frozenset(
    names(
        "uuid suspend_VDI power_state parent current_operations allowed_operations metrics guest_metrics "
        "resident_on domid protection_policy snapshot_schedule scheduled_to_be_resident_on tags affinity groups"
    )
)
"""Fields that a VM keeps, or gets otherwise."""
LEFT_WITHOUT_RECORD = LEFT | frozenset(
    names(
        "name_label is_a_snapshot is_a_template is_default_template snapshot_of snapshot_time "
        "transportable_snapshot_id snapshot_info snapshot_metadata"
    )
)
"""The same for a snapshot that has no record of its VM: then its own fields are all that is known."""


async def revert(work: Work, snapshot: VM, vm: VM | None) -> VM:
    """Make a claimed, halted VM what it was at a snapshot, and return it; None makes it anew. Raises Fault."""
    with making(work) as unfinished:
        return await _revert(work, snapshot, vm, unfinished)


async def _revert(work: Work, snapshot: VM, vm: VM | None, unfinished: Making) -> VM:
    db = work.db
    try:
        vbds = drives(db, snapshot)
        disks = [vbd for vbd in vbds if not vbd.empty and vbd.type != "CD"]
        made = await copy_disks(work, [vbd.VDI for vbd in disks], CLONE, snapshot.suspend_VDI)
    except Fault as fault:
        raise _told(fault, snapshot) from fault
    try:
        with db.atomic():
            fields = _fields(db, snapshot)
            row = _anew(db, snapshot) if vm is None else vm
            old = _replaced(db, snapshot, row)
            images = {vbd._ref: vdi for vbd, vdi in zip(disks, made, strict=False)}
            _exchange(db, snapshot, row, fields)
            row.suspend_VDI = made[-1] if snapshot.suspend_VDI != NULL else NULL
            for vbd in vbds:
                copy_drive(db, row, vbd, images.get(vbd._ref, vbd.VDI))
            moved = [vdi for vbd in disks for vdi in _follow(db, db.VDI[vbd.VDI].snapshot_of, images[vbd._ref])]
            unfinished.done()
            unfinished.replaced([db.VDI[ref] for ref in old if not db.VDI[ref].VBDs])
    except Exception as error:
        await undo_all(work, "VDI.destroy", made)
        if isinstance(error, Fault):
            raise _told(error, snapshot) from error
        raise
    await _tidy(work, old, moved)
    return db.VM[row._ref]


def _told(fault: Fault, snapshot: VM) -> Fault:
    if fault.code in TOLD:
        return fault
    log.error("revert to {snapshot} failed: {fault}", snapshot=named(snapshot), fault=fault)
    return errors.VM_REVERT_FAILED(snapshot._ref, snapshot.snapshot_of)


def _fields(db: Store, snapshot: VM) -> dict[str, object]:
    """Return the fields that a VM gets back; references that lead nowhere any more are null."""
    cls = snapshot._table.cls
    if snapshot.snapshot_metadata:
        values = saved_record.read(snapshot.snapshot_metadata, cls)
        left = LEFT
    else:
        values = saved_record.read(saved_record.write(snapshot), cls)
        left = LEFT_WITHOUT_RECORD
    if values.get("domain_type", "unspecified") == "unspecified":
        values["domain_type"] = "hvm" if values.get("HVM_boot_policy") else "pv"
    for name, value in values.items():
        kind = cls.fields[name].type
        if isinstance(kind, RefType) and value not in db.tables[kind.target]:
            values[name] = NULL
    values["blobs"] = {name: blob for name, blob in values.get("blobs", {}).items() if blob in db.blob}
    values["ha_always_run"] = False
    return {name: value for name, value in values.items() if name not in left}


def _anew(db: Store, snapshot: VM) -> VM:
    """Make the VM of a snapshot, which has gone, with its uuid; all its snapshots belong to it again."""
    lost = snapshot.snapshot_of
    fields: dict[str, object] = {field: getattr(snapshot, field) for field in KEPT}
    uuid = saved_record.read(snapshot.snapshot_metadata, snapshot._table.cls)["uuid"]
    row = db.VM.create(**fields, uuid=uuid, domid=-1)
    for other in [each for each in db.VM if each.snapshot_of == lost]:
        other.snapshot_of = row._ref
    return row


def _replaced(db: Store, snapshot: VM, vm: VM) -> list[str]:
    """Return the VDIs of a VM that make way: those that the snapshot has an older state of, and its memory."""
    had = {db.VDI[vbd.VDI].snapshot_of for vbd in drives(db, snapshot) if vbd.type == "Disk" and vbd.VDI in db.VDI}
    disks = [vbd.VDI for vbd in drives(db, vm) if vbd.type == "Disk" and vbd.VDI in had]
    return [*dict.fromkeys(disks), *([vm.suspend_VDI] if vm.suspend_VDI in db.VDI else [])]


def _exchange(db: Store, snapshot: VM, vm: VM, fields: dict[str, object]) -> None:
    """Give a VM all that a snapshot keeps but its disks; those that it has are taken away from it."""
    for name, value in fields.items():
        setattr(vm, name, value)
    vm.generation_id = fresh_generation(vm.generation_id)
    vm.power_state = "Suspended" if snapshot.power_state == "Suspended" else "Halted"
    for vbd in drives(db, vm):
        delete_drive(db, vbd)
    delete_devices(db, vm)
    copy_devices(db, snapshot, vm, keep_macs=True)
    delete_metrics(db, vm)
    vm.metrics, vm.guest_metrics = copy_metrics(db, snapshot), copy_guest_metrics(db, snapshot)
    vm.parent = snapshot._ref


def _follow(db: Store, replaced: str, disk: Ref[VDI]) -> list[VDI]:
    """Make the snapshots of a replaced disk those of the new one, and return them."""
    if replaced == NULL:
        return []
    present = db.VDI.get(replaced)
    known = [db.VDI[ref] for ref in present.snapshots] if present is not None else list(db.VDI)
    found = [vdi for vdi in known if replaced == vdi.snapshot_of]
    for vdi in found:
        vdi.snapshot_of = disk
    return found


async def _tidy(work: Work, old: list[str], moved: list[VDI]) -> None:
    """Destroy disks that a VM has no more, and write beside images what snapshots belong to now.

    The revert is done, whether that works or not.
    """
    for vdi in moved:
        try:
            if not declared(vdi):
                await to_its_end(vdis.describe(work, vdi))
        except Fault as error:
            log.error(
                "the image of {vdi} does not know that its disk was replaced: {error}", vdi=named(vdi), error=error
            )
    for ref in old:
        try:
            await lasting(work, "VDI.destroy", ref)
        except Fault as error:
            log.error("the replaced disk {vdi} stays: {error}", vdi=ref, error=error)
