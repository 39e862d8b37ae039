"""The vCPUs of a domain: which of them runs, which wait, and which are offline. One runs at a time.

The domain's thread does `choose`, `enter`, then the CPU, then `leave`. What the others ask for meanwhile, in
hypercalls or through their local APICs, is noted here. There are two kinds of sets, which `vcpus` makes: `VCPUs`,
each with an engine of its own, of which all but the first stay offline (a domain's only one, or those of a PV
domain), and `SharingVCPUs`, which run in turn in one engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from hypervisor.arch.vcpu import VCPU, Outcome
from hypervisor.domains.runstate import BLOCKED, OFFLINE, RUNNABLE, RUNNING, RunState
from hypervisor.domains.turns import Turns

if TYPE_CHECKING:
    from hypervisor.domains.domain import Domain


@dataclass(slots=True)
class DomainVCPU:
    """A vCPU and what the domain knows of it. Times are system time in ns."""

    cpu: VCPU
    up: bool = False
    held: bool = False
    """True for one that is not up but has a state to go on from (VCPUOP_initialise, VCPUOP_down)."""
    blocked: bool = False
    timer: int | None = None
    poll_end: int | None = None
    """When the wait for ports is over (`VCPUs.poll`)."""
    upcall_vector: int = 0
    runstate: RunState = field(default_factory=RunState)
    cpu_time: float = 0.0
    """Seconds of CPU used, our own work for it included."""


class VCPUs(Sequence[DomainVCPU]):
    """vCPUs with an engine each, of which only the first ever runs. Under the host's lock."""

    startable = False
    """Whether a guest can start and stop them."""

    def __init__(self, domain: Domain, cpus: Sequence[VCPU]) -> None:
        self._domain = domain
        self._all = [DomainVCPU(cpu) for cpu in cpus]
        self.current: DomainVCPU | None = None
        """The vCPU that runs."""
        self.last = 0
        """The number of the one that ran last."""
        self.woken = 0
        """System time when the scheduler last found the domain something to do."""
        self._thread = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[DomainVCPU]:
        return iter(self._all)

    @overload
    def __getitem__(self, number: int) -> DomainVCPU: ...
    @overload
    def __getitem__(self, number: slice) -> list[DomainVCPU]: ...
    def __getitem__(self, number: int | slice) -> DomainVCPU | list[DomainVCPU]:
        return self._all[number]

    def take_all(self) -> list[DomainVCPU]:
        """Return the vCPUs, and have none any more."""
        taken, self._all = self._all, []
        return taken

    # What differs between the kinds of sets

    @property
    def most_up(self) -> int:
        """How many can be up."""
        return 1

    def engines(self) -> list[VCPU]:
        """Return a vCPU for each engine."""
        return [vcpu.cpu for vcpu in self._all]

    def deadlines(self) -> list[int]:
        """Return when a vCPU must be stopped, beside timers that the guest has asked of Xen."""
        return []

    def choose(self) -> int | None:
        """Return the vCPU that is to run now, None for none."""
        return next(self._able(), None)

    def _entered(self, vcpu: DomainVCPU) -> None:
        """Hear that a vCPU begins to run."""

    def _left(self, vcpu: DomainVCPU) -> None:
        """Hear that a vCPU has stopped."""

    def _woke(self, number: int) -> None:
        """Hear that a vCPU, not the one that runs, has something to do from now on."""

    # From one to the next

    def on_this_thread(self) -> bool:
        """Tell whether the caller is in an exit of one of them: then events can be raised at once. Without the lock."""
        return self.current is not None and self._thread == threading.get_ident()

    def is_able(self) -> bool:
        """Tell whether one of them is up and does not wait, whatever events are pending."""
        return any(vcpu.up and not vcpu.blocked for vcpu in self._all)

    def enter(self, number: int) -> DomainVCPU:
        """Make a vCPU the one that runs, with its events delivered."""
        self.last = number
        vcpu = self._all[number]
        vcpu.blocked = False
        self._set_state(number, RUNNING)
        if self._domain.events.upcall_pending(number):
            self._interrupt(vcpu)
        self.current = vcpu
        self._thread = threading.get_ident()
        self._entered(vcpu)
        return vcpu

    def leave(self, vcpu: DomainVCPU, outcome: Outcome) -> None:
        """Note why a vCPU does not run any more."""
        self.current = None
        self._left(vcpu)
        if outcome is Outcome.HALTED:
            vcpu.blocked = True
        elif outcome is Outcome.OFF:
            vcpu.up = False
            self._tell_number()
        self._set_state(vcpu.cpu.number, BLOCKED if vcpu.blocked else RUNNABLE if vcpu.up else OFFLINE)

    def kick(self) -> None:
        """Make the vCPU that runs come back soon, from any thread; see `VCPU.stop`."""
        vcpu = self.current
        if vcpu is not None:
            vcpu.cpu.stop()

    def halt(self) -> None:
        """Have the vCPU that runs, if any, come back after its instruction; from an exit."""
        if self.current is not None:
            self.current.cpu.halt_here()

    def charge(self, seconds: float) -> None:
        """Account for CPU time of the vCPU that ran last; on the thread that ran it."""
        if self._all:
            self._all[self.last].cpu_time += seconds

    def _able(self) -> Iterator[int]:
        """Yield the vCPUs that have something to do."""
        pending = self._domain.events.upcall_pending
        for number, vcpu in enumerate(self._all):
            if vcpu.up and (not vcpu.blocked or pending(number)):
                yield number

    def _interrupt(self, vcpu: DomainVCPU) -> None:
        if vcpu.upcall_vector:
            vcpu.cpu.own_upcall(vcpu.upcall_vector)
        else:
            vcpu.cpu.upcall(self._domain.callback_vector)

    def _tell_number(self) -> None:
        """Tell that another number of vCPUs is up; without any the domain is off."""
        if any(vcpu.up for vcpu in self._all):
            self._domain.changed()
        else:
            self._domain.power_off()

    # What events and hypercalls ask

    def upcall(self, number: int) -> None:
        """Let a vCPU take its pending events: now if it is the one that runs, else when it next does."""
        self.unblock(number)
        vcpu = self._all[number]
        if vcpu is self.current:
            self._interrupt(vcpu)

    def unblock(self, number: int) -> None:
        """Let a vCPU go on that waited for events or ports."""
        vcpu = self._all[number]
        waited, vcpu.blocked, vcpu.poll_end = vcpu.blocked, False, None
        self._domain.events.polls.pop(number, None)
        if waited and vcpu.up and vcpu is not self.current:
            self._woke(number)

    def block(self, number: int) -> None:
        """Let a vCPU wait for an event; from its own hypercall."""
        vcpu = self._all[number]
        vcpu.blocked = True
        vcpu.cpu.halt_here()

    def poll(self, number: int, ports: frozenset[int], until: int | None) -> None:
        """Let a vCPU wait until one of the ports is pending, masked or not, or until a time; from its own hypercall."""
        if not any(self._domain.events.is_pending(port) for port in ports):
            self._domain.events.polls[number] = ports
            self._all[number].poll_end = until
            self.block(number)
            self._domain.attend()

    def hold(self, number: int) -> None:
        """Take a vCPU offline that keeps its state (VCPUOP_down)."""
        vcpu = self._all[number]
        if vcpu.up:
            vcpu.up, vcpu.held = False, True
            if vcpu is self.current:
                vcpu.cpu.halt_here()
            else:
                self._set_state(number, OFFLINE)
            self._tell_number()

    def release(self, number: int) -> None:
        """Let a vCPU run from the state that it has (VCPUOP_up)."""
        vcpu = self._all[number]
        if not vcpu.up:
            vcpu.up, vcpu.held = True, False
            if not vcpu.blocked:
                self._woke(number)
            self._tell_number()

    # What local APICs ask

    def reset(self, number: int) -> None:
        """Take a vCPU offline: INIT."""
        self.hold(number)
        self._all[number].held = self._all[number].blocked = False

    def start(self, number: int, page: int) -> None:
        """Bring a vCPU that is offline up at the start of a page: a startup IPI."""
        vcpu = self._all[number]
        if not vcpu.up and vcpu is not self.current:
            vcpu.cpu.start(page)
            vcpu.blocked = False
            self.release(number)

    def wake(self, number: int) -> None:
        """Let a vCPU take an interrupt of its local APIC."""
        self.unblock(number)
        self._all[number].cpu.interrupted()

    def _set_state(self, number: int, state: int) -> None:
        mine = self._all[number].runstate
        mine.change(state, self._domain.time.clock.now(), self.woken)
        mine.write(self._domain.memory)


class SharingVCPUs(VCPUs):
    """vCPUs that take turns in one engine, with local APICs by which they start and interrupt each other."""

    startable = True

    def __init__(self, domain: Domain, cpus: Sequence[VCPU]) -> None:
        super().__init__(domain, cpus)
        self._turns = Turns(len(cpus))

    @property
    def most_up(self) -> int:
        """How many can be up."""
        return len(self._all)

    def engines(self) -> list[VCPU]:
        """Return a vCPU of the one engine."""
        return [vcpu.cpu for vcpu in self._all[:1]]

    def deadlines(self) -> list[int]:
        """Return when the present turn is over, and when timers of local APICs are due."""
        times = [vcpu.cpu.deadline for vcpu in self._all]
        return [each for each in (self._turns.end, *times) if each is not None]

    def choose(self) -> int | None:
        """Return the vCPU whose turn it is, None if none has something to do."""
        able = list(self._able())
        return self._turns.next(able, self._domain.time.clock.now()) if able else None

    def _entered(self, vcpu: DomainVCPU) -> None:
        """Have it stopped when its turn is over or when it waits, if another has something to do."""
        limited = self._turns.end is not None
        vcpu.cpu.exit_at_pause(limited)
        if limited:
            self._domain.attend()

    def _left(self, vcpu: DomainVCPU) -> None:
        self._turns.leave(self._domain.time.clock.now(), gave_up=vcpu.cpu.gave_up)

    def _woke(self, number: int) -> None:
        """Let a vCPU have its turn."""
        self._set_state(number, RUNNABLE)
        able = [other for other in self._able() if other != number]
        if self._turns.wake(number, able, self._domain.time.clock.now()) and self.current is not None:
            self._entered(self.current)


def vcpus(domain: Domain, cpus: Sequence[VCPU], shared: bool) -> VCPUs:
    """Return the vCPUs of a domain; `shared` tells whether one engine is for all of them."""
    return SharingVCPUs(domain, cpus) if shared else VCPUs(domain, cpus)
