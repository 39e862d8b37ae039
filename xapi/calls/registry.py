"""The functions behind explicit messages.

``@message("VM.pause")`` puts a function behind a message of the schema. Its parameters are the call,
then those of the schema by name and in order (a trailing underscore where the name is a Python
keyword). A plain function runs inside one `Store.atomic()`; a coroutine function may wait. A function
of an implicit message's name takes the place of the implicit behaviour. What the schema says that the
message claims of its own object is held while the function runs (`xapi.calls.claim`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, TypeVar

from xapi.calls.claim import PATIENCE, claiming, own
from xapi.datamodel import Message, Model

Function = Callable[..., Any]
"""Behaves as a message: takes the call and the message's parameters, and gives its result or a coroutine of it."""
F = TypeVar("F", bound=Function)

_functions: dict[str, Function] = {}
_stopping: set[Function] = set()
_patience: dict[Function, float] = {}


class RegistryError(Exception):
    """A function does not fit the message that it claims to be."""


def message(
    *names: str, stops_with_client: bool = False, patience: float = PATIENCE, claims_itself: bool = False
) -> Callable[[F], F]:
    """Register a function as the behaviour of one message, or of several with the same parameters.

    `stops_with_client`: a wait for news, or a login, which ends when the client is gone; other work goes on.
    `patience`: how many seconds it waits for an object that another operation holds.
    `claims_itself`: it looks at something first, or does something afterwards, and holds what is declared in between.
    """

    def register(function: F) -> F:
        if stops_with_client:
            _stopping.add(function)
        if not claims_itself:
            _patience[function] = patience
        for name in names:
            if name in _functions:
                raise RegistryError(f"{name} has two functions")
            _functions[name] = function
        return function

    return register


def stops_with_client(function: Function) -> bool:
    """Tell whether a function's work ends when its client is gone."""
    return function in _stopping


@cache
def functions(model: Model) -> Mapping[str, Function]:
    """Import all of `xapi.classes`, folders too, and return its functions by message. Raises RegistryError."""
    package = import_module("xapi.classes")
    for module in walk_packages(package.__path__, "xapi.classes."):
        import_module(module.name)
    declared = {declared.full_name: declared for declared in model.messages}
    found = {}
    for name, function in _functions.items():
        if name not in declared:
            raise RegistryError(f"{name} is no message of the schema")
        check_signature(declared[name], function)
        found[name] = _holding(declared[name], function)
    return found


def _holding(declared: Message, function: Function) -> Function:
    """Return a function that holds what its message claims, if it does not do so itself. Raises RegistryError."""
    if not own(declared) or function not in _patience:
        return function
    if not inspect.iscoroutinefunction(function):
        raise RegistryError(f"{declared.full_name} holds an operation, and its function cannot wait for it")
    held = claiming(declared, function, _patience[function])
    if function in _stopping:
        _stopping.add(held)
    return held


def check_signature(declared: Message, function: Function) -> None:
    """Raise RegistryError unless the function takes the call and the schema's parameters by name."""
    names = [name.rstrip("_") for name in inspect.signature(function).parameters]
    wanted = ["call", *(parameter.name for parameter in declared.parameters)]
    if names != wanted:
        raise RegistryError(f"{declared.full_name} takes {wanted[1:]}, its function {names[1:]}")
