"""Messages as xen/include/public/io/xs_wire.h and docs/misc/xenstore.txt lay them out."""

from __future__ import annotations

import struct
from enum import IntEnum

from hypervisor.xenstore.errors import Invalid

HEADER = struct.Struct("<IIII")  # type, req_id, tx_id, len
PAYLOAD_MAX = 4096
MESSAGE_MAX = HEADER.size + PAYLOAD_MAX
OK = b"OK\0"


class Type(IntEnum):
    """Number the message types; those of later Xen (GET_FEATURE and so on) are answered ENOSYS, as optional ones."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class RingError(IntEnum):
    """Number the reasons of a dead connection, for the `error` field of the ring page."""

    NONE = 0
    COMMUNICATION = 1
    RING_INDEX = 2
    PROTOCOL = 3


FEATURE_RECONNECTION = 1  # Connection.reset
FEATURE_ERROR = 2  # Connection.error
FEATURE_WATCH_DEPTH = 4
SERVER_FEATURES = FEATURE_RECONNECTION | FEATURE_ERROR | FEATURE_WATCH_DEPTH  # for the ring page, offset 2064


def message(kind: int, request: int, transaction: int, payload: bytes) -> bytes:
    """Return a whole message; the payload holds at most PAYLOAD_MAX bytes."""
    return HEADER.pack(kind, request, transaction, len(payload)) + payload


def strings(payload: bytes, least: int, most: int) -> list[bytes]:
    """Split a payload of `least` to `most` texts, each ended by a nul, and ignore what follows the last nul.

    Raise `Invalid` for another number of texts.
    """
    found = payload.split(b"\0")[:-1]
    if not least <= len(found) <= most:
        raise Invalid("wrong number of arguments")
    return found


def single(payload: bytes) -> bytes:
    """Return the one text of a payload that must hold exactly one nul, as its last byte; raise `Invalid`."""
    if payload.find(b"\0") != len(payload) - 1 or not payload:
        raise Invalid("not exactly one argument")
    return payload[:-1]
