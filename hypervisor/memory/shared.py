"""Frames that are no one domain's: what a template, its source and its clones have together.

Xen keeps a domain of its own for such frames, dom_cow. Here they are a file that nobody writes any more, which each of
these memories maps privately: the host's kernel copies a frame when one of them first writes to it, and the copy is
that domain's own. The file is there as long as somebody holds it.
"""

from __future__ import annotations

import os
import threading


class SharedFrames:
    """A frozen file, by its descriptor, which is this object's from now on. Whoever makes it holds it."""

    def __init__(self, file: int) -> None:
        self.file = file
        """-1 when nobody holds it any more."""
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> SharedFrames:
        """Hold it once more; return it. Raises ValueError when it is gone."""
        with self._lock:
            if not self._holders:
                raise ValueError("the shared frames are gone")
            self._holders += 1
        return self

    def drop(self) -> None:
        """Hold it no more, once for each `hold`; what is mapped of it stays as it is."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
            file, self.file = self.file, -1
        os.close(file)
