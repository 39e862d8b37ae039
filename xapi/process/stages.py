"""Services that stand on each other: each starts when the one before has, and ends before that one does.

Twisted's own MultiService starts and ends its children all at once; a daemon has to wait between them, for a database
that is written or a port that is open. What has not started is not stopped, and a start that is not over when the end
comes is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

log = Logger()


class Stage(Service):
    """A service whose start and end may take time."""

    async def start(self) -> None:
        """Do what is to be done before the next one starts; its errors end the daemon, after `stop`."""

    async def stop(self) -> None:
        """End what there is of it, be it that `start` has failed half way."""

    def startService(self) -> Deferred[None]:
        """Start; the Deferred fires when that is done."""
        super().startService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self.start())

    def stopService(self) -> Deferred[None]:
        """End; the Deferred fires when that is done."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self.stop())


class Doing(Stage):
    """A stage of one function for its start and one for its end, which may return something to wait for."""

    def __init__(self, start: Callable[[], object] = lambda: None, stop: Callable[[], object] = lambda: None) -> None:
        self._start, self._stop = start, stop

    async def start(self) -> None:
        await maybeDeferred(self._start)

    async def stop(self) -> None:
        await maybeDeferred(self._stop)


class Timer(Service):
    """Calls a function every so many seconds, first after that time; an error is logged, and the next call comes."""

    def __init__(self, seconds: float, function: Callable[[], object], clock: IReactorTime) -> None:
        self._seconds, self._function = seconds, function
        self._loop = LoopingCall(self._call)
        self._loop.clock = clock

    def startService(self) -> None:
        """Begin to count."""
        super().startService()  # type: ignore[no-untyped-call]
        self._loop.start(self._seconds, now=False)

    def stopService(self) -> None:
        """Call no more."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._loop.stop()

    def _call(self) -> Deferred[object]:
        called: Deferred[object] = maybeDeferred(self._function)
        return called.addErrback(lambda failure: log.failure("a timer's call failed", failure))


class Stages(MultiService):
    """Services in the order in which they start; each may itself be such a row. `begun` fires when all have started."""

    def __init__(self, *services: Service) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.begun: Deferred[None] = succeed(None)
        for service in services:
            service.setServiceParent(self)

    def startService(self) -> Deferred[None]:
        """Start all, one after another; fails as the first that fails, when none of the later has started."""
        Service.startService(self)
        self.begun = Deferred.fromCoroutine(self._start())
        return self.begun

    async def _start(self) -> None:
        for service in self.services:
            await _done(service.startService)

    def stopService(self) -> Deferred[None]:
        """End those that have started, the last first; what fails at that is logged, and the others end."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.begun.cancel()
        for service in reversed(self.services):
            if service.running:
                try:
                    await _done(service.stopService)
                except Exception:
                    log.failure("a service does not end as it should")


def _done(function: Callable[[], object]) -> Awaitable[object]:
    done: Deferred[object] = maybeDeferred(function)
    return done
