"""Every implementation of `hypervisor.api.Backend`, made for a test: whoever adds one adds a line to `HOSTS`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from hypervisor.api import Backend, DirectBoot, DomainConfig
from tests.fakes import FakeBackend, storage_at_once
from xapi.host.backend import EmulatedBackend
from xapi.host.guestless import GuestlessBackend
from xapi.host.threads import Threads

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


HOSTS: Mapping[str, Callable[[], AbstractContextManager[Made]]] = {
    "emulated": emulated, "guestless": guestless, "fake": fake,
}  # fmt: skip
