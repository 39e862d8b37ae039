"""How an answer is framed for the wire: its head, and the parts of its body."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from http import HTTPStatus

_TURN = 512 * 1024  # bytes a pulled answer writes in one reactor turn
_TURN_FRAGMENTS = 8192  # a turn must stay short even when a fragment is one byte


@lru_cache(maxsize=256)
def answer_head(
    status: int, content_type: bytes | None, keep: bool, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """Build the part of a head that answers have in common: all but the length."""
    kind = b"" if content_type is None else header_line(b"content-type", content_type)
    state = b"keep-alive" if keep else b"close"
    return b"%bconnection: %b\r\n%b%b" % (status_line(status), state, kind, header_lines(headers))


def status_line(status: int) -> bytes:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else "Unknown"
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(header_line(name, value) for name, value in headers)


def header_line(name: bytes, value: bytes) -> bytes:
    """Build a header line; raise ValueError on a line end, with which a value could forge an answer."""
    line = b"%b: %b" % (name, value)
    if b"\r" in line or b"\n" in line:
        raise ValueError(f"line end in header {name!r}")
    return line + b"\r\n"


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


class Frame:
    """The framing of a body that is written in parts: of a known length, chunked, or up to the close."""

    __slots__ = ("_chunked", "_left", "_length", "_silent")

    def __init__(self, length: int | None, *, chunked: bool, silent: bool) -> None:
        self._length = self._left = length
        self._chunked = chunked
        self._silent = silent
        """The answer to HEAD, or of a status without a body: nothing of it is sent."""

    def part(self, data: bytes) -> Sequence[bytes]:
        """Return what is to be sent for a part of the body. Raises ValueError beyond the length."""
        if self._left is not None:
            if len(data) > self._left:
                raise ValueError(f"body longer than its length of {self._length} bytes")
            self._left -= len(data)
        if self._silent or not data:
            return ()
        return (b"%x\r\n" % len(data), data, b"\r\n") if self._chunked else (data,)

    def end(self) -> bytes:
        """Return what ends the body. Raises ValueError if it is shorter than its length."""
        if self._left and not self._silent:
            raise ValueError(f"body {self._left} bytes shorter than its length of {self._length} bytes")
        return b"0\r\n\r\n" if self._chunked and not self._silent else b""
