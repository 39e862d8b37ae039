"""What one end is asked by the other: calls that run, and the objects that it has sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from xapi.host.wire.errors import BROKEN, Violation
from xapi.host.wire.frames import PIECE, VALUE, Answer, Call, Cancel, Credit, Failed, Item, Part, Release
from xapi.host.wire.interface import Interface, Kind, Method
from xapi.host.wire.proxy import proxy

if TYPE_CHECKING:
    from xapi.host.wire.connection import Connection

log = Logger()

CALLS = 10_000
"""Calls that may run at a time."""
ARGUMENTS = 64 << 20
"""Bytes of their arguments."""
OBJECTS = 100_000
"""Objects that may be in use at the other end."""


class Objects:
    """What the other end may call: what is served by name, and what was sent to it, by number."""

    def __init__(self, served: Mapping[str, tuple[Interface, object]]) -> None:
        self._served = served
        self._sent: dict[int, tuple[Interface, object]] = {}
        self._numbers = count(1)

    def capabilities(self) -> frozenset[str]:
        """Return the full names of all methods that can be called."""
        return frozenset(
            method.full_name for interface, _ in self._served.values() for method in interface.every_method()
        )

    def send(self, interface: Interface, target: object) -> int:
        """Return the number of an object that stays here."""
        if len(self._sent) >= OBJECTS:
            raise ValueError(f"{OBJECTS:,} objects are in use by the other end")
        number = next(self._numbers)
        self._sent[number] = interface, target
        return number

    def find(self, address: str | int, name: str) -> tuple[Method, object]:
        """Return a method of an object. Raises LookupError."""
        found = self._served.get(address) if isinstance(address, str) else self._sent.get(address)
        if found is None:
            raise LookupError(f"there is no object {address!r}")
        interface, target = found
        method = interface.methods.get(name)
        if method is None:
            raise LookupError(f"{interface.name} has no method {name!r}")
        return method, target

    def release(self, number: int) -> None:
        """Hear that an object is used no more."""
        self._sent.pop(number, None)

    def __len__(self) -> int:
        return len(self._sent)

    def clear(self) -> None:
        """Forget all that was sent."""
        self._sent.clear()


@dataclass
class _Running:
    """A call that runs: how many bytes of items may be sent, and who waits for more."""

    credit: int
    size: int
    work: Deferred[None] | None = None
    waiting: Deferred[None] | None = None


class Answering:
    """The calls of the other end that run here."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._running: dict[int, _Running] = {}
        self._size = 0

    def receive(self, frame: Call | Cancel | Credit | Release) -> None:
        """Take a frame. Raises Violation."""
        if isinstance(frame, Call):
            self._call(frame)
        elif isinstance(frame, Release):
            for number in frame.objects:
                self._connection.objects.release(number)
        elif (running := self._running.get(frame.number)) is not None:
            if isinstance(frame, Cancel):
                assert running.work is not None
                running.work.cancel()
                return
            running.credit = min(running.credit + max(frame.size, 0), VALUE)
            if running.waiting is not None and running.credit > 0:
                waiting, running.waiting = running.waiting, None
                waiting.callback(None)

    def end(self) -> None:
        """Cancel all that runs: nobody hears of it any more."""
        for running in list(self._running.values()):
            if running.work is not None:
                running.work.cancel()

    def _call(self, frame: Call) -> None:
        if frame.number in self._running:
            raise Violation(f"call {frame.number} runs already")
        if len(self._running) >= CALLS or self._size + len(frame.arguments) > ARGUMENTS:
            raise Violation(f"{len(self._running):,} calls with {self._size >> 20} MiB run already")
        try:
            method, target = self._connection.objects.find(frame.object, frame.method)
            given, named = method.read_arguments(frame.arguments, self._received)
        except (LookupError, msgspec.MsgspecError, RecursionError) as error:
            log.warn("a call cannot be read: {error}", error=error)
            if frame.number:
                self._connection.send(Failed(frame.number, BROKEN, str(error).encode()[:PIECE]))
            return
        if method.kind is Kind.TOLD:
            try:
                getattr(target, method.name)(*given, **named)
            except Exception:
                log.failure("{method} failed", method=method.full_name)
            return
        running = self._running[frame.number] = _Running(min(frame.credit, VALUE), len(frame.arguments))
        self._size += running.size
        running.work = Deferred.fromCoroutine(self._run(frame.number, running, method, target, given, named))

    def _received(self, interface: Interface, number: int) -> object:
        return proxy(interface, self._connection.asking, number)

    async def _run(
        self,
        number: int,
        running: _Running,
        method: Method,
        target: object,
        given: list[object],
        named: dict[str, object],
    ) -> None:
        """Carry a call out and answer it; nothing is raised."""
        try:
            if method.kind is Kind.FOLLOWED:
                await self._pour(number, running, method, getattr(target, method.name)(*given, **named))
                data = b""
            else:
                result = await getattr(target, method.name)(*given, **named)
                if method.result is not None:
                    result = self._connection.objects.send(method.result, result)
                data = method.write_answer(result)
            await self._answer(number, data)
        except Exception as error:
            failed = self._connection.errors.failed(number, error)
            if failed is None:
                log.failure("{method} failed", method=method.full_name)
                failed = Failed(number, BROKEN, f"{type(error).__name__}: {error}".encode()[:PIECE])
            self._connection.send(failed)
        finally:
            del self._running[number]
            self._size -= running.size

    async def _answer(self, number: int, data: bytes) -> None:
        """Send an answer, in parts where it is long."""
        if len(data) > VALUE:
            raise ValueError(f"an answer of {len(data):,} bytes is too long")
        at = 0
        while len(data) - at > PIECE:
            await self._connection.room()
            self._connection.send(Part(number, data[at : at + PIECE]))
            at += PIECE
        self._connection.send(Answer(number, data[at:]))

    async def _pour(self, number: int, running: _Running, method: Method, items: AsyncIterator[object]) -> None:
        """Send what an iterator yields, as far as it may be sent; it is asked for no more before."""
        try:
            async for item in items:
                for piece in _pieces(item):
                    data = method.write_answer(piece)
                    await self._connection.room()
                    self._connection.send(Item(number, data))
                    running.credit -= len(data)
                    if running.credit <= 0:
                        running.waiting = Deferred()
                        await running.waiting
        finally:
            if (close := getattr(items, "aclose", None)) is not None:
                await close()


def _pieces(item: object) -> list[object]:
    """Return an item of a stream as those that are sent: bytes may be cut anywhere."""
    if not isinstance(item, bytes) or len(item) <= PIECE:
        return [item]
    return [item[at : at + PIECE] for at in range(0, len(item), PIECE)]
