"""The scheduler: pCPU threads that run domains, fairly by weight, and a ticker that ends their slices.

A domain that can run waits in no queue of its own: a pCPU that is free takes, of those that may run on it,
the one that has had the least CPU time for its weight. A domain that slept is not owed the time it slept.
Idle domains cost no thread; with nothing to do all threads sleep on one condition.

The ticker wakes blocked domains whose timer is due and stops running ones, for a due timer or because
their slice is over and another waits. A stop can be lost when the engine is just starting, so it is
repeated every `RETRY` seconds until the domain has come back.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypervisor.domain import Domain, State

SLICE = 0.010
"""Seconds that a domain runs while another waits for the same pCPU."""
RETRY = 0.0005
WINDOW = 0.100
"""Seconds over which a cap is kept."""
WEIGHT = 256
SWITCH_INTERVAL = 0.0005
"""Python's thread switch interval while guests run: a hook waits this long for the lock, not 5 ms."""


@dataclass(slots=True, eq=False)
class Entity:
    """A domain, as the scheduler sees it. Times are seconds of CPU."""

    domain: Domain
    weight: int = WEIGHT
    cap: int = 0
    """Percent of one pCPU that it may use at most; 0 is no limit."""
    affinity: frozenset[int] | None = None
    used: float = 0.0
    """CPU time so far."""
    virtual: float = 0.0
    """CPU time divided by weight; the least goes first."""
    pcpu: int | None = None
    slice_end: float = 0.0
    window_start: float = 0.0
    window_used: float = 0.0

    def capped_until(self, now: float) -> float:
        """Return when it may run again; `now` or earlier if it may at once."""
        if not self.cap or self.window_used < WINDOW * self.cap / 100:
            return now
        return self.window_start + WINDOW

    def charge(self, seconds: float, now: float) -> None:
        """Account for CPU time."""
        self.used += seconds
        self.virtual += seconds * WEIGHT / self.weight
        if now - self.window_start >= WINDOW:
            self.window_start, self.window_used = now, 0.0
        self.window_used += seconds


@dataclass(slots=True)
class Scheduler:
    """`pcpus` threads for the domains added to it; nothing runs before `start`."""

    pcpus: int
    entities: dict[int, Entity] = field(default_factory=dict)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _threads: list[threading.Thread] = field(default_factory=list)
    _stopping: bool = False
    _floor: float = 0.0

    def start(self) -> None:
        """Start the pCPU threads and the ticker."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        for number in range(self.pcpus):
            self._threads.append(threading.Thread(target=self._run_pcpu, args=(number,), name=f"pcpu{number}"))
        self._threads.append(threading.Thread(target=self._run_ticker, name="ticker"))
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def stop(self) -> None:
        """End all threads; domains stay as they are. Blocks until no guest runs."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def add(self, domain: Domain) -> Entity:
        """Let a domain be run."""
        with self._wake:
            entity = self.entities[domain.domid] = Entity(domain, virtual=self._floor)
            self._wake.notify_all()
        return entity

    def remove(self, domain: Domain) -> None:
        """Take a domain away; returns when none of its vCPUs runs any more."""
        with self._wake:
            entity = self.entities.pop(domain.domid, None)
        if entity is not None:
            self.wait_until_off(entity)

    def wait_until_off(self, entity: Entity) -> None:
        """Return when no pCPU runs the domain; the caller has made sure that none begins to."""
        with self._wake:
            while entity.pcpu is not None and self._threads:
                entity.domain.kick()
                self._wake.wait(RETRY)

    def look(self, domid: int) -> None:
        """Hear that a domain may have something to do, or another deadline; from any thread."""
        with self._wake:
            entity = self.entities.get(domid)
            if entity is not None and entity.pcpu is not None and entity.domain.events.queued:
                entity.domain.kick()
            self._wake.notify_all()

    # pCPU threads

    def _pick(self, pcpu: int, now: float) -> Entity | None:
        best: Entity | None = None
        for entity in self.entities.values():
            if entity.pcpu is not None or (entity.affinity is not None and pcpu not in entity.affinity):
                continue
            ahead = best is None or entity.virtual < best.virtual
            if ahead and entity.capped_until(now) <= now and entity.domain.runnable():
                best = entity
        return best

    def _run_pcpu(self, number: int) -> None:
        while True:
            with self._wake:
                entity = None if self._stopping else self._pick(number, time.monotonic())
                while entity is None:
                    if self._stopping:
                        return
                    self._wake.wait()
                    entity = None if self._stopping else self._pick(number, time.monotonic())
                entity.pcpu = number
                entity.virtual = max(entity.virtual, self._floor - SLICE)
                self._floor = max(self._floor, entity.virtual)
                entity.slice_end = time.monotonic() + SLICE
                self._wake.notify_all()  # the ticker has a new deadline
            self._run_slice(entity)
            with self._wake:
                entity.pcpu = None
                self._wake.notify_all()

    def _run_slice(self, entity: Entity) -> None:
        """Run a domain until its slice is over or it has nothing more to do."""
        began = time.thread_time()
        more = True
        while more and not self._stopping and entity.domain.state is State.RUNNING:
            more = entity.domain.run()
            now, used = time.monotonic(), time.thread_time()
            entity.charge(used - began, now)
            began = used
            if now >= entity.slice_end or entity.capped_until(now) > now:
                break

    # The ticker

    def _run_ticker(self) -> None:
        with self._wake:
            while not self._stopping:
                now = time.monotonic()
                wait = self._tick(now)
                self._wake.wait(wait)

    def _tick(self, now: float) -> float | None:
        """Stop and wake what is due; return seconds until there is something to do again."""
        soonest: float | None = None
        crowded = self._crowded(self.entities.values())
        wake = False
        for entity in self.entities.values():
            due = _timer_in(entity.domain)
            if entity.pcpu is not None:
                ends = entity.slice_end - now if crowded or entity.cap else None
                left = min((seconds for seconds in (due, ends) if seconds is not None), default=None)
                if left is not None and left <= 0:
                    entity.domain.kick()
                    left = RETRY
            else:
                left = due
                if entity.domain.state is not State.RUNNING:
                    continue
                blocked = entity.capped_until(now) - now
                if blocked > 0:
                    left = blocked if left is None else max(left, blocked)
                elif left is not None and left <= 0:
                    wake, left = True, RETRY
            if left is not None:
                soonest = left if soonest is None else min(soonest, left)
        if wake:
            self._wake.notify_all()
        return soonest

    def _crowded(self, entities: Iterable[Entity]) -> bool:
        """Tell whether a domain waits that could run."""
        return any(entity.pcpu is None and entity.domain.runnable() for entity in entities)


def _timer_in(domain: Domain) -> float | None:
    """Return seconds until a domain's next timer, negative when it is overdue."""
    deadline = domain.deadline()
    return None if deadline is None else (deadline - domain.clock.now()) / 1e9
