"""Copying a domain to a stream while its guest runs: rounds of what it wrote meanwhile, then a short stop.

    with LiveCopy(host, domain, file, config) as copy:
        copy.rounds()
        …                  # ask the guest to suspend, and wait until it has
        copy.finish()

The stream is one that `restore.Image` reads: a frame's later content follows its earlier one. When the copy is
given up half-way the stream has no end and is refused; the guest has felt nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE
from hypervisor.migration.dirty import Tracker, track
from hypervisor.migration.pages import PageWriter, Run
from hypervisor.migration.reading import Reading
from hypervisor.migration.records import Sink, Writer
from hypervisor.migration.save import held, write_head, write_tail


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did: frames sent, zero ones included, and nanoseconds that it took."""

    frames: int
    duration: int


class LiveCopy:
    """A copy that is under way. One at a time for a domain; to be closed, or used in a `with`.

    `clock` returns nanoseconds. Raises what the file raises, and NotSuspended when the domain has ended meanwhile.
    """

    def __init__(
        self,
        host: Host,
        domain: Domain,
        file: Sink,
        config: bytes = b"",
        *,
        compress: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._host, self._domain, self._clock = host, domain, clock
        self.done: list[Round] = []
        self._tracker: Tracker | None = None
        self._closed = False
        with host.lock:
            if domain.memory.freed is not None:
                raise ValueError("the domain is being copied already")
            self._reading = Reading(domain, self._let_go)
            domain.memory.freed = bytearray(domain.memory.size // PAGE)
        try:
            with self._reading:
                self._tracker = track(domain.memory)
            self._writer = Writer(file)
            self._pages = PageWriter(self._writer, self._reading.shape.end, compress)
            write_head(self._writer, self._reading.shape, config)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LiveCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching the domain's writes; harmless when it is destroyed, or a second time."""
        self._reading.close()
        self._let_go()

    def _let_go(self) -> None:
        if not self._closed:
            self._closed, self._domain.memory.freed = True, None
            if self._tracker is not None:
                self._tracker.close()

    def round(self) -> Round:
        """Send what was written since the last round: at first all that there is."""
        begun, sent = self._clock(), self._pages.frames
        with self._reading:
            tracker = self._tracker
        if self._closed or tracker is None:
            raise ValueError("the copy is closed")
        freed = self._freed()
        for first, count in freed if self.done else ():
            self._pages.add_zeros(first, count)
        self._pages.flush()  # what is in these frames by now follows
        unsure = [(first * PAGE, (first + count) * PAGE) for first, count in freed]
        for part in self._reading.each(tracker.take(unsure)):
            self._pages.add_part(*part, zeros=bool(self.done))
        self._pages.flush()
        self.done.append(Round(self._pages.frames - sent, self._clock() - begun))
        return self.done[-1]

    def _freed(self) -> list[Run]:
        """Return the frames that the guest gave away since the last round, or whose writers we cannot see."""
        memory = self._domain.memory
        with self._reading, self._host.lock:
            freed, memory.freed = memory.freed, bytearray(memory.size // PAGE)
            if freed is not None:
                for frame in memory.lent:
                    freed[frame] = 1  # others write to it where no tracker sees it
        runs, at = list[Run](), -1
        while freed and (at := freed.find(1, at + 1)) >= 0:
            end = freed.find(0, at)
            end = len(freed) if end < 0 else end
            runs.append((at, end - at))
            at = end
        return runs

    def rounds(self, most: int = 6, downtime: float = 0.1) -> int:
        """Do rounds while that helps: until the next would take less than `downtime` seconds; return how many.

        Ends too after `most`, or when a round was hardly smaller than the one before: the guest writes as fast as
        we copy, and only the stop ends that.
        """
        while len(self.done) < most:
            frames = self.done[-1].frames if self.done else None
            last = self.round()
            if last.duration <= downtime * 1e9 or (frames is not None and last.frames >= 0.8 * frames):
                break
        return len(self.done)

    def finish(self) -> int:
        """Send the rest of a domain that has suspended itself; return the stream's length. Raises NotSuspended."""
        with held(self._host, self._domain) as (context, _):
            self.round()
            write_tail(self._writer, context)
        return self._writer.written
