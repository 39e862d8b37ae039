"""What a domain's vCPUs find around them: hypercalls, devices, each other, and code that the host has written."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from hypervisor.arch.vcpu import VCPU
from hypervisor.memory.guest_memory import PAGE, BadAddress, Memory
from hypervisor.memory.physmap import Physmap
from hypervisor.platform.bus import Bus
from hypervisor.platform.debug_console import PORT, DebugConsole

if TYPE_CHECKING:
    from hypervisor.domains.domain import Domain
    from hypervisor.domains.vcpus import VCPUs

HypercallTable = Callable[["Domain", VCPU, int, Sequence[int]], int]
"""Does a hypercall of a vCPU's, by its number and arguments, and returns its result; raises nothing."""


class Platform:
    """An `arch.vcpu.Platform`. Exits arrive on the domain's thread, without the host's lock, which is taken here."""

    vcpus: VCPUs
    """Of the domain; they are made after this, which they ask."""

    def __init__(self, lock: threading.RLock, memory: Memory, physmap: Physmap) -> None:
        self._lock, self._memory, self._physmap = lock, memory, physmap
        self._serve = partial[int](_nothing, None)
        self._deferred: deque[Callable[[], None]] = deque()
        self._overwritten: set[tuple[int, int]] = set()
        own = weakref.proxy(self)  # a domain that has ended comes apart by itself
        self.bus = Bus(lambda start, length: own._map_device(start, length))
        self.port_in, self.port_out = self.bus.ports.read, self.bus.ports.write
        self.console = DebugConsole(lock)
        self.bus.ports.claim(PORT, 1, self.console)

    def serve(self, domain: Domain, table: HypercallTable) -> None:
        """Have hypercalls done by a table."""
        self._serve = partial(table, domain)

    @property
    def hypercall_table(self) -> HypercallTable:
        """What does hypercalls."""
        return self._serve.func

    def let_go(self) -> None:
        """Know the domain no more, for it ends."""
        self._serve = partial(_nothing, None)
        self._deferred.clear()

    # Exits

    def hypercall(self, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
        """Do a hypercall of one of the vCPUs."""
        with self._lock:
            result = self._serve(cpu, number, arguments)
        while self._deferred:
            self._deferred.popleft()()
        if self._overwritten:
            with self._lock:
                self.forget_code()
        return result

    def defer(self, work: Callable[[], None]) -> None:
        """Have work done on this thread when the hypercall that is being served is over, without the lock.

        The guest waits for it, other domains do not; only where `VCPUs.on_this_thread` and not for long.
        """
        self._deferred.append(work)

    def drop_deferred(self) -> None:
        """Do no work that waits for the end of a hypercall: there was an error of ours in it."""
        self._deferred.clear()

    def write_page(self, address: int, content: bytes) -> None:
        """Overwrite a page of the guest's RAM, code or not. Raises BadAddress where it has none of its own."""
        with self._lock:
            if address % PAGE or not self._physmap.holds(address // PAGE):
                raise BadAddress(f"there is no page of the guest's at {address:#x}")
            self._memory.write(address, content)
            self.overwritten([(address, address + PAGE)])
            self.forget_code()

    # What a vCPU asks of another

    def reset_cpu(self, number: int) -> None:
        """Take a vCPU offline: INIT."""
        with self._lock:
            self.vcpus.reset(number)

    def start_cpu(self, number: int, page: int) -> None:
        """Bring a vCPU that is offline up at the start of a page: a startup IPI."""
        with self._lock:
            self.vcpus.start(number, page)

    def wake_cpu(self, number: int) -> None:
        """Let a vCPU take an interrupt of another's."""
        with self._lock:
            self.vcpus.wake(number)

    # What the vCPUs see of memory

    def overwritten(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Hear that the host has written ranges of `Memory.bytes` which may be code that a vCPU has executed.

        Under the lock, before the guest can know of it; kept until the domain's thread comes by. A frame that is
        written again and again is kept once, so there are no more than a guest has shared in its tables.
        """
        self._overwritten.update(ranges)

    def forget_code(self) -> None:
        """Have what was overwritten translated anew; on the domain's thread, under the lock."""
        if self._overwritten:
            for cpu in self.vcpus.engines():
                for start, end in self._overwritten:
                    cpu.forget_code(start, end)
            self._overwritten.clear()

    def _map_device(self, start: int, length: int) -> None:
        """Have accesses to a range of addresses brought to the bus. Raises BadAddress where the guest has memory."""
        for cpu in self.vcpus.engines():
            cpu.map_device(start, length, self.bus.memory.read, self.bus.memory.write)

    def map_extra(self, frame: int) -> None:
        """Let the vCPUs see a frame beyond the memory."""
        if frame in self._memory.extra:
            for vcpu in self.vcpus:
                vcpu.cpu.map_extra(frame)


def _nothing(domain: Domain | None, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
    """Stand for the hypercalls of a domain that cannot run: it was not given any, or has ended."""
    raise AssertionError("the domain has no hypercalls")
