"""The hypervisor's own log, as `xl dmesg` shows Xen's: the newest lines, in memory alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

LINES = 1000
"""How many are kept; Xen keeps 16 KiB of bytes unless it is told otherwise (drivers/char/console.c)."""


class ConsoleRing:
    """Lines of the hypervisor, written by any thread."""

    def __init__(self, time_of_day_ns: Callable[[], int]) -> None:
        self._now = time_of_day_ns
        self._lines: deque[str] = deque(maxlen=LINES)

    def write(self, text: str) -> None:
        """Add a line with its time, as ``console_timestamps=date`` has them."""
        moment = datetime.fromtimestamp(self._now() / 1e9, UTC)
        self._lines.append(f"(XEN) [{moment:%Y-%m-%d %H:%M:%S}] {text}\n")

    def text(self) -> str:
        """Return all lines."""
        return "".join(self._lines.copy())
