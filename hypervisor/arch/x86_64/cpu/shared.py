"""Several vCPUs of a domain in one engine, in turn.

Engines cache the code that they have translated and notice only their own writes to it. With an engine for each
vCPU of a domain, code that one of them writes (alternatives, jump labels, modules, a user's compiler) runs stale
on the others, and nothing tells which pages to forget: QEMU's record of the pages that hold code is the engine's
own, Unicorn's hooks for writes cost 0.6 µs each and keep every store on the slow path. What is sound, forgetting
all code at each change of vCPU, was measured: 18 ms of CPU time a change in a booted Linux, 60 times the work of a
fork, and with turns of 10 ms a shell loop of half a second did not end in 100.

So all vCPUs of a domain run in **one** engine: one cache of code, whose detection of self-modifying code sees all
writes, and atomic instructions that are whole, since the engine runs one instruction at a time. At a change of
vCPU its registers are copied out and the other's in, and the TLB is flushed: 7 to 12 µs, and 0.25 µs for each page
that is touched next (measured). A change can only come between two blocks of translated code. Two busy loops take
twice as long as one and 5 to 15 % more. The price is that a domain's vCPUs share one thread.

A vCPU that waits for another must not use up its turn for that: PAUSE, which each such loop has, ends it when
another vCPU has something to do (`SharingVCPU.exit_at_pause`), by an intercept of SVM's that costs nothing else.

Interrupts: the engine takes one vector at a time. First come the local APIC's, by their priority, each of which
ends by an EOI, where the next can be offered; then Xen's callback, which has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from unicorn import UC_HOOK_INSN, UC_HOOK_INSN_INVALID, UC_HOOK_INTR, Uc
from unicorn import x86_const as x86

from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64.cpu.apic import LocalAPIC, Processors
from hypervisor.arch.x86_64.cpu.code import TranslatedCode
from hypervisor.arch.x86_64.cpu.engine import Platform, hook_ports, new_engine
from hypervisor.arch.x86_64.cpu.holes import Holes
from hypervisor.arch.x86_64.cpu.mmio import MMIO
from hypervisor.arch.x86_64.cpu.overlay import PAUSE_EXIT, VMCB_PAGE, Overlay, Parked, close_engine
from hypervisor.arch.x86_64.cpu.vcpu import VCPU
from hypervisor.memory.guest_memory import PAGE, Memory

_SIGNATURE_LEAF = 1
_PAUSE = b"\x90"


class SharedPlatform(Platform, Processors, Protocol):
    """What vCPUs that share an engine ask of the machine around them."""


class SharedEngine:
    """An engine and its vCPUs, `cpus`; the first has it at the beginning. `now` is a clock in ns."""

    def __init__(
        self,
        count: int,
        memory: Memory,
        platform: SharedPlatform,
        now: Callable[[], int],
        code_cache: int = 1 << 20,
        ranges: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.engine = engine = new_engine(memory, code_cache, ranges)
        self.overlay = Overlay(engine)
        self.holes = Holes(engine, ranges or ((0, memory.size),), VMCB_PAGE)
        self.mmio = MMIO(engine, self.holes)
        self.code = TranslatedCode(engine, memory, ranges)
        self.mapped: set[int] = set()
        self.apic_address: int | None = None
        self._apics = apics = list[LocalAPIC]()
        apics += (LocalAPIC(number, apics, platform, now) for number in range(count))
        self.cpus = [SharingVCPU(number, memory, platform, self, apics[number]) for number in range(count)]
        self.resident = self.cpus[0]
        self.resident.come()
        hook = engine.hook_add
        hook(UC_HOOK_INTR, lambda *event: self.resident._on_exception(*event))
        hook(UC_HOOK_INSN_INVALID, lambda *event: self.resident._on_invalid(*event))
        for instruction, name in (
            (x86.UC_X86_INS_SYSCALL, "_on_syscall"),
            (x86.UC_X86_INS_CPUID, "_on_cpuid"),
        ):
            hook(UC_HOOK_INSN, self._to_resident(name), None, 1, 0, instruction)
        hook_ports(engine, platform)

    def _to_resident(self, name: str) -> Callable[..., Any]:
        return lambda *event: getattr(self.resident, name)(*event)

    def change(self, cpu: SharingVCPU) -> None:
        """Give the engine to a vCPU; between runs."""
        self.resident.go()
        self.resident = cpu
        cpu.come()

    def map_apic(self, address: int) -> None:
        """Show each vCPU its local APIC at an address; harmless when it is there already."""
        if self.apic_address is None:
            self.holes.clear(address)
            self.engine.mmio_map(address, PAGE, self._read_apic, None, self._write_apic, None)
            self.apic_address = address

    def _read_apic(self, engine: Uc, offset: int, size: int, _: Any) -> int:
        return self.resident.read_register(offset, size)

    def _write_apic(self, engine: Uc, offset: int, size: int, value: int, _: Any) -> None:
        self.resident.write_register(offset, size, value)

    def close(self) -> None:
        """Free the engine."""
        vars(self.overlay).clear()
        self._apics.clear()
        vars(self).clear()


class SharingVCPU(VCPU):
    """A vCPU that has its engine only while it is the engine's resident.

    `overlay` and `general` are its registers wherever they are; take them anew after a change. What concerns
    interrupts, `upcall`, `start` and `reset`, may be called whether it is resident or not.
    """

    def __init__(self, number: int, memory: Memory, platform: Platform, shared: SharedEngine, apic: LocalAPIC) -> None:
        self._parked = Parked(shared.overlay)
        self._set_up(number, memory, platform, self._parked, shared.mapped)
        self._shared = shared
        self._translated = shared.code
        self._holes = shared.holes
        self._mmio = shared.mmio
        self.apic = apic
        self.gave_up = False
        """True when the last run ended because the guest waits for another vCPU."""
        self._callback = self._offered = 0
        """The vector of Xen's callback if it is wanted; the vector that the CPU was offered; 0 for none."""
        self._offered_apic = False

    # Residence

    def reside(self) -> None:
        """Take the engine, unless it is this vCPU's already."""
        if self._shared.resident is not self:
            self._shared.change(self)

    def go(self) -> None:
        """Leave the engine; `SharedEngine.change` calls it."""
        self._notice()
        self._shared.overlay.leave(self._parked)
        self.overlay = self._parked
        self.general = self._parked.general

    def come(self) -> None:
        """Take the engine; `SharedEngine.change` calls it."""
        live = self._shared.overlay
        live.take(self._parked)
        self.overlay = live
        self.general = live.general

    def close(self) -> None:
        """Free the engine, which is of no use to the others any more."""
        shared, engine = self._shared, self.engine
        kept = {"number": self.number, "crash": self.crash, "running": False, "_stop": False}
        vars(self).clear()
        vars(self).update(kept)
        if vars(shared):
            shared.close()
            close_engine(engine)

    # Running

    def run(self) -> Outcome:
        """Execute until something has to be decided outside."""
        self.reside()
        self.gave_up = False
        self._offer()
        while (outcome := super().run()) is Outcome.HALTED and self._offer():
            pass  # an interrupt waited behind another, which the guest has taken meanwhile
        self._notice()
        return outcome

    def exit_at_pause(self, on: bool) -> None:
        """Let PAUSE end the run, or do nothing; while resident."""
        self.overlay.exit_at_pause(on)

    def give_up(self) -> None:
        """From a hook: let `run` come back, for the guest waits for another vCPU."""
        self.gave_up = True
        self.halt_here()

    def _on_exception(self, engine: Uc, vector: int, data: Any) -> None:
        if vector != PAUSE_EXIT:
            super()._on_exception(engine, vector, data)
            return
        overlay = self.overlay
        overlay.exception_is_int.value = 0
        overlay.regs.rip += self.length_of(_PAUSE)
        overlay.exit_at_pause(False)
        self.give_up()

    # Interrupts

    @property
    def deadline(self) -> int | None:  # type: ignore[override]
        """When the local APIC's timer interrupts."""
        return self.apic.deadline

    def expire(self) -> None:
        """Do what the local APIC's timer does when it is due."""
        self.apic.expire()

    def own_upcall(self, vector: int) -> None:
        """Let the guest take its events by a vector of the APIC's (HVMOP_set_evtchn_upcall_vector)."""
        self.apic.request(vector)

    def upcall(self, vector: int) -> None:
        """Let the guest take its events by Xen's callback."""
        if vector:
            self._notice()
            self._callback = vector
            self._offer()

    def interrupted(self) -> None:
        """Hear that an interrupt of the APIC's may wait."""
        self._notice()
        self._offer()

    def start(self, page: int) -> None:
        """Put the CPU at the start of a page in real mode; not while it is resident."""
        signature = self.platform.cpuid(self, _SIGNATURE_LEAF, 0)[0]
        self._callback = self._offered = 0
        self.overlay.cancel_interrupt()
        self.overlay.enter_real(page, signature)

    def withdraw(self) -> None:
        """Take back what the CPU was offered and has not taken; the next run offers it again."""
        if self.overlay.interrupt_pending:
            self.overlay.cancel_interrupt()
            self._offered = 0

    def _notice(self) -> None:
        """Find out whether the CPU has taken the interrupt that it was offered."""
        if self._offered and not self.overlay.interrupt_pending:
            if self._offered_apic:
                self.apic.accept(self._offered)
            else:
                self._callback = 0
            self._offered = 0

    def _offer(self) -> bool:
        """Offer the CPU what it is to take next; tell whether there is something."""
        self._notice()
        vector = self.apic.deliverable()
        self._offered_apic = vector > 0
        self._offered = vector or self._callback
        if self._offered:
            self.overlay.interrupt(self._offered)
        else:
            self.overlay.cancel_interrupt()
        return self._offered > 0

    # The local APIC

    def read_register(self, offset: int, size: int) -> int:
        """Answer a guest's read of its APIC."""
        self._notice()
        value = self.apic.read(offset) >> 8 * (offset & 3)
        return value & (1 << 8 * min(size, 4)) - 1

    def write_register(self, offset: int, size: int, value: int) -> None:
        """Do a guest's write to its APIC, which wants 32 bits at once."""
        if size == 4:
            self._notice()
            self.apic.write(offset, value & 0xFFFFFFFF)
            self._offer()

    def map_apic(self, address: int, page: bytes) -> None:
        """Show the guest a local APIC with these registers."""
        self._shared.map_apic(address)
        self.apic.load(page)

    def apic_page(self, address: int) -> bytes:
        """Return the registers of the local APIC; nothing if the guest has none."""
        self._notice()
        return self.apic.page() if self._shared.apic_address == address else b""

    def load_apic(self, address: int, page: bytes) -> None:
        """Set the registers of the local APIC."""
        self.apic.load(page)
