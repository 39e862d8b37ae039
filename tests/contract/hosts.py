"""Every implementation of `hypervisor.api.Backend`, made for a test: whoever adds one adds a line to `HOSTS`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from hypervisor.api import Backend, DirectBoot, DomainConfig
from tests.fakes import FakeBackend, storage_at_once
from tests.wires import InMemory
from xapi.host.backend import EmulatedBackend
from xapi.host.guestless import GuestlessBackend
from xapi.host.remote import RemoteBackend
from xapi.host.served import Served
from xapi.host.threads import Threads
from xapi.testing.reactor_thread import running_reactor, wait_for

MIB = 1 << 20
MEMORY = 1024 * MIB
UUID = "6d0bcb37-0001-4a1c-9f43-6a7f3c5ad0d1"
DEMO = DomainConfig(UUID, "demo", 4 * MIB, 4 * MIB, 1, DirectBoot("demo"))


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of what waits for nothing."""
    ended: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(ended.append)
    (result,) = ended
    if isinstance(result, Failure):
        result.raiseException()
    return result


@dataclass
class Made:
    """A host that a test has, and how it waits for what it asks of it."""

    backend: Backend
    result: Callable[[Coroutine[Any, Any, Any]], Any] = at_once
    has_guests: bool = True
    start: Callable[[Coroutine[Any, Any, Any]], Deferred[Any]] = Deferred.fromCoroutine


class Heard:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def attention(self, uuid: str) -> None:
        self.told.append(uuid)

    def up(self, *, restarted: bool) -> None:
        self.told.append("restarted" if restarted else "up")

    def lost(self) -> None:
        self.told.append("lost")


@contextmanager
def emulated() -> Iterator[Made]:
    """The real one; its threads are the test's own, but for those that run guests."""
    threads = Threads(maybeDeferred, lambda function, *arguments: function(*arguments), lambda *_: None)
    backend = EmulatedBackend(MEMORY, threads, storage_at_once(), pcpus=1)
    try:
        yield Made(backend)
    finally:
        at_once(backend.stop())


@contextmanager
def guestless() -> Iterator[Made]:
    """That of a machine that runs no guests."""
    yield Made(GuestlessBackend(MEMORY, storage_at_once(), "a test"), has_guests=False)


@contextmanager
def fake() -> Iterator[Made]:
    """That of the tests."""
    yield Made(FakeBackend(MEMORY))


@contextmanager
def remote() -> Iterator[Made]:
    """The emulated one behind a connection in memory."""
    clock, news = Clock(), deque[tuple[Callable[..., object], tuple[Any, ...]]]()
    threads = Threads(maybeDeferred, lambda function, *arguments: news.append((function, arguments)), clock.callLater)
    host = EmulatedBackend(MEMORY, threads, storage_at_once(), pcpus=1)
    endpoint = InMemory(Served(host, clock, "a life", lambda: None), clock)

    def result(coroutine: Coroutine[Any, Any, Any]) -> Any:
        ended: list[Any] = []
        Deferred.fromCoroutine(coroutine).addBoth(ended.append)
        endpoint.turn()
        while news:
            function, arguments = news.popleft()
            function(*arguments)
            endpoint.turn()
        (outcome,) = ended
        if isinstance(outcome, Failure):
            outcome.raiseException()
        return outcome

    try:
        yield Made(cast("Backend", RemoteBackend(endpoint, clock)), result)
    finally:
        at_once(host.stop())


@contextmanager
def socket() -> Iterator[Made]:
    """The emulated one behind a Unix socket, on a reactor and with threads as in a worker."""
    reactor = running_reactor()
    threads = Threads(deferToThread, reactor.callFromThread, reactor.callLater)
    host = EmulatedBackend(MEMORY, threads, storage_at_once(), pcpus=1)

    def result(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return wait_for(reactor, lambda: Deferred.fromCoroutine(coroutine).addTimeout(30, reactor))

    def start(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        def begin() -> Deferred[list[Deferred[Any]]]:
            return succeed([Deferred.fromCoroutine(coroutine)])

        (begun,) = wait_for(reactor, begin)
        return begun

    async def listen(path: str) -> Any:
        endpoint = UNIXServerEndpoint(reactor, path, mode=0o600, wantPID=False)
        return await endpoint.listen(Served(host, reactor, "a life", lambda: None))

    async def close() -> None:
        await backend.leave()
        await maybeDeferred(port.stopListening)
        await host.stop()

    with TemporaryDirectory() as directory:
        port = result(listen(f"{directory}/socket"))
        backend = RemoteBackend(UNIXClientEndpoint(reactor, f"{directory}/socket"), reactor)
        try:
            yield Made(cast("Backend", backend), result, start=start)
        finally:
            result(close())


HOSTS: Mapping[str, Callable[[], AbstractContextManager[Made]]] = {
    "emulated": emulated, "guestless": guestless, "fake": fake, "remote": remote, "socket": socket,
}  # fmt: skip
