"""What the HTTP server and its application exchange, and how an answer is framed for the wire."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from twisted.logger import Logger

_TURN = 512 * 1024  # bytes a pulled answer writes in one reactor turn
_TURN_FRAGMENTS = 8192  # a turn must stay short even when a fragment is one byte
_log = Logger()


@dataclass(slots=True, eq=False)
class Request:
    """Hold one request, complete with its body; to be treated as immutable.

    Not frozen: a frozen dataclass takes seven times as long to make. `headers` has lower-case names and
    repeated ones joined by ", ". `transport` lets whoever needs them read a Unix-socket caller's credentials.
    """

    method: str
    target: bytes
    path: str
    query: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    version: str
    peer: Any
    transport: Any


@dataclass(slots=True, eq=False)
class Response:
    """Say what to answer.

    An iterator's body is sent with Content-Length if `length` (bytes) is given, else chunked, or to HTTP/1.0
    up to the close; it yields one slice a reactor turn, b"" for "nothing now"; its `close`, if any, is called
    when it is not read to the end.
    """

    status: int
    body: bytes | Sequence[bytes] | Iterator[bytes]
    content_type: bytes | None
    headers: Sequence[tuple[bytes, bytes]] = ()
    length: int | None = None


@dataclass(slots=True, eq=False)
class Takeover:
    """Answer a CONNECT or an upgrade with 200, and let another protocol have the connection from then on.

    `make` returns that protocol; it gets the transport by `makeConnection`.
    """

    make: Callable[[], IProtocol]


class Application(Protocol):
    """Answer requests; the errors of both methods are logged and answered 500."""

    def body_limit(self, method: str, path: str) -> int | None:
        """Return how many bytes of body such a request may have; asked only of requests that may have one.

        None for a body that nobody wants: the request is answered without it, and the connection then ends.
        """

    def respond(self, request: Request) -> Response | Takeover | Deferred[Any]:
        """Answer a request; a Deferred is cancelled if the client goes away."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound what one connection may take: bytes and lines of a head, seconds of waiting.

    A head has `head_seconds` from its first byte on, which must come, after all that TLS says before it, as soon after
    the connection. A body may rest for `body_seconds`, and has as long in all beside the time that it takes at
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


@lru_cache(maxsize=256)
def answer_head(
    status: int, content_type: bytes | None, keep: bool, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """Build the part of a head that answers have in common: all but the length."""
    phrase = HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else "Unknown"
    kind = b"" if content_type is None else header_line(b"content-type", content_type)
    state = b"keep-alive" if keep else b"close"
    more = b"".join(header_line(name, value) for name, value in headers)
    return b"HTTP/1.1 %d %b\r\nconnection: %b\r\n%b%b" % (status, phrase.encode(), state, kind, more)


def header_line(name: bytes, value: bytes) -> bytes:
    """Build a header line; raise ValueError on a line end, with which a value could forge an answer."""
    line = b"%b: %b" % (name, value)
    if b"\r" in line or b"\n" in line:
        raise ValueError(f"line end in header {name!r}")
    return line + b"\r\n"


def error_response(status: int, text: str = "") -> Response:
    return Response(status, (text or HTTPStatus(status).phrase).encode() + b"\n", b"text/plain")


def in_pieces(fragments: Iterable[bytes]) -> Iterator[bytes]:
    """Regroup fragments into pieces of at most _TURN bytes: small ones joined, big ones sliced."""
    gathered: list[bytes | memoryview] = []
    room = _TURN
    for fragment in fragments:
        view: bytes | memoryview = fragment
        if len(fragment) > room:
            view = memoryview(fragment)
            while len(view) > room:
                gathered.append(view[:room])
                yield b"".join(gathered)
                view, gathered, room = view[room:], [], _TURN
        gathered.append(view)
        room -= len(view)
        if len(gathered) == _TURN_FRAGMENTS:
            yield b"".join(gathered)
            gathered, room = [], _TURN
    if gathered:
        yield b"".join(gathered)


def framed(head: bytes, body: Iterator[bytes], length: int | None, chunked: bool) -> Iterator[bytes]:
    """Frame an iterator's slices; raise ValueError if they are not `length` bytes together."""
    left = length
    for item in body:
        if left is not None:
            left -= len(item)
            if left < 0:
                raise ValueError(f"body longer than its length of {length} bytes")
        if not item:
            yield b""
            continue
        chunk = (head, b"%x\r\n" % len(item), item, b"\r\n") if chunked else (head, item)
        head = b""  # it waits for the first slice, so that an early failure can still be answered 500
        yield from in_pieces(chunk)
    if left:
        raise ValueError(f"body {left} bytes shorter than its length of {length} bytes")
    if head or chunked:
        yield head + (b"0\r\n\r\n" if chunked else b"")


def discard(body: object) -> None:
    """Close an iterator that will not be read to its end."""
    close = getattr(body, "close", None)
    if close is not None:
        try:
            close()
        except Exception:
            _log.failure("closing the body of an answer failed")
