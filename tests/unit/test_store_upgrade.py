"""A database of an older version opens, is upgraded and loses nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Text

from xapi import datamodel
from xapi.store.database import RESERVE, open_database
from xapi.store.kind import DatabaseError
from xapi.store.memory import Store
from xapi.store.upgrade import UPGRADES, newest

MODEL = datamodel.load()
OLD = Path(__file__).parent.parent / "durability" / "data" / "format1.sql"
"""Written by a schema with four classes and fewer fields, and with a table and a column since gone."""

Upgrades = Mapping[int, Callable[[Operations], None]]


class NoJournal:
    """Takes nothing."""

    def write(self, generation: int, changes: list[Any]) -> None:
        raise AssertionError("nothing is written here")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database of an older version."""
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD.read_text("utf-8"))
    connection.close()
    return path


def sql(path: Path, statement: str) -> list[Any]:
    """Run one statement, past the program."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute(statement).fetchall()
    connection.close()
    return rows


def dump(path: Path) -> list[str]:
    """Return everything that is in a database."""
    with sqlite3.connect(path) as connection:
        lines = list(connection.iterdump())
    connection.close()
    return lines


def upgraded(path: Path, upgrades: Upgrades = UPGRADES) -> tuple[Store, list[str]]:
    """Open, load and close; return the store and what was added."""
    database = open_database(f"sqlite:///{path}", MODEL, upgrades=upgrades)
    try:
        store = Store(MODEL, NoJournal(), lambda tell: None, database.generation)
        database.load(store)
        store.loaded()
        return store, database.upgraded
    finally:
        database.close()


def test_rows_of_an_old_database_are_all_there(old: Path) -> None:
    """With their values and relations."""
    store, _ = upgraded(old)
    web, data = sorted(store.VM, key=lambda row: row.uuid)
    assert [web.name_label, data.name_label] == ["web", "data base"]
    assert (web.name_description, web.memory_static_max) == ('it\'s — "old"', 1 << 33)
    assert web.other_config == {"folder": "/a"}
    assert [store.VIF[ref].MAC for ref in data.VIFs] == ["02:00:00:00:00:01"]
    assert [len(row.VIFs) for row in store.network] == [2]


def test_new_fields_of_old_rows_have_their_defaults(old: Path) -> None:
    """The columns are added and NULL."""
    store, _ = upgraded(old)
    fields = MODEL.classes["VM"].fields
    for row in store.VM:
        assert row.domain_type == fields["domain_type"].default
        assert row.has_vendor_device is fields["has_vendor_device"].default


def test_missing_tables_and_columns_are_added(old: Path) -> None:
    """And named, for the log."""
    _, done = upgraded(old)
    columns = {row[1] for row in sql(old, "PRAGMA table_info(VM)")}
    tables = {row[0] for row in sql(old, "SELECT name FROM sqlite_master")}
    assert {"domain_type", "has_vendor_device"} <= columns
    assert {"VDI", "secret", "pool"} <= tables
    assert {"table VDI", "column VM.domain_type", "column VIF.ipv6_gateway"} <= set(done)


def test_what_the_schema_has_no_longer_stays(old: Path) -> None:
    """Going back to the older version finds it again."""
    upgraded(old)
    assert sql(old, "SELECT DISTINCT floppy_boot FROM VM") == [(1,)]
    assert sql(old, "SELECT label FROM host_floppy") == [("A",)]


def test_generations_go_on_from_the_stored_mark(old: Path) -> None:
    """An upgrade is a restart."""
    store, _ = upgraded(old)
    assert store.generation == 30_000_001
    assert sql(old, "SELECT value FROM kronos WHERE key = 'generation'") == [(str(30_000_001 + RESERVE),)]


def test_an_upgrade_happens_once(old: Path) -> None:
    """The second opening finds nothing to add; so no type of a column differs from what was declared."""
    upgraded(old)
    _, done = upgraded(old)
    assert done == []


def test_a_new_database_needs_no_upgrade(tmp_path: Path) -> None:
    """Nothing is reported, and reopening finds no difference."""
    assert upgraded(tmp_path / "new.db")[1] == []
    assert upgraded(tmp_path / "new.db")[1] == []


@pytest.mark.parametrize("kind", ["TEXT", "BLOB", "FLOAT"])
def test_another_type_of_a_column_is_refused(old: Path, kind: str) -> None:
    """Converting values needs somebody who knows how; nothing at all is changed."""
    sql(old, 'ALTER TABLE "VM" DROP COLUMN memory__target')
    sql(old, f'ALTER TABLE "VM" ADD COLUMN memory__target {kind}')
    before = dump(old)
    with pytest.raises(DatabaseError, match=r"column VM\.memory__target holds .* wants BigInteger") as caught:
        upgraded(old)
    assert str(caught.value).startswith(f"{old}: cannot be upgraded: ") and "\n" not in str(caught.value)
    assert dump(old) == before


def _rename_floppy_boot(operations: Operations) -> None:
    """Pretend that VM.name_description was called floppy_boot."""
    with operations.batch_alter_table("VM") as table:
        table.drop_column("name__description")
        table.alter_column("floppy_boot", new_column_name="name__description", type_=Text())


def _describe(operations: Operations) -> None:
    """Change data, in terms of what the function before it has made."""
    operations.execute("UPDATE \"VM\" SET name__description = 'boots from floppy' WHERE name__description = '1'")


def test_named_functions_run_in_order_before_the_comparison(old: Path) -> None:
    """A rename, and then a change of data in the renamed column."""
    store, done = upgraded(old, {3: _describe, 2: _rename_floppy_boot})
    assert {row.name_description for row in store.VM} == {"boots from floppy"}
    assert done[:2] == ["format 2", "format 3"]
    assert sql(old, "SELECT value FROM kronos WHERE key = 'format'") == [("3",)]


def test_named_functions_run_once(old: Path) -> None:
    """The format in the database says which are done."""
    calls: list[int] = []
    upgrades: Upgrades = {2: lambda operations: calls.append(2)}
    upgraded(old, upgrades)
    upgraded(old, upgrades)
    assert calls == [2]


def test_a_new_database_needs_no_named_function(tmp_path: Path) -> None:
    """It is made in the newest format; there is nothing to rename."""
    upgraded(tmp_path / "new.db", {2: _rename_floppy_boot})
    assert sql(tmp_path / "new.db", "SELECT value FROM kronos WHERE key = 'format'") == [("2",)]


def test_a_named_function_may_change_a_type(old: Path) -> None:
    """Then the comparison finds nothing to refuse."""
    sql(old, 'ALTER TABLE "VM" DROP COLUMN memory__target')
    sql(old, "ALTER TABLE \"VM\" ADD COLUMN memory__target TEXT DEFAULT '7'")

    def convert(operations: Operations) -> None:
        operations.add_column("VM", Column("converted", BigInteger))
        operations.execute('UPDATE "VM" SET converted = CAST(memory__target AS INTEGER)')
        operations.drop_column("VM", "memory__target")
        operations.alter_column("VM", "converted", new_column_name="memory__target")

    store, _ = upgraded(old, {2: convert})
    assert {row.memory_target for row in store.VM} == {7}


def test_an_upgrade_that_fails_half_way_changes_nothing(old: Path) -> None:
    """Functions, tables, columns and marks are one transaction."""
    before = dump(old)

    def fail(operations: Operations) -> None:
        operations.drop_table("VIF")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        upgraded(old, {2: _rename_floppy_boot, 3: fail})
    assert dump(old) == before


def test_the_format_is_that_of_the_last_function() -> None:
    """There is one place to add to."""
    assert (newest({}), newest({2: _describe, 5: _describe})) == (1, 5)
