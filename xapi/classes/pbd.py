"""Messages of PBD: an SR's connection to a host."""

from __future__ import annotations

from collections.abc import Mapping

from xapi.calls.call import Call
from xapi.calls.claim import SHORT, changed, claim, declared
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref
from xapi.operations.busy import held
from xapi.storage import device_config, srs, vdis
from xapi.storage.repository import Storage

PBD = Ref[records.PBD]


@message("PBD.create")
async def create(call: Call, args: records.PBD_record) -> PBD:
    """Make the connection of an SR to a host; it is not plugged."""
    sr, host = call.db.SR[args["SR"]], call.db.host[args["host"]]
    async with claim(call, "pbd_create", sr, patience=SHORT):
        with call.db.atomic():
            made: PBD = srs.add_pbd(call.db, sr, host, args["device_config"])._ref
    return made


@message("PBD.destroy")
async def destroy(call: Call, self: PBD) -> None:
    """Remove a connection that is not plugged, with its secrets."""
    row = call.db.PBD[self]
    async with claim(call, "pbd_destroy", call.db.SR[row.SR], patience=SHORT):
        if row.currently_attached:
            raise errors.OPERATION_NOT_ALLOWED("PBD is currently attached")
        with call.db.atomic():
            srs.drop_pbd(call.db, row)


@message("PBD.set_device_config")
def set_device_config(call: Call, self: PBD, value: Mapping[str, str]) -> None:
    """Replace the settings: the SR's driver does so."""
    row = call.db.PBD[self]
    vdis.may_write(call, row.SR)
    before = row.device_config
    row.device_config = device_config.kept(call.db, value)
    device_config.forget_secrets(call.db, before)


@message("PBD.plug", patience=SHORT)
async def plug(call: Call, self: PBD) -> None:
    """Connect an SR to a host; harmless when it is."""
    row = call.db.PBD[self]
    await srs.plug(call, call.db.SR[row.SR], row)


@message("PBD.unplug", claims_itself=True)
async def unplug(call: Call, self: PBD) -> None:
    """Disconnect an SR from a host, when nothing there uses its disks; harmless when it is."""
    row = call.db.PBD[self]
    sr = call.db.SR[row.SR]
    await _idle(call, sr)
    async with declared(call, row, patience=SHORT):
        if not row.currently_attached:
            return
        srs.assert_unpluggable(call.db, sr, row)
        await call[Storage].unplug(call, sr, row)
        row.currently_attached = False


async def _idle(call: Call, sr: records.SR) -> None:
    """Return when no operation of a VDI of an SR runs. Raises OTHER_OPERATION_IN_PROGRESS."""

    def busy() -> records.VDI | None:
        rows = (call.db.VDI[ref] for ref in sr.VDIs)
        return next((vdi for vdi in rows if vdi.current_operations), None)

    if not await changed(call.db, call.clock, lambda: busy() is None, SHORT):
        vdi = busy()
        if vdi is not None:
            raise held("VDI", vdi._ref, *next(iter(vdi.current_operations.items())))
