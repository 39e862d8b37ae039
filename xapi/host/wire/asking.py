"""What one end asks of the other: calls that wait for their answer, streams that are read."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred

from xapi.host.wire.errors import Lost, Violation
from xapi.host.wire.frames import VALUE, Answer, Call, Cancel, Credit, Failed, Frame, Item, Part
from xapi.host.wire.proxy import proxy

if TYPE_CHECKING:
    from xapi.host.wire.connection import Connection
    from xapi.host.wire.interface import Interface, Method

WINDOW = 256 * 1024
"""Bytes of a stream that may be under way; its reader asks for more when it has taken half of them."""


class _Asked(Deferred[object]):
    """An answer that is waited for. Who cancels asks the other end to cancel, and hears how the call has ended."""

    def __init__(self, asking: Asking, number: int, method: Method) -> None:
        super().__init__()
        self.method = method
        self.parts = bytearray()
        self._asking, self._number = asking, number

    def cancel(self) -> None:
        """Ask the other end to cancel."""
        if not self.called:
            self._asking.send(Cancel(self._number))


class _Stream:
    """A stream that is read here: what has come and was not taken yet."""

    def __init__(self, asking: Asking, number: int, method: Method) -> None:
        self.method = method
        self.closed = False
        self._asking, self._number = asking, number
        self._items: deque[tuple[int, object]] = deque()
        self._allowed = WINDOW
        """Bytes that may still come."""
        self._taken = 0
        self._end: Exception | None = None
        self._ended = False
        self._waiting: Deferred[None] | None = None

    def come(self, data: bytes) -> None:
        """Hear of an item. Raises Violation where it is more than was allowed."""
        if self._allowed <= 0:
            raise Violation(f"{self.method.full_name} sends more than it may")
        self._allowed -= len(data)
        if not self.closed:
            self._items.append((len(data), self.method.read_answer(data)))
            self._wake()

    def over(self, error: Exception | None) -> None:
        """Hear of the end."""
        self._ended, self._end = True, error
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    async def items(self) -> AsyncIterator[object]:
        """Yield what comes."""
        try:
            while True:
                while self._items:
                    size, item = self._items.popleft()
                    self._took(size)
                    yield item
                if self._ended:
                    break
                self._waiting = Deferred(self._forget)
                await self._waiting
            if self._end is not None:
                raise self._end
        finally:
            self._close()

    def _forget(self, _: Deferred[None]) -> None:
        self._waiting = None

    def _took(self, size: int) -> None:
        self._taken += size
        if self._taken >= WINDOW // 2 and not self._ended:
            self._allowed += self._taken
            self._asking.send(Credit(self._number, self._taken))
            self._taken = 0

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self._items.clear()
            if not self._ended:
                self._asking.send(Cancel(self._number))


class Asking:
    """The calls of this end that wait. It is the `Line` of proxies of this connection alone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = count(1)
        self._waiting: dict[int, _Asked | _Stream] = {}
        self._lost: Lost | None = None

    async def ask(
        self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object]
    ) -> object:
        """Call a method and return its answer. Raises what it has raised there, or what `Lost` is here."""
        number = self._call(address, method, given, named, 0)
        asked = self._waiting[number] = _Asked(self, number, method)
        return await asked

    async def follow(
        self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object]
    ) -> AsyncIterator[object]:
        """Call a method and yield what it does."""
        number = self._call(address, method, given, named, WINDOW)
        stream = self._waiting[number] = _Stream(self, number, method)
        async for item in stream.items():
            yield item

    def tell(self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object]) -> None:
        """Call a method without waiting for it; nothing where the connection is lost."""
        if self._lost is None:
            data = method.write_arguments(given, named, self._connection.objects.send)
            self._connection.send(Call(0, address, method.name, data))

    def _call(
        self, address: str | int, method: Method, given: tuple[object, ...], named: Mapping[str, object], credit: int
    ) -> int:
        if self._lost is not None:
            raise self._connection.errors.lost(self._lost)
        number = next(self._numbers)
        data = method.write_arguments(given, named, self._connection.objects.send)
        self._connection.send(Call(number, address, method.name, data, credit))
        return number

    def send(self, frame: Frame) -> None:
        """Send a frame about a call."""
        self._connection.send(frame)

    def released(self, number: int) -> None:
        """Hear that a proxy is gone."""
        self._connection.released(number)

    def receive(self, frame: Frame) -> None:
        """Take a frame about a call of ours. Raises Violation."""
        assert isinstance(frame, Part | Answer | Item | Failed)
        waiting = self._waiting.get(frame.number)
        if waiting is None:
            raise Violation(f"nobody has asked {frame.number}")
        try:
            if isinstance(waiting, _Stream):
                self._streamed(waiting, frame)
            else:
                self._answered(waiting, frame)
        except (msgspec.MsgspecError, RecursionError, TypeError, ValueError) as error:
            raise Violation(f"{waiting.method.full_name}: {error}") from None

    def _streamed(self, stream: _Stream, frame: Part | Answer | Item | Failed) -> None:
        if isinstance(frame, Item):
            stream.come(frame.data)
        elif isinstance(frame, Part):
            raise Violation(f"{stream.method.full_name} answers in parts")
        else:
            error = self._connection.errors.error(frame) if isinstance(frame, Failed) else None
            del self._waiting[frame.number]
            stream.over(error)

    def _answered(self, asked: _Asked, frame: Part | Answer | Item | Failed) -> None:
        if isinstance(frame, Failed):
            error = self._connection.errors.error(frame)
            del self._waiting[frame.number]
            asked.errback(error)
            return
        if isinstance(frame, Item) or len(asked.parts) + len(frame.data) > VALUE:
            raise Violation(f"{asked.method.full_name} answers more than it may")
        if isinstance(frame, Part):
            asked.parts += frame.data
            return
        value = asked.method.read_answer(bytes(asked.parts + frame.data) if asked.parts else frame.data)
        if asked.method.result is not None:
            assert isinstance(value, int)  # it was read as one
            value = self._received(asked.method.result, value)
        del self._waiting[frame.number]
        asked.callback(value)

    def _received(self, interface: Interface, number: int) -> object:
        return proxy(interface, self, number)

    def end(self, lost: Lost) -> None:
        """Fail all that waits."""
        self._lost = lost
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            error = self._connection.errors.lost(lost)
            if isinstance(each, _Stream):
                each.over(error)
            else:
                each.errback(error)
