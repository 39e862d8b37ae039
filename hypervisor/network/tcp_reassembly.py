"""Put the bytes of a TCP stream in order again."""

from __future__ import annotations

MAX_PIECES = 256
"""Pieces kept while something before them is missing; a sender of crumbs has to send them again."""


class Reassembly:
    """Data that came before its turn: at most `MAX_PIECES`, and `limit` bytes, overlaps counted twice."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._pieces: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, sequence: int, data: bytes) -> None:
        """Keep `data`, which begins at `sequence`, if there is room; of two at one place the longer one stays."""
        held = self._pieces.get(sequence, b"")
        if len(held) >= len(data) or self._held + len(data) - len(held) > self._limit:
            return
        if not held and len(self._pieces) >= MAX_PIECES:
            return
        self._pieces[sequence] = data
        self._held += len(data) - len(held)

    def take(self, expected: int) -> list[bytes]:
        """Return, and forget, what now follows from sequence number `expected` on without a gap."""
        ready: list[bytes] = []
        while self._pieces:
            first = min(self._pieces)
            if first > expected:
                break
            piece = self._pieces.pop(first)
            self._held -= len(piece)
            fresh = piece[expected - first :]
            if fresh:
                ready.append(fresh)
                expected += len(fresh)
        return ready
