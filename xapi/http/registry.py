"""The functions behind HTTP handlers.

``@handler("get_export")`` puts a function behind a handler of `schema/http.xml`. Its parameters are the visit, then
those of the schema by name and in order (a trailing underscore where the name is a Python keyword). What finds its
callers itself, and must be quick, is a class, registered by `answers`. They are found by walking `xapi.handlers`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, TypeVar

from xapi.datamodel import HTTPHandler, Model
from xapi.http.server.exchange import UNREAD, Intake

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type[Any])


class RegistryError(Exception):
    """A function does not fit the handler that it claims to be."""


@dataclass(frozen=True)
class Registered:
    """What answers a handler's requests: a function, or a method of a class."""

    intake: Intake
    lacking: bool
    function: Callable[..., Any] | None = None
    cls: type[Any] = object
    method: str = ""


_registered: dict[str, Registered] = {}


def handler(*names: str, intake: Intake = UNREAD, lacking: bool = False) -> Callable[[F], F]:
    """Register a coroutine function as the behaviour of one HTTP handler, or of several with the same parameters.

    `intake` is how it takes the requests' bodies. `lacking`: it only says that there is nothing yet.
    """

    def register(function: F) -> F:
        for name in names:
            _register(name, Registered(intake, lacking, function))
        return function

    return register


def answers(intake: Intake, **methods: str) -> Callable[[C], C]:
    """Register a class as the behaviour of several handlers, which are open to all: the name of a method for each.

    One instance is made, of the subsystems; the methods take requests as they are.
    """

    def register(cls: C) -> C:
        for name, method in methods.items():
            _register(name, Registered(intake, False, cls=cls, method=method))
        return cls

    return register


def _register(name: str, registered: Registered) -> None:
    if name in _registered:
        raise RegistryError(f"{name} has two functions")
    _registered[name] = registered


def functions(model: Model) -> dict[str, Registered]:
    """Import all of `xapi.handlers` and return what it registers by handler. Raises RegistryError."""
    package = import_module("xapi.handlers")
    for module in walk_packages(package.__path__, "xapi.handlers."):
        import_module(module.name)
    for name, registered in _registered.items():
        if name not in model.handlers:
            raise RegistryError(f"{name} is no HTTP handler of the schema")
        check(model.handlers[name], registered)
    return dict(_registered)


def check(declared: HTTPHandler, registered: Registered) -> None:
    """Raise RegistryError unless what is registered fits its handler."""
    if registered.function is None:
        if declared.checked or declared.parameters:
            raise RegistryError(f"{declared.name} has callers or parameters, so it needs a function")
        return
    names = [name.rstrip("_") for name in inspect.signature(registered.function).parameters]
    wanted = ["visit", *(parameter.name for parameter in declared.parameters)]
    if names != wanted or not inspect.iscoroutinefunction(registered.function):
        raise RegistryError(f"{declared.name} is a coroutine function of {wanted}, not one of {names}")


def unserved(model: Model) -> list[HTTPHandler]:
    """Return the handlers that nobody serves yet."""
    found = functions(model)
    return [each for each in model.handlers.values() if each.name not in found or found[each.name].lacking]
