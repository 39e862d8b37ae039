"""Consoles over HTTP: ``CONNECT /console?uuid=…&session_id=…``, then the bytes of a terminal both ways.

The query names a console by `uuid` or `ref`; a VM's reference means its text console. The session is in the query,
in the cookie `session_id`, or made for this request from HTTP's basic credentials. Screens (protocol rfb) have no
server yet, and there is no WebSocket form.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from zope.interface import implementer

from hypervisor.api import ByteStream, HostError
from xapi.call import Origin
from xapi.errors import Fault
from xapi.http.exchange import Request, Response, Takeover, error_response
from xapi.sessions import allowed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xapi.daemon import Daemon

PERMISSION = "http/connect_console"
PATHS = frozenset({"/console", "/console/"})
_UNAUTHORISED = Response(
    401, b"session_id, or user and password, of a user who may use consoles\n", b"text/plain",
    ((b"www-authenticate", b'Basic realm="XenAPI"'),),
)  # fmt: skip
log = Logger()


class Consoles:
    """Answers requests for consoles."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def respond(self, request: Request, origin: Origin) -> Response | Takeover:
        """Connect to a console, or say why not."""
        query = dict(parse_qsl(request.query.decode("latin-1"), keep_blank_values=True))
        session, own = await self._session(request, query, origin)
        try:
            if session is None or not allowed(session, PERMISSION):
                return _UNAUTHORISED
            console = self._console(query)
            if console is None:
                return error_response(404, "there is no such console")
            if console.protocol != "vt100":
                return error_response(501, f"consoles of protocol {console.protocol} are not served yet")
            return await self._connect(console)
        finally:
            if own and session is not None:
                self._daemon.sessions.end(session)

    async def _connect(self, console: Any) -> Response | Takeover:
        vm = self._daemon.db.VM[console.VM]
        host = self._daemon.db.host.get(vm.resident_on)
        if host is None or vm.is_control_domain:
            return error_response(404, "the VM has no terminal: it does not run, or is the control domain")
        try:
            stream = await self._daemon.backends.of(host).console(vm.uuid)
        except (HostError, Fault) as error:
            return error_response(404, str(error))
        return Takeover(lambda: Terminal(stream))

    async def _session(self, request: Request, query: dict[str, str], origin: Origin) -> tuple[Any, bool]:
        """Return the caller's session, None if there is none, and whether it was made for this request."""
        ref = query.get("session_id") or _cookie(request, "session_id")
        if ref:
            return self._daemon.db.session.get(ref), False
        user, password = _basic(request)
        if not user and not origin.trusted:
            return None, False
        try:
            return await self._daemon.sessions.login(user, password, "http", origin), True
        except Fault:
            return None, False

    def _console(self, query: dict[str, str]) -> Any:
        db = self._daemon.db
        if "uuid" in query:
            return _first(row for row in db.console if row.uuid == query["uuid"])
        ref = query.get("ref", "")
        if ref in db.VM:
            return _first(db.console[one] for one in db.VM[ref].consoles if db.console[one].protocol == "vt100")
        return db.console.get(ref)


def _first(rows: Iterable[Any]) -> Any:
    return next(iter(rows), None)


def _cookie(request: Request, name: str) -> str:
    for part in request.headers.get(b"cookie", b"").decode("latin-1").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""


def _basic(request: Request) -> tuple[str, str]:
    scheme, _, text = request.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"basic":
        return "", ""
    try:
        user, _, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return user, password


@implementer(IProtocol, IPushProducer)
class Terminal(Protocol):
    """One client at a guest's terminal. A client that reads too slowly misses output; typing too fast is lost."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._reading: Deferred[None] | None = None
        self._wire: Any = None
        self._full = False

    def connectionMade(self) -> None:
        """Show what was written lately, then follow."""
        self._wire = self.transport
        self._wire.registerProducer(self, True)
        self._wire.write(self._stream.history())
        self._reading = Deferred.fromCoroutine(self._follow())
        self._reading.addErrback(self._ended)

    async def _follow(self) -> None:
        async for data in self._stream.follow():
            if not self._full:
                self._wire.write(data)

    def _ended(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            log.failure("a console's output ended", failure=failure)
            self._wire.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """Type."""
        self._stream.write(data)

    def connectionLost(self, reason: Any = connectionDone) -> None:
        """Follow no more."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()

    def pauseProducing(self) -> None:
        """Let output go by."""
        self._full = True

    def resumeProducing(self) -> None:
        """Show output again."""
        self._full = False

    def stopProducing(self) -> None:
        """The connection is being lost, which `connectionLost` tells."""
