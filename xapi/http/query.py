"""The query of a request, and the typed arguments that a handler gets of it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from xapi.datamodel.lexical import DecodeError
from xapi.datamodel.types import BoolType, MapType, SetType, Type
from xapi.http.server.exchange import Refusal

if TYPE_CHECKING:
    from xapi.datamodel import HTTPHandler, QueryParameter

MOST = 1000
"""Parameters that are read, which takes a millisecond."""
_TRUTH = {"true": True, "false": False}


class Query:
    """What stands behind the question mark of a request's target."""

    __slots__ = ("_values",)

    def __init__(self, query: bytes) -> None:
        """Raises Refusal (400)."""
        self._values: dict[str, list[str]] = {}
        try:
            found = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST)
        except ValueError as error:
            raise Refusal(400, f"more than {MOST} parameters") from error
        for name, value in found:
            self._values.setdefault(name, []).append(value)

    def first(self, name: str) -> str:
        """Return the first value of a name, "" if there is none."""
        return self._values.get(name, [""])[0]

    def arguments(self, handler: HTTPHandler) -> list[object]:
        """Return the arguments of a handler, as the schema declares them. Raises Refusal (400)."""
        found = []
        for parameter in handler.parameters:
            try:
                found.append(self._argument(parameter))
            except DecodeError as error:
                raise Refusal(400, f"parameter {parameter.name}: {error}") from None
        return found

    def _argument(self, parameter: QueryParameter) -> object:
        kind, name = parameter.type, parameter.name
        values = self._values.get(name, [])
        if isinstance(kind, MapType):
            begin = f"{name}:"
            given = ((key[len(begin) :], each[0]) for key, each in self._values.items() if key.startswith(begin))
            return {_decoded(kind.key, key): _decoded(kind.value, value) for key, value in given}
        if isinstance(kind, SetType):
            return tuple(_decoded(kind.item, value) for value in values)
        if not values:
            if parameter.required:
                raise DecodeError("it must be given")
            return parameter.default
        return True if parameter.by_name else _decoded(kind, values[0])


def _decoded(kind: Type, text: str) -> object:
    if not isinstance(kind, BoolType):
        return kind.decode(text)
    if text not in _TRUTH:
        raise DecodeError(f"expected true or false, got {text[:40]!r}")
    return _TRUTH[text]
