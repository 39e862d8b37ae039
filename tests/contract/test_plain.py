"""What crosses between a toolstack and a host can cross a wire: every annotation of the protocols is looked at."""

from __future__ import annotations

import inspect
import types
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol, Union, get_args, get_origin, get_type_hints

import pytest
from msgspec import Struct

from hypervisor import api

PROTOCOLS = {name: each for name, each in vars(api).items() if isinstance(each, type) and Protocol in each.__bases__}
ATOMS = (bytes, str, int, float, bool, types.NoneType)


def unfit(kind: Any, seen: frozenset[Any] = frozenset()) -> Iterator[str]:
    """Tell what of a type is not plain: frozen values of numbers, text, bytes, enums, tuples and mappings."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType, tuple, Mapping):
        for each in inner:
            if each is not ...:
                yield from unfit(each, seen)
    elif isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, Struct)):
        made: Any = kind
        if not (made.__struct_config__ if issubclass(kind, Struct) else made.__dataclass_params__).frozen:
            yield f"{kind.__name__} is not frozen"
        if kind not in seen:
            for hint in get_type_hints(kind).values():
                if get_origin(hint) is not ClassVar:
                    yield from unfit(hint, seen | {kind})
    elif kind not in ATOMS and not (isinstance(kind, type) and issubclass(kind, Enum)):
        yield str(kind)


def unfit_result(kind: Any) -> Iterator[str]:
    """Likewise, of what a call returns: it may be another object that is asked things."""
    if kind not in PROTOCOLS.values():
        yield from unfit(kind)


def unfit_parameter(kind: Any) -> Iterator[str]:
    """Likewise, of what is passed: it may be somebody who is told things, of whom nothing is asked."""
    if get_origin(kind) is Callable:
        told, result = get_args(kind)
        assert result is None
        for each in told:
            yield from unfit(each)
    elif kind is not api.Listener:
        yield from unfit(kind)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_crosses_is_plain(name: str) -> None:
    """Values, or objects that are asked in the same way; nothing of either process."""
    found = []
    for method in (each for each in vars(PROTOCOLS[name]).values() if isinstance(each, types.FunctionType | property)):
        function = method.fget if isinstance(method, property) else method
        if function is None or (function.__name__.startswith("_")):
            continue
        hints = get_type_hints(function)
        result = hints.pop("return")
        found += [each for kind in hints.values() for each in unfit_parameter(kind)]
        found += unfit_result(get_args(result)[0] if get_origin(result) is AsyncIterator else result)
    assert found == []


@pytest.mark.parametrize("name", PROTOCOLS)
def test_nobody_waits_for_a_wire_without_awaiting(name: str) -> None:
    """A call is a coroutine, or an iterator that is awaited; a listener is told, and answers nothing."""
    for function in vars(PROTOCOLS[name]).values():
        if isinstance(function, types.FunctionType) and not function.__name__.startswith("_"):
            result = get_type_hints(function)["return"]
            told = PROTOCOLS[name] is api.Listener and result is types.NoneType
            assert told or inspect.iscoroutinefunction(function) or get_origin(result) is AsyncIterator, function


def test_the_walk_sees_what_is_not_plain() -> None:
    """Open values, and things of one process."""
    assert list(unfit(api.Truth)) == [] == list(unfit(api.DomainConfig))
    assert list(unfit(tuple[list[int], ...])) == ["list[int]"]
    assert list(unfit(Mapping[str, object])) == ["<class 'object'>"]
