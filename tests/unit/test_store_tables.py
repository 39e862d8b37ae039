"""The schema as SQL tables, and rows of SQL as rows in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import BigInteger, Boolean, Column, Connection, Dialect, Text, create_engine, make_url, select
from sqlalchemy.schema import CreateTable

from xapi import datamodel
from xapi.datamodel.types import NULL
from xapi.store import tables
from xapi.store.memory import Store
from xapi.store.rows import Row

MODEL = datamodel.load()
METADATA = tables.make_metadata(MODEL)
DIALECTS = [make_url(url).get_dialect()() for url in ("sqlite://", "postgresql://")]


class NoJournal:
    """Takes nothing."""

    def write(self, generation: int, changes: list[Any]) -> None:
        raise AssertionError("nothing is written here")


def rows_from(class_name: str, *given: dict[str, Any]) -> list[Any]:
    """Load SQL rows, where only the given fields are not NULL."""
    table = Store(MODEL, NoJournal(), lambda tell: None).tables[class_name]
    names = ["_ref", *(field.name for field in tables.kept_fields(table.cls))]
    assert all(values.keys() <= set(names) for values in given)
    loaded: list[Row] = list(tables.loader(table)([[values.get(name) for name in names] for values in given]))
    return loaded


@pytest.fixture
def connection() -> Any:
    """An empty SQLite database with all tables."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        METADATA.create_all(connection)
        yield connection
    engine.dispose()


def test_each_durable_class_has_a_table_and_no_other_class() -> None:
    """Sessions end with the daemon, and roles are made of the schema."""
    expected = {cls.name for cls in MODEL.stored if cls.kept == "disk"} - {"role"} | {"kronos"}
    assert METADATA.tables.keys() == expected


def test_columns_are_the_fields_that_the_journal_gets() -> None:
    """A field more or less would make an insert fail, or lose a value without a word."""
    store = Store(MODEL, NoJournal(), lambda tell: None)
    for name, sql in METADATA.tables.items():
        if name != "kronos":
            assert set(sql.c.keys()) == store.tables[name].kept | {"_ref"}


def test_columns_have_the_names_of_the_schema() -> None:
    """Which differ from the field's where xapi's database does; the keys are the fields' names."""
    assert METADATA.tables["VM"].c.name_label.name == "name__label"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_all_tables_can_be_declared(dialect: Dialect) -> None:
    """Every column may be NULL but the key."""
    for sql in METADATA.tables.values():
        text = str(CreateTable(sql).compile(dialect=dialect))
        assert text.count("NOT NULL") == 1


@pytest.mark.parametrize(
    ("class_name", "field", "kind"),
    [
        ("VM", "name_label", Text),
        ("VM", "power_state", Text),
        ("VM", "affinity", Text),
        ("VM", "memory_static_max", BigInteger),
        ("VM", "is_a_template", Boolean),
        ("PUSB", "speed", tables.Number),
        ("VM", "snapshot_time", tables.Moment),
        ("VM", "other_config", tables.JSONText),
        ("VM", "tags", tables.JSONText),
    ],
)
def test_a_field_has_the_column_of_its_type(class_name: str, field: str, kind: type) -> None:
    """As the design says."""
    assert type(METADATA.tables[class_name].c[field].type) is kind


def _stored(connection: Connection, column: Column[Any], value: Any) -> Any:
    """Write one value and read it back."""
    table = column.table
    connection.execute(table.insert(), {"_ref": "x", column.key: value})
    return connection.execute(select(column)).scalar_one()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), -1.5, 1e308])
def test_floats_come_back(connection: Connection, value: float) -> None:
    """Also what JSON cannot say."""
    assert _stored(connection, METADATA.tables["PUSB"].c.speed, value) == value


def test_nan_comes_back(connection: Connection) -> None:
    """SQLite stores it as NULL, which would read as the default."""
    value = _stored(connection, METADATA.tables["PUSB"].c.speed, float("nan"))
    assert type(value) is float and value != value


def test_dates_are_kept_as_utc(connection: Connection) -> None:
    """Whatever zone they come in."""
    summer = datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    value = _stored(connection, METADATA.tables["VM"].c.snapshot_time, summer)
    assert (value, value.tzinfo) == (summer, UTC)


@pytest.mark.parametrize("value", [{}, {"a": ""}, {"": 'é"\\\n\U0001f600'}, {"key": "x" * 1000}])
def test_maps_come_back(connection: Connection, value: dict[str, str]) -> None:
    """Short or long."""
    assert _stored(connection, METADATA.tables["VM"].c.other_config, value) == value


def test_map_keys_keep_their_type(connection: Connection) -> None:
    """JSON has only strings as keys."""
    column = next(
        column
        for sql in METADATA.tables.values()
        for column in sql.c
        if isinstance(column.type, tables.JSONText) and column.type.kind.name == "(int -> int) map"
    )
    assert _stored(connection, column, {-1: 2, 30: 4}) == {-1: 2, 30: 4}


@pytest.mark.parametrize("text", ["{}", '{"a":"b"}'])
def test_equal_maps_are_one_object(text: str) -> None:
    """A hundred thousand VMs have a few thousand different maps among them."""
    read = tables.JSONText(MODEL.types.parse("(string -> string) map")).result_processor(DIALECTS[0], None)
    assert read(text) is read(str(text.encode(), "ascii"))


def test_long_maps_are_not_remembered() -> None:
    """Each is another, so remembering them would only keep them alive."""
    kind = tables.JSONText(MODEL.types.parse("(string -> string) map"))
    kind.result_processor(DIALECTS[0], None)('{"a":"%s"}' % ("x" * tables.SHARED_LENGTH))
    assert len(kind._parsed) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a":1}'])
def test_a_text_that_is_no_such_map_is_damage(text: str) -> None:
    """The text says what was met and what was wanted."""
    read = tables.JSONText(MODEL.types.parse("(string -> string) map")).result_processor(DIALECTS[0], None)
    with pytest.raises(tables.Damaged, match=r"is no \(string -> string\) map"):
        read(text)


def test_null_reads_as_the_fields_default() -> None:
    """So a new column needs no upgrade of the rows."""
    (row,) = rows_from("VM", {"_ref": "OpaqueRef:1"})
    for field in MODEL.classes["VM"].fields.values():
        if not field.derived:
            assert getattr(row, field.name) == field.default
    assert (row._ref, row.affinity) == ("OpaqueRef:1", NULL)


def test_a_loaded_row_is_as_one_made_in_memory() -> None:
    """The loader is generated, so compare it with the plain way, slot by slot."""
    given = {"_ref": "OpaqueRef:1", "name_label": "web", "memory_static_max": 1 << 40, "tags": ("a",)}
    (row,) = rows_from("VM", given)
    values = {name: value for name, value in given.items() if name != "_ref"}
    made = row._table.make("OpaqueRef:1", values)
    assert {name: getattr(row, name) for name in row._table.set} == {
        name: getattr(made, name) for name in row._table.set
    }


def test_fields_that_are_not_kept_have_their_defaults() -> None:
    """They have no column."""
    (row,) = rows_from("VM", {"_ref": "OpaqueRef:1"})
    unkept = [field for field in MODEL.classes["VM"].fields.values() if not field.kept and not field.derived]
    assert unkept and all(getattr(row, field.name) == field.default for field in unkept)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name_label", b"x"), ("name_label", 1), ("memory_static_max", "many"), ("memory_static_max", 1.5),
     ("memory_static_max", True), ("is_a_template", "yes"), ("snapshot_time", "today"), ("tags", {})],
)  # fmt: skip
def test_a_value_of_another_type_is_damage(field: str, value: Any) -> None:
    """SQLite's columns take anything; a wrong type in memory would fail far from here."""
    column = METADATA.tables["VM"].c[field].name
    with pytest.raises(tables.Damaged, match=rf"in VM\.{column} is no "):
        rows_from("VM", {"_ref": "OpaqueRef:1", field: value})


def test_every_class_can_be_loaded() -> None:
    """The loader is generated source; one class has no field but its reference."""
    for name in METADATA.tables.keys() - {"kronos"}:
        (row,) = rows_from(name, {"_ref": "OpaqueRef:1"})
        assert row._ref == "OpaqueRef:1"
