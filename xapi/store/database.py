"""Open the database: see that it is ours and whole, upgrade it, load it.

A database is used through one connection: by the caller of `open_database` until `Writer.start`, by the
writer's thread from then on. Whatever is wrong is a `DatabaseError`, one line for people, and leaves
the database as it was. The table `kronos` says of the database:

* ``database``: ``kronos-xapi``. A database with tables and without this mark is somebody else's;
* ``format``: the number that `xapi.store.upgrade` counts by; ``schema``: the XenAPI schema version;
* ``generation``: above every generation that any client has been told (see `xapi.store.writer`);
* ``owner``: a word drawn at each opening. Who reconnects and finds another word has lost the database
  to another process and must not write: its memory is not what the database holds.
"""

from __future__ import annotations

import gc
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.exc import ArgumentError, DBAPIError

from xapi.datamodel import Model
from xapi.store import upgrade
from xapi.store.kind import MARK, DatabaseError, Hook, Kind
from xapi.store.memory import Store
from xapi.store.postgresql import PostgreSQL
from xapi.store.sqlite import SQLite
from xapi.store.tables import KRONOS, Damaged, kept_fields, loader, make_metadata

SCHEMA_VERSION = "5.909"
RESERVE = 10_000_000
"""How many generations are reserved ahead of the last one."""
LOCK_WAIT = 2.0
"""Seconds to wait for a database that another process holds: one just killed lets go within this."""
FETCH = 1000
"""Rows fetched at a time."""


class Database:
    """An open database of this program."""

    def __init__(self, kind: Kind, model: Model) -> None:
        self._kind = kind
        self.metadata = make_metadata(model)
        self.marks = self.metadata.tables[KRONOS]
        self.owner = str(uuid.uuid4())
        self.generation = 1
        """Where a Store goes on counting."""
        self.reserved = 1
        """All generations up to this one may be told to clients: it is the mark in the database."""
        self.new = False
        """Whether opening has made all tables."""
        self.upgraded: list[str] = []
        """What opening has added to an older database, for the log."""
        self._engine = kind.engine()
        self._connection: Connection | None = None
        self._unmarked: int | None = None
        """The format to mark a database with that is open but was only read so far."""

    @property
    def location(self) -> str:
        """The file or the URL without its password."""
        return self._kind.location

    @property
    def file(self) -> Path | None:
        """The file that the database is in, if it is one on this machine."""
        return self._kind.path

    @property
    def connection(self) -> Connection:
        """The one connection. Raises DatabaseError after `close` or a failed `reconnect`."""
        if self._connection is None:
            raise DatabaseError(f"{self.location}: is not connected")
        return self._connection

    def explain(self, error: BaseException) -> str:
        """Return one line about an error: where, what, what to do."""
        if isinstance(error, DatabaseError):
            return str(error)
        return f"{self.location}: {self._kind.explain(error)}"

    def is_full(self, error: BaseException) -> bool:
        """Tell whether an error means that no space is left."""
        return self._kind.is_full(error)

    def is_unfit(self, error: BaseException) -> bool:
        """Tell whether an error comes from the values that were to be written: all others could be."""
        return self._kind.is_unfit(error)

    def spare(self, room: bool) -> None:
        """Have the database take as little room as it can, or as it likes."""
        with suppress(DBAPIError, sqlite3.Error):
            self._kind.spare(self.connection, room)

    def set_mark(self, key: str, value: str) -> None:
        """Write one mark in the running transaction."""
        self.connection.execute(self.marks.delete().where(self.marks.c.key == key))
        self.connection.execute(self.marks.insert(), {"key": key, "value": value})

    def remove_mark(self, key: str) -> None:
        """Remove one mark in the running transaction."""
        self.connection.execute(self.marks.delete().where(self.marks.c.key == key))

    def reconnect(self) -> None:
        """Connect anew after a failure. Raises DatabaseError, above all when another process was there."""
        with self._explained():
            self._connect()
            self._kind.sound()
            with self.connection.begin():
                found = self._read_marks().get("owner")
            if found != self.owner:
                self.close()
                raise DatabaseError(f"{self.location}: another process has used it meanwhile; restart this one")

    def close(self) -> None:
        """Let go of the database; harmless when closed. An error of the connection is of no interest."""
        self._kind.leave()
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except DBAPIError:
                connection.invalidate()
        self._engine.dispose()

    def abandon(self) -> None:
        """Close, and remove the file if opening has made it: nothing in it was of use to anybody."""
        self.close()
        self._kind.remove()

    def load(self, store: Store) -> None:
        """Fill the tables of a store, which then needs the rows that are not kept, and `loaded()`.

        From then on the database is ours to write. Raises DatabaseError when it is damaged or a value is not
        what the schema says; nothing in it has changed then.
        """
        collecting = gc.isenabled()
        gc.disable()  # millions of objects are made and none dropped: collecting would double the time
        try:
            with self._explained(), self.connection.begin():
                for name, sql in self.metadata.tables.items():
                    if name != KRONOS:
                        self._load_table(store, sql)
            with self._explained():
                self._own()
        except (Damaged, UnicodeDecodeError) as error:
            raise DatabaseError(f"{self.location}: is damaged ({error}); restore it from a backup") from error
        finally:
            if collecting:
                gc.enable()

    def _load_table(self, store: Store, sql: sqlalchemy.Table) -> None:
        table = store.tables[sql.name]
        columns = [sql.c._ref, *(sql.c[field.name] for field in kept_fields(table.cls))]
        statement = sqlalchemy.select(*columns).execution_options(yield_per=FETCH)
        if "timestamp" in sql.c:  # messages: the first of a table is the oldest, which goes when they are too many
            statement = statement.order_by(sql.c.timestamp)
        try:
            store.load(table, loader(table)(self.connection.execute(statement)))
        except (Damaged, UnicodeDecodeError) as error:
            raise Damaged(f"table {sql.name}: {error}") from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            raise DatabaseError(self.explain(error)) from error

    def _connect(self) -> None:
        self.close()
        self._connection = self._engine.connect()
        self._kind.take(self._connection)

    def _read_marks(self) -> dict[str, str]:
        return dict(self.connection.execute(sqlalchemy.select(self.marks.c.key, self.marks.c.value)).all())

    def _open(self, upgrades: Mapping[int, upgrade.Upgrade]) -> None:
        self._kind.prepare()
        with self._explained():
            self._connect()
            with self.connection.begin():
                found = self._found(upgrades)
                try:
                    done = upgrade.upgrade(self.connection, self.metadata, found, upgrades, self._kind.sound)
                except upgrade.UpgradeRefused as error:
                    raise DatabaseError(
                        f"{self.location}: cannot be upgraded: {error}; use the version of this program that "
                        "wrote it last"
                    ) from error
                self.new = not found
                self.upgraded = done if found else []
                self._unmarked = upgrade.newest(upgrades)
                written = bool(done) or found != self._unmarked
                if written:
                    self._mark()
            if written:
                self._kind.accept(self.connection)

    def _found(self, upgrades: Mapping[int, upgrade.Upgrade]) -> int:
        """Return the format of the database, or 0 for a new one. Raises DatabaseError."""
        inspector = sqlalchemy.inspect(self.connection)
        names = inspector.get_table_names()
        if not names:
            return 0
        columns = {column["name"] for column in inspector.get_columns(KRONOS)} if KRONOS in names else set()
        marks = self._read_marks() if columns >= {"key", "value"} else {}
        if marks.get("database") != MARK:
            raise DatabaseError(
                f"{self.location}: belongs to another program (it has a table {sorted(names)[0]!r} and is not "
                "marked as ours); name another database"
            )
        try:
            found, self.generation = int(marks["format"]), int(marks["generation"])
        except (KeyError, ValueError, TypeError) as error:
            raise DatabaseError(
                f"{self.location}: is damaged (its marks cannot be read: {error}); restore it from a backup"
            ) from error
        if found > upgrade.newest(upgrades):
            raise DatabaseError(
                f"{self.location}: has format {found}, newer than this program's {upgrade.newest(upgrades)}; "
                "use a newer version of this program"
            )
        return found

    def _own(self) -> None:
        """Mark a database that was only read so far."""
        if self._unmarked is not None:
            self._kind.sound()
            self._kind.accept(self.connection)
            with self.connection.begin():
                self._mark()

    def _mark(self) -> None:
        written_format, self._unmarked = self._unmarked, None
        self.reserved = self.generation + RESERVE
        self.set_mark("database", MARK)
        self.set_mark("format", str(written_format))
        self.set_mark("schema", SCHEMA_VERSION)
        self.set_mark("generation", str(self.reserved))
        self.set_mark("owner", self.owner)


def open_database(
    url: str,
    model: Model,
    *,
    upgrades: Mapping[int, upgrade.Upgrade] = upgrade.UPGRADES,
    used: bool = False,
    lock_wait: float = LOCK_WAIT,
    on_connect: Hook | None = None,
) -> Database:
    """Open, create or upgrade the database of a URL, ``sqlite:////path`` or ``postgresql://user@host/name``.

    With `used` there has been a database before, so an empty file is refused. `lock_wait` is in seconds;
    `on_connect` gets each new connection of the driver. Raises DatabaseError, and then nothing in the database
    has changed.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except ArgumentError:
        raise DatabaseError("the database's URL cannot be read; write sqlite:////path or postgresql://…") from None
    kind: Kind
    if parsed.get_backend_name() == "sqlite":
        kind = SQLite(parsed, lock_wait, on_connect, used)
    elif parsed.get_backend_name() == "postgresql":
        kind = PostgreSQL(parsed, lock_wait, on_connect)
    else:
        raise DatabaseError(f"{parsed.get_backend_name()} is not supported; use sqlite:////path or postgresql://…")
    database = Database(kind, model)
    try:
        database._open(upgrades)
    except BaseException:
        database.abandon()
        raise
    return database
