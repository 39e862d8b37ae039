"""The scheduler: pCPU threads that run domains, and a ticker that wakes and stops them in time.

A domain that can run waits in the `RunQueue`; a domain that sleeps costs nothing but its deadline. What an
event costs does not depend on the number of domains: the domain is queued and one idle pCPU is woken, or the
pCPU that runs it is told to stop.

The ticker sleeps until the earliest of all deadlines: a guest's timer, the end of a slice that another waits
for, the end of what a cap allows, or of the time for which it forbids. A stop can be lost when the engine is
just starting, so whoever wants a domain to stop has it looked at again every `RETRY` seconds until it has.

One lock guards all of this. It may be taken while the host's lock is held, never the other way round.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hypervisor.domains.domain import Domain
from hypervisor.domains.life import State
from hypervisor.scheduling.alarm import Alarm
from hypervisor.scheduling.run_queue import SLICE, WEIGHT, WINDOW, Deadlines, Entity, RunQueue

__all__ = ["RETRY", "SLICE", "WEIGHT", "WINDOW", "Entity", "Scheduler"]

_log = logging.getLogger(__name__)

RETRY = 0.0005
SWITCH_INTERVAL = 0.0005
"""Python's thread switch interval while guests run: a hook waits this long for the lock, not 5 ms."""
NICE = 5
"""How much less the kernel favours pCPU threads than the others of the process: who serves clients gets a core at once,
and guests have whatever is left."""
MOST_WEIGHT = 65535


@dataclass(slots=True)
class _Pcpu:
    """A pCPU's thread. `woken` is notified when there is work for it while it is idle."""

    number: int
    woken: threading.Condition


@dataclass(slots=True)
class Scheduler:
    """`pcpus` threads for the domains added to it; nothing runs before `start`.

    `clock` is monotonic, `thread_clock` the CPU time of the calling thread, both in seconds.
    """

    pcpus: int
    clock: Callable[[], float] = time.monotonic
    thread_clock: Callable[[], float] = time.thread_time
    entities: dict[int, Entity] = field(default_factory=dict)
    """By domid."""
    queue: RunQueue = field(init=False)
    _deadlines: Deadlines = field(default_factory=Deadlines)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _alarm: Alarm | None = None
    """Rings for the ticker at the first deadline."""
    _off: threading.Condition = field(init=False)
    _waiters: int = 0
    """How many wait on `_off` for a domain to leave its pCPU."""
    _idle: list[_Pcpu] = field(default_factory=list)
    """The pCPUs without work, the one that slept last at the end: its caches are the warmest."""
    _threads: list[threading.Thread] = field(default_factory=list)
    _stopping: bool = False

    def __post_init__(self) -> None:
        self.queue = RunQueue(self.pcpus)
        self._off = threading.Condition(self._lock)

    def start(self) -> None:
        """Start the pCPU threads and the ticker."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        self._stopping = False
        for number in range(self.pcpus):
            pcpu = _Pcpu(number, threading.Condition(self._lock))
            self._threads.append(threading.Thread(target=self._run_pcpu, args=(pcpu,), name=f"pcpu{number}"))
        self._alarm = Alarm()
        self._threads.append(threading.Thread(target=self._run_ticker, args=(self._alarm,), name="ticker"))
        self._set_alarm()
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def stop(self) -> None:
        """End all threads; domains stay as they are. Blocks until no guest runs."""
        with self._lock:
            self._stopping = True
            for pcpu in self._idle:
                pcpu.woken.notify()
            if self._alarm is not None:
                self._alarm.set(0.0)
        for thread in self._threads:
            while thread.is_alive():
                for entity in list(self.queue.running):
                    if entity is not None:
                        entity.domain.vcpus.kick()
                thread.join(RETRY)
        self._threads.clear()
        self._idle.clear()
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None

    # Domains

    def add(self, domain: Domain) -> Entity:
        """Let a domain be run, once it is not paused."""
        with self._lock:
            entity = self.entities[domain.domid] = Entity(domain, window_start=self.clock())
            self._consider(entity)
        return entity

    def remove(self, domain: Domain) -> None:
        """Take a domain away; returns when none of its vCPUs runs any more."""
        with self._lock:
            entity = self.entities.pop(domain.domid, None)
            if entity is not None:
                self.queue.remove(entity)
                self._deadlines.forget(entity)
        if entity is not None:
            self.wait_until_off(entity)

    def adjust(
        self, domid: int, *, weight: int | None = None, cap: int | None = None, pcpus: Iterable[int] | None = None
    ) -> None:
        """Change what a domain gets: weight 1 … 65535, cap in percent (0: none), pCPUs it may run on (none: all).

        What is not given stays. Takes effect at once. Raises KeyError for a domain that is not here, ValueError.
        """
        affinity = None if pcpus is None else frozenset(pcpus)
        if affinity is not None and not affinity <= frozenset(range(self.pcpus)):
            raise ValueError(f"there are no pCPUs but 0 … {self.pcpus - 1}")
        if weight is not None and not 1 <= weight <= MOST_WEIGHT:
            raise ValueError(f"a weight is 1 … {MOST_WEIGHT}")
        if cap is not None and cap < 0:
            raise ValueError("a cap is not negative")
        with self._lock:
            entity = self.entities[domid]
            queued = self.queue.remove(entity)
            entity.weight = entity.weight if weight is None else weight
            entity.cap = entity.cap if cap is None else cap
            if affinity is not None:
                entity.affinity = affinity or None
            if queued:
                self._consider(entity)
            elif entity.pcpu is not None:
                entity.start_slice(self.clock())
                self._watch(entity, entity.began)

    def wait_until_off(self, entity: Entity) -> None:
        """Return when no pCPU runs the domain; the caller has made sure that none begins to."""
        with self._lock:
            self._waiters += 1
            while entity.pcpu is not None and self._threads:
                entity.domain.vcpus.kick()
                self._off.wait(RETRY)
            self._waiters -= 1

    def look(self, domid: int) -> None:
        """Hear that a domain may have something to do, or another deadline; from any thread."""
        with self._lock:
            entity = self.entities.get(domid)
            if entity is not None:
                self._consider(entity)

    # What follows is called with the lock held.

    def _consider(self, entity: Entity) -> None:
        """Do what a domain needs now: stop it, queue it, or remember when to look again. Raises nothing.

        An error here is a bug of ours: the domain runs no more until something new happens, the threads go on.
        """
        try:
            self._decide(entity)
        except Exception:
            _log.exception("domain %d cannot be scheduled", entity.domain.domid)

    def _decide(self, entity: Entity) -> None:
        now = self.clock()
        if entity.pcpu is not None:
            self._watch(entity, now)
        elif not entity.queued and entity.domain.life.state is State.RUNNING:
            free = entity.capped_until(now)
            if free > now:
                self._look_at(entity, free)
            elif entity.domain.runnable():
                self._queue(entity, now)
            else:
                self._look_at(entity, self._timer(entity, now))

    def _queue(self, entity: Entity, now: float) -> None:
        """Let a domain wait for a pCPU, and see that one comes for it."""
        entity.domain.vcpus.woken = entity.domain.time.clock.now()
        self._deadlines.set(entity, None)
        self.queue.put(entity)
        for at in range(len(self._idle) - 1, -1, -1):
            if entity.may_run_on(self._idle[at].number):
                self._idle.pop(at).woken.notify()
                return
        self.queue.preempt(entity, now)
        for other in self.queue.competitors(entity):
            self._watch(other, now)

    def _watch(self, entity: Entity, now: float) -> None:
        """Stop a domain that runs if it is time to; set the time to look at it again."""
        domain, pcpu = entity.domain, entity.pcpu
        assert pcpu is not None
        end = entity.run_end
        if self.queue.waiting(pcpu):
            end = min(end, entity.slice_end)
        timer = self._timer(entity, now)
        if timer is not None:
            end = min(end, timer)
        if end <= now or domain.events.queued or domain.life.state is not State.RUNNING or not entity.may_run_on(pcpu):
            domain.vcpus.kick()
            end = now + RETRY
        self._look_at(entity, end)

    def _timer(self, entity: Entity, now: float) -> float | None:
        """Return when a domain's next timer is due."""
        deadline = entity.domain.time.deadline()
        return None if deadline is None else now + (deadline - entity.domain.time.clock.now()) / 1e9

    def _look_at(self, entity: Entity, when: float | None) -> None:
        """Have the ticker look at a domain at a time, and then only."""
        self._deadlines.set(entity, when)
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None and not self._stopping:
            self._alarm.set(self._deadlines.first())

    # The threads

    def _run_pcpu(self, pcpu: _Pcpu) -> None:
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICE)
        while (entity := self._next(pcpu)) is not None:
            try:
                self._run_slice(entity)
            finally:
                with self._lock:
                    self.queue.leave(entity)
                    if self._waiters:
                        self._off.notify_all()
                    if self.entities.get(entity.domain.domid) is entity:
                        self._consider(entity)
            del entity  # who waits for the next keeps none that has ended

    def _next(self, pcpu: _Pcpu) -> Entity | None:
        """Wait for a domain to run and return it, or None when all ends."""
        with self._lock:
            while not self._stopping:
                entity = self.queue.take(pcpu.number, self.clock())
                if entity is None:
                    self._idle.append(pcpu)
                    pcpu.woken.wait()
                    # Whoever woke us has taken us from the list, but for `stop`.
                elif entity.domain.life.state is State.RUNNING:
                    self._watch(entity, entity.began)
                    return entity
                else:
                    self.queue.leave(entity)  # paused while it waited: `look` will come when it is not any more
        return None

    def _run_slice(self, entity: Entity) -> None:
        """Run a domain until its slice is over or it has nothing more to do."""
        domain = entity.domain
        before = self.thread_clock()
        more = True
        while more and not self._stopping and domain.life.state is State.RUNNING:
            more = domain.run()
            after = self.thread_clock()
            used, before = after - before, after
            domain.vcpus.charge(used)
            with self._lock:
                now = self.clock()
                entity.charge(used, now)
                if now >= min(entity.slice_end, entity.run_end) or not entity.may_run_on(entity.pcpu or 0):
                    return

    def _run_ticker(self, alarm: Alarm) -> None:
        while not self._stopping:
            alarm.wait()
            with self._lock:
                alarm.heard()
                now = self.clock()
                while (entity := self._deadlines.due(now)) is not None:
                    self._consider(entity)
                self._set_alarm()
