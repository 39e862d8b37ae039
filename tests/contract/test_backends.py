"""What `hypervisor.api.Backend` promises, of every implementation; that each is one whole mypy checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from hypervisor.api import Backend, Change, Code, Disk, HostError, Network, Power, Shutdown, VolumeHandle
from tests.contract.hosts import DEMO, HOSTS, MEMORY, UUID, Heard, Made

ASKED: Mapping[str, Callable[[Backend], Awaitable[object]]] = {
    "suspend": lambda backend: backend.suspend(UUID, VolumeHandle("nowhere", "image")),
    "resume": lambda backend: backend.resume(UUID),
    "unpause": lambda backend: backend.unpause(UUID),
    "pause": lambda backend: backend.pause(UUID),
    "shutdown": lambda backend: backend.shutdown(UUID, Shutdown.POWEROFF),
    "plug": lambda backend: backend.plug(UUID, Disk(0, "/nowhere/disk", "raw")),
    "adjust": lambda backend: backend.adjust(UUID, Change(weight=1)),
    "console": lambda backend: backend.console(UUID),
    "screen": lambda backend: backend.screen(UUID),
}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Iterator[Made]:
    with HOSTS[request.param]() as made:
        yield made


@pytest.fixture
def running(host: Made) -> Made:
    """One that was started, and runs guests."""
    if not host.has_guests:
        pytest.skip("it runs no guests")
    host.result(host.backend.start(Heard()))
    return host


def test_a_domain_that_is_not_there(host: Made) -> None:
    """To end it is no mistake; all else is, which HostError tells."""
    codes = {}

    async def ask() -> None:
        backend = host.backend
        await backend.start(Heard())
        truth = await backend.stat(UUID)
        assert truth.state is None and (await backend.stat(UUID)).sequence > truth.sequence
        assert (await backend.truths(), await backend.domains(), await backend.free_memory()) == ({}, (), MEMORY)
        await backend.destroy(UUID)
        for name, function in ASKED.items():
            with pytest.raises(HostError) as caught:
                await function(backend)
            codes[name] = caught.value.code

    host.result(ask())
    assert codes == dict.fromkeys(ASKED, Code.NO_DOMAIN)


def test_a_host_tells_the_one_that_started_it_last_that_it_is_up(host: Made) -> None:
    """To start it again is no restart; who leaves it hears nothing more."""
    first, second = Heard(), Heard()
    host.result(host.backend.start(first))
    host.result(host.backend.start(second))
    host.result(host.backend.leave())
    assert (first.told, second.told) == (["up"], ["up"])


def test_domains_live_on_when_another_starts_their_host(running: Made) -> None:
    """As they are, and their new listener hears of them."""
    backend, heard = running.backend, Heard()
    built = running.result(backend.build(DEMO, paused=True))
    running.result(backend.start(heard))
    (truth,) = running.result(backend.truths()).values()
    assert running.result(backend.domains()) == (UUID,) and truth.sequence > built.sequence
    assert (truth.state.domid, truth.state.power) == (built.state.domid, Power.PAUSED)
    assert heard.told == ["up"]


def test_what_is_asked_twice_is_done_once(running: Made) -> None:
    """But for a domain, which there cannot be twice."""
    backend = running.backend
    built = running.result(backend.build(DEMO, paused=True))
    with pytest.raises(HostError) as caught:
        running.result(backend.build(DEMO))
    assert caught.value.code is Code.EXISTS
    for change, power in ((backend.unpause, Power.RUNNING), (backend.pause, Power.PAUSED)):
        states = [running.result(change(UUID)).state for _ in range(2)]
        assert {(state.power, state.domid) for state in states} == {(power, built.state.domid)}
    running.result(backend.destroy(UUID))
    running.result(backend.destroy(UUID))
    assert running.result(backend.domains()) == ()


def test_memory_is_a_domains_until_its_end(running: Made) -> None:
    """One for which there is not enough is not made."""
    backend = running.backend
    running.result(backend.build(DEMO, paused=True))
    assert running.result(backend.free_memory()) == MEMORY - DEMO.memory_max
    running.result(backend.destroy(UUID))
    assert running.result(backend.free_memory()) == MEMORY
    with pytest.raises(HostError) as caught:
        running.result(backend.build(replace(DEMO, memory_max=MEMORY * 2, memory_target=MEMORY * 2)))
    assert caught.value.code is Code.NO_MEMORY and running.result(backend.domains()) == ()


def test_a_console_lasts_as_long_as_its_domain(running: Made) -> None:
    """What is typed is taken until then."""
    backend, seen = running.backend, list[bytes]()
    running.result(backend.build(DEMO, paused=True))
    stream: Any = running.result(backend.console(UUID))

    async def follow() -> None:
        async for data in stream.follow():
            seen.append(data)

    following = running.start(follow())
    assert running.result(stream.write(b"help\r")) == 5 and not following.called
    running.result(backend.destroy(UUID))

    async def ended() -> None:
        await following

    running.result(ended())
    assert running.result(stream.write(b"late")) == 0


def test_a_domain_without_a_screen_says_so(running: Made) -> None:
    """It is a device like others."""
    running.result(running.backend.build(DEMO, paused=True))
    with pytest.raises(HostError) as caught:
        running.result(running.backend.screen(UUID))
    assert caught.value.code is Code.NO_DEVICE


def test_a_host_that_was_stopped_makes_no_domains(running: Made) -> None:
    """Those that it had have ended."""
    backend = running.backend
    running.result(backend.build(DEMO))
    running.result(backend.stop())
    with pytest.raises(HostError) as caught:
        running.result(backend.build(DEMO))
    assert caught.value.code is Code.STOPPED


def test_a_host_without_guests_says_so() -> None:
    """Storage and networks it has."""
    with HOSTS["guestless"]() as host, pytest.raises(HostError) as caught:
        host.result(host.backend.networks((Network("xenbr0"),)))
        host.result(host.backend.build(DEMO))
    assert caught.value.code is Code.NO_GUESTS
