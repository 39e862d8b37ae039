"""A domain's time: its clock, its timers, and where its guest reads what time it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.arch.clock import Clock
from hypervisor.arch.vcpu import VCPU
from hypervisor.domains import guest_time, runstate
from hypervisor.domains.event_channel import VIRQ_TIMER
from hypervisor.domains.watchdogs import Watchdogs
from hypervisor.memory.guest_memory import PAGE

if TYPE_CHECKING:
    from hypervisor.domains.domain import Domain


class Time:
    """Timers of the vCPUs, and watchdogs. Under the host's lock; times are system time in ns."""

    def __init__(self, domain: Domain, clock: Clock) -> None:
        self._domain = domain
        self.clock = clock
        self._watchdogs = Watchdogs()

    # Timers

    def deadline(self) -> int | None:
        """Return when a timer of the domain is next due."""
        vcpus = self._domain.vcpus
        times = [v.timer for v in vcpus if v.timer is not None] + list(self._watchdogs.times.values())
        times += [v.poll_end for v in vcpus if v.poll_end is not None]
        times += vcpus.deadlines()
        return min(times, default=None)

    def is_due(self) -> bool:
        """Tell whether a timer is due now."""
        deadline = self.deadline()
        return deadline is not None and deadline <= self.clock.now()

    def set_timer(self, number: int, when: int | None) -> None:
        """Arm or disarm a vCPU's single-shot timer."""
        self._domain.vcpus[number].timer = when
        self._domain.attend()

    def set_watchdog(self, number: int, seconds: int) -> int:
        """Arm, re-arm or disarm one of two watchdogs (sched_watchdog); return its number. Raises XenError."""
        number = self._watchdogs.set(number, seconds, self.clock.now())
        self._domain.attend()
        return number

    def fire(self) -> bool:
        """Do what timers do that are due; tell whether a watchdog is."""
        now = self.clock.now()
        vcpus = self._domain.vcpus
        for number, vcpu in enumerate(vcpus):
            if vcpu.timer is not None and vcpu.timer <= now:
                vcpu.timer = None
                self._domain.events.raise_virq(VIRQ_TIMER, number)
            if vcpu.poll_end is not None and vcpu.poll_end <= now:
                vcpus.unblock(number)
            if vcpu.cpu.deadline is not None:
                vcpu.cpu.expire()
        return self._watchdogs.expired(now)

    def renew(self) -> None:
        """Forget what a guest sets up again when it was suspended."""
        self._watchdogs = Watchdogs()
        for vcpu in self._domain.vcpus:
            vcpu.timer, vcpu.runstate.places = None, ()

    # Where the guest reads it

    def write_time(self, number: int) -> None:
        """Tell a vCPU the time, if the guest has said where."""
        info = self._domain.events.info_of(number)
        if info >= 0:
            guest_time.write_time(self._domain.memory, info, self.clock)

    def write_wallclock(self) -> None:
        """Tell the guest in the shared page when system time was 0."""
        boot = self._domain.host.time_of_day() - self.clock.now()
        guest_time.write_wallclock(self._domain.memory, self._domain.events.shared_info, boot)

    def runstate_times(self, number: int) -> tuple[int, int, int, int]:
        """Return nanoseconds that a vCPU was running, runnable, blocked and offline until now."""
        return self._domain.vcpus[number].runstate.until(self.clock.now())

    def place_runstate(self, number: int, cpu: VCPU, address: int) -> None:
        """Let a vCPU's run state be told at a virtual address of the calling vCPU's; 0 is nowhere. Raises BadAddress.

        It is translated now: a user's page tables, which may be in use at another time, do not have the page.
        """
        places, size = [], runstate.SIZE
        while address and size:
            here = min(size, PAGE - address % PAGE)
            places.append((cpu.translate(address), here))
            address, size = address + here, size - here
        self._domain.vcpus[number].runstate.place(tuple(places), self._domain.memory)
