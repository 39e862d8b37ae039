"""Paths that the API declares and nobody serves yet: who may use them hears 501 and the handler's name.

Who may not is told that first, as with xapi, and a task that the client made for the transfer fails. Such an answer
does not wait for the request's body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from xapi.access.sessions import allowed
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.http.credentials import parameter, session_of, unauthorised
from xapi.http.server.exchange import Request, Response, error_response

if TYPE_CHECKING:
    from xapi.access.caller import Origin
    from xapi.datamodel import HTTPHandler
    from xapi.process.daemon import Daemon

SERVED = frozenset(
    {
        "post_root", "post_RPC2", "post_jsonrpc", "post_json", "post_root_options", "post_jsonrpc_options",
        "post_json_options", "connect_console",
    }
)  # fmt: skip
"""Those that `xapi.http.rpc` answers itself."""
_NOT_FOUND = "get_root"
"""Serves files, of which there are none: that is 404, as for any file that is not there."""


class Unserved:
    """Answers requests that a declared handler would take."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._handlers: dict[str, list[HTTPHandler]] = {}
        for handler in sorted(daemon.model.handlers.values(), key=lambda each: len(each.path), reverse=True):
            self._handlers.setdefault(handler.method, []).append(handler)

    def find(self, method: str, path: str) -> HTTPHandler | None:
        """Return the handler of the longest path that a path begins with, as xapi does, if nobody serves it."""
        for handler in self._handlers.get(method, ()):
            if path.startswith(handler.path):
                return None if handler.name in SERVED or handler.name == _NOT_FOUND else handler
        return None

    async def respond(self, request: Request, handler: HTTPHandler, origin: Origin) -> Response:
        """Say who is not let in, and to all others that nobody is there."""
        missing = error_response(501, f"{handler.name} is not implemented")
        if not handler.checked:
            return missing
        query = dict(parse_qsl(request.query.decode("latin-1"), keep_blank_values=True))
        session, own = await session_of(self._daemon, request, query, origin)
        if session is None:
            return unauthorised(handler.name, "session_id, or user and password")
        try:
            if not allowed(session, f"http/{handler.name}"):
                denied = errors.RBAC_PERMISSION_DENIED(f"http/{handler.name}", "No permission in user session")
                self._fail(request, query, session, denied)
                return error_response(403)
            self._fail(request, query, session, errors.NOT_IMPLEMENTED(handler.name))
            return missing
        finally:
            if own:
                self._daemon.sessions.end(session)

    def _fail(self, request: Request, query: dict[str, str], session: Any, fault: Fault) -> None:
        """End the task that the client made for its transfer."""
        task = self._daemon.tasks.named(parameter(request, query, "task_id"), session)
        if task is not None:
            self._daemon.tasks.fail(task, fault)
