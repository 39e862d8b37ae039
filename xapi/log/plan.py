"""What may be said of a message's arguments, prepared once a message.

Shown are references (as names), numbers, states and the few texts that are names themselves; all else, and above all
what may hold a password, is not: a new parameter is silent until somebody lets it speak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from xapi.datamodel.types import (
    BoolType,
    DateTimeType,
    EnumType,
    FloatType,
    IntType,
    MapType,
    RecordType,
    RefType,
    SetType,
    StringType,
    Type,
)
from xapi.log.names import Names

if TYPE_CHECKING:
    from xapi.datamodel import Message, Model
    from xapi.datamodel.declarations import Parameter

MOST = 5
"""Objects of one set that are named."""
SHORT = 4
"""A text in a map that has fewer characters is no secret."""
_READS = frozenset({
    "assert", "check", "compute", "get", "is", "list", "maximise", "precheck", "probe", "query", "read", "retrieve",
    "test", "wait",
})  # fmt: skip
"""First words of messages that change nothing."""
_TELLING = frozenset({
    "auth_type", "bridge", "device", "fn", "label", "name", "new_name", "plugin", "service_name",
    "subject_identifier", "tag", "type", "uname", "userdevice", "uuid",
})  # fmt: skip
"""Texts that say what a call is about."""
_TELLING_FIELDS = frozenset({"hostname", "name_description", "name_label", "tags"})
_OPEN_KEYS = frozenset({"device", "location", "nfsversion", "port", "server", "serverpath", "target", "type"})
"""What a map may hold that a fault can repeat: where something is."""
_STATES = frozenset({"true", "false", "none"})

Show = Callable[[Names, Any], object]


class Plan:
    """Say of a message whether it changes something, which arguments are shown, and which are secret.

    `secrets_of` has for each parameter what yields its secret texts, or None.
    """

    __slots__ = (
        "_references", "changes", "declared_secret", "is_login", "makes", "name", "parameters", "secret_members",
        "secrets_of", "show", "targets", "waits_for_events",
    )  # fmt: skip

    def __init__(self, message: Message, model: Model) -> None:
        events = message.class_name == "event" and message.name != "inject"
        self.name = message.full_name
        self.parameters = tuple(parameter.name for parameter in message.parameters)
        self.changes = not (events or message.name.split("_")[0] in _READS)
        self.waits_for_events = events and message.name in ("from", "next")
        self.is_login = not message.session
        self.secrets_of = [_secrets_of(message, parameter, model) for parameter in message.parameters]
        self.declared_secret = [secrets_of is _texts for secrets_of in self.secrets_of]
        self.makes = message.kind == "make"
        self.secret_members = _secret_members(message.class_name, model) if self.makes else frozenset()
        self.targets = {
            parameter.name: parameter.type.target
            for parameter in message.parameters
            if isinstance(parameter.type, RefType)
        }
        """The class of each parameter that is a reference."""
        self._references = [
            (number, parameter.name, parameter.type.target)
            for number, parameter in enumerate(message.parameters)
            if isinstance(parameter.type, RefType)
        ]
        self.show: list[tuple[int, str, Show]] = []
        for number, parameter in enumerate(message.parameters):
            show = _shower(message, parameter.name, parameter.type)
            if show is not None and not self.declared_secret[number]:
                self.show.append((number, parameter.name, show))

    def arguments(self, names: Names, arguments: list[object]) -> list[tuple[str, object]]:
        """Return what is shown of the arguments, by the parameters' names."""
        return [(name, show(names, arguments[number])) for number, name, show in self.show if number < len(arguments)]

    def objects(self, names: Names, params: list[object]) -> list[tuple[str, object]]:
        """Return the objects that a call is about, whose parameters are as they came."""
        named = [
            (name, names.of(kind, ref))
            for number, name, kind in self._references
            if number < len(params) and isinstance(ref := params[number], str)
        ]
        return [(name, known) for name, known in named if known is not None]

    def secrets(self, arguments: list[object]) -> set[str]:
        """Return all texts of a call that no line may hold."""
        found: set[str] = set()
        for secrets_of, value in zip(self.secrets_of, arguments, strict=False):
            if secrets_of is not None:
                found.update(secrets_of(value))
        found.discard("")
        return found


def _secrets_of(message: Message, parameter: Parameter, model: Model) -> Callable[[object], Iterator[str]] | None:
    """Return what yields the secret texts of a parameter: one declared so, or what maps and secret fields get."""
    field = message.field
    if parameter.secret or (parameter.name == "value" and field is not None and field.secret):
        return _texts
    if parameter.name == "value" and message.kind == "add":
        return _texts
    if isinstance(parameter.type, MapType):
        return _of_map
    if isinstance(parameter.type, RecordType):
        secret = _secret_members(parameter.type.target, model)
        return lambda record: _of_record(record, secret)
    return None


def _secret_members(name: str, model: Model) -> frozenset[str]:
    cls = model.classes.get(name)
    return frozenset() if cls is None else frozenset(field.name for field in cls.fields.values() if field.secret)


def _texts(value: object) -> Iterator[str]:
    """Yield all texts that a value holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _of_map(value: object) -> Iterator[str]:
    """Yield what a map may hide: not where something is, and no states."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _OPEN_KEYS:
                yield from (text for text in _texts(item) if len(text) >= SHORT and text not in _STATES)


def _of_record(record: object, secret: frozenset[str]) -> Iterator[str]:
    if isinstance(record, Mapping):
        for name, value in record.items():
            yield from _texts(value) if name in secret else _of_map(value)


def _of_new(names: Names, record: Mapping[str, object]) -> object:
    """Return what a new object is called, or whose it is if it has no name."""
    if "name_label" in record:
        return record["name_label"]
    return [known for value in record.values() if isinstance(value, str) and (known := names.find(value)) is not None]


@cache
def plans(model: Model) -> Mapping[str, Plan]:
    """Return the plans of all messages, by their full names."""
    return {message.full_name: Plan(message, model) for message in model.messages}


def _shower(message: Message, name: str, kind: Type) -> Show | None:
    """Return what makes an argument of a parameter fit to be shown, or None for one that is not."""
    if isinstance(kind, RefType):
        return lambda names, ref: names.of(kind.target, ref)
    if isinstance(kind, IntType | BoolType | FloatType | EnumType):
        return lambda names, value: value
    if isinstance(kind, DateTimeType):
        return lambda names, value: value.isoformat()
    if isinstance(kind, SetType) and isinstance(kind.item, RefType | EnumType):
        one = _shower(message, name, kind.item)
        assert one is not None
        return lambda names, values: [one(names, value) for value in values[:MOST]] + ["..."] * (len(values) > MOST)
    if isinstance(kind, RecordType):
        return _of_new
    if isinstance(kind, StringType):
        field = "" if message.field is None else message.field.name
        if name in _TELLING or field in _TELLING_FIELDS or (name == "key" and message.kind in ("add", "remove")):
            return lambda names, value: names.named(value)
    return None
