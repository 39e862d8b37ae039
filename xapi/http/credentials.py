"""Who asks, by what HTTP has: a session in the cookie or the query, a user and password, or a trusted socket."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xapi.datamodel.errors import Fault
from xapi.http.server.exchange import Request, Response

if TYPE_CHECKING:
    from xapi.access.caller import Origin
    from xapi.process.daemon import Daemon


async def session_of(daemon: Daemon, request: Request, query: Mapping[str, str], origin: Origin) -> tuple[Any, bool]:
    """Return the caller's session, None if there is none, and whether it was made for this request."""
    ref = parameter(request, query, "session_id")
    if ref:
        session = daemon.db.session.get(ref)
        if session is not None:
            daemon.sessions.used(session)
        return session, False
    user, password = _basic(request)
    if not user and not origin.trusted:
        return None, False
    try:
        return await daemon.sessions.login(user, password, "http", origin), True
    except Fault:
        return None, False


def parameter(request: Request, query: Mapping[str, str], name: str) -> str:
    """Return a parameter of a request, from its cookies or else its query, "" for none."""
    for part in request.headers.get(b"cookie", b"").decode("latin-1").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return query.get(name, "")


def unauthorised(realm: str, text: str) -> Response:
    """Return the answer to who has no credentials, or wrong ones."""
    header = (b"www-authenticate", f'Basic realm="{realm}"'.encode())
    return Response(401, text.encode() + b"\n", b"text/plain", (header,))


def _basic(request: Request) -> tuple[str, str]:
    scheme, _, text = request.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"basic":
        return "", ""
    try:
        user, _, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return user, password
