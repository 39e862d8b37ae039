"""Messages of VM that make one VM from another, and take one back to a snapshot."""

from __future__ import annotations

from dataclasses import replace

from twisted.logger import Logger

from hypervisor.api import HostError
from xapi.calls.call import Call
from xapi.calls.claim import claim, declared
from xapi.calls.parts import part
from xapi.calls.registry import message
from xapi.cancelling import to_its_end
from xapi.datamodel import errors, records
from xapi.datamodel.types import NULL, Ref
from xapi.events.alerts import alert
from xapi.log.guests import named
from xapi.operations.sr import driver
from xapi.storage.repository import Storage
from xapi.storage.unfinished import making
from xapi.vms import copies, power
from xapi.vms.copies import CHECKPOINT, CLONE, SNAPSHOT, How, duplicate
from xapi.vms.faults import fault_of, told
from xapi.vms.reconcile import Reconciler, write_halted
from xapi.vms.revert import revert as take_back

log = Logger()

VM = Ref[records.VM]


@message("VM.clone")
async def clone(call: Call, vm: VM, new_name: str) -> VM:
    """Make a VM like another, with disks that are quick clones of the other's."""
    row = call.db.VM[vm]
    return (await duplicate(call, row, new_name, _of(row, CLONE)))._ref


@message("VM.copy")
async def copy(call: Call, vm: VM, new_name: str, sr: Ref[records.SR]) -> VM:
    """Make a VM like another, with disks that are full copies, on one SR or on those of the other's disks."""
    row = call.db.VM[vm]
    where = call.db.SR.get(sr)
    if where is not None and where.content_type == "iso":
        raise errors.OPERATION_NOT_ALLOWED("Cannot copy a VM's disks to an ISO SR")
    how = How("copy", "VDI.copy", sr=NULL if where is None else where._ref)
    return (await duplicate(call, row, new_name, _of(row, how)))._ref


def _of(row: records.VM, how: How) -> How:
    """Return how to copy a VM: what is made of a snapshot is halted, so it needs no memory."""
    return replace(how, memory=not row.is_a_snapshot)


@message("VM.csvm", claims_itself=True)
async def csvm(call: Call, vm: VM) -> VM:
    """Make a suspended VM like another, as very old clients asked for it."""
    row = call.db.VM[vm]
    _ = call.db.VDI[row.suspend_VDI]
    async with declared(call, row):
        made = await duplicate(call, row, f"{row.name_label}-cloned-suspended", CLONE)
    body = f"VM '{row.name_label}' (uuid: {row.uuid}) cloned (new uuid: {made.uuid})"
    alert(call.db, call.now, "VM_CLONED", "VM", row, body)
    return made._ref


@message("VM.snapshot", claims_itself=True)
async def snapshot(call: Call, vm: VM, new_name: str, ignore_vdis: tuple[Ref[records.VDI], ...]) -> VM:
    """Keep a VM's record and disks as they are now, whether it runs or not."""
    row = call.db.VM[vm]
    async with declared(call, row):
        made = await duplicate(call, row, new_name, replace(SNAPSHOT, ignored=frozenset(ignore_vdis)))
    body = f"VM '{row.name_label}' (uuid: {row.uuid}) snapshotted, snapshot name: {new_name}"
    alert(call.db, call.now, "VM_SNAPSHOTTED", "VM", row, body)
    return made._ref


@message("VM.checkpoint", claims_itself=True)
async def checkpoint(call: Call, vm: VM, new_name: str) -> VM:
    """Keep a VM's record, disks and memory as they are now."""
    row = call.db.VM[vm]
    async with declared(call, row):
        if row.power_state == "Running":
            made = await _checkpoint_running(call, row, new_name)
        else:
            made = await duplicate(call, row, new_name, CHECKPOINT, info={})
    body = f"VM '{row.name_label}' (uuid: {row.uuid}) checkpointed, snapshot name: {new_name}"
    alert(call.db, call.now, "VM_CHECKPOINTED", "VM", row, body)
    return made._ref


async def _checkpoint_running(call: Call, row: records.VM, new_name: str) -> records.VM:
    """Suspend a guest where it is, copy its disks, and let it go on, whatever became of the copy."""
    _assert_snapshots(call, row)
    info = copies.snapshot_info(row)
    with making(call):
        saved = await power.save(call, row)
        try:
            made = await duplicate(call, row, new_name, CHECKPOINT, info=info, saved=saved._ref)
        except BaseException:
            await to_its_end(_give_up(call, row, saved))
            raise
    await to_its_end(_go_on(call, row))
    return made


async def _give_up(call: Call, row: records.VM, saved: records.VDI) -> None:
    """Let a guest go on without the image of its memory."""
    try:
        await _go_on(call, row)
    finally:
        await call[Storage].destroy(call, saved)


def _assert_snapshots(call: Call, row: records.VM) -> None:
    """Raise SR_OPERATION_NOT_SUPPORTED when a disk cannot be snapshotted, before the guest is disturbed."""
    for vbd in copies.drives(call.db, row):
        vdi = call.db.VDI.get(vbd.VDI) if vbd.type != "CD" else None
        sr = None if vdi is None else call.db.SR.get(vdi.SR)
        if sr is not None:
            sm = driver(call.db, sr.type)
            if sm is None or "VDI_SNAPSHOT" not in sm.features:
                raise errors.SR_OPERATION_NOT_SUPPORTED(row._ref)


async def _go_on(call: Call, row: records.VM) -> None:
    """Let a guest go on that was suspended where it is. Raises VM_CHECKPOINT_RESUME_FAILED; then it is halted."""
    backend = power.backend(call, row)
    try:
        await backend.resume(row.uuid)
        await call[Reconciler].look(row)
    except HostError as error:
        if error.is_unknown:  # it goes on, or does when its host is back
            raise fault_of(error, row) from error
        log.error("{vm} does not go on after its checkpoint: {error}", vm=named(row), error=error)
        with told(row):
            await backend.destroy(row.uuid)
        with call.db.atomic():
            write_halted(call.db, row)
        raise errors.VM_CHECKPOINT_RESUME_FAILED(row._ref) from error


@message("VM.revert", claims_itself=True)
async def revert(call: Call, snapshot: VM) -> None:
    """Make a VM what it was when the snapshot was made; a VM that has gone is made anew."""
    row = call.db.VM[snapshot]
    vm = call.db.VM.get(row.snapshot_of)
    async with declared(call, row):
        if vm is None:
            vm = await take_back(call, row, None)
        else:
            async with claim(call, "reverting", vm):
                if vm.power_state != "Halted":
                    await part(call, "VM.hard_shutdown", vm._ref)
                await take_back(call, row, vm)
    body = f"VM '{vm.name_label}' (uuid: {vm.uuid}) reverted to snapshot: {row.name_label} (uuid {row.uuid})"
    alert(call.db, call.now, "VM_SNAPSHOT_REVERTED", "VM", vm, body)
