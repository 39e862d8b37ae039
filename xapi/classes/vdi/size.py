"""Messages of VDI that make a disk larger."""

from __future__ import annotations

from xapi.calls.call import Call
from xapi.calls.claim import SHORT
from xapi.calls.registry import message
from xapi.datamodel import records
from xapi.datamodel.types import Ref
from xapi.storage import vdis

VDI = Ref[records.VDI]


@message("VDI.resize", patience=SHORT)
async def resize(call: Call, vdi: VDI, size: int) -> None:
    """Make a disk larger that no VM uses."""
    row = call.db.VDI[vdi]
    await vdis.resize(call, row, size)


@message("VDI.resize_online", patience=SHORT)
async def resize_online(call: Call, vdi: VDI, size: int) -> None:
    """Make a disk larger though a VM uses it."""
    row = call.db.VDI[vdi]
    await vdis.resize(call, row, size)
