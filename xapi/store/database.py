"""Open the database, SQLite or PostgreSQL: see that it is ours and whole, upgrade it, load it.

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
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, NullPool, event
from sqlalchemy.exc import ArgumentError, DBAPIError

from xapi.datamodel import Model
from xapi.store import upgrade
from xapi.store.memory import Store
from xapi.store.tables import KRONOS, Damaged, kept_fields, loader, make_metadata

MARK = "kronos-xapi"
SCHEMA_VERSION = "5.909"
RESERVE = 10_000_000
"""How many generations are reserved ahead of the last one."""
LOCK_WAIT = 2.0
"""Seconds to wait for a database that another process holds: one just killed lets go within this."""
LOCK_KEY = int.from_bytes(b"kronosxp")
"""The advisory lock of PostgreSQL that the owner holds."""
FETCH = 1000
"""Rows fetched at a time."""

Hook = Callable[[Any], None]


class DatabaseError(Exception):
    """The database cannot be used; the text is one line: where, what, and what to do."""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


class _SQLite:
    """What is particular to SQLite; `_PostgreSQL` has the same methods."""

    def __init__(self, url: URL, lock_wait: float, on_connect: Hook | None) -> None:
        self.path = None if url.database in (None, "", ":memory:") else Path(url.database).absolute()
        self.location = str(self.path or ":memory:")
        self.lock_wait = lock_wait
        self.on_connect = on_connect
        self._check: Future[str] | None = None

    def prepare(self) -> None:
        """Look at the file before the first connection, or make it. Raises DatabaseError."""
        path = self.path
        if path is None:
            return
        try:
            with path.open("rb") as file:
                start = file.read(16)
        except FileNotFoundError:
            self._create(path)
        except OSError as error:
            raise DatabaseError(
                f"{path}: cannot be read ({error.strerror}); name a file that this user may read and write"
            ) from error
        else:
            if start not in (b"", b"SQLite format 3\0"):
                raise DatabaseError(f"{path}: is not a database; name another file, or move this one away")

    def _create(self, path: Path) -> None:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise DatabaseError(
                f"{path}: cannot be created ({error.strerror}); see that the directory exists, that this "
                "user may write to it and that the file system has room"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a file that has vanished must not be replaced by an empty one.
        name = ":memory:" if self.path is None else f"file:{quote(str(self.path))}?mode=rw"
        connection = sqlite3.connect(
            name,
            timeout=self.lock_wait,
            isolation_level=None,  # BEGIN is sent below, so that DDL is inside transactions too
            check_same_thread=False,  # used by one thread after another, never by two at once
            uri=True,
        )
        try:
            connection.execute("PRAGMA synchronous=FULL")
            if self.on_connect is not None:
                self.on_connect(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def engine(self) -> Engine:
        """Return an engine whose connections are set up but have not written."""
        engine = sqlalchemy.create_engine("sqlite+pysqlite://", creator=self._connect, poolclass=NullPool)

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return engine

    def take(self, connection: Connection) -> None:
        """Begin to see whether the file is sound, beside what the connection reads; `sound` tells."""
        if self.path is not None:
            self._check = Future()
            threading.Thread(target=self._look, args=(self._check,), name="quick_check", daemon=True).start()

    def _look(self, check: Future[str]) -> None:
        """Check the file on a connection of its own: SQLite lets other threads run meanwhile."""
        try:
            with closing(self._connect()) as connection:
                found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        except BaseException as error:
            check.set_exception(error)
        else:
            check.set_result(found)  # only now: the last connection to be closed removes SQLite's own files

    def sound(self) -> None:
        """Return once the file is known to be sound. Raises DatabaseError, sqlite3.Error."""
        if self._check is None:
            return
        check, self._check = self._check, None
        found = check.result()
        if found != "ok":
            first = found.strip().splitlines()[-1]
            raise DatabaseError(f"{self.location}: is damaged ({first}); restore it from a backup")

    def leave(self) -> None:
        """Let the file be ours no more: wait for the check, if there is one."""
        check, self._check = self._check, None
        if check is not None:
            check.exception()

    def accept(self, connection: Connection) -> None:
        """Set the journal's mode, now that the file is known to be ours or empty."""
        # Below SQLAlchemy, which would send BEGIN first: the mode cannot change inside a transaction.
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA journal_mode=WAL")

    def _code(self, error: BaseException) -> int:
        cause = getattr(error, "orig", error)
        return int(getattr(cause, "sqlite_errorcode", 0)) & 0xFF

    def is_full(self, error: BaseException) -> bool:
        """Tell whether an error means that no space is left."""
        return self._code(error) == sqlite3.SQLITE_FULL

    def explain(self, error: BaseException) -> str:
        """Return what happened and what to do, one line, without the location."""
        text = _one_line(getattr(error, "orig", None) or error)
        if "decode to UTF-8" in text:  # the driver's own error, without a code
            return f"is damaged ({text}); restore it from a backup"
        advice = {
            sqlite3.SQLITE_FULL: "no space is left; make room on the file system",
            sqlite3.SQLITE_READONLY: "cannot be written; see that this user may write to the file and its "
            "directory and that the file system is not mounted read-only",
            sqlite3.SQLITE_CANTOPEN: "cannot be opened; see that it exists and that this user may read and "
            "write the file and its directory",
            sqlite3.SQLITE_BUSY: "is in use by another process; stop that first",
            sqlite3.SQLITE_LOCKED: "is in use by another process; stop that first",
            sqlite3.SQLITE_CORRUPT: f"is damaged ({text}); restore it from a backup",
            sqlite3.SQLITE_NOTADB: "is not a database; name another file, or restore it from a backup",
            sqlite3.SQLITE_IOERR: f"the disk fails ({text}); see the system's log",
        }
        return advice.get(self._code(error), text)


class _PostgreSQL:
    # Notice a dead server in half a minute, and have the server notice us dead in about as long.
    _settings: Mapping[str, Any] = {
        "connect_timeout": 10,
        "application_name": MARK,
        "tcp_user_timeout": 30_000,
        "keepalives_idle": 30,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
    }

    def __init__(self, url: URL, lock_wait: float, on_connect: Hook | None) -> None:
        self.url = url.set(drivername="postgresql+psycopg")
        self.location = url.set(drivername="postgresql").render_as_string(hide_password=True)
        self.lock_wait = lock_wait
        self.on_connect = on_connect

    def prepare(self) -> None:
        """A server has nothing to look at before."""

    def engine(self) -> Engine:
        settings = {name: value for name, value in self._settings.items() if name not in self.url.query}
        try:
            engine = sqlalchemy.create_engine(self.url, poolclass=NullPool, connect_args=settings)
        except ModuleNotFoundError as error:
            raise DatabaseError(
                f"{self.location}: psycopg is missing; pip install 'kronos-xapi[postgresql]'"
            ) from error

        @event.listens_for(engine, "connect")
        def connected(connection: Any, record: object) -> None:
            if self.on_connect is not None:
                self.on_connect(connection)

        return engine

    def take(self, connection: Connection) -> None:
        """Hold the lock on the connection that writes: who loses the lock cannot write either."""
        with connection.begin():
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
            if encoding != "UTF8":
                raise DatabaseError(f"{self.location}: has encoding {encoding}; create one with encoding UTF8")
            if connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "off":
                connection.exec_driver_sql("SET synchronous_commit = on")
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(self.lock_wait * 1000) or 1}")
            try:
                connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK_KEY})")
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
                    raise
                raise DatabaseError(f"{self.location}: is in use by another process; stop that first") from error

    def sound(self) -> None:
        """The server sees to that."""

    def leave(self) -> None:
        """Nothing is left over."""

    def accept(self, connection: Connection) -> None:
        """Nothing needs to be set."""

    def is_full(self, error: BaseException) -> bool:
        return getattr(getattr(error, "orig", error), "sqlstate", None) == "53100"  # disk_full

    def explain(self, error: BaseException) -> str:
        cause = getattr(error, "orig", None) or error
        text = _one_line(cause)
        state = getattr(cause, "sqlstate", None) or ""
        if state == "53100":
            return "no space is left; make room on the server's file system"
        if state.startswith(("28", "42501")) or "authentication failed" in text or "no password" in text:
            return f"the server refuses this user ({text}); check user, password and rights"
        if state == "25006":  # read_only_sql_transaction
            return f"cannot be written ({text}); name the primary server"
        if state.startswith("XX"):
            return f"is damaged ({text}); restore it from a backup"
        if not state or state.startswith(("08", "57P", "3D")):
            return f"cannot be reached ({text}); check that server and database exist and accept connections"
        return text


class Database:
    """An open database of this program."""

    def __init__(self, kind: _SQLite | _PostgreSQL, model: Model) -> None:
        self._kind = kind
        self.metadata = make_metadata(model)
        self.marks = self.metadata.tables[KRONOS]
        self.owner = str(uuid.uuid4())
        self.generation = 1
        """Where a Store goes on counting."""
        self.reserved = 1
        """All generations up to this one may be told to clients: it is the mark in the database."""
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
    lock_wait: float = LOCK_WAIT,
    on_connect: Hook | None = None,
) -> Database:
    """Open, create or upgrade the database of a URL, ``sqlite:////path`` or ``postgresql://user@host/name``.

    `lock_wait` is in seconds; `on_connect` gets each new connection of the driver. Raises DatabaseError,
    and then nothing in the database has changed.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except ArgumentError:
        raise DatabaseError("the database's URL cannot be read; write sqlite:////path or postgresql://…") from None
    kind: _SQLite | _PostgreSQL
    if parsed.get_backend_name() == "sqlite":
        kind = _SQLite(parsed, lock_wait, on_connect)
    elif parsed.get_backend_name() == "postgresql":
        kind = _PostgreSQL(parsed, lock_wait, on_connect)
    else:
        raise DatabaseError(f"{parsed.get_backend_name()} is not supported; use sqlite:////path or postgresql://…")
    database = Database(kind, model)
    try:
        database._open(upgrades)
    except BaseException:
        database.close()
        raise
    return database
