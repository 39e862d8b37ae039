"""A request's body, read as it comes.

What has come and was not read is at most `AHEAD` bytes, and what the transport had in its hands: then it is read no
further until the reader has caught up. So a body of any length costs as much memory as a short one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred

from xapi.http.server.exchange import Refusal

AHEAD = 256 * 1024
"""Bytes that may wait for the reader; it is sent more when half of them are left."""
SHORT = 64 * 1024
"""Bytes of a body's rest that are passed over when nobody reads them, so that the connection can go on."""


class BodyError(Refusal):
    """A body that cannot be read on, because of what its client has sent, or has not."""


class ClientGone(Exception):
    """The client has ended the connection before the end of what it was sending, or being sent."""


class Sender(Protocol):
    """What a body asks of the connection that it comes by."""

    def wanted(self) -> None:
        """Hear that the reader waits for more."""

    def room(self) -> None:
        """Hear that there is room for more."""


class Body:
    """The body of one request, for one reader: `read`, or an iteration."""

    __slots__ = (
        "_error", "_full", "_parts", "_passed", "_sender", "_waiting", "buffered", "ended", "expected", "left",
        "received", "rest_seconds",
    )  # fmt: skip

    def __init__(self, sender: Sender, left: int | None, rest_seconds: float, expected: bool) -> None:
        self._sender = sender
        self._parts: deque[bytes] = deque()
        self._waiting: Deferred[None] | None = None
        self._error: Callable[[], Exception] | None = None
        self._full = False
        self._passed = False
        self.rest_seconds = rest_seconds
        self.left = left
        """Bytes that have not come yet; None where only the end tells."""
        self.expected = expected
        """The client sends nothing until it hears 100 Continue."""
        self.received = 0
        self.buffered = 0
        self.ended = False
        """Nothing more comes: it is whole, or broken."""

    # For the reader

    async def read(self) -> bytes:
        """Return the next bytes, as they came, and b"" at the end. Raises BodyError, and ClientGone if it was cut."""
        while not self._parts:
            if self._error is not None:
                raise self._error()  # a new one each time: one that is kept would keep all that has met it
            if self.ended or self._passed:
                return b""
            assert self._waiting is None, "a body has one reader"
            self._waiting = Deferred()
            try:
                self._sender.wanted()
                await self._waiting
            finally:
                self._waiting = None
        data = self._parts.popleft()
        self.buffered -= len(data)
        if self._full and self.buffered <= AHEAD // 2:
            self._full = False
            self._sender.room()
        return data

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        data = await self.read()
        if not data:
            raise StopAsyncIteration
        return data

    # For the connection

    @property
    def is_full(self) -> bool:
        """As much waits for the reader as may."""
        return self._full

    @property
    def is_awaited(self) -> bool:
        """The reader waits."""
        return self._waiting is not None

    @property
    def is_empty(self) -> bool:
        """There is nothing to read, and never was."""
        return self.ended and not self.received and self._error is None

    @property
    def is_short(self) -> bool:
        """So little is left of it that it can be passed over."""
        if self.ended:
            return self._error is None
        return self.left is not None and self.left <= SHORT and not self.expected

    def take(self, data: bytes) -> None:
        """Take the next bytes from the wire."""
        self.received += len(data)
        self.expected = False
        if self.left is not None:
            self.left -= len(data)
        if self._passed:
            return
        self._parts.append(data)
        self.buffered += len(data)
        if self.buffered > AHEAD:
            self._full = True
        self._wake()

    def end(self, error: Callable[[], Exception] | None = None) -> None:
        """Note that nothing more comes; the reader gets what has come, and then the error if `error` makes one."""
        if not self.ended:
            self.ended = True
            self._error = error
            self._wake()

    def pass_over(self) -> None:
        """Drop what has come and will come: nobody reads it."""
        self._passed = True
        self._full = False
        self._parts.clear()
        self.buffered = 0

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.called:
            waiting.callback(None)
