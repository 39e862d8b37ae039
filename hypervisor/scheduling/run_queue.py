"""Who runs next, without threads and clocks: a queue of domains by virtual time, and deadlines in order.

Virtual time is CPU time divided by weight, as in the fair queueing schedulers: of the domains that wait, the
one with the least goes first, so that each gets CPU time in proportion to its weight. Domains with the same
affinity wait in one heap; a pCPU looks at the first of each heap that it may serve. A domain that slept is
not owed the time it slept: when it queues again its virtual time is brought up to that of the pCPUs it may
run on, less one slice, so that it goes ahead of those that never sleep. Nor does one pay for long for time
that it had when nobody else wanted it: it is brought down to `DEBT` more.

Nothing here locks or reads a clock: the scheduler does both. Times are seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from hypervisor.domains.domain import Domain

SLICE = 0.010
"""How long a domain runs while another waits for the same pCPU."""
AHEAD = 0.002
"""A domain that wakes with this much less virtual time than one that runs takes its pCPU at once."""
DEBT = 0.100
"""For this much CPU time that a domain had more than others it waits at most."""
ALONE = 0.100
"""A domain that runs although nobody waits comes back this often, so that its CPU time is known."""
WINDOW = 0.100
"""The time over which a cap is kept."""
WEIGHT = 256


@dataclass(slots=True, eq=False)
class Entity:
    """A domain, as the scheduler sees it; changed only under the scheduler's lock."""

    domain: Domain
    weight: int = WEIGHT
    cap: int = 0
    """Percent of one pCPU that it may use at most; 0 is no limit."""
    affinity: frozenset[int] | None = None
    """The pCPUs that it may run on; None is all."""
    used: float = 0.0
    """CPU time so far, that of our own work for the domain included."""
    virtual: float = 0.0
    pcpu: int | None = None
    """Where it runs now."""
    queued: bool = False
    began: float = 0.0
    """When it was last given a pCPU."""
    slice_end: float = 0.0
    """When it must leave its pCPU to another that waits."""
    run_end: float = 0.0
    """When it must come back even if nobody waits: its cap is reached if it does nothing but run, or it is `ALONE`."""
    window_start: float = 0.0
    window_used: float = 0.0

    @property
    def budget(self) -> float:
        """CPU time that the cap allows in a window."""
        return WINDOW * self.cap / 100

    def may_run_on(self, pcpu: int) -> bool:
        """Tell whether its affinity allows a pCPU."""
        return self.affinity is None or pcpu in self.affinity

    def charge(self, seconds: float, now: float) -> None:
        """Account for CPU time that has just been used."""
        self.used += seconds
        self.virtual += seconds * WEIGHT / self.weight
        self._turn_window(now)
        self.window_used += seconds

    def capped_until(self, now: float) -> float:
        """Return when it may run again; `now` if it may at once."""
        if not self.cap:
            return now
        self._turn_window(now)
        return now if self.window_used < self.budget else self.window_start + WINDOW

    def start_slice(self, now: float) -> None:
        """Hear that it runs from now on, for a slice."""
        self._turn_window(now)
        self.began, self.slice_end = now, now + SLICE
        self.run_end = now + (min(ALONE, max(0.0, self.budget - self.window_used)) if self.cap else ALONE)

    def _turn_window(self, now: float) -> None:
        """Begin a new window when the last is over; what was used too much counts in the next."""
        windows = int((now - self.window_start) / WINDOW)
        if windows > 0:
            self.window_start += windows * WINDOW
            self.window_used = max(0.0, self.window_used - windows * self.budget) if self.cap else 0.0


@dataclass(slots=True)
class RunQueue:
    """The domains that wait for `pcpus` pCPUs, and those that run on them."""

    pcpus: int
    running: list[Entity | None] = field(init=False)
    """By pCPU."""
    _heaps: dict[frozenset[int] | None, list[tuple[float, int, Entity]]] = field(default_factory=dict)
    _floors: list[float] = field(init=False)
    """By pCPU, the most virtual time that a domain had that it took."""
    _order: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.running = [None] * self.pcpus
        self._floors = [0.0] * self.pcpus

    def put(self, entity: Entity) -> None:
        """Let a domain wait; harmless when it waits already or runs."""
        if entity.queued or entity.pcpu is not None:
            return
        floor = self._floor(entity)
        entity.virtual = min(max(entity.virtual, floor - SLICE), floor + DEBT * WEIGHT / entity.weight)
        entity.queued = True
        heap = self._heaps.setdefault(entity.affinity, [])
        heapq.heappush(heap, (entity.virtual, next(self._order), entity))

    def _floor(self, entity: Entity) -> float:
        """Return the virtual time of those that a domain competes with."""
        allowed = [pcpu for pcpu in range(self.pcpus) if entity.may_run_on(pcpu)]
        busy = [self._floors[pcpu] for pcpu in allowed if self.running[pcpu] is not None]
        return min(busy) if busy else max((self._floors[pcpu] for pcpu in allowed), default=0.0)

    def remove(self, entity: Entity) -> bool:
        """Take a domain out of the queue, whatever its turn; tell whether it was there. Costs a look at the heap."""
        if not entity.queued:
            return False
        entity.queued = False
        heap = self._heaps[entity.affinity]
        heap[:] = [entry for entry in heap if entry[2] is not entity]
        if heap:
            heapq.heapify(heap)
        else:
            del self._heaps[entity.affinity]
        return True

    def waiting(self, pcpu: int) -> bool:
        """Tell whether a domain waits that a pCPU could run."""
        return any(affinity is None or pcpu in affinity for affinity in self._heaps)

    def take(self, pcpu: int, now: float) -> Entity | None:
        """Give a pCPU the domain whose turn it is, for a slice."""
        best: frozenset[int] | None = None
        found: tuple[float, int, Entity] | None = None
        for affinity, heap in self._heaps.items():
            if (affinity is None or pcpu in affinity) and (found is None or heap[0] < found):
                best, found = affinity, heap[0]
        if found is None:
            return None
        heapq.heappop(self._heaps[best])
        if not self._heaps[best]:
            del self._heaps[best]
        entity = found[2]
        entity.queued, entity.pcpu = False, pcpu
        entity.start_slice(now)
        self.running[pcpu] = entity
        self._floors[pcpu] = max(self._floors[pcpu], entity.virtual)
        return entity

    def leave(self, entity: Entity) -> None:
        """Hear that a domain runs no more."""
        if entity.pcpu is not None:
            self.running[entity.pcpu] = None
            entity.pcpu = None

    def competitors(self, entity: Entity) -> list[Entity]:
        """Return the domains that run where this one could."""
        return [other for pcpu, other in enumerate(self.running) if other is not None and entity.may_run_on(pcpu)]

    def preempt(self, entity: Entity, now: float) -> None:
        """Cut the slice of the running domain that is most ahead of one that waits, if it is so by `AHEAD`."""
        most, furthest = entity.virtual + AHEAD, None
        for other in self.competitors(entity):
            projected = other.virtual + (now - other.began) * WEIGHT / other.weight
            if projected > most:
                most, furthest = projected, other
        if furthest is not None:
            furthest.slice_end = min(furthest.slice_end, now)


class Deadlines:
    """When each domain is next to be looked at, one time for each; the earliest is found at once."""

    def __init__(self) -> None:
        self._when: dict[Entity, float] = {}
        self._heap: list[tuple[float, int, Entity]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._when)

    def set(self, entity: Entity, when: float | None) -> None:
        """Set a domain's deadline, or take it away."""
        before = self._when.get(entity)
        if when == before:
            return
        if when is None:
            del self._when[entity]
        else:
            self._when[entity] = when
            heapq.heappush(self._heap, (when, next(self._order), entity))
            # A guest may move its timer as often as it likes: forget the times that no longer hold.
            if len(self._heap) > 2 * len(self._when) + 64:
                self._heap = [(at, next(self._order), key) for key, at in self._when.items()]
                heapq.heapify(self._heap)

    def forget(self, entity: Entity) -> None:
        """Keep nothing of a domain that ends: times that no longer hold would, until they come."""
        self._when.pop(entity, None)
        self._heap = [(at, next(self._order), key) for key, at in self._when.items()]
        heapq.heapify(self._heap)

    def first(self) -> float | None:
        """Return the earliest deadline."""
        heap = self._heap
        while heap and self._when.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> Entity | None:
        """Take the domain with the earliest deadline, if that is not after `now`."""
        first = self.first()
        if first is None or first > now:
            return None
        entity = heapq.heappop(self._heap)[2]
        del self._when[entity]
        return entity
