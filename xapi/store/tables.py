"""The schema as SQL: one table a durable class, one column a kept field; and rows back from SQL.

A table is named as its class, a column as `Field.column`; in SQLAlchemy its key is the field's name,
so the values of a `Change` are statement parameters as they stand. Every column but the key `_ref` may
be NULL, and NULL reads as the field's default: so a new column reads on old rows. Sets and maps are
JSON text, which both databases treat alike and which an operator can query.

The table `kronos` holds what the database says of itself; see `xapi.store.database`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Dialect, Double, MetaData, Text
from sqlalchemy import Table as SQLTable
from sqlalchemy.types import TypeDecorator, TypeEngine

from xapi.datamodel import Class, Field, Model
from xapi.datamodel.types import (
    BoolType,
    DateTimeType,
    EnumType,
    FloatType,
    IntType,
    MapType,
    RefType,
    SetType,
    StringType,
    Type,
)
from xapi.store.rows import Row, Table

KRONOS = "kronos"
"""The table of marks: `key` and `value`."""

SHARED_LENGTH = 64
"""JSON texts up to this many characters are parsed once; longer ones seldom repeat."""


class Damaged(ValueError):
    """A value in the database is not what its column holds; the text names table and column."""


def persistent(cls: Class) -> bool:
    """Tell whether a class has a table. Roles follow from the schema and are made anew at each start."""
    return cls.kept == "disk" and cls.name != "role"


def kept_fields(cls: Class) -> list[Field]:
    """Return the fields that are columns: those of `memory.Table.kept`, in the schema's order."""
    return [field for field in cls.fields.values() if field.kept and not field.derived]


class Number(TypeDecorator[float]):
    """A float, nan and infinities included. SQLite has no nan, so there it is the text ``nan``."""

    impl = Double
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], object] | None:
        if dialect.name != "sqlite":
            return None
        return lambda value: "nan" if value is not None and math.isnan(value) else value

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], float | None]:
        return lambda value: None if value is None else float(value)


class Moment(TypeDecorator[datetime]):
    """An aware datetime, kept in SQL as UTC without a zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class _Parsed(dict[Any, object]):
    """JSON text to value; equal short texts give one object, which is safe as values never change."""

    def __init__(self, kind: Type) -> None:
        super().__init__({None: None, "[]" if isinstance(kind, SetType) else "{}": kind.empty})
        self.kind = kind

    def __missing__(self, text: str) -> object:
        try:
            value = self.kind.from_json(orjson.loads(text))
        except (ValueError, TypeError, AttributeError) as error:
            raise Damaged(f"{str(text)[:80]!r} is no {self.kind.name}: {error}") from error
        if len(text) <= SHARED_LENGTH:
            if len(self) >= 65536:
                self.clear()
            self[text] = value
        return value


class JSONText(TypeDecorator[object]):
    """A set or map as JSON text."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: Type) -> None:
        super().__init__()
        self.kind = kind
        self._parsed = _Parsed(kind)

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], object]:
        plain, empty = self.kind.plain, "[]" if isinstance(self.kind, SetType) else "{}"

        def text(value: object) -> str | None:
            if not value:
                return None if value is None else empty
            return orjson.dumps(plain(value)).decode()

        return text

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], object]:
        # The dict's own lookup: no Python function runs for a text that was met before.
        return self._parsed.__getitem__


_SCALARS: dict[type[Type], tuple[TypeEngine[Any], type]] = {
    StringType: (Text(), str),
    EnumType: (Text(), str),
    RefType: (Text(), str),
    IntType: (BigInteger(), int),
    BoolType: (Boolean(), bool),
    FloatType: (Number(), float),
    DateTimeType: (Moment(), datetime),
}


def make_metadata(model: Model) -> MetaData:
    """Return all tables of a schema."""
    metadata = MetaData()
    json: dict[Type, JSONText] = {}
    SQLTable(KRONOS, metadata, Column("key", Text, primary_key=True), Column("value", Text))
    for cls in model.stored:
        if not persistent(cls):
            continue
        columns: list[Column[Any]] = [Column("_ref", Text, primary_key=True)]
        for field in kept_fields(cls):
            if isinstance(field.type, SetType | MapType):
                kind: TypeEngine[Any] = json.setdefault(field.type, JSONText(field.type))
            else:
                kind = _SCALARS[type(field.type)][0]
            columns.append(Column(field.column, kind, key=field.name, nullable=True))
        SQLTable(cls.name, metadata, *columns)
    return metadata


def _python_type(kind: Type) -> type:
    if isinstance(kind, SetType):
        return tuple
    return dict if isinstance(kind, MapType) else _SCALARS[type(kind)][1]


def loader(table: Table[Row]) -> Callable[[Iterable[Sequence[object]]], Iterator[Row]]:
    """Return a function from SQL rows, `_ref` and then `kept_fields`, to rows of a table in memory.

    It is generated source, straight-line code a class: twice as fast as `Table.make` a row, which a start
    with 100,000 VMs feels, and it checks types on the way: it raises Damaged for a value of a wrong type,
    which SQLite, whose columns take anything, may hold.
    """
    kept = kept_fields(table.cls)
    example = table.make("", {})
    defaults = {name: getattr(example, name) for name in table.set}

    def absent(index: int, value: object) -> object:
        field = kept[index]
        if value is None:
            return defaults[field.name]
        raise Damaged(f"{value!r} in {table.name}.{field.column} is no {field.type.name}")

    names: dict[str, Any] = {"absent": absent, "Row": type(example), "new": type(example).__new__}
    assignments = []
    for number, (name, put) in enumerate(table.set.items()):
        names[f"put{number}"] = put
        names[f"default{number}"] = defaults[name]
        assignments.append((name, number))
    variables = {"_ref": "ref"} | {field.name: f"value{at}" for at, field in enumerate(kept)}
    lines = ["def load(rows):", f"    for {', '.join(variables.values())}, in rows:"]
    for at, field in enumerate(kept):
        names[f"type{at}"] = _python_type(field.type)
        lines.append(f"        if type(value{at}) is not type{at}: value{at} = absent({at}, value{at})")
    lines.append("        row = new(Row)")
    for name, number in assignments:
        lines.append(f"        put{number}(row, {variables.get(name, f'default{number}')})")
    lines.append("        yield row")
    exec("\n".join(lines), names)
    load: Callable[[Iterable[Sequence[object]]], Iterator[Row]] = names["load"]
    return load
