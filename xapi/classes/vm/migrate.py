"""Messages of VM that move its guest: to its own host so far."""

from __future__ import annotations

from collections.abc import Mapping

from xapi.calls.call import Call
from xapi.calls.claim import SHORT, claim, declared
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref
from xapi.vms import power

VM = Ref[records.VM]
Host = Ref[records.host]


@message("VM.pool_migrate", claims_itself=True)
async def pool_migrate(call: Call, vm: VM, host: Host, options: Mapping[str, str]) -> None:
    """Take a running guest into a new domain on the VM's own host, as xapi does; other hosts are not reached yet."""
    row, where = call.db.VM[vm], call.db.host[host]
    force = options.get("force", "").lower() == "true"
    async with declared(call, row, strict=not force):
        if row.resident_on != host:
            raise errors.NOT_IMPLEMENTED("VM.pool_migrate")
        async with claim(call, "vm_migrate", where, patience=SHORT):
            await power.move(call, row, where)
