"""Messages of VBD: drives of VMs, as records and as what a running guest has."""

from __future__ import annotations

from contextlib import suppress

from hypervisor.api import Change, VolumeHandle
from xapi.calls.call import Call
from xapi.calls.claim import claim
from xapi.calls.registry import message
from xapi.cancelling import to_its_end
from xapi.datamodel import errors, records
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL, Ref
from xapi.operations import vbd as rules
from xapi.operations.busy import busy, held
from xapi.operations.refusal import refusal
from xapi.storage.repository import Storage
from xapi.vms import devices, domains, hotplug

VBD = Ref[records.VBD]
VDI = Ref[records.VDI]
VM = Ref[records.VM]
_ATTACHABLE = frozenset(["system", "user", "ephemeral", "suspend", "crashdump", "metadata", "rrd", "pvs_cache"])
"""Types of VDIs that a VBD may have."""
_BACKEND_KIND = "backend-kind"
"""Key of a VDI's sm_config that its VBDs take over."""


# Records


@message("VBD.create")
def create(call: Call, args: records.VBD_record) -> VBD:
    """Make a drive of a VM; it is plugged when the VM starts, or by plug."""
    db = call.db
    vm = db.VM[args["VM"]]
    empty = args.get("empty", False)
    vdi = None if empty else db.VDI[args["VDI"]]
    _check_medium(args["type"], args["mode"], vdi)
    _check_not_leaving(vm)
    number = _number(call, vm, args["userdevice"], args["type"])
    if vdi is not None:
        _check_agile(call, vm, vdi)
    fields = {name: value for name, value in args.items() if name in _COPIED}
    if vm.power_state == "Suspended":
        fields |= {name: value for name, value in args.items() if name in ("device", "currently_attached")}
    kind = vdi.sm_config.get(_BACKEND_KIND) if vdi is not None else None
    if kind is not None:
        fields["other_config"] = {**args.get("other_config", {}), _BACKEND_KIND: kind}
    userdevice = str(number) if args["userdevice"] == "autodetect" else args["userdevice"]
    row = db.VBD.create(
        **fields, VDI=NULL if vdi is None else vdi._ref, userdevice=userdevice, metrics=db.VBD_metrics.create()._ref
    )
    return row._ref


_COPIED = (
    "VM", "type", "mode", "empty", "bootable", "unpluggable", "other_config", "qos_algorithm_type",
    "qos_algorithm_params",
)  # fmt: skip


def _check_medium(kind: str, mode: str, vdi: records.VDI | None) -> None:
    """Raise Fault for a medium that this kind of drive cannot have."""
    if vdi is not None and vdi.type not in _ATTACHABLE:
        raise errors.VDI_INCOMPATIBLE_TYPE(vdi._ref, vdi.type)
    if kind == "CD" and mode != "RO":
        raise errors.VBD_CDS_MUST_BE_READONLY()
    if kind != "CD" and vdi is None:
        raise errors.VBD_NOT_REMOVABLE_MEDIA("in constructor")
    if mode == "RW" and vdi is not None and vdi.read_only:
        raise errors.VDI_READONLY(vdi._ref)


def _check_not_leaving(vm: records.VM) -> None:
    """Raise OTHER_OPERATION_IN_PROGRESS while a VM is on its way to another host."""
    for task, operation in vm.current_operations.items():
        if operation in ("migrate_send", "pool_migrate"):
            raise held("VM", vm._ref, task, operation)


def _number(call: Call, vm: records.VM, userdevice: str, kind: str) -> int:
    """Return the number of a new drive. Raises NOT_IMPLEMENTED, INVALID_DEVICE, DEVICE_ALREADY_EXISTS."""
    if kind == "Floppy":
        raise errors.NOT_IMPLEMENTED("VBD of type 'floppy' is not supported")
    used = _used(call, vm)
    if userdevice == "autodetect":
        last = devices.LAST_DISK + vm.is_control_domain
        number = next(iter(devices.free(used, last)), None)
    else:
        number = devices.disk_number(userdevice)
    if number is None:
        raise errors.INVALID_DEVICE(userdevice)
    if number in used:
        raise errors.DEVICE_ALREADY_EXISTS(userdevice)
    return number


def _used(call: Call, vm: records.VM) -> set[int | None]:
    """Return the numbers of a VM's drives, of where they are and of where they will be."""
    drives = [call.db.VBD[ref] for ref in vm.VBDs]
    return {number for drive in drives for number in (devices.disk_number(drive.userdevice), domains.position(drive))}


def _check_agile(call: Call, vm: records.VM, vdi: records.VDI) -> None:
    """Raise Fault for a disk that would keep a protected VM from being restarted elsewhere."""
    pool = call.pool
    protected = vm.ha_always_run and vm.ha_restart_priority == "restart"
    if not pool.ha_enabled or pool.ha_allow_overcommit or not protected:
        return
    sr = call.db.SR[vdi.SR]
    plugged = {pbd.host for pbd in (call.db.PBD[ref] for ref in sr.PBDs) if pbd.currently_attached}
    if not sr.shared or any(host.enabled and host._ref not in plugged for host in call.db.host):
        raise errors.HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED(sr._ref)


@message("VBD.destroy")
def destroy(call: Call, self: VBD) -> None:
    """Remove a drive that is not plugged, and not about to be."""
    row = call.db.VBD[self]
    if row.currently_attached or row.reserved or row.current_operations:
        vm = call.db.VM.get(row.VM)
        uuid = "" if vm is None else vm.uuid
        raise errors.OPERATION_NOT_ALLOWED(f"VBD '{row.uuid}' still attached to '{uuid}'")
    if row.metrics in call.db.VBD_metrics:
        call.db.VBD_metrics.delete(row.metrics)
    call.db.VBD.delete(self)


@message("VBD.set_userdevice")
def set_userdevice(call: Call, self: VBD, value: str) -> None:
    """Say where the drive is plugged next; clients exchange two drives so, by way of two of one number."""
    row = call.db.VBD[self]
    if devices.disk_number(value) is None:
        raise errors.INVALID_DEVICE(value)
    row.userdevice = value


@message("VBD.set_mode")
def set_mode(call: Call, self: VBD, value: records.enum_vbd_mode) -> None:
    """Say whether the guest may write; only while it is halted."""
    row = call.db.VBD[self]
    vm = call.db.VM[row.VM]
    if vm.power_state != "Halted":
        raise errors.VM_BAD_POWER_STATE(vm._ref, "halted", vm.power_state.lower())
    row.mode = value


@message("VBD.assert_attachable")
def assert_attachable(call: Call, self: VBD) -> None:
    """Raise the error that attaching the drive would meet now."""
    fault = refusal(call.db, call.db.VBD[self], "attach")
    if fault is not None:
        raise fault


@message("VM.get_allowed_VBD_devices")
def get_allowed_vbd_devices(call: Call, vm: VM) -> list[str]:
    """Return the numbers that a new drive may have, in order."""
    row = call.db.VM[vm]
    last = devices.LAST_DISK + row.is_control_domain
    return [str(number) for number in devices.free(_used(call, row), last)]


# Plugging


@message("VBD.plug")
async def plug(call: Call, self: VBD) -> None:
    """Give the drive to a guest that runs."""
    row = call.db.VBD[self]
    vm = call.db.VM[row.VM]
    if row.type == "Floppy":
        raise errors.NOT_IMPLEMENTED("VBD of type 'floppy' is not supported")
    metrics = call.db.VM_metrics.get(vm.metrics)
    if row.type != "CD" and row.mode == "RO" and metrics is not None and metrics.current_domain_type == "hvm":
        raise errors.DISK_VBD_MUST_BE_READWRITE_FOR_HVM(self)
    await hotplug.plug(call, row, domains.disk(row, await _volumes(call, row)))


@message("VBD.unplug")
async def unplug(call: Call, self: VBD) -> None:
    """Ask the guest to let the drive go, and take it away."""
    row = call.db.VBD[self]
    await hotplug.unplug(call, row, domains.disk(row, {}), force=False)


@message("VBD.unplug_force")
async def unplug_force(call: Call, self: VBD) -> None:
    """Take the drive away, whatever the guest does with it."""
    row = call.db.VBD[self]
    await hotplug.unplug(call, row, domains.disk(row, {}), force=True)


@message("VBD.unplug_force_no_safety_check")
async def unplug_force_unchecked(call: Call, self: VBD) -> None:
    """Do as `unplug_force` does, whose checks are none that an emulated host needs."""
    row = call.db.VBD[self]
    async with claim(call, "unplug_force", row):
        await hotplug.unplug(call, row, domains.disk(row, {}), force=True)


async def _volumes(call: Call, row: records.VBD) -> dict[str, VolumeHandle]:
    """Return the medium of a drive on its VM's host. Raises Fault."""
    if row.empty:
        return {}
    host = call.db.host[call.db.VM[row.VM].resident_on]
    return {row.VDI: await call[Storage].volume(call, host, call.db.VDI[row.VDI])}


@message("VBD.pause")
async def pause(call: Call, self: VBD) -> str:
    """Refuse: no driver of storage can change what lies under a drive in use."""
    row = call.db.VBD[self]
    raise errors.SR_OPERATION_NOT_SUPPORTED(call.db.VDI[row.VDI].SR)


@message("VBD.unpause")
async def unpause(call: Call, self: VBD, token: str) -> None:
    """Refuse, as pause does."""
    row = call.db.VBD[self]
    raise errors.SR_OPERATION_NOT_SUPPORTED(call.db.VDI[row.VDI].SR)


# Media


@message("VBD.insert")
async def insert(call: Call, vbd: VBD, vdi: VDI) -> None:
    """Put a CD into an empty drive.

    A drive of a running guest that is not plugged yet is plugged with it, as xapi does for PV guests.
    """
    row = call.db.VBD[vbd]
    medium = call.db.VDI[vdi]
    vm = call.db.VM[row.VM]
    _check_insertable(call, row, vm, medium)
    _put(call, row, vdi)
    try:
        await _follow(call, row, vm)
    except BaseException:
        _put(call, row, NULL)
        await to_its_end(_return_to(call, row))
        raise


def _check_insertable(call: Call, row: records.VBD, vm: records.VM, medium: records.VDI) -> None:
    """Raise Fault for a medium that a drive cannot take now; the rules have looked at the drive alone."""
    if not medium.managed:
        raise errors.VDI_NOT_MANAGED(medium._ref)
    _check_agile(call, vm, medium)
    for task, operation in busy(medium.current_operations, named=True):
        if operation not in ("mirror", "copy"):
            raise held("VDI", medium._ref, task, operation)
    if vm.power_state != "Halted" and (fault := rules.refuse_sharing(call.db, row, medium)) is not None:
        raise fault


def _put(call: Call, row: records.VBD, vdi: VDI) -> None:
    with call.db.atomic():
        row.VDI, row.empty = vdi, vdi == NULL


async def _follow(call: Call, row: records.VBD, vm: records.VM) -> None:
    """Make what is in a drive of a running guest what its row says."""
    if vm.power_state == "Halted":
        return
    disk = domains.disk(row, await _volumes(call, row))
    if hotplug.is_plugged(call, row):
        await hotplug.adjust(call, row, Change(medium=disk))
    elif vm.power_state == "Running":
        await hotplug.plug(call, row, disk)


@message("VBD.eject")
async def eject(call: Call, vbd: VBD) -> None:
    """Take the CD out of a drive, which stays plugged."""
    row = call.db.VBD[vbd]
    if hotplug.is_plugged(call, row):
        try:
            await hotplug.adjust(call, row, Change(medium=domains.disk(row, {})))
        except BaseException:
            await to_its_end(_return_to(call, row))
            raise
    _put(call, row, NULL)


async def _return_to(call: Call, row: records.VBD) -> None:
    """Have in a drive that is plugged what its row says again, if it can be had."""
    if hotplug.is_plugged(call, row):
        with suppress(Fault):
            await hotplug.adjust(call, row, Change(medium=domains.disk(row, await _volumes(call, row))))
