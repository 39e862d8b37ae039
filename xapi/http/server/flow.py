"""When the transport of a connection is read: not while more has come than may wait."""

from __future__ import annotations

from typing import Any


class Flow:
    """The pausing of one transport."""

    __slots__ = ("_paused", "_wire", "ended", "held")

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        self._paused = False
        self.held = 0
        """Bytes that wait for an answer to be made."""
        self.ended = False
        """The client sends no more."""

    def hold(self, size: int, room: int) -> None:
        """Let more bytes wait, and read no further when that are too many."""
        self.held += size
        if self.held > room:
            self.pause()

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._wire.pauseProducing()

    def go_on(self) -> None:
        """Read, if there is still somebody to read from."""
        if self._paused and not self.ended:
            self._paused = False
            self._wire.resumeProducing()
