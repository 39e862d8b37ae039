"""Messages of VDI that only write rows: of an SR's own driver, whose session says so, and of hosts that join."""

from __future__ import annotations

from collections.abc import Mapping

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import records
from xapi.datamodel.types import Ref
from xapi.storage import vdis

VDI = Ref[records.VDI]
SR = Ref[records.SR]
Pool = Ref[records.pool]
Keys = Mapping[str, str]


_RECORDED = (
    "managed", "missing", "virtual_size", "physical_utilisation", "is_a_snapshot", "snapshot_of", "snapshot_time",
    "cbt_enabled",
)  # fmt: skip


@message(*[f"VDI.set_{name}" for name in _RECORDED])
def record(call: Call, self: VDI, value: object) -> None:
    """Record what the SR's driver says of an image, in the field that the message names."""
    row = call.db.VDI[self]
    vdis.may_write(call, row.SR)
    setattr(row, call.message.name.removeprefix("set_"), value)


@message("VDI.set_sharable")
async def set_sharable(call: Call, self: VDI, value: bool) -> None:
    """Record whether several VMs may write at a time, here and beside the image."""
    row = call.db.VDI[self]
    vdis.may_write(call, row.SR)
    await vdis.describe(call, row, sharable=value)


@message("VDI.set_read_only")
async def set_read_only(call: Call, self: VDI, value: bool) -> None:
    """Record whether VMs may write, here and beside the image."""
    row = call.db.VDI[self]
    vdis.may_write(call, row.SR)
    await vdis.describe(call, row, read_only=value)
