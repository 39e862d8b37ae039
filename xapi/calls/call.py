"""What a message may use: the pool's objects, who calls, its task, and the time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from xapi.access.sessions import allowed
from xapi.datamodel import errors
from xapi.datamodel.lexical import moment
from xapi.datamodel.types import NULL, Ref

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.interfaces import IAddress, IReactorTime

    from xapi.datamodel import Message
    from xapi.process.daemon import Daemon
    from xapi.storage.unfinished import Making
    from xapi.store.memory import Store
    from xapi.store.rows import Row


class Origin:
    """Where a call comes from: whether it is a trusted local socket, its HTTP headers, and the peer's address."""

    __slots__ = ("headers", "peer", "trusted")

    def __init__(
        self, trusted: bool = False, headers: Mapping[bytes, bytes] | None = None, peer: IAddress | None = None
    ) -> None:
        self.trusted = trusted
        self.headers = headers or {}
        self.peer = peer

    @property
    def address(self) -> str:
        """The peer's IP address; "" for a local socket."""
        host: str = getattr(self.peer, "host", "")
        return host


class Call:
    """One call of one message."""

    __slots__ = ("_task", "borrowed", "daemon", "making", "message", "name", "origin", "session")

    def __init__(
        self, daemon: Daemon, message: Message, name: str, session: Row | None, origin: Origin, task: Row | None = None
    ) -> None:
        self.daemon = daemon
        self.message = message
        self.name = name
        self.session: Any = session
        self.origin = origin
        self._task: Any = task
        self.borrowed = False
        """The task is one that the client named: its end is the client's to write."""
        self.making: Making | None = None
        """Notes of what the operation that this call is part of has made; see `xapi.storage.unfinished`."""

    @property
    def db(self) -> Store:
        return self.daemon.db

    @property
    def clock(self) -> IReactorTime:
        return self.daemon.clock

    @property
    def now(self) -> datetime:
        """The time of day, in whole seconds."""
        return moment(self.daemon.clock.seconds())

    @property
    def task(self) -> Any:
        """The task that clients see of this call: one that they name, or one made when first asked for."""
        if self._task is None:
            tasks = self.daemon.tasks
            self._task = tasks.named_by(self.origin, self.session)
            self.borrowed = self._task is not None
            if not self.borrowed:
                self._task = tasks.create(self.name, session=self.session, origin=self.origin)
        return self._task

    @property
    def pool(self) -> Any:
        """The one pool object."""
        return next(iter(self.db.pool))

    @property
    def host(self) -> Any:
        """The host that answers: the coordinator."""
        return self.db.host[self.pool.master]

    @property
    def session_ref(self) -> Ref[Any]:
        return NULL if self.session is None else self.session._ref

    def may(self, permission: str) -> bool:
        """Tell whether the caller has a permission besides that of the message."""
        return self.session is None or allowed(self.session, permission)

    def require(self, permission: str) -> None:
        """Raise RBAC_PERMISSION_DENIED unless the caller has the permission."""
        if not self.may(permission):
            raise errors.RBAC_PERMISSION_DENIED(permission.lower(), "No permission in user session")

    def require_keys(self, before: Mapping[str, str], after: Mapping[str, str], field: str) -> None:
        """Check a whole map that is being set, key by key, where a key that changes has a role of its own."""
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        adder = self.daemon.model.classes[self.message.class_name].messages[f"add_to_{field}"]
        for key in changed:
            permission = key_permission(adder, key)
            self.require(permission or self.message.full_name)


def key_permission(message: Message, key: str) -> str | None:
    """Return the permission that one key of a map asks for, or None when it is like the others."""
    for pattern in message.key_roles:
        if key == pattern or (pattern.endswith("*") and key.startswith(pattern[:-1])):
            return f"{message.full_name}/key:{pattern}"
    return None
