"""What the two kinds of database have in common for those who use them: `SQLite` and `PostgreSQL`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

MARK = "kronos-xapi"
"""By what a database is known to be ours, and a connection's user at the server."""

Hook = Callable[[Any], None]
"""Is given each new connection of the driver."""


class DatabaseError(Exception):
    """The database cannot be used; the text is one line: where, what, and what to do."""


def one_line(error: BaseException) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())


class Kind(Protocol):
    """What is particular to a kind of database."""

    location: str
    """The file, or the URL without its password."""

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

    def accept(self, connection: Connection) -> None:
        """Set what may be set only now that the database is known to be ours or empty."""

    def is_full(self, error: BaseException) -> bool:
        """Tell whether an error means that no space is left."""

    def explain(self, error: BaseException) -> str:
        """Return what happened and what to do, one line, without the location."""
