"""What a learning bridge has learnt: behind which port each address was seen last (IEEE 802.1D 7.8)."""

from __future__ import annotations

from typing import Generic, TypeVar

AGEING_NS = 300 * 1_000_000_000
MAX_ENTRIES = 16_384
MAX_ENTRIES_OF_A_PORT = 1024
"""A guest that invents addresses fills its own share only; the others are still learnt."""
_SWEEP_NS = 1_000_000_000

P = TypeVar("P")


class _Entry(Generic[P]):
    __slots__ = ("port", "seen")

    def __init__(self, port: P, seen: int) -> None:
        self.port = port
        self.seen = seen


class MacTable(Generic[P]):
    """(VLAN, MAC) → port, forgotten after `AGEING_NS` without a frame. Memory: `MAX_ENTRIES` of some 250 bytes."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, bytes], _Entry[P]] = {}
        self._counts: dict[P, int] = {}
        self._swept = 0

    def __len__(self) -> int:
        return len(self._entries)

    def learn(self, vlan: int, mac: bytes, port: P, now: int) -> None:
        """Note that `mac` was seen at `port`; a full table, or share of a port, learns nothing new."""
        entry = self._entries.get((vlan, mac))
        if entry is None:
            if self._has_room(port, now):
                self._entries[(vlan, mac)] = _Entry(port, now)
                self._counts[port] = self._counts.get(port, 0) + 1
            return
        entry.seen = now
        if entry.port is not port:
            if self._counts.get(port, 0) >= MAX_ENTRIES_OF_A_PORT:
                self._remove((vlan, mac))  # known to be stale: better flooded than sent the wrong way
                return
            self._counts[entry.port] -= 1
            self._counts[port] = self._counts.get(port, 0) + 1
            entry.port = port

    def lookup(self, vlan: int, mac: bytes, now: int) -> P | None:
        """Return the port behind which `mac` is, or None if that is not known any more."""
        entry = self._entries.get((vlan, mac))
        if entry is None:
            return None
        if now - entry.seen > AGEING_NS:
            self._remove((vlan, mac))
            return None
        return entry.port

    def forget(self, port: P) -> None:
        """Forget every address behind `port`. O(entries)."""
        for key in [key for key, entry in self._entries.items() if entry.port is port]:
            self._remove(key)
        self._counts.pop(port, None)

    def sweep(self, now: int) -> None:
        """Drop what has aged. O(entries), so at most once a second whoever asks."""
        if now - self._swept < _SWEEP_NS:
            return
        self._swept = now
        for key in [key for key, entry in self._entries.items() if now - entry.seen > AGEING_NS]:
            self._remove(key)

    def _has_room(self, port: P, now: int) -> bool:
        if len(self._entries) < MAX_ENTRIES and self._counts.get(port, 0) < MAX_ENTRIES_OF_A_PORT:
            return True
        self.sweep(now)
        return len(self._entries) < MAX_ENTRIES and self._counts.get(port, 0) < MAX_ENTRIES_OF_A_PORT

    def _remove(self, key: tuple[int, bytes]) -> None:
        self._counts[self._entries.pop(key).port] -= 1
