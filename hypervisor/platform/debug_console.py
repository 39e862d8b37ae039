"""The hypervisor's console of a domain: port 0xE9, as Xen and Bochs have it, and what the hypercall console_io says."""

from __future__ import annotations

import threading

PORT = 0xE9
LONGEST = 64 * 1024
"""Bytes kept of what a domain writes."""


class DebugConsole:
    """A `bus.Device` of one port, to be written; `text` is the newest of what was. Under the host's lock."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self.text = bytearray()

    def read(self, offset: int, size: int) -> int:
        """Return all ones: there is nothing to read."""
        return -1

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep a byte."""
        with self._lock:
            self.log(bytes([value]))

    def log(self, text: bytes) -> None:
        """Keep what the guest says."""
        self.text += text
        if len(self.text) > LONGEST:
            del self.text[:-LONGEST]
