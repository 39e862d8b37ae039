"""A SQLite database: one file, opened so that nothing is replaced, checked beside its being read."""

from __future__ import annotations

import os
import sqlite3
import threading
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, NullPool, event

from xapi.store.kind import DatabaseError, Hook, is_unfit, one_line

LAVISH, SPARING = 1000, 50
"""Pages to which the log grows before it is moved into the file: SQLite's own number, and where room is scarce."""
RESERVE = "-reserve"
"""The ending of the file that holds room for the database."""


def _files(path: Path) -> list[str]:
    """Return the names of a database's file and of those that SQLite keeps beside it."""
    return [f"{path}{ending}" for ending in ("", "-wal", "-shm", "-journal", RESERVE)]


def _driver(connection: Connection) -> sqlite3.Connection:
    """Return the connection below SQLAlchemy's."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _holds_something(name: str) -> bool:
    try:
        return os.stat(name).st_size > 0
    except OSError:
        return False


class SQLite:
    """A file, or memory."""

    def __init__(self, url: URL, lock_wait: float, on_connect: Hook | None, used: bool) -> None:
        """With `used` there has been a database: an empty file is what is left of it."""
        self.used = used
        self.made = False
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
            if not start and (self.used or _holds_something(f"{path}-wal")):
                raise DatabaseError(
                    f"{path}: is empty, though it has held a database; restore it from a backup, or remove it "
                    "to begin anew"
                )
            if start not in (b"", b"SQLite format 3\0"):
                raise DatabaseError(f"{path}: is not a database; name another file, or move this one away")

    def _create(self, path: Path) -> None:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self.made = True
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

    def remove(self) -> None:
        """Remove the file if it was made by this opening."""
        if self.made and self.path is not None:
            for name in _files(self.path):
                Path(name).unlink(missing_ok=True)

    def accept(self, connection: Connection) -> None:
        """Set the journal's mode, now that the file is known to be ours or empty."""
        # Below SQLAlchemy, which would send BEGIN first: the mode cannot change inside a transaction.
        driver = _driver(connection)
        driver.execute("PRAGMA journal_mode=WAL")

    def spare(self, connection: Connection, room: bool) -> None:
        """Have the log of changes moved into the file early, and give up its room now."""
        driver = _driver(connection)
        driver.execute(f"PRAGMA wal_autocheckpoint={SPARING if room else LAVISH}")
        if room:
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _code(self, error: BaseException) -> int:
        cause = getattr(error, "orig", error)
        return int(getattr(cause, "sqlite_errorcode", 0)) & 0xFF

    def is_full(self, error: BaseException) -> bool:
        """Tell whether an error means that no space is left."""
        return self._code(error) == sqlite3.SQLITE_FULL

    def is_unfit(self, error: BaseException) -> bool:
        """Tell whether an error comes from the values that were to be written."""
        return is_unfit(error)

    def explain(self, error: BaseException) -> str:
        """Return what happened and what to do, one line, without the location."""
        text = one_line(getattr(error, "orig", None) or error)
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
