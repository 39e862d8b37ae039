"""A daemon in memory over the real hypervisor: its threads run guests, and the test takes the reactor's turns."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from tests.conftest import Pool
from xapi.host.backend import EmulatedBackend
from xapi.host.storage import LocalStorage
from xapi.host.threads import Threads

PATIENCE = 60.0
"""Seconds after which a test gives up."""
MEMORY = 4 << 30
THREADS = 8


@implementer(IReactorFromThreads)
class RealPool(Pool):
    """A pool whose hosts run demo guests. `close` it."""

    def __init__(self, directory: Path) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._workers = ThreadPool(0, THREADS, "xapi")
        self._workers.start()
        self._seen = time.monotonic()
        self.real: dict[str, EmulatedBackend] = {}
        super().__init__(directory)

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:
        """Do as a reactor does."""
        self._calls.put(partial(callable, *args, **kwargs))

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self, self._workers, function, *arguments)

    def make_backend(self, host: Any) -> Any:
        if host._ref not in self.real:
            threads = Threads(self._in_thread, self.callFromThread, self.clock.callLater)
            storage = LocalStorage(self.storage_directory, self._in_thread, self.callFromThread, time.time_ns)
            self.real[host._ref] = EmulatedBackend(MEMORY, threads, storage, pcpus=2)
        return self.real[host._ref]

    def turn(self) -> None:
        """Take a turn: do what threads have asked for, and let as much time pass as has."""
        with suppress(queue.Empty):
            self._calls.get(timeout=0.001)()
        now = time.monotonic()
        self.clock.advance(now - self._seen)
        self._seen = now

    def until(self, happened: Callable[[], object]) -> None:
        """Take turns until something is so."""
        end = time.monotonic() + PATIENCE
        while not happened():
            self.turn()
            assert time.monotonic() < end, "it did not happen"

    def outcome(self, deferred: Deferred[Any]) -> Any:
        results: list[Any] = []
        deferred.addBoth(results.append)
        self.until(lambda: results)
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        return results[0]

    def close(self) -> None:
        """End all guests and threads."""
        for backend in self.real.values():
            self.outcome(Deferred.fromCoroutine(backend.stop()))
        self._workers.stop()
