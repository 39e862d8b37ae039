"""The local backend's console on the reactor's thread; the rest of it is tested through the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from xapi.backends.local import UNREAD, ConsoleStream, Threads


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
