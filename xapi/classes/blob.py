"""Messages of blob. None is made before HTTP serves their content: nobody could fill it."""

from __future__ import annotations

from xapi import records
from xapi.call import Call
from xapi.registry import message
from xapi.types import Ref


@message("blob.destroy")
def destroy(call: Call, self: Ref[records.blob]) -> None:
    """Remove a blob."""
    call.db.blob.delete(self)
