"""A demo guest lives on while its daemon is replaced by another one over what was stored; the host is the real one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from hypervisor.guests import DEMO_PROMPT
from tests.conftest import Pool
from tests.real_pool import RealPool


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[RealPool]:
    pool = RealPool(tmp_path)
    pool.storage_directory.mkdir()
    yield pool
    pool.close()


def reborn(pool: RealPool, directory: Path) -> Pool:
    """Return a new daemon over what the old one has stored, on the same host, which it has not looked at yet."""
    after: Any = pool.crashed(directory)
    after.make_backend, after.outcome, after.turn = pool.make_backend, pool.outcome, pool.turn
    after.begin()
    made: Pool = after
    return made


class Shell:
    """A guest's console, as a daemon's clients have it."""

    def __init__(self, pool: RealPool, daemon: Any, vm: Any) -> None:
        self._pool = pool
        self._heard = bytearray()
        host = daemon.backends.of(daemon.db.host[vm.resident_on])
        self._stream: Any = pool.outcome(Deferred.fromCoroutine(host.console(vm.uuid)))
        self._following = Deferred.fromCoroutine(self._follow())
        pool.until(lambda: self._heard.endswith(DEMO_PROMPT))

    async def _follow(self) -> None:
        async for data in self._stream.follow():
            self._heard += data

    def type(self, command: str) -> None:
        self._heard.clear()
        self._pool.outcome(Deferred.fromCoroutine(self._stream.write(command.encode() + b"\r")))

    def uptime(self) -> tuple[int, int]:
        """Return how long the guest has been up, in milliseconds, and how often it was resumed."""
        self.type("info")
        self._pool.until(lambda: self._heard.endswith(DEMO_PROMPT) and b"command-line" in self._heard)
        return tuple(int(re.search(rf"{key}: (\d+)".encode(), self._heard)[1]) for key in ("uptime-ms", "resumes"))  # type: ignore[index, return-value]

    def close(self) -> None:
        self._following.addErrback(lambda _: None)
        self._following.cancel()


def test_a_guest_outlives_its_daemon(pool: RealPool, tmp_path: Path) -> None:
    """It has run all the while, is reached by its console, and when it goes down its new daemon hears of it."""
    template = pool.db.VM.by_name_label("Demo guest")[0]._ref
    ref = pool("VM.clone", template, "guest")
    pool("VM.provision", ref)
    pool("VM.start", ref, False, False)
    vm: Any = pool.db.VM[ref]
    shell = Shell(pool, pool.daemon, vm)
    up, resumes = shell.uptime()
    shell.close()

    after = reborn(pool, tmp_path / "after")
    again: Any = after.db.VM[ref]
    token = after("event.from", ["VM", "console"], "", 0.0).token
    pool.outcome(Deferred.fromCoroutine(after.daemon.survey.adopt()))
    assert after("event.from", ["VM", "console"], str(token), 0.0).events == []
    assert (again.power_state, again.domid, again.consoles) == ("Running", vm.domid, vm.consoles)
    shell = Shell(pool, after.daemon, again)
    later, resumed = shell.uptime()
    assert later > up and resumed == resumes
    after("VM.pause", ref)
    assert again.power_state == "Paused"
    after("VM.unpause", ref)
    shell.type("poweroff")
    pool.until(lambda: again.power_state == "Halted")
    assert (vm.power_state, again.domid) == ("Running", -1)
