"""A kind of guests of an architecture, as PVH and PV: what their domains have besides memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hypervisor.arch.clock import Clock
from hypervisor.arch.vcpu import VCPU, Platform
from hypervisor.memory.guest_memory import Memory


class Kind(Protocol):
    """Makes the vCPUs of domains."""

    @property
    def name(self) -> str:
        """What people call it."""

    def shares(self, count: int) -> bool:
        """Tell whether so many vCPUs share an engine; else each has its own, and only the first ever runs."""

    def vcpus(
        self,
        count: int,
        memory: Memory,
        platform: Platform,
        clock: Clock,
        code_cache: int,
        ranges: Sequence[tuple[int, int]],
        name: str,
    ) -> Sequence[VCPU]:
        """Return the vCPUs of a new domain, all off.

        `code_cache` is the size in bytes of the buffer for translated code, `ranges` are start and end of the parts
        of the memory that are RAM, all of it if none are given; `name` is what guests find their CPUs called.
        """
