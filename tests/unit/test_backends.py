"""Every backend is a `Backend` whole, which mypy checks here, and says the same of a domain that is not there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import pytest
from twisted.internet.defer import Deferred, maybeDeferred

from hypervisor.api import Backend, Change, Disk, HostError, Shutdown
from tests.fakes import FakeBackend, storage_at_once
from xapi.host.backend import LocalBackend
from xapi.host.guestless import GuestlessBackend
from xapi.host.threads import Threads

UUID = "6d0bcb37-0001-4a1c-9f43-6a7f3c5ad0d1"
MEMORY = 1 << 30


def local() -> LocalBackend:
    threads = Threads(maybeDeferred, lambda function, *arguments: function(*arguments), lambda *_: None)
    return LocalBackend(MEMORY, threads, storage_at_once(), pcpus=1)


def guestless() -> GuestlessBackend:
    return GuestlessBackend(MEMORY, storage_at_once(), "a test")


BACKENDS: Mapping[str, Callable[[], Backend]] = {
    "local": local, "guestless": guestless, "fake": lambda: FakeBackend(MEMORY),
}  # fmt: skip

ASKED: Mapping[str, Callable[[Backend], Awaitable[object]]] = {
    "suspend": lambda backend: backend.suspend(UUID, "/nowhere/image"),
    "resume": lambda backend: backend.resume(UUID),
    "unpause": lambda backend: backend.unpause(UUID),
    "pause": lambda backend: backend.pause(UUID),
    "shutdown": lambda backend: backend.shutdown(UUID, Shutdown.POWEROFF),
    "plug": lambda backend: backend.plug(UUID, Disk(0, "/nowhere/disk", "raw")),
    "adjust": lambda backend: backend.adjust(UUID, Change(weight=1)),
    "console": lambda backend: backend.console(UUID),
    "screen": lambda backend: backend.screen(UUID),
}


@pytest.mark.parametrize("kind", BACKENDS)
def test_backends_say_the_same_of_a_domain_that_is_not_there(kind: str) -> None:
    """To end it is no mistake; all else is, which HostError tells."""
    backend, codes = BACKENDS[kind](), {}

    async def ask() -> None:
        truth = await backend.stat(UUID)
        assert truth.state is None and (await backend.stat(UUID)).sequence > truth.sequence
        assert (await backend.truths(), await backend.domains(), await backend.free_memory()) == ({}, [], MEMORY)
        await backend.destroy(UUID)
        for name, function in ASKED.items():
            with pytest.raises(HostError) as caught:
                await function(backend)
            codes[name] = caught.value.code

    ended: list[object] = []
    Deferred.fromCoroutine(ask()).addBoth(ended.append)
    assert ended == [None] and codes == dict.fromkeys(ASKED, "no_domain")
