"""Which of a domain's vCPUs runs, which wait, and which are offline.

The domain's thread runs one at a time: `choose`, `enter`, then the CPU, then `leave`. What the others ask for
meanwhile, in hypercalls or through their local APICs, is noted here.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
    """When the wait for ports is over (`Execution.poll`)."""
    upcall_vector: int = 0
    runstate: RunState = field(default_factory=RunState)
    cpu_time: float = 0.0
    """Seconds of CPU used, our own work for it included."""


class Execution:
    """The vCPUs of a domain on their way between running and waiting. Under the host's lock."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.turns = Turns(len(domain.vcpus))
        self.current: DomainVCPU | None = None
        """The vCPU that runs."""
        self.last = 0
        """The number of the one that ran last."""
        self._thread = 0

    def on_this_thread(self) -> bool:
        """Tell whether a vCPU is running on the thread that asks; without the lock too."""
        return self.current is not None and self._thread == threading.get_ident()

    # From one to the next

    def enter(self, number: int) -> DomainVCPU:
        """Make a vCPU the one that runs, with its events delivered."""
        self.last = number
        vcpu = self._domain.vcpus[number]
        vcpu.blocked = False
        self._set_state(number, RUNNING)
        if self._domain.events.upcall_pending(number):
            self._interrupt(vcpu)
        self.current = vcpu
        self._thread = threading.get_ident()
        if self._domain.sharing:
            self._limit_turn(vcpu)
        return vcpu

    def leave(self, vcpu: DomainVCPU, outcome: Outcome) -> None:
        """Note why a vCPU does not run any more."""
        self.current = None
        if self._domain.sharing:
            self.turns.leave(self._domain.clock.now(), gave_up=vcpu.cpu.gave_up)
        if outcome is Outcome.HALTED:
            vcpu.blocked = True
        elif outcome is Outcome.OFF:
            vcpu.up = False
            self._tell_number()
        self._set_state(vcpu.cpu.number, BLOCKED if vcpu.blocked else RUNNABLE if vcpu.up else OFFLINE)

    def choose(self) -> int | None:
        """Return the vCPU that is to run now, None for none."""
        if self._domain.sharing:
            able = self._able()
            return self.turns.next(able, self._domain.clock.now()) if able else None
        pending = self._domain.events.upcall_pending
        for number, vcpu in enumerate(self._domain.vcpus):
            if vcpu.up and (not vcpu.blocked or pending(number)):
                return number
        return None

    def _able(self) -> list[int]:
        """Return the vCPUs that have something to do."""
        pending = self._domain.events.upcall_pending
        return [n for n, vcpu in enumerate(self._domain.vcpus) if vcpu.up and (not vcpu.blocked or pending(n))]

    def _limit_turn(self, vcpu: DomainVCPU) -> None:
        """Have the vCPU that runs stopped when its turn is over or when it waits, if another has something to do."""
        limited = self.turns.end is not None
        vcpu.cpu.exit_at_pause(limited)
        if limited:
            self._domain.machine.attend(self._domain.domid)

    def _interrupt(self, vcpu: DomainVCPU) -> None:
        if vcpu.upcall_vector:
            vcpu.cpu.own_upcall(vcpu.upcall_vector)
        else:
            vcpu.cpu.upcall(self._domain.callback_vector)

    def _tell_number(self) -> None:
        """Tell that another number of vCPUs is up; without any the domain is off."""
        if any(vcpu.up for vcpu in self._domain.vcpus):
            self._domain.machine.changed(self._domain)
        else:
            self._domain.power_off()

    # What events and hypercalls ask

    def upcall(self, number: int) -> None:
        """Let a vCPU take its pending events: now if it is the one that runs, else when it next does."""
        self.unblock(number)
        vcpu = self._domain.vcpus[number]
        if vcpu is self.current:
            self._interrupt(vcpu)

    def unblock(self, number: int) -> None:
        """Let a vCPU go on that waited for events or ports."""
        vcpu = self._domain.vcpus[number]
        waited, vcpu.blocked, vcpu.poll_end = vcpu.blocked, False, None
        self._domain.events.polls.pop(number, None)
        if waited and self._domain.sharing and vcpu.up and vcpu is not self.current:
            self._woke(number)

    def _woke(self, number: int) -> None:
        """Let a vCPU have its turn that has something to do from now on."""
        self._set_state(number, RUNNABLE)
        able = [other for other in self._able() if other != number]
        if self.turns.wake(number, able, self._domain.clock.now()) and self.current is not None:
            self._limit_turn(self.current)

    def block(self, number: int) -> None:
        """Let a vCPU wait for an event; from its own hypercall."""
        vcpu = self._domain.vcpus[number]
        vcpu.blocked = True
        vcpu.cpu.halt_here()

    def poll(self, number: int, ports: frozenset[int], until: int | None) -> None:
        """Let a vCPU wait until one of the ports is pending, masked or not, or until a time; from its own hypercall."""
        if not any(self._domain.events.is_pending(port) for port in ports):
            self._domain.events.polls[number] = ports
            self._domain.vcpus[number].poll_end = until
            self.block(number)
            self._domain.machine.attend(self._domain.domid)

    def hold(self, number: int) -> None:
        """Take a vCPU offline that keeps its state (VCPUOP_down)."""
        vcpu = self._domain.vcpus[number]
        if vcpu.up:
            vcpu.up, vcpu.held = False, True
            if vcpu is self.current:
                vcpu.cpu.halt_here()
            else:
                self._set_state(number, OFFLINE)
            self._tell_number()

    def release(self, number: int) -> None:
        """Let a vCPU run from the state that it has (VCPUOP_up)."""
        vcpu = self._domain.vcpus[number]
        if not vcpu.up:
            vcpu.up, vcpu.held = True, False
            if not vcpu.blocked:
                self._woke(number)
            self._tell_number()

    # What local APICs ask

    def reset(self, number: int) -> None:
        """Take a vCPU offline: INIT."""
        self.hold(number)
        self._domain.vcpus[number].held = self._domain.vcpus[number].blocked = False

    def start(self, number: int, page: int) -> None:
        """Bring a vCPU that is offline up in real mode: a startup IPI."""
        vcpu = self._domain.vcpus[number]
        if not vcpu.up and vcpu is not self.current:
            vcpu.cpu.start(page)
            vcpu.blocked = False
            self.release(number)

    def wake(self, number: int) -> None:
        """Let a vCPU take an interrupt of its local APIC."""
        self.unblock(number)
        self._domain.vcpus[number].cpu.interrupted()

    def _set_state(self, number: int, state: int) -> None:
        mine = self._domain.vcpus[number].runstate
        mine.change(state, self._domain.clock.now(), self._domain.woken)
        mine.write(self._domain.memory)
