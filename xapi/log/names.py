"""What an object is called: by its class, name and uuid; a session, whose reference is secret, by a hash."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xapi.datamodel.quoting import REFERENCE, quoted, trackid

if TYPE_CHECKING:
    from xapi.store.memory import Store


UUID = 36
"""Characters of a uuid."""


class Named(NamedTuple):
    """An object that is, or was, there."""

    kind: str
    name: str
    uuid: str
    ref: str

    def __str__(self) -> str:
        name = f" {quoted(self.name)}" if self.name else ""
        return f"{self.kind}{name} ({self.uuid})"


class Names:
    """Find objects by their references, and by their uuids as xapi does."""

    def __init__(self, db: Store) -> None:
        self._db = db
        self._tables = list(db.tables.values())

    def of(self, kind: str, ref: str) -> Named | None:
        """Return what is known of an object of a class, or None; nothing of a session."""
        row = self._db.tables[kind].get(ref) if kind in self._db.tables and kind != "session" else None
        return None if row is None else Named(kind, getattr(row, "name_label", ""), getattr(row, "uuid", ""), ref)

    def find(self, key: str) -> Named | None:
        """Return the object with a reference or a uuid, of whatever class but session."""
        if key.startswith("OpaqueRef:"):
            for table in self._tables:
                if key in table.rows:
                    return self.of(table.name, key)
        elif len(key) == UUID:
            for table in self._tables:
                row = table.with_uuid(key)
                if row is not None:
                    return self.of(table.name, row._ref)
        return None

    def show(self, ref: str) -> str:
        """Return how a text calls an object: by its name, and a session, or what is not there, by a hash."""
        known = self.find(ref)
        return trackid(ref) if known is None else str(known)

    def named(self, text: str) -> str:
        """Return a text with names in place of references."""
        return REFERENCE.sub(lambda match: self.show(match.group()), text) if "OpaqueRef:" in text else text

    def without_sessions(self, text: str) -> str:
        """Return a text with hashes in place of sessions' references."""
        if "OpaqueRef:" not in text:
            return text
        sessions = self._db.session
        return REFERENCE.sub(lambda found: trackid(found.group()) if found.group() in sessions else found.group(), text)
