"""What is not a database of ours, or not a sound one, is refused in one clear line and left alone."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from twisted.internet.task import Clock

from tests.conftest import in_memory
from tests.durability.harness import MODEL, Opened
from tests.durability.server import Server
from xapi.store.database import open_database
from xapi.store.kind import DatabaseError


def refused(url: str, **options: Any) -> str:
    """Return the line with which a database is refused."""
    with pytest.raises(DatabaseError) as caught:
        database = open_database(url, MODEL, lock_wait=0.05, **options)
        try:
            database.load(in_memory(Clock()))
        finally:
            database.close()
    line = str(caught.value)
    assert line.count("\n") == 0
    return line


def refused_file(path: Path) -> str:
    """Return the line for a SQLite file, and see that neither it nor its directory has changed."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    line = refused(f"sqlite:///{path}")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before
    assert line.startswith(f"{path}: ")
    return line


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A sound database with something in it."""
    path = tmp_path / "ours.db"
    with Opened(f"sqlite:///{path}") as opened:
        for number in range(300):
            opened.store.secret.create(value=f"{number} {'x' * 200}")
    return path


@pytest.mark.parametrize("text", ["a", "words\n" * 3, "words\n" * 5000])
def test_a_text_file_is_no_database(tmp_path: Path, text: str) -> None:
    """However short; SQLite itself takes some short files for empty databases."""
    (tmp_path / "notes.txt").write_text(text)
    assert "is not a database" in refused_file(tmp_path / "notes.txt")


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    """It holds nothing that could be lost; mktemp and a first start cut short leave such files."""
    (tmp_path / "empty.db").touch()
    open_database(f"sqlite:///{tmp_path / 'empty.db'}", MODEL).close()
    assert sqlite3.connect(tmp_path / "empty.db").execute("SELECT value FROM kronos WHERE key = 'database'").fetchall()


def test_a_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """Secrets are in it."""
    open_database(f"sqlite:///{tmp_path / 'new.db'}", MODEL).close()
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """Tables and no mark."""
    with sqlite3.connect(tmp_path / "foreign.db") as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    assert "belongs to another program (it has a table 'bookmarks'" in refused_file(tmp_path / "foreign.db")


def test_another_programs_table_of_the_same_name_is_no_mark(tmp_path: Path) -> None:
    """The mark is a row, and the table may have other columns."""
    with sqlite3.connect(tmp_path / "foreign.db") as connection:
        connection.execute("CREATE TABLE kronos (time TEXT)")
    connection.close()
    assert "belongs to another program" in refused_file(tmp_path / "foreign.db")


def test_a_newer_format_is_refused(ours: Path) -> None:
    """This program cannot know what it means."""
    with sqlite3.connect(ours) as connection:
        connection.execute("UPDATE kronos SET value = '99' WHERE key = 'format'")
    connection.close()
    assert "has format 99, newer than this program's 1" in refused_file(ours)


@pytest.mark.parametrize("key", ["format", "generation"])
def test_a_missing_mark_is_damage(ours: Path, key: str) -> None:
    """Guessing a generation would repeat event tokens."""
    with sqlite3.connect(ours) as connection:
        connection.execute("DELETE FROM kronos WHERE key = ?", [key])
    connection.close()
    assert "is damaged (its marks cannot be read" in refused_file(ours)


@pytest.mark.parametrize("page", [1, 3, 10, 40])
def test_a_damaged_page_is_noticed(ours: Path, page: int) -> None:
    """A run of flipped bytes at the start of a page of the tree."""
    content = bytearray(ours.read_bytes())
    for offset in range(page * 4096, page * 4096 + 64):
        content[offset] ^= 0xFF
    ours.write_bytes(content)
    assert "is damaged" in refused_file(ours)


def test_a_file_cut_short_is_noticed(ours: Path) -> None:
    """As a full disk or an interrupted copy leaves it."""
    os.truncate(ours, ours.stat().st_size // 2 // 4096 * 4096)
    assert "is damaged" in refused_file(ours)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("other_config = '{'", "'{' is no (string -> string) map"),
        ("other_config = '[1]'", "is no (string -> string) map"),
        ("value = x'ff'", "table secret: b'\\xff' in secret.value is no string"),
        ("value = CAST(x'ff' AS TEXT)", "is damaged"),
    ],
)
def test_a_value_of_a_wrong_type_is_noticed_when_loading(ours: Path, assignment: str, said: str) -> None:
    """A SQLite column takes anything."""
    with sqlite3.connect(ours) as connection:
        connection.execute(f"UPDATE secret SET {assignment} WHERE value LIKE '7 %'")
    connection.close()
    opened = open_database(f"sqlite:///{ours}", MODEL)
    with pytest.raises(DatabaseError) as caught:
        Opened(f"sqlite:///{ours}")
    opened.close()
    line = str(caught.value)
    assert line.startswith(f"{ours}: is damaged (") and line.endswith("restore it from a backup")
    assert said in line


def test_a_directory_is_no_database(tmp_path: Path) -> None:
    """Named by mistake."""
    assert "cannot be read (Is a directory)" in refused(f"sqlite:///{tmp_path}")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """SQLite itself says only that it cannot open the file."""
    assert "cannot be created (No such file or directory)" in refused(f"sqlite:///{tmp_path / 'no' / 'x.db'}")


def test_a_locked_file_is_in_use(ours: Path) -> None:
    """Another process is in the middle of a change."""
    other = sqlite3.connect(ours, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "is in use by another process" in refused(f"sqlite:///{ours}")
    other.close()


def test_a_file_that_sqlite_may_only_read_is_refused(ours: Path) -> None:
    """Like a read-only file for a user who is not root."""
    before = ours.read_bytes()
    line = refused(f"sqlite:///{ours}", on_connect=lambda connection: connection.execute("PRAGMA query_only=1"))
    assert "cannot be written" in line
    assert ours.read_bytes() == before


@pytest.mark.parametrize("url", ["mysql://host/name", "nonsense", "oracle://x"])
def test_other_urls_are_refused(url: str) -> None:
    """Two kinds are supported."""
    assert "use sqlite:////path" in refused(url) or "write sqlite:////path" in refused(url)


def test_an_absent_server_is_named(tmp_path: Path) -> None:
    """PostgreSQL does not run."""
    line = refused(f"postgresql://kronos@/test?host={tmp_path}")
    assert "cannot be reached" in line and "No such file or directory" in line


def test_a_password_never_appears(tmp_path: Path) -> None:
    """Such lines go to logs."""
    assert "swordfish" not in refused(f"postgresql://kronos:swordfish@/test?host={tmp_path}")


def test_an_absent_server_database_is_named(postgresql: Server) -> None:
    """The server runs and has no such database."""
    assert 'database "nowhere" does not exist' in refused(postgresql.url("nowhere"))


def test_a_wrong_password_is_named(postgresql: Server) -> None:
    """The server lets this user in only with one."""
    postgresql.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
    line = refused(postgresql.url("postgres", "locked:wrong"))
    assert "the server refuses this user" in line and "password" in line
    assert "the server refuses this user" in refused(postgresql.url("postgres", "locked"))


def test_a_user_without_rights_is_named(postgresql: Server) -> None:
    """Since version 15 not everybody may make tables."""
    url = postgresql.new()
    postgresql.execute("CREATE ROLE visitor LOGIN")
    line = refused(url.replace("//kronos@", "//visitor@"))
    assert "the server refuses this user" in line


def test_a_foreign_server_database_is_refused(postgresql: Server) -> None:
    """And nothing is made in it."""
    url = postgresql.new()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    assert "belongs to another program" in refused(url)
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("bookmarks",)]


def test_a_server_database_in_use_is_refused(postgresql: Server) -> None:
    """Memory is the truth, so two daemons on one database would each undo the other."""
    url = postgresql.new()
    first = open_database(url, MODEL)
    assert "is in use by another process" in refused(url)
    first.close()
    open_database(url, MODEL).close()


def test_another_encoding_is_refused(postgresql: Server) -> None:
    """Names may hold any character."""
    url = postgresql.new("ENCODING 'LATIN1' TEMPLATE template0")
    assert "has encoding LATIN1" in refused(url)


def test_a_read_only_server_database_is_refused(postgresql: Server) -> None:
    """As a standby is."""
    url = postgresql.new()
    name = url.partition("@/")[2].partition("?")[0]
    postgresql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "cannot be written" in refused(url)
