"""The local backend's console and screen on the reactor's thread; the rest of it is tested through the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from hypervisor.api import Area, Damage, HostError
from hypervisor.pv.keyboard import BUTTON_LEFT
from tests.unit import display_front
from xapi.backends.local import UNREAD, ConsoleStream
from xapi.backends.local_screen import ScreenView
from xapi.backends.threads import Threads


class Guest:
    """A console whose output the test writes."""

    def __init__(self) -> None:
        self.history = bytearray(b"before")
        self.listeners: list[Callable[[bytes], None]] = []

    def write(self, data: bytes) -> int:
        return len(data)

    def listen(self, heard: Callable[[bytes], None]) -> None:
        self.listeners.append(heard)

    def unlisten(self, heard: Callable[[bytes], None]) -> None:
        self.listeners.remove(heard)

    def says(self, data: bytes) -> None:
        for heard in list(self.listeners):
            heard(data)


def threads() -> Threads:
    """One thread: what crosses comes at once."""

    def never(*_: Any) -> Any:
        raise AssertionError("a console needs no thread")

    return Threads(never, lambda function, *arguments: function(*arguments), never)


def follow(stream: ConsoleStream, seen: list[bytes], slow: list[Deferred[None]]) -> Deferred[None]:
    async def run() -> None:
        async for data in stream.follow():
            seen.append(data)
            if slow:
                await slow.pop()

    return Deferred.fromCoroutine(run())


def test_output_is_followed_as_it_comes() -> None:
    """Each piece once, in order, until the reader goes."""
    guest, seen = Guest(), []  # type: ignore[var-annotated]
    reading = follow(ConsoleStream(guest, threads()), seen, [])  # type: ignore[arg-type]
    for piece in (b"a", b"b", b"c"):
        guest.says(piece)
    assert seen == [b"a", b"b", b"c"]
    reading.addErrback(lambda _: None)
    reading.cancel()
    assert guest.listeners == []


def test_a_slow_reader_misses_the_oldest_output() -> None:
    """What waits for it is bounded."""
    guest, seen = Guest(), []  # type: ignore[var-annotated]
    gate: Deferred[None] = Deferred()
    follow(ConsoleStream(guest, threads()), seen, [gate])  # type: ignore[arg-type]
    guest.says(b"first")
    for number in range(8):
        guest.says(bytes([number]) * (UNREAD // 4))
    gate.callback(None)
    assert seen[0] == b"first"
    assert [piece[0] for piece in seen[1:]] == [4, 5, 6, 7]


# The screen


def at_once() -> Threads:
    """Threads that are the test's own."""

    def run(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        async def call() -> Any:
            return function(*arguments)

        return Deferred.fromCoroutine(call())

    return Threads(run, lambda function, *arguments: function(*arguments), run)


def result(coroutine: Any) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(found.append)
    return found[0]


def test_a_screen_is_followed_and_looked_at() -> None:
    """From before there is a front until it has gone; what changes while nobody waits comes at once."""
    front, seen, gate = display_front.Screen(), [], Deferred[None]()  # type: ignore[var-annotated]
    view = ScreenView(front.device, display_front.Keys().device, at_once())
    slow = [gate]

    async def run() -> None:
        async for damage in view.follow():
            seen.append(damage)
            if slow:
                await slow.pop()

    reading = Deferred.fromCoroutine(run())
    assert seen == []
    front.connect()
    assert seen == [Damage(40, 30, (Area(0, 0, 40, 30),))]
    front.draw(4 * 41, b"wxyz")
    front.update(1, 1, 2, 1)
    front.update(10, 10, 1, 1)
    gate.callback(None)
    assert seen[1:] == [Damage(40, 30, (Area(1, 1, 2, 1), Area(10, 10, 1, 1)))]
    assert result(view.pixels(Area(1, 1, 1, 1))) == b"wxyz"
    front.write("state", 6)
    assert seen[2:] == [Damage(0, 0, ())]
    refused = result(view.pixels(Area(1, 1, 1, 1)))
    assert refused.check(HostError) and refused.value.code == "off_screen"
    reading.addErrback(lambda _: None)
    reading.cancel()
    front.connect()
    assert len(seen) == 3


def test_keys_and_pointer_reach_the_front() -> None:
    """Places are those of the screen as the guest has made it."""
    screen, keys = display_front.Screen().connect(), display_front.Keys()
    view = ScreenView(screen.device, keys.device, at_once())
    assert not view.key(30, True)
    keys.connect(request_abs_pointer=1)
    assert view.key(BUTTON_LEFT, True) and view.point(39, 29, wheel=1)
    assert keys.take() == [(3, 1, BUTTON_LEFT), (4, 799, 599, -1)]
    with pytest.raises(HostError):
        view.key(0x300, True)
