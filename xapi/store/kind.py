"""What the two kinds of database have in common for those who use them: `SQLite` and `PostgreSQL`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError

MARK = "kronos-xapi"
"""By what a database is known to be ours, and a connection's user at the server."""

Hook = Callable[[Any], None]
"""Is given each new connection of the driver."""


class DatabaseError(Exception):
    """The database cannot be used; the text is one line: where, what, and what to do."""


def one_line(error: BaseException) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())


def is_unfit(error: BaseException) -> bool:
    """Tell whether an error comes from values that SQLAlchemy or a driver cannot even send, or a server not take."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError) and not error.connection_invalidated
    # A StatementError that is no DBAPIError comes from turning a value into a parameter.
    return isinstance(error, StatementError | ValueError | TypeError | OverflowError)


class Kind(Protocol):
    """What is particular to a kind of database."""

    location: str
    """The file, or the URL without its password."""

    path: Path | None
    """The file, if the database is one on this machine."""

    def prepare(self) -> None:
        """Look at what can be looked at before the first connection, or make it. Raises DatabaseError."""

    def engine(self) -> Engine:
        """Return an engine whose connections are set up but have not written. Raises DatabaseError."""

    def take(self, connection: Connection) -> None:
        """Keep other processes out, and begin to look whether all is sound. Raises DatabaseError."""

    def sound(self) -> None:
        """Return once the database is known to be sound. Raises DatabaseError, or the driver's error."""

    def leave(self) -> None:
        """Let the database be ours no more."""

    def remove(self) -> None:
        """Remove what this opening has made, if it was all made by it."""

    def accept(self, connection: Connection) -> None:
        """Set what may be set only now that the database is known to be ours or empty."""

    def spare(self, connection: Connection, room: bool) -> None:
        """Take as little room as possible, or as usual."""

    def is_full(self, error: BaseException) -> bool:
        """Tell whether an error means that no space is left."""

    def is_unfit(self, error: BaseException) -> bool:
        """Tell whether an error comes from the values that were to be written: all others could be."""

    def explain(self, error: BaseException) -> str:
        """Return what happened and what to do, one line, without the location."""
