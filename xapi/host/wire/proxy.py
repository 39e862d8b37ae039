"""Objects that stand for those of the other end: each of their methods is a call."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from typing import Any, Protocol

from xapi.host.wire.interface import Interface, Kind, Method, interface_of


class Line(Protocol):
    """Where calls go."""

    async def ask(
        self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object]
    ) -> object:
        """Call a method and return its answer."""

    def follow(
        self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object]
    ) -> AsyncIterator[object]:
        """Call a method and yield what it does."""

    def tell(self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object]) -> None:
        """Call a method without waiting for it."""

    def released(self, number: int) -> None:
        """Hear that a proxy of a number is gone."""


class Proxy:
    """What stands for an object that is served by a name, or was sent by a number."""

    def __init__(self, line: Line, address: str | int) -> None:
        self._line = line
        self._address = address


def served(protocol: type, line: Line, name: str = "") -> Any:
    """Return what stands for an object of a Protocol that is served by a name; it has the Protocol's methods."""
    return proxy(interface_of(protocol), line, name)


def proxy(interface: Interface, line: Line, address: str | int) -> Any:
    """Return what stands for an object; one that was sent is released when it is used no more."""
    made = class_of(interface)(line, address)
    if isinstance(address, int):
        weakref.finalize(made, line.released, address).atexit = False
    return made


@cache
def class_of(interface: Interface) -> type[Proxy]:
    """Return the class of what stands for objects of an interface."""
    members: dict[str, object] = {name: _method(method) for name, method in interface.methods.items()}
    members |= {name: _part(name, part) for name, part in interface.parts.items()}
    return type(f"Remote{interface.name}", (Proxy,), members)


def _method(method: Method) -> Callable[..., object]:
    async def ask(self: Proxy, *given: object, **named: object) -> object:
        return await self._line.ask(self._address, method, given, named)

    def follow(self: Proxy, *given: object, **named: object) -> AsyncIterator[object]:
        return self._line.follow(self._address, method, given, named)

    def tell(self: Proxy, *given: object, **named: object) -> None:
        self._line.tell(self._address, method, given, named)

    function: Callable[..., object] = {Kind.ASKED: ask, Kind.FOLLOWED: follow, Kind.TOLD: tell}[method.kind]
    function.__name__ = method.name
    function.__doc__ = f"Call {method.full_name} at the other end."
    return function


def _part(name: str, interface: Interface) -> property:
    def part(self: Proxy) -> Any:
        return proxy(interface, self._line, f"{self._address}.{name}".lstrip("."))

    return property(part)
