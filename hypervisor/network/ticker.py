"""The time of networks: a thread that ticks switches, services and stations when something is due.

What it ticks it ticks under the lock of the host that they belong to. A network where nothing is under way costs
nothing: the thread sleeps until there is a deadline, for which parts are looked at whenever they ring their `alarm`.
While there is one it looks again after `GRAIN` at the latest. So an alarm for each frame wakes it seldom.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

GRAIN = 0.02
"""Seconds by which a timer may be late when it was set while another ran."""
_SOONEST = 0.001
"""Seconds between two looks, at least."""


class Timed(Protocol):
    """A part of a network that has deadlines, in nanoseconds of one clock."""

    alarm: Callable[[], None]

    def tick(self, now: int) -> None:
        """Do what is due."""

    def next_deadline(self) -> int | None:
        """Return when `tick` is needed next; None: nothing is under way."""


class Ticker:
    """Ticks what was added, from `start` to `stop`. `clock` is that of the parts."""

    def __init__(self, lock: AbstractContextManager[Any], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._lock = lock
        self._clock = clock
        self._parts: list[Timed] = []
        self._alarm = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, part: Timed) -> None:
        """Tick a part from now on; its alarm is ours."""
        with self._lock:
            self._parts.append(part)
            part.alarm = partial(self._ring, part)
        self._alarm.set()

    def remove(self, part: Timed) -> None:
        """Tick a part no more. Harmless if it was not added."""
        with self._lock:
            if part in self._parts:
                self._parts.remove(part)
                part.alarm = _nobody

    def start(self) -> None:
        """Start the thread."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="network-ticker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it ticks no more."""
        self._stopping.set()
        self._alarm.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def tick(self) -> float | None:
        """Do what is due now; return seconds until there is something to do again."""
        with self._lock:
            now = self._clock()
            for part in list(self._parts):
                due = part.next_deadline()
                if due is not None and due <= now:
                    part.tick(now)
            left = [due for part in self._parts if (due := part.next_deadline()) is not None]
            return (min(left) - self._clock()) / 1e9 if left else None

    def _ring(self, part: Timed) -> None:
        if not self._alarm.is_set() and part.next_deadline() is not None:
            self._alarm.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._alarm.clear()
            left = self.tick()
            if left is None:
                self._alarm.wait()
            else:
                self._stopping.wait(min(max(left, _SOONEST), GRAIN))


def _nobody() -> None:
    """Stand for an alarm that nobody set."""
