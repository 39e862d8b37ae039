"""A PostgreSQL database, which belongs to who holds an advisory lock in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, NullPool, event
from sqlalchemy.exc import DBAPIError

from xapi.store.kind import MARK, DatabaseError, Hook, is_unfit, one_line

LOCK_KEY = int.from_bytes(b"kronosxp")
"""The advisory lock that the owner holds."""


class PostgreSQL:
    """A database of a server."""

    # Notice a dead server in half a minute, and have the server notice us dead in about as long.
    _settings: Mapping[str, object] = {
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
        self.path: Path | None = None
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
        def connected(connection: object, record: object) -> None:
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

    def remove(self) -> None:
        """The database is the administrator's."""

    def accept(self, connection: Connection) -> None:
        """Nothing needs to be set."""

    def spare(self, connection: Connection, room: bool) -> None:
        """The server sees to that."""

    def is_full(self, error: BaseException) -> bool:
        return getattr(getattr(error, "orig", error), "sqlstate", None) == "53100"  # disk_full

    def is_unfit(self, error: BaseException) -> bool:
        """Tell whether an error comes from the values that were to be written, also when there is too much of them."""
        state = getattr(getattr(error, "orig", error), "sqlstate", None) or ""
        return is_unfit(error) or state.startswith("54")  # program_limit_exceeded

    def explain(self, error: BaseException) -> str:
        cause = getattr(error, "orig", None) or error
        text = one_line(cause)
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
