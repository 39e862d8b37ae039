"""One domain: what it consists of, and how its thread runs it.

A domain runs on one thread at a time, its vCPUs in turn, in one engine (`hypervisor.arch.x86_64.cpu.shared` says
why): so several vCPUs are as fast together as one. `run` is what a pCPU thread calls; everything that a guest does
arrives here under the host's lock. What the guest finds around its vCPUs is `platform`'s, timers and clocks are
`time`'s, whether it may run `life`'s, and which vCPU runs `vcpus`'.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import proxy

from hypervisor.arch.clock import Clock
from hypervisor.arch.kind import Kind
from hypervisor.arch.vcpu import Outcome
from hypervisor.domains.event_channel import EventChannels, Peers
from hypervisor.domains.grant_table import GrantTable
from hypervisor.domains.life import Life, Reason, State
from hypervisor.domains.maptrack import Maptrack
from hypervisor.domains.platform import Platform
from hypervisor.domains.time import Time
from hypervisor.domains.vcpus import DomainVCPU, vcpus
from hypervisor.memory.guest_memory import Memory
from hypervisor.memory.physmap import Physmap
from hypervisor.memory.shared import SharedFrames

_log = logging.getLogger(__name__)


class DomainHost(Peers, Protocol):
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
    """A guest of a kind with so many vCPUs and `memory`, paused and empty until a builder has filled it."""

    def __init__(
        self,
        domid: int,
        uuid_text: str,
        memory: Memory,
        host: DomainHost,
        kind: Kind,
        clock: Clock,
        *,
        count: int = 1,
        code_cache: int = 1 << 20,
        ranges: Sequence[tuple[int, int]] = (),
        cpu_name: str = "",
    ) -> None:
        self.domid = domid
        self.uuid = uuid_text
        self.uuid_bytes = uuid.UUID(uuid_text).bytes
        self.memory = memory
        self.host = host
        self.kind = kind
        self.params: dict[int, int] = {}
        self.callback_vector = 0
        self.ranges = tuple(ranges) or ((0, memory.size),)
        """Start and end of the parts of guest-physical space that are RAM."""
        self.memory_map: list[tuple[int, int, int]] = [(0, memory.size, 1)]
        self.hypercalls: dict[int, int] = {}
        """How often each hypercall was done, by number."""
        self.events = EventChannels(domid, memory, host, count)
        self.grants = GrantTable(memory)
        own = proxy(self)  # what is ours alone does not keep us, so that all of it goes when a domain has ended
        self.physmap = Physmap(
            memory,
            self.ranges,
            lambda frames: host.may_grow(own, frames),
            lambda frame: own.platform.map_extra(frame),
            lambda ranges: own.platform.overwritten(ranges),
            lambda at: own.grants.occupies(at) or at == own.events.shared_info,
        )
        self.maptrack = Maptrack(domid, self.physmap)
        self.life = Life(lambda: own._went_down())
        self.time = Time(own, clock)
        self.platform = Platform(host.lock, memory, self.physmap)
        cpus = kind.vcpus(count, memory, self.platform, clock, code_cache, ranges, cpu_name)
        self.vcpus = self.platform.vcpus = vcpus(own, cpus, kind.shares(count))
        self._ended: list[DomainVCPU] = []
        self.at_end: list[Callable[[], None]] = []
        """Called when the domain is destroyed, without the lock; each returns when it uses no memory of it any more."""

    # Running

    def runnable(self) -> bool:
        """Tell whether a vCPU has something to do now."""
        if self.life.state is not State.RUNNING:
            return False
        return bool(self.events.queued) or self.vcpus.is_able() or self.time.is_due()

    def run(self) -> bool:
        """Run one vCPU until it halts or somebody stops it; tell whether the domain has more to do.

        Raises nothing: what escapes from an exit is a bug of ours, which ends in a crash of this domain only.
        """
        try:
            return self._run()
        except Exception as error:
            _log.exception("domain %d is crashed by an error of the hypervisor's own", self.domid)
            with self.host.lock:
                self.vcpus.current = None
                self.platform.drop_deferred()
                self.life.crashed(f"internal error: {type(error).__name__}: {error}")
            return False

    def _run(self) -> bool:
        with self.host.lock:
            vcpu = self._enter()
        if vcpu is None:
            return False
        outcome = vcpu.cpu.run()
        with self.host.lock:
            self.vcpus.leave(vcpu, outcome)
            if outcome is Outcome.CRASHED:
                self.life.crashed(vcpu.cpu.crash)
            return self.runnable()

    def _enter(self) -> DomainVCPU | None:
        if self.life.state is not State.RUNNING:
            return None
        self.events.drain()
        self.platform.forget_code()
        if self.time.fire():
            self.life.shut_down(Reason.WATCHDOG)
            return None
        number = self.vcpus.choose()
        return None if number is None else self.vcpus.enter(number)

    # What its parts ask

    def attend(self) -> None:
        """Have the domain looked at: it has another timer, or is to be stopped."""
        self.host.attend(self.domid)

    def changed(self) -> None:
        """Tell that another number of vCPUs is up."""
        self.host.changed(self)

    def power_off(self) -> None:
        """Shut down, for no vCPU is up any more."""
        self.life.shut_down(Reason.POWEROFF)

    def _went_down(self) -> None:
        self.vcpus.halt()
        self.host.changed(self)

    def peer(self, domid: int) -> Domain | None:
        """Return another domain of the host."""
        return self.host.domain_of(domid)

    # What its parts do together

    def place_shared_info(self, frame: int) -> None:
        """Let a frame be the shared page and tell the time in it."""
        self.events.place_shared_info(frame)
        for number in range(len(self.vcpus)):
            self.time.write_time(number)
        self.time.write_wallclock()

    def renew(self) -> None:
        """Forget what a guest sets up again when it was suspended: to it this is another domain, with its memory.

        Backends have let go of their rings before.
        """
        self.events.forget()
        self.maptrack.close()
        self.memory.call_in()
        self.grants.forget()
        self.grants = GrantTable(self.memory)
        self.time.renew()

    def freeze(self) -> SharedFrames:
        """Freeze the memory, see `Memory.freeze`; handles of grants that were mapped stay, their frames are empty."""
        self.maptrack.empty()
        return self.memory.freeze()

    def let_go(self) -> None:
        """End all that a domain which no thread runs shares with others, and all access to its memory."""
        self.maptrack.close()
        self.grants.forget()
        self.memory.let_go()
        self.events.queued.clear()  # what was posted knows us
        self.platform.let_go()
        self._ended = self.vcpus.take_all()

    def close(self) -> None:
        """Free the engines and the memory of a domain that has let go; without the lock, for it may take long."""
        for vcpu in self._ended:
            vcpu.cpu.close()
        self._ended.clear()
        self.at_end.clear()
        self.memory.close()
