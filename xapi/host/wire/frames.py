"""What goes over a connection: frames, each of them four bytes of length and a tagged Struct in MessagePack.

Both ends call each other. Who calls sends `Call`, `Cancel`, `Credit` and `Release`; who is called sends `Part`,
`Answer`, `Item` and `Failed`, all with the number that the caller has given to the call. Values are MessagePack too,
bytes here: what type they are of is known to whoever asked.

A frame has at most `FRAME` bytes, so that reading the worst of them takes 3 ms; longer answers come in parts.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

WIRE = "kronos-wire"
VERSION = 1
"""Of the frames; what both ends say to each other by them has a version of its own."""
FRAME = 256 * 1024
"""Bytes of a frame."""
PIECE = 64 * 1024
"""Bytes of a value that go into one frame, so that others come in between."""
VALUE = 16 << 20
"""Bytes of an answer in parts: 40,000 volumes. One that is made to be slow to read takes 0.3 s; who can send it is
somebody who may do everything."""
GREETING = 16 * 1024
"""Bytes of the first frame, which comes from anybody."""
_LENGTH = 4


class BadFrame(Exception):
    """What has come is no frame; nothing that follows can be read."""


class Frame(Struct, frozen=True, array_like=True):
    """All of them."""


class Hello(Frame, frozen=True, tag=0):
    """The first frame of each end: what it speaks, which methods it serves, and what else it tells of itself."""

    wire: str
    version: int
    service: str
    service_version: int
    capabilities: frozenset[str] = frozenset()
    facts: dict[str, str] = {}


class Goodbye(Frame, frozen=True, tag=1):
    """The last frame, where an end can say why it goes."""

    why: str


class Beat(Frame, frozen=True, tag=2):
    """Nothing: the end lives."""


class Call(Frame, frozen=True, tag=3):
    """Call a method of an object: one that is served by name, or of a number that was sent.

    Without a number nothing is answered. `credit` is how many bytes of items may come.
    """

    number: int
    object: str | int
    method: str
    arguments: bytes
    credit: int = 0


class Cancel(Frame, frozen=True, tag=4):
    """The caller does not want an answer any more, but hears how the call ended."""

    number: int


class Credit(Frame, frozen=True, tag=5):
    """So many bytes more of a stream may come."""

    number: int
    size: int


class Release(Frame, frozen=True, tag=6):
    """Objects whose numbers were sent are not used any more."""

    objects: tuple[int, ...]


class Part(Frame, frozen=True, tag=7):
    """The beginning of an answer, or its continuation."""

    number: int
    data: bytes


class Answer(Frame, frozen=True, tag=8):
    """The rest of an answer; or the end of a stream."""

    number: int
    data: bytes


class Item(Frame, frozen=True, tag=9):
    """The next item of a stream."""

    number: int
    data: bytes


class Failed(Frame, frozen=True, tag=10):
    """A call has ended by an error: one of a kind that both ends know, or of none."""

    number: int
    kind: str
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    Hello | Goodbye | Beat | Call | Cancel | Credit | Release | Part | Answer | Item | Failed
).decode


def encode(frame: Frame) -> bytes:
    """Return a frame as it is sent. Raises ValueError for one that is too long."""
    data = _encode(frame)
    if len(data) > FRAME:
        raise ValueError(f"{type(frame).__name__} of {len(data):,} bytes is longer than a frame")
    return len(data).to_bytes(_LENGTH, "big") + data


class Reading:
    """Bytes as they come, and the frames in them; at most one frame is held that is not whole."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.limit = GREETING
        """Bytes of a frame."""

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Hear of more bytes."""
        self._data += data

    def take(self) -> Frame | None:
        """Return the next frame, None if it has not come whole. Raises BadFrame."""
        if len(self._data) < _LENGTH:
            return None
        end = _LENGTH + int.from_bytes(self._data[:_LENGTH], "big")
        if end > _LENGTH + self.limit:
            raise BadFrame(f"a frame of {end - _LENGTH:,} bytes is too long")
        if len(self._data) < end:
            return None
        try:
            frame: Frame = _decode(self._data[_LENGTH:end])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadFrame(f"a frame cannot be read: {error}") from None
        del self._data[:end]
        return frame
