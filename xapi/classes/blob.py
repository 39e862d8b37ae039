"""Messages of blob. None is made before HTTP serves their content: nobody could fill it."""

from __future__ import annotations

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import records
from xapi.datamodel.types import Ref


@message("blob.destroy")
def destroy(call: Call, self: Ref[records.blob]) -> None:
    """Remove a blob."""
    call.db.blob.delete(self)
