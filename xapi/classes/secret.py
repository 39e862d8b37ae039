"""Messages of secret."""

from __future__ import annotations

from collections.abc import Mapping

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref


@message("secret.introduce")
def introduce(call: Call, uuid: str, value: str, other_config: Mapping[str, str]) -> Ref[records.secret]:
    """Take over a secret with the uuid that it has elsewhere."""
    if any(row.uuid == uuid for row in call.db.secret):
        raise errors.DB_UNIQUENESS_CONSTRAINT_VIOLATION("secret", "uuid", uuid)
    return call.db.secret.create(uuid=uuid, value=value, other_config=other_config)._ref
