"""One domain: memory, vCPUs, event channels, grants, timers, and its life from building to its end.

A domain runs on one thread at a time, its vCPUs in turn, in one engine (`hypervisor.arch.x86_64.cpu.shared` says
why): so several vCPUs are as fast together as one. `run` is what a pCPU thread calls; everything that a guest does
arrives here under the host's lock.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, IntEnum
from typing import Protocol
from weakref import proxy

from hypervisor.arch.clock import Clock
from hypervisor.arch.kind import Kind
from hypervisor.arch.vcpu import VCPU, Outcome
from hypervisor.arch.x86_64.clock import Clock as TSCClock
from hypervisor.arch.x86_64.kinds import PVH
from hypervisor.domains import guest_time, runstate
from hypervisor.domains.event_channel import VIRQ_TIMER, EventChannels, Peers
from hypervisor.domains.execution import DomainVCPU, Execution
from hypervisor.domains.grant_table import GrantTable
from hypervisor.domains.maptrack import Maptrack
from hypervisor.domains.watchdogs import Watchdogs
from hypervisor.memory.guest_memory import PAGE, BadAddress, Memory
from hypervisor.memory.physmap import Physmap

_log = logging.getLogger(__name__)

LOG_SIZE = 64 * 1024
"""Bytes kept of what a domain writes to the hypervisor's console."""


class Reason(IntEnum):
    """Why a domain has shut down (SHUTDOWN_* of public/sched.h)."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


class State(Enum):
    """Where a domain is in its life."""

    PAUSED = "paused"
    RUNNING = "running"
    SHUTDOWN = "shutdown"
    DYING = "dying"


class Machine(Peers, Protocol):
    """What a domain asks of its host."""

    lock: threading.RLock
    """Held by whoever changes a domain, never while guest code runs."""

    def domain_of(self, domid: int) -> Domain | None:
        """Return another domain."""

    def may_grow(self, domain: Domain, frames: int) -> bool:
        """Tell whether the domain may hold this many frames more."""

    def time_of_day(self) -> int:
        """Return nanoseconds since 1970."""

    def changed(self, domain: Domain) -> None:
        """Hear that the domain's state has changed: it shut down, or has another number of vCPUs up."""


class Domain:
    """A guest of `memory` and `vcpus` virtual CPUs, paused and empty until a builder has filled it."""

    def __init__(
        self,
        domid: int,
        uuid_text: str,
        memory: Memory,
        machine: Machine,
        vcpus: int = 1,
        clock: Clock | None = None,
        code_cache: int = 1 << 20,
        ranges: Sequence[tuple[int, int]] = (),
        kind: Kind = PVH,
        cpu_name: str = "",
    ) -> None:
        self.domid = domid
        self.uuid = uuid_text
        self.uuid_bytes = uuid.UUID(uuid_text).bytes
        self.memory = memory
        self.machine = machine
        self.kind = kind
        self.clock: Clock = clock or TSCClock()
        self.state = State.PAUSED
        self.pauses = 1
        """How many hold the domain back; the builder is the first."""
        self.reason: Reason | None = None
        self.crash = ""
        self.params: dict[int, int] = {}
        self.callback_vector = 0
        self.ranges = tuple(ranges) or ((0, memory.size),)
        """Start and end of the parts of guest-physical space that are RAM."""
        self.memory_map: list[tuple[int, int, int]] = [(0, memory.size, 1)]
        self.hypercalls: dict[int, int] = {}
        self.console_log = bytearray()
        self.events = EventChannels(domid, memory, machine, vcpus)
        self.grants = GrantTable(memory)
        own = proxy(self)  # what is ours alone does not keep us, so that all of it goes when a domain has ended
        self.physmap = Physmap(
            memory,
            self.ranges,
            lambda frames: machine.may_grow(own, frames),
            lambda frame: own.map_extra(frame),
            lambda ranges: own.overwritten(ranges),
            lambda at: own.grants.occupies(at) or at == own.events.shared_info,
        )
        self.maptrack = Maptrack(domid, self.physmap)
        self.sharing = kind.shares(vcpus)
        """Whether the vCPUs share an engine. Those of a PV domain do not: one of them runs, the others are offline."""
        cpus = kind.vcpus(vcpus, memory, self, self.clock, code_cache, ranges, cpu_name)
        self.vcpus = [DomainVCPU(cpu) for cpu in cpus]
        self._ended: list[DomainVCPU] = []
        self.execution = Execution(own)
        self.at_end: list[Callable[[], None]] = []
        """Called when the domain is destroyed, without the lock; each returns when it uses no memory of it any more."""
        self.hypercall_table: Callable[[Domain, VCPU, int, Sequence[int]], int] | None = None
        self._deferred: deque[Callable[[], None]] = deque()
        self._overwritten: set[tuple[int, int]] = set()
        self._watchdogs = Watchdogs()
        self.woken = 0
        """System time when the scheduler last found the domain something to do."""

    # What the CPU layer asks

    def hypercall(self, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
        """Do a hypercall of one of our vCPUs."""
        assert self.hypercall_table is not None
        with self.machine.lock:
            result = self.hypercall_table(self, cpu, number, arguments)
        while self._deferred:
            self._deferred.popleft()()
        if self._overwritten:
            with self.machine.lock:
                self._forget_code()
        return result

    def write_page(self, address: int, content: bytes) -> None:
        """Overwrite a page of the guest's RAM, code or not. Raises BadAddress where it has none of its own."""
        with self.machine.lock:
            if address % PAGE or not self.physmap.holds(address // PAGE):
                raise BadAddress(f"there is no page of the guest's at {address:#x}")
            self.memory.write(address, content)
            self.overwritten([(address, address + PAGE)])
            self._forget_code()

    def port_in(self, cpu: VCPU, port: int, size: int) -> int:
        """Read a port: nothing is there, so all lines are high."""
        return (1 << 8 * size) - 1

    def port_out(self, cpu: VCPU, port: int, size: int, value: int) -> None:
        """Write a port; 0xE9 is the hypervisor's console, as Xen and Bochs have it."""
        if port == 0xE9:
            with self.machine.lock:
                self.log(bytes([value & 0xFF]))

    def log(self, text: bytes) -> None:
        """Keep what the guest tells the hypervisor's console, the newest of it."""
        self.console_log += text
        if len(self.console_log) > LOG_SIZE:
            del self.console_log[:-LOG_SIZE]

    # What local APICs ask

    def reset_cpu(self, number: int) -> None:
        """Take a vCPU offline: INIT."""
        with self.machine.lock:
            self.execution.reset(number)

    def start_cpu(self, number: int, page: int) -> None:
        """Bring a vCPU that is offline up in real mode: a startup IPI."""
        with self.machine.lock:
            self.execution.start(number, page)

    def wake_cpu(self, number: int) -> None:
        """Let a vCPU take an interrupt of its local APIC."""
        with self.machine.lock:
            self.execution.wake(number)

    # Running

    def runnable(self) -> bool:
        """Tell whether a vCPU has something to do now."""
        if self.state is not State.RUNNING:
            return False
        return bool(self.events.queued) or any(v.up and not v.blocked for v in self.vcpus) or self._timer_due()

    def _timer_due(self) -> bool:
        deadline = self.deadline()
        return deadline is not None and deadline <= self.clock.now()

    def deadline(self) -> int | None:
        """Return the system time when a timer of the domain is next due."""
        times = [v.timer for v in self.vcpus if v.timer is not None] + list(self._watchdogs.times.values())
        times += [v.poll_end for v in self.vcpus if v.poll_end is not None]
        if self.sharing:
            if self.execution.turns.end is not None:
                times.append(self.execution.turns.end)
            times += [v.cpu.deadline for v in self.vcpus if v.cpu.deadline is not None]
        return min(times, default=None)

    def run(self) -> bool:
        """Run one vCPU until it halts or somebody stops it; tell whether the domain has more to do.

        Raises nothing: what escapes from an exit is a bug of ours, which ends in a crash of this domain only.
        """
        try:
            return self._run()
        except Exception as error:
            _log.exception("domain %d is crashed by an error of the hypervisor's own", self.domid)
            with self.machine.lock:
                self.execution.current = None
                self._deferred.clear()
                self.crash = f"internal error: {type(error).__name__}: {error}"
                self.shut_down(Reason.CRASH)
            return False

    def _run(self) -> bool:
        with self.machine.lock:
            vcpu = self._enter()
        if vcpu is None:
            return False
        outcome = vcpu.cpu.run()
        with self.machine.lock:
            self._leave(vcpu, outcome)
            return self.runnable()

    def _enter(self) -> DomainVCPU | None:
        if self.state is not State.RUNNING:
            return None
        self.events.drain()
        if self._overwritten:
            self._forget_code()
        self._fire_timers()
        number = self.execution.choose()
        if number is None or self.state is not State.RUNNING:  # a watchdog may just have ended it
            return None
        return self.execution.enter(number)

    def _leave(self, vcpu: DomainVCPU, outcome: Outcome) -> None:
        self.execution.leave(vcpu, outcome)
        if outcome is Outcome.CRASHED:
            self.crash = vcpu.cpu.crash
            self.shut_down(Reason.CRASH)

    def defer(self, work: Callable[[], None]) -> None:
        """Have work done on this thread when the hypercall that is being served is over, without the lock.

        The guest waits for it, other domains do not; only where `on_this_thread` and not for long.
        """
        self._deferred.append(work)

    def on_this_thread(self) -> bool:
        """True inside a hook of a vCPU of ours: then events can be raised at once."""
        return self.execution.on_this_thread()

    def charge(self, seconds: float) -> None:
        """Account for CPU time of the vCPU that ran last; on the thread that ran it."""
        if self.vcpus:
            self.vcpus[self.execution.last].cpu_time += seconds

    def kick(self) -> None:
        """Make the vCPU that runs come back soon, from any thread; see `VCPU.stop`."""
        vcpu = self.execution.current
        if vcpu is not None:
            vcpu.cpu.stop()

    # Timers and the structures that tell the time

    def set_timer(self, number: int, when: int | None) -> None:
        """Arm or disarm a vCPU's single-shot timer."""
        self.vcpus[number].timer = when
        self.machine.attend(self.domid)

    def set_watchdog(self, number: int, seconds: int) -> int:
        """Arm, re-arm or disarm one of two watchdogs (sched_watchdog); return its number."""
        number = self._watchdogs.set(number, seconds, self.clock.now())
        self.machine.attend(self.domid)
        return number

    def _fire_timers(self) -> None:
        now = self.clock.now()
        for number, vcpu in enumerate(self.vcpus):
            if vcpu.timer is not None and vcpu.timer <= now:
                vcpu.timer = None
                self.events.raise_virq(VIRQ_TIMER, number)
            if vcpu.poll_end is not None and vcpu.poll_end <= now:
                self.execution.unblock(number)
            if vcpu.cpu.deadline is not None:
                vcpu.cpu.expire()
        if self._watchdogs.expired(now):
            self.shut_down(Reason.WATCHDOG)

    def place_shared_info(self, frame: int) -> None:
        """Let a frame be the shared page and tell the time in it."""
        self.events.place_shared_info(frame)
        for number in range(len(self.vcpus)):
            self.write_time(number)
        self.write_wallclock()

    def write_time(self, number: int) -> None:
        """Tell a vCPU the time, if the guest has said where."""
        info = self.events.info_of(number)
        if info >= 0:
            guest_time.write_time(self.memory, info, self.clock)

    def write_wallclock(self) -> None:
        """Tell the guest in the shared page when system time was 0."""
        boot = self.machine.time_of_day() - self.clock.now()
        guest_time.write_wallclock(self.memory, self.events.shared_info, boot)

    def runstate_times(self, number: int) -> tuple[int, int, int, int]:
        """Return nanoseconds that a vCPU was running, runnable, blocked and offline until now."""
        return self.vcpus[number].runstate.until(self.clock.now())

    def place_runstate(self, number: int, cpu: VCPU, address: int) -> None:
        """Let a vCPU's run state be told at a virtual address of the calling vCPU's; 0 is nowhere. Raises BadAddress.

        It is translated now: a user's page tables, which may be in use at another time, do not have the page.
        """
        places, size = [], runstate.SIZE
        while address and size:
            here = min(size, PAGE - address % PAGE)
            places.append((cpu.translate(address), here))
            address, size = address + here, size - here
        self.vcpus[number].runstate.place(tuple(places), self.memory)

    # What the vCPUs see of memory

    def overwritten(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Hear that the host has written ranges of `Memory.bytes` which may be code that a vCPU has executed.

        Under the lock, before the guest can know of it; kept until the domain's thread comes by. A frame that is
        written again and again is kept once, so there are no more than a guest has shared in its tables.
        """
        self._overwritten.update(ranges)

    def _forget_code(self) -> None:
        """Have what was overwritten translated anew; on the domain's thread, under the lock."""
        for vcpu in self.vcpus[:1] if self.sharing else self.vcpus:
            for start, end in self._overwritten:
                vcpu.cpu.forget_code(start, end)
        self._overwritten.clear()

    def map_extra(self, frame: int) -> None:
        """Let the vCPUs see a frame beyond the memory."""
        if frame in self.memory.extra:
            for vcpu in self.vcpus:
                vcpu.cpu.map_extra(frame)

    # Life

    def shut_down(self, reason: Reason) -> None:
        """Stop for good; what happens next is the toolstack's choice."""
        if self.state in (State.SHUTDOWN, State.DYING):
            return
        self.state, self.reason = State.SHUTDOWN, reason
        if self.execution.current is not None:
            self.execution.current.cpu.halt_here()
        self.machine.changed(self)

    def power_off(self) -> None:
        """Shut down, for no vCPU is up any more."""
        self.shut_down(Reason.POWEROFF)

    def resume(self) -> None:
        """Take a suspend back: the domain is paused, with one pause more, behind its hypercall."""
        if self.state is not State.SHUTDOWN or self.reason is not Reason.SUSPEND:
            raise ValueError("the domain is not suspended")
        self.state, self.reason = State.PAUSED, None
        self.pauses += 1

    def renew(self) -> None:
        """Forget what a guest sets up again when it was suspended: to it this is another domain, with its memory.

        Backends have let go of their rings before.
        """
        self.events.forget()
        self.maptrack.close()
        self.memory.call_in()
        self.grants.forget()
        self.grants = GrantTable(self.memory)
        self._watchdogs = Watchdogs()
        for vcpu in self.vcpus:
            vcpu.timer, vcpu.runstate.places = None, ()

    def freeze(self) -> int:
        """Freeze the memory, see `Memory.freeze`; handles of grants that were mapped stay, their frames are empty."""
        self.maptrack.empty()
        return self.memory.freeze()

    def let_go(self) -> None:
        """End all that a domain which no thread runs shares with others, and all access to its memory."""
        self.maptrack.close()
        self.grants.forget()
        self.memory.let_go()
        self.events.queued.clear()  # what was posted knows us
        self._ended, self.vcpus = self.vcpus, []

    def close(self) -> None:
        """Free the engines and the memory of a domain that has let go; without the lock, for it may take long."""
        for vcpu in self._ended:
            vcpu.cpu.close()
        self._ended.clear()
        self.at_end.clear()
        self.memory.close()

    def peer(self, domid: int) -> Domain | None:
        """Return another domain of the host."""
        return self.machine.domain_of(domid)
