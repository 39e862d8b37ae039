"""Which frames of a running guest were written since they were last looked at.

Translated guest code writes to host memory by itself, so only the host kernel or a comparison can tell. Weighed,
on 256 MiB, Linux 6.18:

- userfaultfd in asynchronous write-protect mode with PAGEMAP_SCAN (Linux 6.7): exact; a look costs 0.2 ms, the
  first 1 ms, besides reading what it names; the guest pays 2 µs for its first write to each page. Chosen where
  the kernel has it.
- soft-dirty bits: reset for the whole process at once, so all its guests pay and only one copy could run at a
  time; not compiled into this kernel.
- write protection by mprotect: the fault would be a signal inside translated code, which cannot be taken.
- memory hooks of Unicorn: with any of them a Linux took 1.6 times as long to boot (measured in the study).
- a digest of each page sent, compared with the page now: sound everywhere; 4 to 8 s a GiB and look on a loaded
  machine, 50 bytes a page. The fallback. It is keyed, so that a guest cannot choose pages that look alike.

A frame freed meanwhile (balloon) reads as zero; the memory notes those itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Protocol

from hypervisor.memory.guest_memory import PAGE, Memory, merged
from hypervisor.memory.pagemap import WriteLog
from hypervisor.migration.pages import parts

_log = logging.getLogger(__name__)
_ZERO = bytes(PAGE)


class Tracker(Protocol):
    """Finds written frames; the first `take` gives all that were ever written."""

    def take(self, unsure: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[int, bytes]]:
        """Yield address and content of frames that were written since the last `take`, to its end.

        Those in the byte ranges `unsure` are given in any case, unless the host holds nothing of them. A content
        that a guest changes while this runs comes again at the next `take`.
        """

    def close(self) -> None:
        """Stop looking."""


class ProtectingTracker:
    """Asks the kernel. Raises OSError where it cannot."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._log = WriteLog(memory.address, memory.size)

    def take(self, unsure: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[int, bytes]]:
        """Protect, then read. Only what exists is protected; the rest counts as written when it comes to exist."""
        for start, end in list(self._memory.extents()):
            found = [(max(start, low), min(end, high)) for low, high in unsure if low < end and start < high]
            for low, high in merged(found + self._written(start, end)):
                yield from parts(self._memory, low, high)

    def _written(self, start: int, end: int) -> list[tuple[int, int]]:
        try:
            return self._log.take(start, end)
        except OSError:  # mapped anew since, by a freeze or by a clone's balloon: unknown, so all of it
            self._log.register()
            self._log.take(start, end)
            return [(start, end)]

    def close(self) -> None:
        """Let go of the pages."""
        self._log.close()


class ComparingTracker:
    """Compares digests of what was given with what is there now."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._key = os.urandom(16)
        self._given: dict[int, bytes] = {}

    def take(self, unsure: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[int, bytes]]:
        """Read, compare, and give the very bytes that the digest is of."""
        for low, high in unsure:
            for frame in range(low // PAGE, high // PAGE):
                self._given.pop(frame, None)
        for start, end in list(self._memory.extents()):
            for at, part in parts(self._memory, start, end):
                for offset in range(0, len(part), PAGE):
                    page = part[offset : offset + PAGE]
                    digest = b"" if page == _ZERO else blake2b(page, digest_size=16, key=self._key).digest()
                    frame = (at + offset) // PAGE
                    if self._given.get(frame) != digest:
                        self._given[frame] = digest
                        yield at + offset, page

    def close(self) -> None:
        """Forget the digests."""
        self._given.clear()


def track(memory: Memory) -> Tracker:
    """Return the best tracker that the host's kernel allows."""
    try:
        return ProtectingTracker(memory)
    except OSError as error:
        _log.info("the kernel does not log writes (%s); live copies compare pages", error)
        return ComparingTracker(memory)
