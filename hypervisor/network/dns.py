"""DNS (RFC 1035): read a question, write an answer. No compression to follow, nothing to forward."""

from __future__ import annotations

import struct
from typing import NamedTuple

PORT = 53
TYPE_A = 1
TYPE_PTR = 12
TYPE_ANY = 255
CLASS_IN = 1
CLASS_ANY = 255

OK, FORMAT_ERROR, NAME_ERROR, NOT_IMPLEMENTED, REFUSED = 0, 1, 3, 4, 5

_HEADER = struct.Struct("!HHHHHH")
_RESPONSE, _AUTHORITATIVE, _RECURSION_DESIRED = 0x8000, 0x0400, 0x0100
_NAME_OF_THE_QUESTION = b"\xc0\x0c"
_MAX_NAME = 255


class Question(NamedTuple):
    """A query for one name."""

    identifier: int
    flags: int
    name: tuple[str, ...]
    """Labels in lower case; bytes outside ASCII as Latin-1."""
    kind: int
    group: int
    raw: bytes
    """The question as it came, which the answer repeats."""


class Malformed(Exception):
    """A message that deserves FORMERR, or another code; `identifier` and `flags` are its own."""

    def __init__(self, identifier: int, flags: int, code: int) -> None:
        super().__init__(f"DNS message answered with code {code}")
        self.identifier = identifier
        self.flags = flags
        self.code = code


def parse(data: bytes) -> Question | None:
    """Return the question of a query; None for what must not be answered. Raises Malformed."""
    if len(data) < _HEADER.size:
        return None
    identifier, flags, questions, _answers, _authorities, _additional = _HEADER.unpack_from(data)
    if flags & _RESPONSE:
        return None
    if flags & 0x7800:
        raise Malformed(identifier, flags, NOT_IMPLEMENTED)
    if questions != 1:
        raise Malformed(identifier, flags, FORMAT_ERROR)
    labels = []
    at = _HEADER.size
    while at < len(data) and data[at]:
        end = at + 1 + data[at]
        if data[at] > 63 or end > len(data) or end - _HEADER.size >= _MAX_NAME:
            raise Malformed(identifier, flags, FORMAT_ERROR)
        labels.append(data[at + 1 : end].decode("latin-1").lower())
        at = end
    if at + 5 > len(data):
        raise Malformed(identifier, flags, FORMAT_ERROR)
    kind, group = struct.unpack_from("!HH", data, at + 1)
    return Question(identifier, flags, tuple(labels), kind, group, data[_HEADER.size : at + 5])


def answer(question: Question, code: int, records: list[tuple[int, bytes]], ttl: int, authoritative: bool) -> bytes:
    """Return the response to a question, with records (type, data) of the name asked for."""
    flags = _RESPONSE | (question.flags & _RECURSION_DESIRED) | (_AUTHORITATIVE if authoritative else 0) | code
    parts = [_HEADER.pack(question.identifier, flags, 1, len(records), 0, 0), question.raw]
    for kind, data in records:
        parts.append(_NAME_OF_THE_QUESTION + struct.pack("!HHIH", kind, CLASS_IN, ttl, len(data)) + data)
    return b"".join(parts)


def refusal(error: Malformed) -> bytes:
    """Return the response to a message that could not be read."""
    kept = error.flags & (0x7800 | _RECURSION_DESIRED)
    return _HEADER.pack(error.identifier, _RESPONSE | kept | error.code, 0, 0, 0, 0)


def encode_name(labels: tuple[str, ...]) -> bytes:
    """Return the wire form of a name. Raises ValueError for one that DNS cannot hold."""
    parts = [label.encode("latin-1") for label in labels]
    if any(not 0 < len(part) <= 63 for part in parts) or sum(len(part) + 1 for part in parts) >= _MAX_NAME:
        raise ValueError(f"no name for DNS: {'.'.join(labels)}")
    return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"
