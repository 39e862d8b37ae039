"""Messages of VDI: each a claim, work of the storage, and the rows that follow."""

from __future__ import annotations

from collections.abc import Mapping

from hypervisor.api import Description
from xapi.calls.call import Call
from xapi.calls.claim import SHORT, claim, claims, declared
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import NULL, Ref
from xapi.storage import vdis, volumes
from xapi.storage.faults import answering
from xapi.storage.repository import Storage

VDI = Ref[records.VDI]
SR = Ref[records.SR]
Pool = Ref[records.pool]
Keys = Mapping[str, str]


# Making and removing


@message("VDI.create")
async def create(call: Call, args: records.VDI_record) -> VDI:
    """Make an empty disk."""
    if args["type"] == "cbt_metadata":
        raise errors.VDI_INCOMPATIBLE_TYPE("", "cbt_metadata")
    sr = call.db.SR[args["SR"]]
    said = Description(
        name_label=args.get("name_label", ""),
        name_description=args.get("name_description", ""),
        type=args["type"],
        read_only=args["read_only"],
        sharable=args["sharable"],
    )
    rest = {name: value for name, value in args.items() if name in ("other_config", "xenstore_data", "tags")}
    async with claim(call, "vdi_create", sr, patience=SHORT):
        row = await vdis.create(call, sr, args["virtual_size"], said, args.get("sm_config", {}), rest)
    made: VDI = row._ref
    return made


@message("VDI.destroy")
async def destroy(call: Call, self: VDI) -> None:
    """Delete a disk with its data."""
    row = call.db.VDI[self]
    async with claims(call, [("vdi_destroy", call.db.SR[row.SR]), ("destroy", row)], patience=SHORT):
        await call[Storage].repository(call, call.db.SR[row.SR])
        if not row.managed:
            raise errors.VDI_NOT_MANAGED(self)
        if any((vbd := call.db.VBD[ref]).currently_attached or vbd.reserved for ref in row.VBDs):
            raise errors.VDI_IN_USE(self, "destroy")
        await call[Storage].remove(call, row)


@message("VDI.forget", patience=SHORT)
async def forget(call: Call, vdi: VDI) -> None:
    """Drop the row; a scan finds the image again."""
    row = call.db.VDI[vdi]
    with call.db.atomic():
        volumes.drop(call.db, row)


# Copies


@message("VDI.snapshot", patience=SHORT)
async def snapshot(call: Call, vdi: VDI, driver_params: Keys) -> VDI:
    """Keep what a disk holds now as a new one."""
    row = call.db.VDI[vdi]
    try:
        new: VDI = (await vdis.snapshot(call, row))._ref
    except errors.Fault as fault:
        if fault.code == "SR_BACKEND_FAILURE_38":
            raise errors.UNIMPLEMENTED_IN_SM_BACKEND(row.SR) from fault
        raise
    return new


@message("VDI.clone", patience=SHORT)
async def clone(call: Call, vdi: VDI, driver_params: Keys) -> VDI:
    """Make a disk that shares what another holds."""
    row = call.db.VDI[vdi]
    new: VDI = (await vdis.clone(call, row))._ref
    return new


@message("VDI.copy", patience=SHORT)
async def copy(call: Call, vdi: VDI, sr: SR, base_vdi: VDI, into_vdi: VDI) -> VDI:
    """Write all that a disk holds into a new one, or into one that exists; what `base_vdi` saves is written, too."""
    row = call.db.VDI[vdi]
    if not row.managed:
        raise errors.VDI_NOT_MANAGED(vdi)
    other = call.db.VDI.get(into_vdi)
    if other is None:
        new: VDI = (await vdis.copy(call, row, call.db.SR[sr]))._ref
        return new
    if other.read_only:
        raise errors.VDI_READONLY(into_vdi)
    if other.virtual_size < row.virtual_size:
        raise errors.VDI_TOO_SMALL(into_vdi, str(row.virtual_size))
    async with claim(call, "copy", other, patience=SHORT):
        await vdis.copy_into(call, row, other)
    return into_vdi


@message("VDI.revert", patience=SHORT)
async def revert(call: Call, snapshot: VDI) -> None:
    """Set a disk back to a snapshot; no storage here can."""
    row = call.db.VDI[snapshot]
    async with claim(call, "revert_from", call.db.VDI[row.snapshot_of], patience=SHORT):
        await call[Storage].repository(call, call.db.SR[row.SR])
        raise errors.UNIMPLEMENTED_IN_SM_BACKEND(row.SR)


# Settings


@message("VDI.update", patience=SHORT)
async def update(call: Call, vdi: VDI) -> None:
    """Look at a disk's image anew."""
    row = call.db.VDI[vdi]
    await vdis.look(call, row)


@message("VDI.set_name_label")
async def set_name_label(call: Call, self: VDI, value: str) -> None:
    """Name a disk, here and beside its image."""
    await vdis.describe(call, call.db.VDI[self], name_label=value)


@message("VDI.set_name_description")
async def set_name_description(call: Call, self: VDI, value: str) -> None:
    """Describe a disk, here and beside its image."""
    await vdis.describe(call, call.db.VDI[self], name_description=value)


@message("VDI.set_on_boot", claims_itself=True)
async def set_on_boot(call: Call, self: VDI, value: records.enum_on_boot) -> None:
    """Say whether what is written to a disk lasts until its VM starts again; what it holds now does."""
    row = call.db.VDI[self]
    _assert_halted(call, row)
    async with declared(call, row, patience=SHORT):
        if value == "reset":
            await vdis.freeze(call, row)
        else:
            await call[Storage].repository(call, call.db.SR[row.SR])
        row.on_boot = value


@message("VDI.set_allow_caching")
def set_allow_caching(call: Call, self: VDI, value: bool) -> None:
    """Permit hosts to cache reads."""
    row = call.db.VDI[self]
    _assert_halted(call, row)
    row.allow_caching = value


def _assert_halted(call: Call, vdi: records.VDI) -> None:
    """Raise VM_BAD_POWER_STATE for a disk of a VM that is not halted."""
    for ref in vdi.VBDs:
        vm = call.db.VM.get(call.db.VBD[ref].VM)
        if vm is not None and vm.power_state != "Halted":
            raise errors.VM_BAD_POWER_STATE(vm._ref, "halted", vm.power_state.lower())


# What is left of other times, and what only tools ask


@message("VDI.force_unlock", patience=SHORT)
async def force_unlock(call: Call, vdi: VDI) -> None:
    """Refuse: there are no locks to break."""
    row = call.db.VDI[vdi]
    await call[Storage].repository(call, call.db.SR[row.SR])
    raise errors.MESSAGE_DEPRECATED()


@message("VDI.checksum")
async def checksum(call: Call, self: VDI) -> str:
    """Return the MD5 of all that a disk holds."""
    row = call.db.VDI[self]
    used = await vdis.prepared(call, row)
    with answering():
        return await used.storage.checksum(used.volume(row))


@message("VDI.db_forget")
def db_forget(call: Call, vdi: VDI) -> None:
    """Drop the row: the SR's driver says that the image is gone."""
    row = call.db.VDI[vdi]
    vdis.may_write(call, row.SR)
    volumes.drop(call.db, row)


@message("VDI.set_metadata_of_pool")
def set_metadata_of_pool(call: Call, self: VDI, value: Pool) -> None:
    """Record whose database a disk holds."""
    row = call.db.VDI[self]
    vdis.may_write(call, row.SR)
    if row.type == "cbt_metadata":
        raise errors.VDI_INCOMPATIBLE_TYPE(self, row.type)
    row.metadata_of_pool = value if value in call.db.pool else NULL
