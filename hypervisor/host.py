"""The host: its memory, its pCPUs, its domains and xenstore."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence

from hypervisor.arch import clock as clocks
from hypervisor.arch.kind import Kind
from hypervisor.arch.x86_64.clock import Clock
from hypervisor.arch.x86_64.kinds import PVH
from hypervisor.console_ring import ConsoleRing
from hypervisor.domains.domain import Domain, DomainHost
from hypervisor.domains.event_channel import EventChannels
from hypervisor.domains.life import State
from hypervisor.domid import DOMID_FIRST_RESERVED
from hypervisor.hypercalls.table import serve
from hypervisor.memory.guest_memory import PAGE, Memory
from hypervisor.scheduling.scheduler import Scheduler
from hypervisor.xenstore.store import Store

_log = logging.getLogger(__name__)


class NoMemory(Exception):
    """The host has not enough memory left for what was asked; the text says how much there is."""


class Host(DomainHost):
    """A host of `memory` bytes and `pcpus` physical CPUs; guests run once `start` was called.

    Without `start` nothing runs by itself: `step` runs guests on the caller's thread, for tests that want
    the same every time. `time_of_day_ns` is the wall clock, `cpu_name` what guests find their CPUs called.
    """

    def __init__(
        self,
        memory: int,
        pcpus: int | None = None,
        time_of_day_ns: Callable[[], int] = time.time_ns,
        *,
        cpu_name: str = "",
    ) -> None:
        self.memory = memory
        self._cpu_name = cpu_name
        self.lock = threading.RLock()
        self.domains: dict[int, Domain] = {}
        self.xenstore = Store()
        """Under `lock`, like the domains."""
        self.scheduler = Scheduler(pcpus or os.cpu_count() or 1)
        self._time_of_day_ns = time_of_day_ns
        self.console_ring = ConsoleRing(time_of_day_ns)
        self.console_ring.write(f"System RAM: {memory >> 20}MB; pCPUs: {self.scheduler.pcpus}")
        self._next_domid = 1
        self._limits: dict[int, int] = {}
        self._ending: list[int] = []
        """Frames of domains whose memory is being freed."""
        self._listeners: list[Callable[[Domain], None]] = []

    def start(self) -> None:
        """Let guests run, on threads of our own."""
        self.scheduler.start()

    def stop(self) -> None:
        """Stop all guests where they are and end the threads."""
        self.scheduler.stop()

    # Domains

    def free_memory(self) -> int:
        """Return bytes that no domain holds or may grow to."""
        with self.lock:
            held = (max(self._limits[domid], domain.memory.present) for domid, domain in self.domains.items())
            return self.memory - (sum(held) + sum(self._ending)) * PAGE

    def set_limit(self, domain: Domain, memory: int) -> None:
        """Let a domain grow to so many bytes; what it holds beyond is the host's again when its balloon gives it."""
        with self.lock:
            self._limits[domain.domid] = memory // PAGE

    def create(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        vcpus: int = 1,
        uuid_text: str = "",
        code_cache: int = 1 << 20,
        space: Memory | None = None,
        clock: clocks.Clock | None = None,
        kind: Kind = PVH,
    ) -> Domain:
        """Return a new domain, paused, with RAM at these ranges of guest-physical bytes. Raises NoMemory.

        `space` is memory that has been filled already, as large as the ranges ask for; the domain's from now on.
        """
        memory = sum(end - start for start, end in ranges)
        with self.lock:
            if memory > self.free_memory():
                raise NoMemory(f"{memory} bytes asked for, {self.free_memory()} are free")
            domid = self._free_domid()
            made = space or Memory(ranges[-1][1])
            made.present = memory // PAGE
            if len(ranges) > 1:
                made.hole = (ranges[0][1], ranges[1][0])
            uuid_text = uuid_text or str(uuid.uuid4())
            try:
                domain = Domain(
                    *(domid, uuid_text, made, self, kind, clock or Clock()),
                    count=vcpus,
                    code_cache=code_cache,
                    ranges=ranges,
                    cpu_name=self._cpu_name,
                )
            except BaseException:
                if space is None:
                    made.close()
                raise
            domain.platform.serve(domain, serve)
            self.domains[domid] = domain
            self._limits[domid] = memory // PAGE
            self.scheduler.add(domain)
            self.console_ring.write(f"d{domid}: {kind.name} domain {uuid_text}, {memory >> 20}MB, vCPUs: {vcpus}")
        return domain

    def _free_domid(self) -> int:
        """Return a domid that no domain has; the numbers go round, so one is not used again soon."""
        for _ in range(DOMID_FIRST_RESERVED):
            domid, self._next_domid = self._next_domid, self._next_domid % (DOMID_FIRST_RESERVED - 1) + 1
            if domid not in self.domains:
                return domid
        raise NoMemory("all domids are in use")

    def unpause(self, domain: Domain) -> None:
        """Take one pause back; with the last, the domain runs."""
        with self.lock:
            if not domain.life.unpause():
                return
        self.scheduler.look(domain.domid)

    def pause(self, domain: Domain) -> None:
        """Hold a domain back; returns when none of its vCPUs runs."""
        with self.lock:
            domain.life.pause()
        entity = self.scheduler.entities.get(domain.domid)
        if entity is not None:
            self.scheduler.wait_until_off(entity)

    def destroy(self, domain: Domain) -> None:
        """End a domain, whatever it does, and free its memory."""
        with self.lock:
            domain.life.die()
        self.scheduler.remove(domain)
        for end in list(domain.at_end):
            end()
        with self.lock:
            for port in list(domain.events.channels):
                domain.events.close(port)
            domain.let_go()
            del self.domains[domain.domid]
            held = max(self._limits.pop(domain.domid), domain.memory.present)
            self._ending.append(held)
        domain.close()
        self.console_ring.write(f"d{domain.domid}: destroyed")
        with self.lock:
            self._ending.remove(held)

    def listen(self, heard: Callable[[Domain], None]) -> None:
        """Call `heard`, on some thread, when a domain shuts down or has another number of vCPUs up."""
        self._listeners.append(heard)

    # For tests: guests on the caller's thread

    def step(self, domain: Domain, most: int = 1000) -> bool:
        """Run a domain until it waits, at most `most` times over; tell whether it has more to do."""
        more = True
        while more and most:
            more = domain.run()
            most -= 1
        return more

    # What domains ask

    def event_channels_of(self, domid: int) -> EventChannels | None:
        """Return a domain's event channels."""
        domain = self.domains.get(domid)
        return None if domain is None else domain.events

    def domain_of(self, domid: int) -> Domain | None:
        """Return a domain."""
        return self.domains.get(domid)

    def attend(self, domid: int) -> None:
        """Have a domain looked at: it has events, or another timer."""
        domain = self.domains.get(domid)
        if domain is not None and domain.vcpus.on_this_thread():
            domain.events.drain()
        self.scheduler.look(domid)

    def upcall(self, domid: int, vcpu: int) -> None:
        """Tell a vCPU that events are pending for it."""
        domain = self.domains.get(domid)
        if domain is not None:
            domain.vcpus.upcall(vcpu)

    def changed(self, domain: Domain) -> None:
        """Tell listeners that a domain shut down, or has another number of vCPUs up."""
        if domain.life.state is State.SHUTDOWN:
            self.console_ring.write(f"d{domain.domid}: {_how_it_ended(domain)}")
        for heard in list(self._listeners):
            try:
                heard(domain)
            except Exception:  # the domain's thread goes on, and so do the other listeners
                _log.exception("a listener failed when domain %d changed", domain.domid)

    def may_grow(self, domain: Domain, frames: int) -> bool:
        """Let a domain grow as far as its limit, which is set aside for it."""
        return domain.memory.present + frames <= self._limits.get(domain.domid, 0)

    def time_of_day(self) -> int:
        """Return nanoseconds since 1970."""
        return self._time_of_day_ns()


def _how_it_ended(domain: Domain) -> str:
    """Return what the log says of a domain that is down."""
    life = domain.life
    reason = "shutdown" if life.reason is None else life.reason.name.lower()
    return f"{reason}: {life.crash}" if life.crash else reason
