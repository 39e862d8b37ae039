"""Messages of message: alerts for people, about one object each.

An alert is kept like any object, but its class is not one of the database's: no setters, field names
in expressions as on the wire, and events of add and del only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from operator import attrgetter

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.lexical import parse_datetime
from xapi.datamodel.types import Ref
from xapi.events.alerts import keep
from xapi.store.query import select
from xapi.wire.fragments import RecordOf, Records, Refs

_CLASSES = {"vm": "VM", "host": "host", "sr": "SR", "pool": "pool", "vmpp": "VMPP", "vmss": "VMSS"}
_CLASSES |= {"pvs_proxy": "PVS_proxy", "vdi": "VDI", "certificate": "Certificate"}


@message("message.create")
def create(call: Call, name: str, priority: int, cls: str, obj_uuid: str, body: str) -> Ref[records.message]:
    """Raise an alert about an existing object."""
    if not 1 <= priority <= 5:
        raise errors.INVALID_VALUE("priority", str(priority))
    _check_object(call, cls, obj_uuid)
    made = keep(call.db, name=name, priority=priority, cls=cls, obj_uuid=obj_uuid, body=body, timestamp=call.now)
    return made._ref


def _check_object(call: Call, cls: str, obj_uuid: str) -> None:
    _ = call.db.tables[_CLASSES.get(cls.lower(), cls)].by_uuid(obj_uuid)


@message("message.destroy")
def destroy(call: Call, self: Ref[records.message]) -> None:
    """Remove an alert."""
    call.db.message.delete(self)


@message("message.destroy_many")
def destroy_many(call: Call, messages: tuple[Ref[records.message], ...]) -> None:
    """Remove some alerts: all of them, or none when one does not exist."""
    for ref in messages:
        call.db.message.delete(ref)


@message("message.destroy_all")
def destroy_all(call: Call, filters: Mapping[str, str]) -> None:
    """Remove the alerts that fit all filters: ``after`` and ``before`` (times), ``priority``."""
    unknown = filters.keys() - {"after", "before", "priority"}
    if unknown:
        raise errors.INVALID_VALUE("filters", ", ".join(sorted(unknown)))
    try:
        after = parse_datetime(filters["after"]) if "after" in filters else None
        before = parse_datetime(filters["before"]) if "before" in filters else None
        priority = int(filters["priority"]) if "priority" in filters else None
    except ValueError as error:
        raise errors.INVALID_VALUE("filters", str(error)) from None
    for row in list(call.db.message):
        fits = (after is None or row.timestamp > after) and (before is None or row.timestamp < before)
        if fits and (priority is None or row.priority == priority):
            call.db.message.delete(row._ref)


def _newest_first(rows: Iterable[records.message]) -> Records:
    return Records(sorted(rows, key=attrgetter("timestamp"), reverse=True))


@message("message.get")
def get(call: Call, cls: str, obj_uuid: str, since: datetime) -> Records:
    """Return the alerts about one object since a time."""
    _check_object(call, cls, obj_uuid)
    return _newest_first(
        row for row in call.db.message if (row.cls, row.obj_uuid) == (cls, obj_uuid) and row.timestamp > since
    )


@message("message.get_since")
def get_since(call: Call, since: datetime) -> Records:
    """Return all alerts since a time."""
    return _newest_first(row for row in call.db.message if row.timestamp > since)


@message("message.get_all")
def get_all(call: Call) -> Refs:
    """Return all alerts."""
    return Refs(call.db.message.rows)


@message("message.get_all_records")
def get_all_records(call: Call) -> Records:
    """Return the records of all alerts."""
    return _newest_first(call.db.message)


@message("message.get_all_records_where")
def get_all_records_where(call: Call, expr: str) -> Records:
    """Return the records of the alerts that an expression selects."""
    return _newest_first(select(call.db.message, expr))


@message("message.get_record")
def get_record(call: Call, self: Ref[records.message]) -> RecordOf:
    """Return all fields of one alert."""
    return RecordOf(call.db.message[self])


@message("message.get_by_uuid")
def get_by_uuid(call: Call, uuid: str) -> Ref[records.message]:
    """Return the alert with this uuid."""
    return call.db.message.by_uuid(uuid)._ref
