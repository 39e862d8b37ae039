"""One domain: memory, vCPUs, event channels, grants, timers, and its life from building to its end.

A domain runs on one thread at a time, its vCPUs in turn, in one engine (`hypervisor.cpu.shared` says why): so
several vCPUs are as fast together as one. `run` is what a pCPU thread calls; everything that a guest does
arrives here under the host's lock.
"""

from __future__ import annotations

import logging
import struct
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

from hypervisor.cpu.cpuid import Policy
from hypervisor.cpu.shared import SharedEngine
from hypervisor.cpu.tsc import Clock
from hypervisor.cpu.vcpu import VCPU, Outcome
from hypervisor.errors import EINVAL, XenError
from hypervisor.event_channel import VIRQ_TIMER, EventChannels, Peers
from hypervisor.grant_table import GrantTable
from hypervisor.memory import PAGE, BadAddress, Memory
from hypervisor.turns import Turns

_log = logging.getLogger(__name__)

LOG_SIZE = 64 * 1024
"""Bytes kept of what a domain writes to the hypervisor's console."""
_RUNNING, _RUNNABLE, _BLOCKED, _OFFLINE = range(4)
"""RUNSTATE_* of public/vcpu.h."""


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
        """Hear that the domain's state has changed: it shut down."""


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
    """When the wait for ports is over (`Domain.poll`)."""
    upcall_vector: int = 0
    runstate_places: tuple[tuple[int, int], ...] = ()
    """Physical addresses and lengths of the parts of the vcpu_runstate_info that the guest wants filled."""
    state: int = _OFFLINE
    since: int = 0
    times: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    cpu_time: float = 0.0
    """Seconds of CPU used, our own work for it included."""


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
        cpu: type[VCPU] = VCPU,
    ) -> None:
        self.domid = domid
        self.uuid = uuid_text
        self.uuid_bytes = uuid.UUID(uuid_text).bytes
        self.memory = memory
        self.machine = machine
        self.clock = clock or Clock()
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
        self.policy = Policy(self.clock.hz, vcpus)
        self.sharing = cpu is VCPU and vcpus > 1
        """Whether the vCPUs share an engine. Those of a PV domain do not: one of them runs, the others are offline."""
        if self.sharing:
            shared = SharedEngine(vcpus, memory, self, self.clock.now, code_cache, ranges)
            self.vcpus = [DomainVCPU(each) for each in shared.cpus]
        else:
            self.vcpus = [DomainVCPU(cpu(number, memory, self, code_cache, ranges)) for number in range(vcpus)]
        self._turns = Turns(vcpus)
        self.at_end: list[Callable[[], None]] = []
        """Called when the domain is destroyed, without the lock; each returns when it uses no memory of it any more."""
        self.hypercall_table: Callable[[Domain, VCPU, int, Sequence[int]], int] | None = None
        self._current: DomainVCPU | None = None
        self._deferred: deque[Callable[[], None]] = deque()
        self._ballooned: set[int] = set()
        self._watchdogs: dict[int, int] = {}
        self._last = 0
        self._thread = 0
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
        return result

    def cpuid(self, cpu: VCPU, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Answer CPUID."""
        return self.policy.leaf(cpu.number, leaf, subleaf)

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
        times = [v.timer for v in self.vcpus if v.timer is not None] + list(self._watchdogs.values())
        times += [v.poll_end for v in self.vcpus if v.poll_end is not None]
        if self.sharing:
            if self._turns.end is not None:
                times.append(self._turns.end)
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
                self._current = None
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
        self._fire_timers()
        number = self._choose()
        if number is None or self.state is not State.RUNNING:  # a watchdog may just have ended it
            return None
        self._last = number
        vcpu = self.vcpus[number]
        vcpu.blocked = False
        self._set_runstate(number, _RUNNING)
        if self.events.upcall_pending(number):
            self._interrupt(vcpu)
        self._current = vcpu
        self._thread = threading.get_ident()
        if self.sharing:
            self._limit_turn(vcpu)
        return vcpu

    def _choose(self) -> int | None:
        """Return the vCPU that is to run now, None for none."""
        if self.sharing:
            able = self._able()
            return self._turns.next(able, self.clock.now()) if able else None
        pending = self.events.upcall_pending
        for number, vcpu in enumerate(self.vcpus):
            if vcpu.up and (not vcpu.blocked or pending(number)):
                return number
        return None

    def _able(self) -> list[int]:
        """Return the vCPUs that have something to do."""
        pending = self.events.upcall_pending
        return [n for n, vcpu in enumerate(self.vcpus) if vcpu.up and (not vcpu.blocked or pending(n))]

    def _limit_turn(self, vcpu: DomainVCPU) -> None:
        """Have the vCPU that runs stopped when its turn is over or when it waits, if another has something to do."""
        limited = self._turns.end is not None
        vcpu.cpu.exit_at_pause(limited)
        if limited:
            self.machine.attend(self.domid)

    def _leave(self, vcpu: DomainVCPU, outcome: Outcome) -> None:
        self._current = None
        if self.sharing:
            self._turns.leave(self.clock.now(), gave_up=vcpu.cpu.gave_up)
        if outcome is Outcome.HALTED:
            vcpu.blocked = True
        elif outcome is Outcome.CRASHED:
            self.crash = vcpu.cpu.crash
            self.shut_down(Reason.CRASH)
        elif outcome is Outcome.OFF:
            vcpu.up = False
            self._check_power()
        self._set_runstate(vcpu.cpu.number, _BLOCKED if vcpu.blocked else _RUNNABLE if vcpu.up else _OFFLINE)

    def _interrupt(self, vcpu: DomainVCPU) -> None:
        if vcpu.upcall_vector:
            vcpu.cpu.own_upcall(vcpu.upcall_vector)
        else:
            vcpu.cpu.upcall(self.callback_vector)

    def _check_power(self) -> None:
        if not any(vcpu.up for vcpu in self.vcpus):
            self.shut_down(Reason.POWEROFF)

    def upcall(self, number: int) -> None:
        """Let a vCPU take its pending events: now if it is the one that runs, else when it next does."""
        self._unblock(number)
        vcpu = self.vcpus[number]
        if vcpu is self._current:
            self._interrupt(vcpu)

    def _unblock(self, number: int) -> None:
        """Let a vCPU go on that waited for events or ports."""
        vcpu = self.vcpus[number]
        waited, vcpu.blocked, vcpu.poll_end = vcpu.blocked, False, None
        self.events.polls.pop(number, None)
        if waited and self.sharing and vcpu.up and vcpu is not self._current:
            self._woke(number)

    def _woke(self, number: int) -> None:
        """Let a vCPU have its turn that has something to do from now on."""
        self._set_runstate(number, _RUNNABLE)
        able = [other for other in self._able() if other != number]
        if self._turns.wake(number, able, self.clock.now()) and self._current is not None:
            self._limit_turn(self._current)

    def block(self, number: int) -> None:
        """Let a vCPU wait for an event; from its own hypercall."""
        vcpu = self.vcpus[number]
        vcpu.blocked = True
        vcpu.cpu.halt_here()

    def poll(self, number: int, ports: frozenset[int], until: int | None) -> None:
        """Let a vCPU wait until one of the ports is pending, masked or not, or until a time; from its own hypercall."""
        if not any(self.events.is_pending(port) for port in ports):
            self.events.polls[number] = ports
            self.vcpus[number].poll_end = until
            self.block(number)
            self.machine.attend(self.domid)

    def hold_cpu(self, number: int) -> None:
        """Take a vCPU offline that keeps its state (VCPUOP_down)."""
        vcpu = self.vcpus[number]
        if vcpu.up:
            vcpu.up, vcpu.held = False, True
            if vcpu is self._current:
                vcpu.cpu.halt_here()
            else:
                self._set_runstate(number, _OFFLINE)
            self._check_power()

    def release_cpu(self, number: int) -> None:
        """Let a vCPU run from the state that it has (VCPUOP_up)."""
        vcpu = self.vcpus[number]
        if not vcpu.up:
            vcpu.up, vcpu.held = True, False
            if not vcpu.blocked:
                self._woke(number)

    # What local APICs ask

    def reset_cpu(self, number: int) -> None:
        """Take a vCPU offline: INIT."""
        with self.machine.lock:
            self.hold_cpu(number)
            self.vcpus[number].held = self.vcpus[number].blocked = False

    def start_cpu(self, number: int, page: int) -> None:
        """Bring a vCPU that is offline up in real mode: a startup IPI."""
        with self.machine.lock:
            vcpu = self.vcpus[number]
            if not vcpu.up and vcpu is not self._current:
                vcpu.cpu.start(page)
                vcpu.blocked = False
                self.release_cpu(number)

    def wake_cpu(self, number: int) -> None:
        """Let a vCPU take an interrupt of its local APIC."""
        with self.machine.lock:
            self._unblock(number)
            self.vcpus[number].cpu.interrupted()

    def on_this_thread(self) -> bool:
        """True inside a hook of a vCPU of ours: then events can be raised at once."""
        return self._current is not None and self._thread == threading.get_ident()

    def defer(self, work: Callable[[], None]) -> None:
        """Have work done on this thread when the hypercall that is being served is over, without the lock.

        The guest waits for it, other domains do not; only where `on_this_thread` and not for long.
        """
        self._deferred.append(work)

    def charge(self, seconds: float) -> None:
        """Account for CPU time of the vCPU that ran last; on the thread that ran it."""
        if self.vcpus:
            self.vcpus[self._last].cpu_time += seconds

    def kick(self) -> None:
        """Make the vCPU that runs come back soon, from any thread; see `VCPU.stop`."""
        vcpu = self._current
        if vcpu is not None:
            vcpu.cpu.stop()

    # Timers and the structures that tell the time

    def set_timer(self, number: int, when: int | None) -> None:
        """Arm or disarm a vCPU's single-shot timer."""
        self.vcpus[number].timer = when
        self.machine.attend(self.domid)

    def set_watchdog(self, number: int, seconds: int) -> int:
        """Arm, re-arm or disarm one of two watchdogs (sched_watchdog); return its number."""
        if number == 0:
            free = [slot for slot in (1, 2) if slot not in self._watchdogs]
            if not free or not seconds:
                raise XenError(EINVAL)
            number = free[0]
        elif number not in (1, 2):
            raise XenError(EINVAL)
        if seconds:
            self._watchdogs[number] = self.clock.now() + seconds * 10**9
            self.machine.attend(self.domid)
        else:
            self._watchdogs.pop(number, None)
        return number

    def _fire_timers(self) -> None:
        now = self.clock.now()
        for number, vcpu in enumerate(self.vcpus):
            if vcpu.timer is not None and vcpu.timer <= now:
                vcpu.timer = None
                self.events.raise_virq(VIRQ_TIMER, number)
            if vcpu.poll_end is not None and vcpu.poll_end <= now:
                self._unblock(number)
            if vcpu.cpu.deadline is not None:
                vcpu.cpu.expire()
        if any(when <= now for when in self._watchdogs.values()):
            self._watchdogs.clear()
            self.shut_down(Reason.WATCHDOG)

    def place_shared_info(self, frame: int) -> None:
        """Let a frame be the shared page and tell the time in it."""
        self.events.place_shared_info(frame)
        for number in range(len(self.vcpus)):
            self.write_time(number)
        self.write_wallclock()

    def write_time(self, number: int) -> None:
        """Fill a vCPU's vcpu_time_info (public/xen.h), from which it computes system time."""
        info = self.events.info_of(number)
        if info < 0:
            return
        at, clock = info + 32, self.clock
        version = struct.unpack_from("<I", self.memory.bytes, at)[0]
        struct.pack_into(
            "<IIQQIbBH", self.memory.bytes, at, (version | 1) + 1 & 0xFFFFFFFF, 0, clock.start, clock.base,
            clock.multiplier, clock.shift, 1, 0,
        )  # fmt: skip

    def write_wallclock(self) -> None:
        """Fill the shared page's wall clock: the time of day when system time was 0."""
        seconds, nanoseconds = divmod(self.machine.time_of_day() - self.clock.now(), 10**9)
        at = self.events.shared_info + 0xC00
        version = struct.unpack_from("<I", self.memory.bytes, at)[0]
        words = ((version | 1) + 1 & 0xFFFFFFFF, seconds & 0xFFFFFFFF, nanoseconds, seconds >> 32)
        struct.pack_into("<IIII", self.memory.bytes, at, *words)

    def _set_runstate(self, number: int, state: int) -> None:
        vcpu, now = self.vcpus[number], self.clock.now()
        if vcpu.state == _BLOCKED and state in (_RUNNING, _RUNNABLE) and vcpu.since < self.woken < now:
            # It waited for a pCPU since then: that is the time that guests call stolen.
            vcpu.times[_BLOCKED] += self.woken - vcpu.since
            vcpu.state, vcpu.since = _RUNNABLE, self.woken
        vcpu.times[vcpu.state] += now - vcpu.since
        vcpu.state, vcpu.since = state, now
        self.write_runstate(number)

    def runstate(self, number: int) -> bytes:
        """Return vcpu_runstate_info (public/vcpu.h)."""
        vcpu = self.vcpus[number]
        return struct.pack("<IxxxxQ4Q", vcpu.state, vcpu.since, *vcpu.times)

    def runstate_times(self, number: int) -> tuple[int, int, int, int]:
        """Return nanoseconds that a vCPU was running, runnable, blocked and offline until now."""
        vcpu = self.vcpus[number]
        times, state, since = list(vcpu.times), vcpu.state, vcpu.since
        times[state] += max(0, self.clock.now() - since)
        return times[0], times[1], times[2], times[3]

    def place_runstate(self, number: int, cpu: VCPU, address: int) -> None:
        """Let a vCPU's run state be told at a virtual address of the calling vCPU's; 0 is nowhere. Raises BadAddress.

        It is translated now: a user's page tables, which may be in use at another time, do not have the page.
        """
        places, size = [], len(self.runstate(number))
        while address and size:
            here = min(size, PAGE - address % PAGE)
            places.append((cpu.translate(address), here))
            address, size = address + here, size - here
        for physical, length in places:
            self.memory.check(physical, length)
        self.vcpus[number].runstate_places = tuple(places)
        self.write_runstate(number)

    def write_runstate(self, number: int) -> None:
        """Fill the structure that a vCPU has registered."""
        places = self.vcpus[number].runstate_places
        if places:
            state = self.runstate(number)
            for physical, length in places:
                self.memory.bytes[physical : physical + length] = state[:length]
                state = state[length:]

    # Memory that comes and goes

    def release(self, frame: int, count: int) -> bool:
        """Give frames to the host (balloon up). Raises BadAddress."""
        self._check_ram(frame, count)
        frames = [number for number in range(frame, frame + count) if number not in self._ballooned]
        self.memory.free(frame, count)
        self._ballooned.update(frames)
        self.memory.present -= len(frames)
        return True

    def populate(self, frame: int, count: int) -> bool:
        """Take frames from the host (balloon down), as far as the target allows. Raises BadAddress."""
        self._check_ram(frame, count)
        frames = [number for number in range(frame, frame + count) if number in self._ballooned]
        if not self.machine.may_grow(self, len(frames)):
            return False
        self._ballooned.difference_update(frames)
        self.memory.present += len(frames)
        return True

    def _check_ram(self, frame: int, count: int) -> None:
        """Raise BadAddress unless all of the frames are RAM."""
        start, end = frame * PAGE, (frame + count) * PAGE
        if not any(low <= start and end <= high for low, high in self.ranges):
            raise BadAddress(f"frames {frame:#x} and {count - 1} more are no RAM")

    def ballooned(self) -> list[int]:
        """Return the frames that the guest has given to the host, in order."""
        return sorted(self._ballooned)

    def hold_out(self, frames: Sequence[int]) -> None:
        """Take frames for given to the host, in a domain that is built from a saved one. Raises BadAddress."""
        for frame in frames:
            self._check_ram(frame, 1)
        self.memory.present -= len(set(frames) - self._ballooned)
        self._ballooned.update(frames)

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
        if self._current is not None:
            self._current.cpu.halt_here()
        self.machine.changed(self)

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
        self.grants.forget()
        self.grants = GrantTable(self.memory)
        self._watchdogs.clear()
        for vcpu in self.vcpus:
            vcpu.timer, vcpu.runstate_places = None, ()

    def close(self) -> None:
        """Free the memory and the engines of a domain that no thread runs."""
        for vcpu in self.vcpus:
            vcpu.cpu.close()
        self.vcpus.clear()
        self.memory.close()

    def peer(self, domid: int) -> Domain | None:
        """Return another domain of the host."""
        return self.machine.domain_of(domid)
