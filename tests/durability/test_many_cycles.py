"""Guests are rebooted, suspended, resumed and shut down by several clients at once while others type and look.

Then nothing is left of them, and rows say what is true. As many cycles as ``XAPI_CYCLES`` says.
"""

from __future__ import annotations

import os
import random
import re
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from hypervisor.api import HostError
from tests.real_pool import RealPool

CYCLES = int(os.environ.get("XAPI_CYCLES", "60"))
CLIENTS = 4
MOST_MEMORY = 64
"""MB by which the process may grow, however many the cycles: caches fill, and the allocator keeps what it had."""
DONE = {
    "Running": ("hard_reboot", "hard_reboot", "clean_reboot", "suspend", "clean_shutdown", "hard_shutdown"),
    "Suspended": ("resume",),
    "Halted": ("start",),
}
MORE = {"resume": (False, False), "start": (False, False)}


class Client:
    """One client with a guest of its own: it goes through its states, and opens its console and screen in each."""

    def __init__(self, pool: RealPool, vm: str, rng: random.Random, done: Counter[str]) -> None:
        self.pool, self.vm, self.rng, self.done = pool, pool.db.VM[vm], rng, done
        self.open: list[Deferred[None]] = []

    async def run(self, cycles: int) -> None:
        for _ in range(cycles):
            name = self.rng.choice(DONE[self.vm.power_state])
            await self.pool.start(f"VM.{name}", self.pool.session, self.vm._ref, *MORE.get(name, ()))
            self.done[name] += 1
            self.beside()
        for each in self.open:
            each.cancel()

    def beside(self) -> None:
        """Do what others do meanwhile: look, measure, type."""
        self.pool.daemon.reconciler.attend(self.vm.uuid)
        if self.rng.random() < 0.3:
            self.pool.daemon.metrics.tick()
        if self.rng.random() < 0.1:
            self.pool.daemon.sweep()
        if self.vm.power_state == "Running":
            self.open = [each for each in self.open if not each.called]
            for watch in (self.type, self.look):
                self.open.append(Deferred.fromCoroutine(watch()).addErrback(ended))

    async def type(self) -> None:
        stream: Any = await self.pool.make_backend(next(iter(self.pool.db.host))).console(self.vm.uuid)
        await stream.write(b"info\r")
        async for _ in stream.follow():
            await stream.write(b"help\r" * self.rng.randrange(3))

    async def look(self) -> None:
        screen: Any = await self.pool.make_backend(next(iter(self.pool.db.host))).screen(self.vm.uuid)
        async for damage in screen.follow():
            for area in damage.areas[:1]:
                await screen.pixels(area)
            await screen.key(30, True)
            await screen.key(30, False)


def ended(failure: Any) -> None:
    """Expect that a console ends with its guest, or that nobody wants it any more."""
    failure.trap(CancelledError, HostError)


def held() -> dict[str, list[str]]:
    """Return what this process holds: descriptors, mappings of guests' memory, threads but the few of the pool."""
    descriptors = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the directory itself
            descriptors.append(os.readlink(f"/proc/self/fd/{name}").partition(":")[0])
    threads = [thread.name for thread in threading.enumerate() if not thread.name.startswith("PoolThread-xapi")]
    maps = re.findall("/memfd:domain.*", Path("/proc/self/maps").read_text())
    return {"descriptors": sorted(descriptors), "threads": sorted(threads), "maps": maps}


def resident() -> int:
    """Return MB of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 10**6


def guest(pool: RealPool, number: int) -> str:
    """Return a demo guest with a screen."""
    vm: str = pool("VM.clone", pool.db.VM.by_name_label("Demo guest")[0]._ref, f"guest {number}")
    pool("VM.set_is_a_template", vm, False)
    pool("VM.add_to_platform", vm, "pvfb", "true")
    return vm


def agree(pool: RealPool) -> None:
    """Assert that rows and domains say the same."""
    (backend,) = pool.real.values()
    rows = {vm.uuid: vm.domid for vm in pool.db.VM if vm.power_state == "Running" and not vm.is_control_domain}
    assert rows == {uuid: each.domain.domid for uuid, each in backend.toolstack.guests.items()}
    assert set(rows.values()) == set(backend.toolstack.host.domains)
    assert not any(vm.current_operations for vm in pool.db.VM)


def test_many_cycles_leave_nothing(pool: RealPool) -> None:
    """No VM is lost, no call fails, and at the end no domain, descriptor, map, thread, lock or row is left."""
    rng, done = random.Random(int(os.environ.get("XAPI_SEED", "1"))), Counter[str]()
    vms = [guest(pool, number) for number in range(CLIENTS)]
    for vm in vms:  # what is made once is made
        pool("VM.start", vm, False, False)
        pool("VM.suspend", vm)
        pool("VM.resume", vm, False, False)
        pool("VM.clean_shutdown", vm)
    rows = {name: len(table) for name, table in pool.db.tables.items() if name not in ("message", "VM_guest_metrics")}
    pool.until(lambda: not held()["maps"])
    before, memory = held(), resident()
    clients = [Client(pool, vm, random.Random(rng.random()), done) for vm in vms]
    running = [Deferred.fromCoroutine(client.run(CYCLES // CLIENTS)) for client in clients]
    for each in running:
        pool.outcome(each)
    pool.until(lambda: not any(vm.current_operations for vm in pool.db.VM))
    agree(pool)
    for client in clients:
        if client.vm.power_state != "Halted":
            pool("VM.hard_shutdown", client.vm._ref)
    agree(pool)
    (backend,) = pool.real.values()
    toolstack = backend.toolstack
    pool.until(lambda: not backend._locks and not pool.daemon.reconciler._following)
    assert (toolstack.guests, toolstack.host.domains, toolstack._changing, backend._down) == ({}, {}, set(), {})
    assert toolstack.host.free_memory() == toolstack.host.memory
    assert toolstack.host.scheduler.entities == {}
    assert {name: len(pool.db.tables[name]) for name in rows} == rows
    pool.until(lambda: held() == before)
    assert sum(done.values()) == CYCLES // CLIENTS * CLIENTS
    assert resident() - memory < MOST_MEMORY
