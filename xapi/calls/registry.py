"""The functions behind explicit messages.

``@message("VM.pause")`` puts a function behind a message of the schema. Its parameters are the call,
then those of the schema by name and in order (a trailing underscore where the name is a Python
keyword). A plain function runs inside one `Store.atomic()`; a coroutine function may wait. A function
of an implicit message's name takes the place of the implicit behaviour.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, TypeVar

from xapi.datamodel import Message, Model

F = TypeVar("F", bound=Callable[..., Any])

_functions: dict[str, Callable[..., Any]] = {}
_stopping: set[Callable[..., Any]] = set()


class RegistryError(Exception):
    """A function does not fit the message that it claims to be."""


def message(*names: str, stops_with_client: bool = False) -> Callable[[F], F]:
    """Register a function as the behaviour of one message, or of several with the same parameters.

    `stops_with_client`: a wait for news, or a login, which ends when the client is gone; other work goes on.
    """

    def register(function: F) -> F:
        if stops_with_client:
            _stopping.add(function)
        for name in names:
            if name in _functions:
                raise RegistryError(f"{name} has two functions")
            _functions[name] = function
        return function

    return register


def stops_with_client(function: Callable[..., Any]) -> bool:
    """Tell whether a function's work ends when its client is gone."""
    return function in _stopping


@cache
def functions(model: Model) -> Mapping[str, Callable[..., Any]]:
    """Import all of `xapi.classes`, folders too, and return its functions by message. Raises RegistryError."""
    package = import_module("xapi.classes")
    for module in walk_packages(package.__path__, "xapi.classes."):
        import_module(module.name)
    declared = {declared.full_name: declared for declared in model.messages}
    for name, function in _functions.items():
        if name not in declared:
            raise RegistryError(f"{name} is no message of the schema")
        check_signature(declared[name], function)
    return dict(_functions)


def check_signature(declared: Message, function: Callable[..., Any]) -> None:
    """Raise RegistryError unless the function takes the call and the schema's parameters by name."""
    names = [name.rstrip("_") for name in inspect.signature(function).parameters]
    wanted = ["call", *(parameter.name for parameter in declared.parameters)]
    if names != wanted:
        raise RegistryError(f"{declared.full_name} takes {wanted[1:]}, its function {names[1:]}")
