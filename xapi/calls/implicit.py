"""The behaviour of implicit messages: one factory a kind, 1,580 messages.

A factory takes the table and the message and gives the function that dispatch runs. `READING` kinds
change nothing, so dispatch spares them the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter

from xapi.calls.call import Call
from xapi.calls.registry import Function
from xapi.datamodel import Message, errors
from xapi.datamodel.types import MapType
from xapi.store.query import select
from xapi.store.rows import R, Row, Table
from xapi.wire.fragments import RecordOf, Records, Refs


def _getter(table: Table[Row], message: Message) -> Function:
    assert message.field is not None
    rows, name, read = table.rows, table.name, attrgetter(message.field.name)

    def run(call: Call, self: str) -> object:
        try:
            return read(rows[self])
        except KeyError:
            raise errors.HANDLE_INVALID(name, self) from None

    return run


def _setter(table: Table[Row], message: Message) -> Function:
    assert message.field is not None
    name = message.field.name

    def run(call: Call, self: str, value: object) -> None:
        setattr(table[self], name, value)

    return run


def add_to_map_field(table: Table[R], ref: str, name: str, key: object, value: object) -> None:
    """Add a new key to a map. Raises HANDLE_INVALID, INTERNAL_ERROR for an empty key, MAP_DUPLICATE_KEY."""
    row = table[ref]
    present: Mapping[object, object] = getattr(row, name)
    if key == "":
        raise errors.INTERNAL_ERROR("the key of a map cannot be empty")
    if key in present:
        raise errors.MAP_DUPLICATE_KEY(table.name, name, ref, str(key))
    setattr(row, name, {**present, key: value})


def remove_from_map_field(table: Table[R], ref: str, name: str, key: object) -> None:
    """Remove a key from a map, if it is there. Raises HANDLE_INVALID."""
    row = table[ref]
    setattr(row, name, {k: v for k, v in getattr(row, name).items() if k != key})


def _add(table: Table[Row], message: Message) -> Function:
    field = message.field
    assert field is not None
    name = field.name

    def add_to_map(call: Call, self: str, key: object, value: object) -> None:
        add_to_map_field(table, self, name, key, value)

    def add_to_set(call: Call, self: str, value: object) -> None:
        row = table[self]
        present: tuple[object, ...] = getattr(row, name)
        if value not in present:
            setattr(row, name, (*present, value))

    return add_to_map if isinstance(field.type, MapType) else add_to_set


def _remove(table: Table[Row], message: Message) -> Function:
    field = message.field
    assert field is not None
    name = field.name

    def remove_from_map(call: Call, self: str, key: object) -> None:
        remove_from_map_field(table, self, name, key)

    def remove_from_set(call: Call, self: str, value: object) -> None:
        row = table[self]
        setattr(row, name, tuple(item for item in getattr(row, name) if item != value))

    return remove_from_map if isinstance(field.type, MapType) else remove_from_set


def _get_record(table: Table[Row], message: Message) -> Function:
    return lambda call, self: RecordOf(table[self])


def _get_by_uuid(table: Table[Row], message: Message) -> Function:
    return lambda call, uuid: table.by_uuid(uuid)._ref


def _get_by_label(table: Table[Row], message: Message) -> Function:
    return lambda call, label: Refs(row._ref for row in table.by_name_label(label))


def _get_all(table: Table[Row], message: Message) -> Function:
    return lambda call: Refs(table.rows)


def _get_all_records(table: Table[Row], message: Message) -> Function:
    return lambda call: Records(table.rows.values())


def _get_all_where(table: Table[Row], message: Message) -> Function:
    return lambda call, expr: Refs(row._ref for row in select(table, expr))


def _get_all_records_where(table: Table[Row], message: Message) -> Function:
    return lambda call, expr: Records(select(table, expr))


def _make(table: Table[Row], message: Message) -> Function:
    arguments = constructor_fields(table)

    def run(call: Call, args: Mapping[str, object]) -> str:
        return table.create(**{name: value for name, value in args.items() if name in arguments})._ref

    return run


def constructor_fields(table: Table[R]) -> dict[str, bool]:
    """Return the fields that a constructor's record is read for, and whether each is required."""
    return {
        field.name: field.required
        for field in table.cls.record_fields
        if field.access != "RO/runtime" and not field.derived
    }


def _delete(table: Table[Row], message: Message) -> Function:
    return lambda call, self: table.delete(self)


FACTORIES: Mapping[str, Callable[[Table[Row], Message], Function]] = {
    "getter": _getter,
    "setter": _setter,
    "add": _add,
    "remove": _remove,
    "get_record": _get_record,
    "get_by_uuid": _get_by_uuid,
    "get_by_label": _get_by_label,
    "get_all": _get_all,
    "get_all_records": _get_all_records,
    "get_all_where": _get_all_where,
    "get_all_records_where": _get_all_records_where,
    "make": _make,
    "delete": _delete,
}

READING = frozenset(FACTORIES) - {"setter", "add", "remove", "make", "delete"}
