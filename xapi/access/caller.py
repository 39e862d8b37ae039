"""Who calls: a session, where it comes from, and what it may. Only dispatch, sessions and permissions ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xapi.access.sessions import allowed
from xapi.datamodel import errors
from xapi.datamodel.types import NULL, Ref

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.interfaces import IAddress

    from xapi.datamodel.records import session


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


class Caller:
    """A session at an origin. Without a session it is whoever logs in, or the toolstack itself: that may do all."""

    __slots__ = ("origin", "session")

    def __init__(self, session: session | None, origin: Origin) -> None:
        self.session = session
        self.origin = origin

    @property
    def client(self) -> session:
        """The session of a call that asks for one: dispatch lets none through without."""
        assert self.session is not None
        return self.session

    @property
    def session_ref(self) -> Ref[session]:
        return NULL if self.session is None else self.session._ref

    def may(self, permission: str) -> bool:
        """Tell whether the caller has a permission besides that of the message."""
        return self.session is None or allowed(self.session, permission)

    def require(self, permission: str) -> None:
        """Raise RBAC_PERMISSION_DENIED unless the caller has the permission."""
        if not self.may(permission):
            raise errors.RBAC_PERMISSION_DENIED(permission.lower(), "No permission in user session")


TOOLSTACK = Caller(None, Origin(trusted=True))
"""The toolstack itself: who calls where a schedule, a recovery or a guest's end is the cause."""
