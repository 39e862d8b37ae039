"""Who asks, by what HTTP has for that: the one way from a request to its caller.

A request names a session (`session_id`), or the pool's secret (`pool_secret`), in its cookies or else its query; or it
has a user and password, as HTTP's basic credentials; or it comes by a trusted socket. They count in this order, the
first that is there. All but the first make a session, which ends with the request.
"""

from __future__ import annotations

import base64
import binascii
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import getuid
from typing import TYPE_CHECKING, Any

from twisted.internet.address import UNIXAddress

from xapi.access.caller import Caller, Origin
from xapi.datamodel.errors import Fault
from xapi.http.server.exchange import Refusal, Request

if TYPE_CHECKING:
    from xapi.access.sessions import Sessions
    from xapi.datamodel import records
    from xapi.http.query import Query


class Stranger(Caller):
    """Whoever asks where nobody is asked who he is; he may do nothing else."""

    def __init__(self, origin: Origin) -> None:
        super().__init__(None, origin)

    def may(self, permission: str) -> bool:
        return False


@asynccontextmanager
async def admitted(sessions: Sessions, request: Request, query: Query, realm: str) -> AsyncIterator[Caller]:
    """Give the caller of a request, while it is answered. Raises Refusal (401) for who has no credentials, or wrong."""
    origin = origin_of(request)
    ref = named(request, query, "session_id")
    if ref:
        session = sessions.db.session.get(ref)
        if session is None:
            raise _unauthorised(realm)
        sessions.used(session)
        yield Caller(session, origin)
        return
    session = await _log_in(sessions, request, query, origin, realm)
    try:
        yield Caller(session, origin)
    finally:
        sessions.end(session)


async def _log_in(sessions: Sessions, request: Request, query: Query, origin: Origin, realm: str) -> records.session:
    secret = named(request, query, "pool_secret")
    user, password = _basic(request)
    try:
        if secret:
            return sessions.login_pool(secret)
        if user or origin.trusted:
            return await sessions.login(user, password, "http", origin)
    except Fault as fault:
        raise _unauthorised(realm) from fault
    raise _unauthorised(realm)


def named(request: Request, query: Query, name: str) -> str:
    """Return what a request names in its cookies or else its query, "" for nothing."""
    for part in request.headers.get(b"cookie", b"").decode("latin-1").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return query.first(name)


def _unauthorised(realm: str) -> Refusal:
    header = (b"www-authenticate", f'Basic realm="{realm}"'.encode())
    return Refusal(401, "session_id, or user and password", (header,))


def _basic(request: Request) -> tuple[str, str]:
    scheme, _, text = request.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"basic":
        return "", ""
    try:
        user, _, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return user, password


def origin_of(request: Request) -> Origin:
    """Return where a request comes from; a local socket of root or our own user is trusted."""
    peer = request.connection.peer
    local = isinstance(peer, UNIXAddress)
    return Origin(local and _peer_uid(request.connection.wire) in (0, getuid()), request.headers, peer)


def _peer_uid(transport: Any) -> int:
    """Return the uid of the process at the other end of a Unix socket (SO_PEERCRED of unix(7)), or -1."""
    try:
        credentials = transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return -1
    return int(struct.unpack("3i", credentials)[1])
