"""Messages of console: the records come and go with domains (`xapi.vms.reconcile`), not by calls."""

from __future__ import annotations

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref

Console = Ref[records.console]


@message("console.create")
def create(call: Call, args: records.console_record) -> Console:
    """Refuse, as xapi does."""
    raise errors.NOT_IMPLEMENTED("Console.create")


@message("console.destroy")
def destroy(call: Call, self: Console) -> None:
    """Refuse, as xapi does."""
    raise errors.NOT_IMPLEMENTED("Console.destroy")
