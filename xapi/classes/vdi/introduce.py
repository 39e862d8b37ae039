"""Messages of VDI that make the row of an image that is there: found by the SR's driver, or as they are told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from xapi.calls.call import Call
from xapi.calls.claim import SHORT, claim
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref
from xapi.storage import vdis, volumes
from xapi.storage.repository import Storage

VDI = Ref[records.VDI]
SR = Ref[records.SR]
Pool = Ref[records.pool]
Keys = Mapping[str, str]


@message("VDI.introduce")
async def introduce(
    call: Call,
    uuid: str,
    name_label: str,
    name_description: str,
    SR: SR,
    type: records.enum_vdi_type,
    sharable: bool,
    read_only: bool,
    other_config: Keys,
    location: str,
    xenstore_data: Keys,
    sm_config: Keys,
    managed: bool,
    virtual_size: int,
    physical_utilisation: int,
    metadata_of_pool: Pool,
    is_a_snapshot: bool,
    snapshot_time: datetime,
    snapshot_of: VDI,
) -> VDI:
    """Make the row of an image that is on the storage, which alone says what it is."""
    sr = call.db.SR[SR]
    async with claim(call, "vdi_introduce", sr, patience=SHORT):
        await call[Storage].repository(call, sr)
        vdis.assert_unknown(call.db, sr, location, unless=uuid)
        said: dict[str, object] = {"type": type, "sharable": sharable}
        said |= {"name_label": name_label} if name_label else {}
        said |= {"name_description": name_description} if name_description else {}
        more = {"other_config": other_config, "xenstore_data": xenstore_data}
        row = await vdis.introduce(call, sr, location, {**said, **more})
        if row.managed:
            await vdis.describe(call, row, **said)
    made: VDI = row._ref
    return made


@message("VDI.pool_introduce", "VDI.db_introduce")
def introduce_row(
    call: Call,
    uuid: str,
    name_label: str,
    name_description: str,
    SR: SR,
    type: records.enum_vdi_type,
    sharable: bool,
    read_only: bool,
    other_config: Keys,
    location: str,
    xenstore_data: Keys,
    sm_config: Keys,
    managed: bool,
    virtual_size: int,
    physical_utilisation: int,
    metadata_of_pool: Pool,
    is_a_snapshot: bool,
    snapshot_time: datetime,
    snapshot_of: VDI,
    cbt_enabled: bool,
) -> VDI:
    """Make a row alone: the SR's driver says so, or a host that joins."""
    fields = dict(locals())
    del fields["call"]
    if call.message.name == "db_introduce":
        vdis.may_write(call, SR)
    vdis.assert_unknown(call.db, call.db.SR[SR], location)
    if not volumes.is_uuid(uuid.lower()):
        raise errors.UUID_INVALID("VDI", uuid)
    made: VDI = call.db.VDI.create(**fields)._ref
    return made
