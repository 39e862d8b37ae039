"""A whole VM record as one text, which a snapshot keeps so that revert can bring it back (`snapshot_metadata`).

The form is xapi's, so that such a text survives a move between toolstacks: an S-expression of pairs of a field's name
in the database and its stored text, from the last name to the first; sets and maps are S-expressions in there again.
"""

from __future__ import annotations

from typing import Any

from xapi.datamodel import Class, Field, errors, records
from xapi.datamodel.lexical import DecodeError, parse_datetime
from xapi.datamodel.types import BoolType, DateTimeType, FloatType, IntType, MapType, SetType, StringType, Type
from xapi.vms.sexpr import listing, parse, quote


def write(row: records.VM) -> str:
    """Return the text of a row, all its fields as they are now."""
    texts = {field.column: _text(field.type, getattr(row, field.name)) for field in _fields(row._table.cls)}
    texts["_ref"] = row._ref
    return listing(listing((quote(name), quote(texts[name]))) for name in sorted(texts, reverse=True))


def read(text: str, cls: Class) -> dict[str, Any]:
    """Return the values of a text by the names of the fields that can be assigned; the others are left out.

    Raises INVALID_VALUE.
    """
    by_column = {field.column: field for field in _fields(cls) if not field.derived}
    values = {}
    for name, stored in _pairs(text):
        field = by_column.get(name)
        if field is not None:
            try:
                values[field.name] = _value(field.type, stored)
            except ValueError as error:  # DecodeError is one
                raise errors.INVALID_VALUE(f"snapshot_metadata:{name}", str(error)) from None
    return values


def _fields(cls: Class) -> list[Field]:
    return [field for field in cls.fields.values() if field.life.state != "Removed"]


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        return [_pair(item) for item in _list(text)]
    except ValueError:
        raise errors.INVALID_VALUE("Invalid vm_string", "") from None


def _list(text: str) -> list[object]:
    found = parse(text)
    if not isinstance(found, list):
        raise ValueError("a list is expected")
    return found


def _text(kind: Type, value: Any) -> str:
    if isinstance(kind, SetType):
        return listing(quote(_text(kind.item, item)) for item in value)
    if isinstance(kind, MapType):
        return listing(
            listing((quote(_text(kind.key, key)), quote(_text(kind.value, item)))) for key, item in value.items()
        )
    return kind.stored(value)


def _value(kind: Type, text: str) -> object:
    """Return the value of a stored text. Raises ValueError."""
    if isinstance(kind, SetType):
        return tuple(_value(kind.item, _atom(item)) for item in _list(text))
    if isinstance(kind, MapType):
        return {_value(kind.key, key): _value(kind.value, item) for key, item in map(_pair, _list(text))}
    if isinstance(kind, BoolType):
        return _truth(text)
    if isinstance(kind, IntType):
        return kind.decode(text)
    if isinstance(kind, FloatType):
        return float(text)
    if isinstance(kind, DateTimeType):
        return parse_datetime(text)
    return text if isinstance(kind, StringType) else kind.decode(text)


def _pair(item: object) -> tuple[str, str]:
    if not isinstance(item, list) or len(item) != 2:
        raise ValueError("a pair is expected")
    return _atom(item[0]), _atom(item[1])


def _atom(item: object) -> str:
    if not isinstance(item, str):
        raise ValueError("a text is expected")
    return item


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise DecodeError(f"{text[:80]!r} is neither true nor false")
    return text == "true"
