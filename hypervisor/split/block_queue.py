"""The work of one disk: requests in order, one at a time, on some thread of the host's.

Where it runs, and why. Requests are taken from the ring, and answers put into it, on the domain's own thread (see
`ring`). The transfer between guest memory and disk runs without the host's lock, so that other guests are not held
up; the lock is taken for a moment between two requests, to look grants up. On which thread was decided by
measurement: Linux with a raw image in the page cache, `dd` with direct I/O, two cores; us from one request to the
next, the best and the median of eight alternating runs:

                              4 KiB, one at a time      128 KiB, eight at a time (bs=1M)
                              read         write        read         write
    on the domain's thread    420, 564     479, 723     468, 710     536, 769
    on a disk thread          602, 1016    654, 1101    391, 633     543, 724
    our part, domain's thread  35           38           86           86

Most of it is Linux's own work on an emulated CPU. For large requests the two are alike; for small ones waking a
thread and handing the interpreter's lock over costs more than the transfer. So reads and writes are done on the
domain's thread, where its hypercall ends, as long as they are fast: up to `HERE` at a time, and until one takes
more than `SLOW`, as when the page cache has not got it. That one, at most, has kept a pCPU from other guests; the
next `AWAY` go to the host's disk threads, as do flushes, barriers and discards always.

A disk has one thread at most at a time, as `Disk` asks, so a flush covers all writes acknowledged before it
without any further thought; after `BATCH` requests on a disk thread it goes to the end of the line of disks.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypervisor.disks.disk import SECTOR, Disk, DiskError
from hypervisor.domains.domain import Domain
from hypervisor.split.block_request import (
    BARRIER,
    DISCARD,
    ERROR,
    FLUSH,
    NOT_SUPPORTED,
    OKAY,
    READ,
    WRITE,
    BadRequest,
    Buffers,
    Frames,
    Request,
    gather,
    segments_of,
)

BATCH = 64
"""Requests of one disk before other disks have a turn on the thread."""
HERE = 32
"""Requests done on the domain's thread at the end of one hypercall."""
SLOW = 2_000_000
"""Nanoseconds of a transfer after which the next `AWAY` go to the disk threads."""
AWAY = 64
SCATTERED = 32 * 1024
"""Bytes: views smaller than this on average are copied by way of one buffer, which costs less than many calls."""

Execute = Callable[[Callable[[], None]], None]
"""Have a function called soon, on another thread."""

_log = logging.getLogger(__name__)


class DiskThreads:
    """A few threads that do what is `put` before them; they start with the first work and end with `stop`."""

    def __init__(self, count: int = 4) -> None:
        self._count = count
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()

    def put(self, work: Callable[[], None]) -> None:
        """Have a function called on one of the threads."""
        if not self._threads:
            with self._starting:
                while len(self._threads) < self._count:
                    thread = threading.Thread(target=self._run, name=f"disk{len(self._threads)}", daemon=True)
                    self._threads.append(thread)
                    thread.start()
        self._work.put(work)

    def stop(self) -> None:
        """End the threads when what was put is done."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # it may be all that keeps a domain that has ended


@dataclass(slots=True)
class Counters:
    """What a disk has done for its guest since it was plugged."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0
    in_flight: int = 0
    """Requests taken and not answered yet."""
    wait_ns: int = 0
    """Total time from taken to done."""


@dataclass(slots=True)
class Item:
    """A request, where its answer goes, and the frames of its ring's front."""

    request: Request
    answer: Callable[[Item], None]
    frames: Frames
    taken: int
    status: int = OKAY


class BlockQueue:
    """Serve requests of a domain from `disk`, which may be None: an empty drive. Call under the host's lock."""

    def __init__(self, domain: Domain, execute: Execute, disk: Disk | None, read_only: bool, indirect: int) -> None:
        self.domain = domain
        self.disk = disk
        self.read_only = read_only
        self.counters = Counters()
        self._execute = execute
        self._indirect = indirect
        self._waiting: deque[Item] = deque()
        self._finished: list[Item] = []
        self._active = False
        self._away = 0
        """How many requests more go to the disk threads, because the disk was slow."""
        self.torn_out = False
        """True once the disk was taken away by force: every request fails."""
        self._held = 0
        self._when_idle: list[Callable[[], None]] = []
        self._when_empty: list[Callable[[], None]] = []

    def submit(self, items: Sequence[Item]) -> None:
        """Serve requests, in order."""
        if self.torn_out:
            self.counters.errors += len(items)
            for item in items:
                item.status = ERROR
                item.answer(item)
            return
        self._waiting += items
        self.counters.in_flight += len(items)
        self._start()

    def _start(self) -> None:
        if self._waiting and not self._active and not self._held:
            self._active = True
            if self._quick() and self.domain.vcpus.on_this_thread():
                self.domain.platform.defer(lambda: self._work(here=True))
            else:
                self._execute(self._work)

    def _quick(self) -> bool:
        """Tell whether the next request may be done on the domain's thread."""
        return not self._away and self._waiting[0].request.operation in (READ, WRITE)

    # Pauses and ends

    def hold(self, done: Callable[[], None]) -> None:
        """Begin no more requests until `release`; call `done` when the disk is not used any more."""
        self._held += 1
        self._when_idle.append(done)
        self._settle()

    def release(self) -> None:
        """Undo one `hold`."""
        self._held -= 1
        self._start()

    def finish(self, done: Callable[[], None]) -> None:
        """Call `done` when nothing is under way and nothing waits."""
        self._when_empty.append(done)
        self._settle()

    def tear_out(self) -> None:
        """Let what waits, and all that comes, fail; only a transfer that is under way still ends."""
        self.torn_out = True
        failed = list(self._waiting)
        self._waiting.clear()
        self.counters.in_flight -= len(failed)
        self.submit(failed)

    def _settle(self) -> None:
        """Tell those who wait for it that nothing is under way."""
        if self._active:
            return
        calls, self._when_idle = self._when_idle, []
        if not self._waiting:
            calls, self._when_empty = calls + self._when_empty, []
        for call in calls:
            call()

    # Without the lock, on the domain's thread or a disk thread

    def _work(self, here: bool = False) -> None:
        """Serve what waits; with `here`, only as long as that is quick."""
        lock, now = self.domain.host.lock, self.domain.time.clock.now
        item: Item | None = None
        buffers: Buffers | None = None
        left = HERE if here else BATCH
        while True:
            with lock:
                if item is not None:
                    self._complete(item, buffers)
                if self._held or not self._waiting:
                    self._active = False
                    self._settle()
                    return
                if not left or (here and not self._quick()):
                    self._execute(self._work)
                    return
                item, disk = self._waiting.popleft(), self.disk
                buffers = self._prepare(item)
                self._away = max(0, self._away - 1)
            if item.status == OKAY:
                began = now()
                item.status = self._transfer(disk, item.request, buffers)
                if now() - began > SLOW:
                    self._away = AWAY
            left -= 1

    def _prepare(self, item: Item) -> Buffers | None:
        """Look a request's memory up; a bad one gets its status."""
        request = item.request
        try:
            if request.operation not in (READ, WRITE, BARRIER, FLUSH, DISCARD):
                raise BadRequest(NOT_SUPPORTED)
            if request.operation == DISCARD:
                return None
            segments = segments_of(request, item.frames, self._indirect)
            if not segments and request.operation in (READ, WRITE):
                raise BadRequest
            return gather(segments, item.frames, self.domain.memory.bytes, request.operation == READ)
        except BadRequest as error:
            item.status = error.status
            return None

    def _transfer(self, disk: Disk | None, request: Request, buffers: Buffers | None) -> int:
        """Do a request, without the lock, and return its status. Raises nothing."""
        try:
            if disk is None:
                return ERROR
            offset = request.sector * SECTOR
            if request.operation == READ and buffers is not None:
                _read(disk, offset, buffers)
                return OKAY
            if self.read_only and (request.operation != FLUSH or request.count):
                return ERROR
            if request.operation == DISCARD:
                disk.discard(offset, request.count * SECTOR)
            elif buffers is not None:
                if request.operation != WRITE:
                    disk.flush()
                if buffers.length:
                    _write(disk, offset, buffers)
                    if request.operation == BARRIER:
                        disk.flush()
        except DiskError as error:
            _log.debug("domain %d: %s", self.domain.domid, error)
            return ERROR
        except Exception:
            # A bug of ours: the guest has its error, and the disk's other requests are served.
            _log.exception("a disk request failed")
            return ERROR
        return OKAY

    def _complete(self, item: Item, buffers: Buffers | None) -> None:
        """Give the memory back, count, and have the answer given."""
        length = 0
        if buffers is not None:
            item.frames.release(buffers.grants)
            length = buffers.length
        counters, operation = self.counters, item.request.operation
        if operation == READ and buffers is not None:  # failed ones too have filled some of it
            self.domain.platform.overwritten(buffers.runs)
        counters.in_flight -= 1
        counters.wait_ns += self.domain.time.clock.now() - item.taken
        if item.status != OKAY:
            counters.errors += 1
        elif operation == READ:
            counters.reads += 1
            counters.read_bytes += length
        elif operation == DISCARD:
            counters.discards += 1
        else:
            counters.flushes += operation != WRITE
            counters.writes += length > 0
            counters.written_bytes += length
        item.answer(item)


def _read(disk: Disk, offset: int, buffers: Buffers) -> None:
    if len(buffers.views) == 1 or buffers.length >= SCATTERED * len(buffers.views):
        for view in buffers.views:
            disk.readinto(offset, view)
            offset += len(view)
    else:
        data, at = memoryview(disk.read(offset, buffers.length)), 0
        for view in buffers.views:
            view[:] = data[at : at + len(view)]
            at += len(view)


def _write(disk: Disk, offset: int, buffers: Buffers) -> None:
    if len(buffers.views) == 1 or buffers.length >= SCATTERED * len(buffers.views):
        for view in buffers.views:
            disk.write(offset, view)
            offset += len(view)
    else:
        disk.write(offset, b"".join(buffers.views))
