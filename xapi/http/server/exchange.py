"""What the HTTP server and its application exchange: requests, how their bodies are taken in, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocol

    from xapi.http.server.body import Body
    from xapi.http.server.outgoing import Outgoing


@dataclass(frozen=True, slots=True)
class Intake:
    """How the body of a request is taken in.

    `limit` is how many bytes it may have, None for any number. One that is `streamed` is read by whoever answers, as it
    comes, as `Request.stream`: the request is given to them by its head. Else they have it whole, as `Request.body`.
    A reader that waits, waits at most `rest_seconds` for the next bytes of a stream.
    """

    limit: int | None
    streamed: bool = False
    rest_seconds: float = 60

    def __post_init__(self) -> None:
        if self.limit is None and not self.streamed:
            raise ValueError("a whole body has a limit")


UNREAD = Intake(None, streamed=True)
"""For who reads nothing: a short body is passed over, and after a long one the connection ends."""


@dataclass(slots=True, eq=False)
class Request:
    """Hold one request; to be treated as immutable.

    Not frozen: a frozen dataclass takes seven times as long to make. `headers` has lower-case names and
    repeated ones joined by ", ". `stream` is None where there is no body, or all of it is in `body`.
    """

    method: str
    target: bytes
    path: str
    query: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    version: str
    connection: Connection
    route: Route
    stream: Body | None = None


@dataclass(slots=True, eq=False)
class Response:
    """Say what to answer: a whole body, in one part or several."""

    status: int
    body: bytes | Sequence[bytes]
    content_type: bytes | None
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(slots=True, eq=False)
class Takeover:
    """Answer a CONNECT or an upgrade, and let another protocol have the connection from then on.

    `make` returns that protocol; it gets the transport by `makeConnection`.
    """

    make: Callable[[], IProtocol]
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()


class Refusal(Exception):
    """Why a request is not answered as it wants: a status, and one line for people."""

    def __init__(self, status: int, text: str = "", headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(text or HTTPStatus(status).phrase)
        self.status = status
        self.text = text
        self.headers = headers


Answer: TypeAlias = "Response | Takeover | Outgoing"
"""What ends a request: an answer, or one that has been begun and written."""


class Connection(Protocol):
    """What can be asked of the connection of a request."""

    @property
    def peer(self) -> IAddress | None: ...

    @property
    def wire(self) -> Any:
        """The transport, for who needs the credentials of a Unix socket's peer."""

    def begin(
        self,
        status: int,
        content_type: bytes | None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        length: int | None = None,
    ) -> Outgoing:
        """Begin the answer to the request that is being answered, by its head; who answers writes the body.

        With `length` bytes, else chunked, or to HTTP/1.0 up to the close. The request's body may be read on.
        """


class Route(Protocol):
    """What answers the requests of some path."""

    @property
    def intake(self) -> Intake: ...

    def answer(self, request: Request) -> Answer | Deferred[Any]:
        """Answer a request.

        A `Refusal` is answered as it says, other errors are logged and answered 500. If the client goes away a
        Deferred is cancelled, but who reads a body is told by the body: what has come may be all that is needed.
        """


class Application(Protocol):
    """Answer requests."""

    def route(self, method: str, path: str) -> Route:
        """Return what answers a request; asked when its head is there. An error is logged and answered 500."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound what one connection may take: bytes and lines of a head, seconds of waiting.

    A head has `head_seconds` from its first byte on, which must come, after all that TLS says before it, as soon after
    the connection. A whole body may rest for `body_seconds`, and has as long in all beside the time that it takes at
    `body_rate` bytes a second. Who may still be sending when it is answered is heard out, to nobody's use, for
    `linger_seconds`, or until it rests for `linger_rest`: else the answer would be lost with the connection.
    """

    head_bytes: int = 64 * 1024
    head_lines: int = 100
    head_seconds: float = 60
    body_seconds: float = 60
    body_rate: float = 1000
    idle_seconds: float = 3600
    unread_seconds: float = 600
    linger_seconds: float = 30
    linger_rest: float = 5


def error_response(status: int, text: str = "", headers: Sequence[tuple[bytes, bytes]] = ()) -> Response:
    """Return an answer of one line, the status's phrase if there is no better one."""
    return Response(status, (text or HTTPStatus(status).phrase).encode() + b"\n", b"text/plain", headers)
