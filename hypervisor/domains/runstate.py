"""What a vCPU has done with its time: running, waiting for a pCPU, blocked, offline (public/vcpu.h)."""

from __future__ import annotations

import struct

from hypervisor.memory.guest_memory import Memory

RUNNING, RUNNABLE, BLOCKED, OFFLINE = range(4)
"""RUNSTATE_*."""
SIZE = 48
"""Bytes of vcpu_runstate_info."""


class RunState:
    """A vCPU's state, `since` a system time in ns, and nanoseconds that it was in each state until then."""

    def __init__(self) -> None:
        self.state = OFFLINE
        self.since = 0
        self.times = [0, 0, 0, 0]
        self.places: tuple[tuple[int, int], ...] = ()
        """Physical addresses and lengths of the parts of the vcpu_runstate_info that the guest wants filled."""

    def change(self, state: int, now: int, woken: int) -> None:
        """Enter a state. `woken` is when the scheduler last found the domain something to do."""
        if self.state == BLOCKED and state in (RUNNING, RUNNABLE) and self.since < woken < now:
            # It waited for a pCPU since then: that is the time that guests call stolen.
            self.times[BLOCKED] += woken - self.since
            self.state, self.since = RUNNABLE, woken
        self.times[self.state] += now - self.since
        self.state, self.since = state, now

    def until(self, now: int) -> tuple[int, int, int, int]:
        """Return nanoseconds that the vCPU was running, runnable, blocked and offline until now."""
        times = list(self.times)
        times[self.state] += max(0, now - self.since)
        return times[0], times[1], times[2], times[3]

    def encode(self) -> bytes:
        """Return vcpu_runstate_info."""
        return struct.pack("<IxxxxQ4Q", self.state, self.since, *self.times)

    def place(self, places: tuple[tuple[int, int], ...], memory: Memory) -> None:
        """Let the guest find it at physical addresses, `SIZE` bytes of them, or nowhere. Raises BadAddress."""
        for physical, length in places:
            memory.check(physical, length)
        self.places = places
        self.write(memory)

    def write(self, memory: Memory) -> None:
        """Fill the structure that the guest has registered."""
        if self.places:
            state = self.encode()
            for physical, length in self.places:
                memory.bytes[physical : physical + length] = state[:length]
                state = state[length:]
