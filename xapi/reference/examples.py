"""An example of each message's call, made from its parameters' types: for Python, and as JSON-RPC."""

from __future__ import annotations

import json
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any, NamedTuple

from xapi.datamodel import Message, Model
from xapi.datamodel.types import (
    BoolType,
    DateTimeType,
    EnumType,
    FloatType,
    IntType,
    MapType,
    OptionType,
    RecordType,
    RefType,
    SetType,
    Type,
)

DATE = "20260101T00:00:00Z"
REFERENCE = "OpaqueRef:..."
SESSION = "OpaqueRef:session"


class Example(NamedTuple):
    """One call. Python's has a `session` of the XenAPI package; references are variables named for what they are."""

    python: str
    json: str


class _Value(NamedTuple):
    """A value as Python source, with ints as strings as XML-RPC wants them, and as JSON has it."""

    python: str
    json: Any


class Examples:
    """The examples of one model's messages."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def of(self, message: Message) -> Example:
        """Return an example that gives all parameters."""
        values = [self._value(parameter.type, parameter.name, message) for parameter in message.parameters]
        before = [SESSION] if message.session else []
        call = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": message.full_name,
            "params": [*before, *(value.json for value in values)],
        }
        return Example(f"{_called(message)}({', '.join(value.python for value in values)})", json.dumps(call))

    def _value(self, kind: Type, name: str, message: Message) -> _Value:
        if isinstance(kind, RefType):
            called = kind.target.lower() if name == "self" else name
            return _Value("a_session" if called == "session" else called, REFERENCE)
        if isinstance(kind, BoolType):
            return _Value("False", False)
        if isinstance(kind, IntType):
            return _Value('"1"', 1)
        if isinstance(kind, FloatType):
            return _Value("1.0", 1.0)
        if isinstance(kind, DateTimeType):
            return _Value(f'DateTime("{DATE}")', DATE)
        if isinstance(kind, EnumType):
            word = next(value for value in kind.values if value)
            return _Value(json.dumps(word), word)
        if isinstance(kind, SetType):
            item = self._value(kind.item, _one_of(name), message)
            return _Value(f"[{item.python}]", [item.json])
        if isinstance(kind, MapType):
            return self._map(kind, message)
        if isinstance(kind, OptionType):
            return _Value("[]", [])
        if isinstance(kind, RecordType):
            return self._record(kind, message)
        text = name.replace("_", " ")
        return _Value(json.dumps(text), text)

    def _map(self, kind: MapType, message: Message) -> _Value:
        key, value = (
            self._value(each, "self" if isinstance(each, RefType) else called, message)
            for each, called in ((kind.key, "key"), (kind.value, "value"))
        )
        return _Value(f"{{{key.python}: {value.python}}}", {str(key.json): value.json})

    def _record(self, kind: RecordType, message: Message) -> _Value:
        """Return a record with the members that a constructor must have."""
        cls = self._model.classes.get(kind.target)
        members: Mapping[str, _Value] = {
            field.name: self._value(field.type, field.name, message)
            for field in (cls.fields.values() if cls is not None else ())
            if field.required and field.access != "RO/runtime"
        }
        source = ", ".join(f'"{name}": {value.python}' for name, value in members.items())
        return _Value(f"{{{source}}}", {name: value.json for name, value in members.items()})


def _called(message: Message) -> str:
    """Return how Python names a message: the package's `login…` and `slave_local…` make the session themselves."""
    if not message.session:
        logs_in = message.name.startswith(("login", "slave_local"))
        return f"session.xenapi.{message.name}" if logs_in else f"session.{message.full_name}"
    joint = "_" if iskeyword(message.name) else "."
    return f"session.xenapi.{message.class_name}{joint}{message.name}"


def _one_of(name: str) -> str:
    """Return the name of one of several."""
    if name.endswith("sses"):
        return name[:-2]
    return name[:-1] if name.endswith("s") and len(name) > 2 else f"one_{name}"
