"""JSON-RPC 1.0 and 2.0 on the wire, with the same values as XML-RPC.

Ints are JSON numbers of 64 bits, dates strings, void "". An answer has the version of its request:
2.0 when that says ``"jsonrpc": "2.0"``, else 1.0, whose error is the list of code and parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import orjson

from xapi.datamodel import errors
from xapi.datamodel.types import Type

CONTENT_TYPE = b"application/json"


class JSONCall(NamedTuple):
    """One request: method, positional parameters, encoded id, and whether it is of version 2.0."""

    method: str
    params: list[object]
    id: bytes
    v2: bool


def read(body: bytes) -> dict[str, object]:
    """Return a request's object. Raises Fault: INVALID_VALUE for what is not UTF-8, else INTERNAL_ERROR."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            body.decode()
        except UnicodeDecodeError:
            shown = body[:400].decode(errors="replace")
            raise errors.INVALID_VALUE("Invalid UTF-8 string in parameter", shown) from None
        raise errors.INTERNAL_ERROR(f"malformed JSON-RPC call: {error}") from None
    if not isinstance(request, dict):
        raise errors.INTERNAL_ERROR("malformed JSON-RPC call: expected an object")
    return request


def addressed(request: dict[str, object]) -> JSONCall:
    """Return what any answer to a request depends on, version and id (null if it has none), without the call."""
    identifier = request.get("id")
    known = type(identifier) in (int, str)
    return JSONCall("", [], orjson.dumps(identifier) if known else b"null", request.get("jsonrpc") == "2.0")


def parse_call(request: dict[str, object]) -> JSONCall:
    """Return the call that a request's object stands for. Raises INTERNAL_ERROR."""
    _, _, identifier, v2 = addressed(request)
    method = request.get("method")
    params = request.get("params", [] if v2 else None)
    if v2 and params is None:
        params = []
    if identifier == b"null":
        raise errors.INTERNAL_ERROR("malformed JSON-RPC call: id must be an int or a string")
    if not isinstance(method, str) or not isinstance(params, list):
        raise errors.INTERNAL_ERROR("malformed JSON-RPC call: expected method and a list of params")
    return JSONCall(method, params, identifier, v2)


UNREAD = JSONCall("", [], b"null", True)
"""What a request counts as that could not be read."""


def success(call: JSONCall, value: bytes) -> bytes:
    """Return the whole answer for an encoded value."""
    start, end = success_parts(call)
    return start + value + end


def success_parts(call: JSONCall) -> tuple[bytes, bytes]:
    """Return what stands before and after the value in an answer."""
    if call.v2:
        return b'{"jsonrpc":"2.0","result":', b',"id":' + call.id + b"}"
    return b'{"result":', b',"error":null,"id":' + call.id + b"}"


def failure(call: JSONCall, description: Sequence[str]) -> bytes:
    """Return the whole answer for an error: its code, then its parameters."""
    if call.v2:
        error = {"code": 1, "message": description[0], "data": list(description[1:])}
        return b'{"jsonrpc":"2.0","error":' + orjson.dumps(error) + b',"id":' + call.id + b"}"
    return b'{"result":null,"error":' + orjson.dumps(list(description)) + b',"id":' + call.id + b"}"


def encode(kind: Type, value: object) -> bytes:
    """Return the JSON text of a typed value."""
    return orjson.dumps(kind.plain(value))
