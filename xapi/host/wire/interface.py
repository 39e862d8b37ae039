"""What can be called over a connection: tables of methods, read from the annotations of a Protocol.

- ``async def`` is asked, and answers a value, or an object that stays where it is: another Protocol;
- ``def`` that returns an AsyncIterator is followed: a stream of values;
- ``def`` that returns None is told: nobody waits for it.

What it is given are values, and objects that stay with the caller: functions to call, iterators to follow. A property
is another Protocol, a part of the same object. Values are whatever msgspec reads by its type; a type that it cannot
read raises TypeError here, before anything is called.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct


def _plain(value: object) -> object:
    """Return what msgspec knows in place of a mapping of another kind, such as a view of one."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be carried")


encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
"""Return a value as it is carried."""


class Kind(Enum):
    """How a method is called."""

    ASKED = "asked"
    FOLLOWED = "followed"
    TOLD = "told"


@dataclass(frozen=True, eq=False)
class Method:
    """One method: how its arguments, and what it answers or yields, are written and read."""

    name: str
    owner: str
    kind: Kind
    signature: inspect.Signature
    arguments: type[Struct]
    objects: Mapping[str, Interface]
    """Those of its parameters that are objects."""
    result: Interface | None
    """What it answers, where that is an object."""
    answer: object
    _read_arguments: msgspec.msgpack.Decoder[Any]
    _read_answer: msgspec.msgpack.Decoder[Any]

    @property
    def full_name(self) -> str:
        """Return its name among all."""
        return f"{self.owner}.{self.name}"

    def write_arguments(
        self, given: tuple[object, ...], named: Mapping[str, object], send: Callable[[Interface, object], int]
    ) -> bytes:
        """Return the arguments of a call; `send` gives an object a number. Raises TypeError as the method would."""
        bound = self.signature.bind(*given, **named)
        bound.apply_defaults()
        values = bound.arguments
        for name, interface in self.objects.items():
            if values[name] is not None:
                values[name] = send(interface, values[name])
        return encode(tuple(values.values()))

    def read_arguments(
        self, data: bytes, receive: Callable[[Interface, int], object]
    ) -> tuple[list[object], dict[str, object]]:
        """Return the arguments of a call, by place and by name. Raises msgspec.MsgspecError."""
        read = self._read_arguments.decode(data)
        given: list[object] = []
        named: dict[str, object] = {}
        for name, parameter in self.signature.parameters.items():
            value = getattr(read, name)
            if name in self.objects and value is not None:
                value = receive(self.objects[name], value)
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[name] = value
            else:
                given.append(value)
        return given, named

    def write_answer(self, value: object) -> bytes:
        """Return what is answered or yielded."""
        return encode(value)

    def read_answer(self, data: bytes) -> object:
        """Return what was answered or yielded. Raises msgspec.MsgspecError."""
        return self._read_answer.decode(data)


@dataclass(frozen=True, eq=False)
class Interface:
    """What can be called of an object."""

    name: str
    methods: Mapping[str, Method]
    parts: Mapping[str, Interface]

    def every_method(self) -> list[Method]:
        """Return the methods of this, of its parts and of all that these answer and are given."""
        found: dict[str, Interface] = {}
        waiting = [self]
        while waiting:
            here = waiting.pop()
            if here.name in found:
                continue
            found[here.name] = here
            waiting += here.parts.values()
            for method in here.methods.values():
                waiting += [*method.objects.values(), *([method.result] if method.result else [])]
        return [method for each in found.values() for method in each.methods.values()]


@cache
def interface_of(protocol: type) -> Interface:
    """Return the table of a Protocol. Raises TypeError where it says what cannot be carried."""
    methods: dict[str, Method] = {}
    parts: dict[str, Interface] = {}
    members = {name: each for base in reversed(protocol.__mro__) for name, each in vars(base).items()}
    for name, member in members.items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            part = _object(get_type_hints(member.fget)["return"])
            if part is None:
                raise TypeError(f"{protocol.__name__}.{name} is a property that is no Protocol")
            parts[name] = part
        elif inspect.isfunction(member):
            methods[name] = _method(protocol.__name__, name, member)
    return Interface(protocol.__name__, methods, parts)


def _method(owner: str, name: str, function: Callable[..., object]) -> Method:
    hints = get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    hint = hints.pop("return")
    if inspect.iscoroutinefunction(function):
        kind = Kind.ASKED
    elif get_origin(hint) is AsyncIterator:
        kind, (hint,) = Kind.FOLLOWED, get_args(hint)
    elif hint is NoneType:
        kind = Kind.TOLD
    else:
        raise TypeError(f"{owner}.{name} is neither asynchronous nor without an answer")
    return _made(owner, name, kind, parameters, hints, hint)


def _made(
    owner: str, name: str, kind: Kind, parameters: list[inspect.Parameter], hints: Mapping[str, object], answer: object
) -> Method:
    result = _object(answer) if kind is Kind.ASKED else None
    if result is not None:
        answer = int
    objects: dict[str, Interface] = {}
    fields: list[Any] = []
    for parameter in parameters:
        hint = hints[parameter.name]
        if (found := _object(hint)) is not None:
            objects[parameter.name] = found
            hint = int | None
        default = () if parameter.default is parameter.empty else (parameter.default,)
        fields.append((parameter.name, hint, *default))
    arguments = msgspec.defstruct(f"{owner}.{name}", fields, array_like=True, frozen=True)
    return Method(
        name,
        owner,
        kind,
        inspect.Signature(parameters),
        arguments,
        objects,
        result,
        answer,
        msgspec.msgpack.Decoder(arguments),
        msgspec.msgpack.Decoder(answer),
    )


def _object(hint: object) -> Interface | None:
    """Return the table of what stays where it is; None for a value."""
    if get_origin(hint) in (Union, UnionType):
        kinds = [each for each in get_args(hint) if each is not NoneType]
        return _object(kinds[0]) if len(kinds) == 1 else None
    if getattr(hint, "_is_protocol", False):
        return interface_of(hint)
    if get_origin(hint) is Callable:
        takes, _ = get_args(hint)
        parameters = [inspect.Parameter(f"a{at}", inspect.Parameter.POSITIONAL_ONLY) for at in range(len(takes))]
        hints = {parameter.name: each for parameter, each in zip(parameters, takes, strict=True)}
        return _single("__call__", Kind.TOLD, parameters, hints, NoneType, hint)
    if get_origin(hint) in (AsyncIterator, AsyncIterable):
        return _single("__aiter__", Kind.FOLLOWED, [], {}, get_args(hint)[0], hint)
    return None


def _single(
    name: str,
    kind: Kind,
    parameters: list[inspect.Parameter],
    hints: Mapping[str, object],
    answer: object,
    hint: object,
) -> Interface:
    """Return the table of an object with one method."""
    return Interface(str(hint), {name: _made(str(hint), name, kind, parameters, hints, answer)}, {})
