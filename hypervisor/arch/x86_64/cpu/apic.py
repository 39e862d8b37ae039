"""A local APIC of one vCPU, in xAPIC mode (Intel SDM volume 3, chapter 11): identity, priorities, IPIs and the timer.

With it a guest starts its other CPUs (INIT and startup IPIs) and interrupts itself and them. Guests of Xen take
events by their own vector, which goes past the APIC as it does in Xen, and use it for little else.

Not here, since nothing of a PVH guest's is wired to it: SMI, ExtINT and NMI, which are dropped; the local
interrupts but the timer, which never come; lowest priority, which takes the first of the CPUs that are named.
x2APIC is not offered in CPUID.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from hypervisor.memory.guest_memory import PAGE

ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_ERROR, INITIAL, CURRENT, DIVIDE = 0x320, 0x370, 0x380, 0x390, 0x3E0
_LVT = frozenset(range(LVT_TIMER, LVT_ERROR + 1, 0x10))
_MASKED, _PERIODIC, _ENABLED = 1 << 16, 1 << 17, 1 << 8
_WRITABLE = {
    TPR: 0xFF, LDR: 0xFF000000, DFR: 0xF0000000, SVR: 0x1FF, ICR_LOW: 0xCCFFF, ICR_HIGH: 0xFF000000,
    LVT_TIMER: 0x300FF, 0x330: 0x107FF, 0x340: 0x107FF, 0x350: 0x1A7FF, 0x360: 0x1A7FF, LVT_ERROR: 0x100FF,
    INITIAL: 0xFFFFFFFF, DIVIDE: 0xB,
}  # fmt: skip
"""The bits that software may write; of DFR the others read as ones."""
_FIXED, _LOWEST, _INIT, _STARTUP = 0, 1, 5, 6
_ILLEGAL_VECTOR_SENT, _ILLEGAL_VECTOR_RECEIVED = 1 << 5, 1 << 6
_SELF, _ALL, _OTHERS = 1, 2, 3
_LOGICAL, _ASSERT, _LEVEL = 1 << 11, 1 << 14, 1 << 15
ADDRESS = 0xFEE0_0000
"""Where each CPU sees its own local APIC (Intel SDM volume 3, section 11.4.1)."""
CYCLE = 10
"""Nanoseconds of the bus clock that the timer counts: the 100 MHz of CPUID leaf 0x16 and of Xen."""


def identity(vcpu: int) -> int:
    """Return the number of a vCPU's APIC: twice its own, in Xen; CPUID leaf 1 and the ACPI tables say the same."""
    return 2 * vcpu


def after_reset(number: int) -> bytes:
    """Return the registers of an APIC after reset (Intel SDM volume 3, section 11.4.7)."""
    page = bytearray(PAGE)
    for offset, value in ((ID, number << 24), (VERSION, 0x50014), (DFR, 0xFFFFFFFF), (SVR, 0xFF)):
        struct.pack_into("<I", page, offset, value)
    for offset in range(LVT_TIMER, LVT_ERROR + 1, 0x10):
        struct.pack_into("<I", page, offset, _MASKED)
    return bytes(page)


class Processors(Protocol):
    """What an APIC asks of the machine around it; on the thread that runs the CPUs."""

    def reset_cpu(self, number: int) -> None:
        """Hear that a CPU got INIT: it waits for a startup IPI."""

    def start_cpu(self, number: int, page: int) -> None:
        """Start a CPU in real mode at the start of a page, unless it runs already."""

    def wake_cpu(self, number: int) -> None:
        """Hear that an interrupt waits for a CPU."""


class LocalAPIC:
    """The APIC of CPU `number`; `peers` are those of all CPUs, in their order, `now` is a clock in ns."""

    def __init__(self, number: int, peers: Sequence[LocalAPIC], processors: Processors, now: Callable[[], int]) -> None:
        self._number = number
        self._peers = peers
        self._processors = processors
        self._now = now
        self._words: dict[int, int] = {}
        self._requested = self._in_service = 0
        """IRR and ISR: bit n is vector n."""
        self._errors = 0
        self._timer_start = 0
        self.deadline: int | None = None
        """When the timer next interrupts; `expire` is to be called then."""
        self.load(bytes(PAGE))

    # The registers

    def reset(self) -> None:
        """Do what INIT does: all but the identity is as after power-on."""
        kept = self._words.get(ID, 0)
        self.load(bytes(PAGE))
        self._words[ID] = kept

    def load(self, page: bytes) -> None:
        """Set all registers, as `page` gives them; zeros for what they are after power-on."""
        words = {offset: struct.unpack_from("<I", page, offset)[0] for offset in (ID, VERSION, *_WRITABLE)}
        if not words[VERSION]:
            words |= dict.fromkeys(_LVT, _MASKED) | {SVR: 0xFF, DFR: 0xFFFFFFFF, VERSION: 0x50014}
        self._words = words
        self._in_service, self._requested = _vectors(page, ISR), _vectors(page, IRR)
        self._errors = 0
        self._timer_start = self._now()
        self._arm()

    def page(self) -> bytes:
        """Return the registers as the guest sees them, 4096 bytes."""
        page = bytearray(PAGE)
        for offset in (*self._words, PPR, *range(ISR, ISR + 0x80, 0x10), *range(IRR, IRR + 0x80, 0x10)):
            struct.pack_into("<I", page, offset, self.read(offset))
        return bytes(page)

    def read(self, offset: int) -> int:
        """Return a register of 32 bits; zero where there is none."""
        offset &= ~0xF
        if offset == PPR:
            return self._priority()
        if ISR <= offset < ISR + 0x80:
            return self._in_service >> (offset - ISR) * 2 & 0xFFFFFFFF
        if IRR <= offset < IRR + 0x80:
            return self._requested >> (offset - IRR) * 2 & 0xFFFFFFFF
        if offset == CURRENT:
            return self._count()
        return self._words.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write a register of 32 bits; what may not be written stays as it is."""
        if offset & 0xF:
            return
        if offset == EOI:
            self._end_of_interrupt()
        elif offset == ESR:
            self._words[ESR], self._errors = self._errors, 0
        elif offset in _WRITABLE:
            value &= _WRITABLE[offset]
            if offset == DFR:
                value |= 0x0FFFFFFF
            if offset in _LVT and not self._words[SVR] & _ENABLED:
                value |= _MASKED
            self._words[offset] = value
            self._written(offset, value)

    def _written(self, offset: int, value: int) -> None:
        if offset == ICR_LOW:
            self._send(value, self._words[ICR_HIGH] >> 24)
        elif offset == SVR and not value & _ENABLED:
            for entry in _LVT:
                self._words[entry] |= _MASKED
            self._arm()
        elif offset in (INITIAL, DIVIDE):
            self._timer_start = self._now()
            self._arm()
        elif offset == LVT_TIMER:
            self._arm()

    # Interrupts to this CPU

    def request(self, vector: int) -> None:
        """Let an interrupt wait for the CPU; one that waits already is the same. Dropped while the APIC is off."""
        if vector < 16:
            self._errors |= _ILLEGAL_VECTOR_RECEIVED
        elif self._words[SVR] & _ENABLED:
            self._requested |= 1 << vector
            self._processors.wake_cpu(self._number)

    def deliverable(self) -> int:
        """Return the vector that the CPU is to take next, if it takes any; 0 for none."""
        vector = self._requested.bit_length() - 1
        return vector if vector >> 4 > self._priority() >> 4 else 0

    def accept(self, vector: int) -> None:
        """Hear that the CPU has taken an interrupt."""
        self._requested &= ~(1 << vector)
        self._in_service |= 1 << vector

    def _priority(self) -> int:
        """Return the processor's priority (SDM volume 3, section 11.8.3.1)."""
        task, served = self._words[TPR], max(self._in_service.bit_length() - 1, 0)
        return task if task >> 4 >= served >> 4 else served & 0xF0

    def _end_of_interrupt(self) -> None:
        if self._in_service:
            self._in_service &= ~(1 << self._in_service.bit_length() - 1)

    # Interrupts to others

    def _send(self, command: int, destination: int) -> None:
        kind, vector = command >> 8 & 7, command & 0xFF
        if kind in (_FIXED, _LOWEST):
            if vector < 16:
                self._errors |= _ILLEGAL_VECTOR_SENT
                return
            targets = self._targets(command, destination)
            for target in targets[:1] if kind == _LOWEST else targets:
                target.request(vector)
        elif kind == _INIT and (command & _ASSERT or not command & _LEVEL):
            for target in self._targets(command, destination):
                target.reset()
                self._processors.reset_cpu(target._number)
        elif kind == _STARTUP:
            for target in self._targets(command, destination):
                self._processors.start_cpu(target._number, vector)

    def _targets(self, command: int, destination: int) -> list[LocalAPIC]:
        shorthand = command >> 18 & 3
        if shorthand == _SELF:
            return [self]
        if shorthand == _ALL:
            return list(self._peers)
        if shorthand == _OTHERS:
            return [peer for peer in self._peers if peer is not self]
        if command & _LOGICAL:
            return [peer for peer in self._peers if peer._is_in(destination)]
        return [peer for peer in self._peers if destination in (peer._words[ID] >> 24, 0xFF)]

    def _is_in(self, destination: int) -> bool:
        """Tell whether a logical destination names this APIC (SDM volume 3, section 11.6.2.2)."""
        own = self._words[LDR] >> 24
        if self._words[DFR] >> 28 == 0xF:
            return bool(own & destination)
        return bool(own & destination & 0xF) and (destination >> 4 in (own >> 4, 0xF))

    # The timer

    def expire(self) -> None:
        """Interrupt if the timer is due; from then on it waits for its next time, or for good."""
        if self.deadline is not None and self.deadline <= self._now():
            self.request(self._words[LVT_TIMER] & 0xFF)
            self._arm()

    def _period(self) -> int:
        """Return how long a whole count takes, in ns."""
        code = self._words[DIVIDE]
        shift = ((code & 3 | code >> 1 & 4) + 1) & 7
        return self._words[INITIAL] * CYCLE << shift

    def _arm(self) -> None:
        """Find out when the timer next interrupts, counted from when its count was written."""
        period, entry = self._period(), self._words[LVT_TIMER]
        self.deadline = None
        if not period or entry & _MASKED:
            return
        passed = (self._now() - self._timer_start) // period
        if entry & _PERIODIC or not passed:
            self.deadline = self._timer_start + (passed + 1) * period

    def _count(self) -> int:
        initial, period = self._words[INITIAL], self._period()
        if not period:
            return 0
        passed = self._now() - self._timer_start
        if self._words[LVT_TIMER] & _PERIODIC:
            passed %= period
        return max(0, initial - passed * initial // period)


def _vectors(page: bytes, start: int) -> int:
    """Return the 256 bits that lie in eight registers of a page."""
    words = (struct.unpack_from("<I", page, start + 0x10 * number)[0] for number in range(8))
    return sum(word << 32 * number for number, word in enumerate(words))
