"""A host in a worker beside one in this process: a call, a stream, and the truths of many domains at once.

The stream is of 64 KiB of zeros again and again from a process that does nothing else (``python -m
tests.benchmarks.hosts SOCKET``); its limit is a bare Unix socket between two threads of one process.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast
from uuid import UUID

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread

from hypervisor.api import Backend, DirectBoot, DomainConfig, Truth
from tests.benchmarks.figures import Figure, ms, percent, quantile
from tests.benchmarks.stage import Stage, say
from xapi.host.backend import EmulatedBackend
from xapi.host.remote import RemoteBackend
from xapi.host.storage import LocalStorage
from xapi.host.threads import Threads
from xapi.host.wire.connection import Connection, Terms
from xapi.host.wire.interface import encode, interface_of
from xapi.host.wire.proxy import served
from xapi.host.workers import WorkerEndpoint
from xapi.testing.reactor_thread import running_reactor, wait_for

CALLS = 5_000
DOMAINS = 500
LOOKS = 20
CHUNK = 64 * 1024
TRANSFER = 512 << 20
MIB = 1 << 20
DEMO = DomainConfig(str(UUID(int=0)), "demo", 4 * MIB, 4 * MIB, 1, DirectBoot("demo"))


class Source(Protocol):
    """What is read as a stream."""

    def output(self) -> AsyncIterator[bytes]:
        """Yield zeros without end."""


class Zeros:
    """A source of them."""

    async def output(self) -> AsyncIterator[bytes]:
        """Yield zeros without end."""
        while True:
            yield bytes(CHUNK)


class Nobody:
    """A listener that does nothing."""

    def attention(self, uuid: str) -> None:
        """Hear of a domain."""

    def up(self, *, restarted: bool) -> None:
        """Hear that the host is there."""

    def lost(self) -> None:
        """Hear that it is not."""


TERMS = Terms("zeros", 1)


def benchmark(stage: Stage) -> list[Figure]:
    """Return the figures."""
    reactor = running_reactor()

    def do(work: Coroutine[Any, Any, Any]) -> Any:
        return wait_for(reactor, lambda: Deferred.fromCoroutine(work))

    with TemporaryDirectory(prefix="h-") as directory:
        say("a host in this process, and one in a worker")
        here = _here(Path(directory))
        endpoint = WorkerEndpoint(reactor, Path(directory, "h"), ["--memory", str(8 << 30)])
        there = cast("Backend", RemoteBackend(endpoint, reactor))
        figures = do(_calls(here, there)) + do(_truths(here, there))
        do(there.stop())
        do(here.stop())
        say("a stream")
        return [*figures, _stream(Path(directory, "zeros"), do)]


def _here(directory: Path) -> Backend:
    reactor = running_reactor()
    storage = LocalStorage(directory, deferToThread, reactor.callFromThread, time.time_ns)
    threads = Threads(deferToThread, reactor.callFromThread, reactor.callLater)
    return EmulatedBackend(8 << 30, threads, storage)


async def _each(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Return the seconds that each of some calls took, one after another."""
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - begun)
    return seconds


async def _calls(here: Backend, there: Backend) -> list[Figure]:
    found = []
    for backend in (here, there):
        await backend.start(Nobody())
        await backend.build(DEMO, paused=True)
        found.append(await _each(lambda backend=backend: backend.stat(DEMO.uuid), CALLS))  # type: ignore[misc]
    local, remote = found
    return [
        Figure(
            "stat of a domain, a host in a worker: p50 / p99; peer: one in this process",
            f"{ms(quantile(remote, 0.5))} / {ms(quantile(remote, 0.99))}",
            f"{ms(quantile(local, 0.5))} / {ms(quantile(local, 0.99))}",
        )
    ]


async def _truths(here: Backend, there: Backend) -> list[Figure]:
    medians = []
    for backend in (here, there):
        for number in range(1, DOMAINS):
            await backend.build(replace(DEMO, uuid=str(UUID(int=number))), paused=True)
        medians.append(quantile(await _each(backend.truths, LOOKS), 0.5))
    truths = await there.truths()
    begun = time.process_time()
    for _ in range(LOOKS):
        data = encode(truths)
    written = (time.process_time() - begun) / LOOKS
    decode = msgspec.msgpack.Decoder(dict[str, Truth]).decode
    begun = time.process_time()
    for _ in range(LOOKS):
        decode(data)
    read = (time.process_time() - begun) / LOOKS
    return [
        Figure(
            f"truths of {len(truths)} domains in one call, {len(data) >> 10} KiB; peer: in this process",
            ms(medians[1]),
            ms(medians[0]),
        ),
        Figure(
            "of that, one turn of the reactor at each end: to write / to read it",
            f"{ms(written)} / {ms(read)}",
            goal="<= 10 ms",
            judged=max(written, read) * 1000,
        ),
    ]


def _stream(path: Path, do: Callable[[Coroutine[Any, Any, Any]], Any]) -> Figure:
    process = subprocess.Popen([sys.executable, "-m", __name__, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        ours = do(_read(path, running_reactor()))
    finally:
        process.kill()
        process.communicate()
    bare = _bare()
    shown = [f"{TRANSFER / seconds / 1e6:,.0f} MB/s" for seconds in (ours, bare)]
    what = "a stream from a worker; limit: a bare Unix socket"
    return Figure(what, shown[0], shown[1], percent(bare / ours))


async def _read(path: Path, reactor: Any) -> float:
    connection = Connection(TERMS, reactor)
    await connectProtocol(UNIXClientEndpoint(reactor, str(path)), connection)
    await connection.ready
    source = cast("Source", served(Source, connection.asking))
    begun, size = time.perf_counter(), 0
    async for data in source.output():
        size += len(data)
        if size >= TRANSFER:
            break
    seconds = time.perf_counter() - begun
    connection.close("enough")
    return seconds


def _bare() -> float:
    one, other = socket.socketpair()
    data = bytes(CHUNK)

    def send() -> None:
        for _ in range(TRANSFER // CHUNK):
            one.sendall(data)
        one.close()

    sender = threading.Thread(target=send)
    begun = time.perf_counter()
    sender.start()
    while other.recv(CHUNK):
        pass
    sender.join()
    other.close()
    return time.perf_counter() - begun


class _Serving(Factory):
    def buildProtocol(self, address: object) -> Connection:
        """Return one end."""
        from twisted.internet import reactor

        return Connection(TERMS, cast("Any", reactor), {"": (interface_of(Source), Zeros())})


def main(path: str) -> None:
    """Serve zeros."""
    from twisted.internet import reactor

    turning: Any = reactor

    def ready(_: object) -> None:
        print("ready", flush=True)

    UNIXServerEndpoint(turning, path, wantPID=False).listen(_Serving()).addCallback(ready)
    turning.run()


if __name__ == "__main__":
    main(sys.argv[1])
