"""A virtual CPU as all but its architecture sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from hypervisor.memory.guest_memory import Memory


class Outcome(Enum):
    """Why `run` came back."""

    HALTED = "halted"
    """Nothing to do until the next interrupt."""
    STOPPED = "stopped"
    """Somebody asked for it."""
    OFF = "off"
    """This CPU will never go on: it waits for an interrupt, with interrupts off."""
    CRASHED = "crashed"
    """A fault that cannot be delivered: see `VCPU.crash`."""


class VCPU(Protocol):
    """A CPU of a domain, off until its first state is set. It runs on one thread at a time."""

    number: int
    memory: Memory
    crash: str
    """Why the CPU crashed, for people."""
    initial_size: int
    """Bytes of the state in which a guest starts a vCPU (VCPUOP_initialise)."""

    # Running

    def run(self) -> Outcome:
        """Execute until something has to be decided outside. Raises nothing that the guest can cause."""

    def stop(self) -> None:
        """Make `run` come back soon, from any thread. Repeat it until it has: a stop can be lost at a start."""

    def halt_here(self) -> None:
        """From an exit: let `run` come back after this instruction, as if asked to stop."""

    def give_up(self) -> None:
        """From an exit: let `run` come back, for the guest waits for another vCPU."""

    @property
    def gave_up(self) -> bool:
        """Tell whether the last run ended because the guest waits for another vCPU."""

    def exit_at_pause(self, on: bool) -> None:
        """Let the run end where the guest waits for another vCPU, or not."""

    def initialise(self, state: bytes) -> None:
        """Take the state in which a guest starts it, while it does not run. Raises XenError for one that is none."""

    def start(self, page: int) -> None:
        """Be at the start of a page, as after power-on."""

    def close(self) -> None:
        """Free what runs it, while it does not run; it is of no use any more."""

    # Interrupts

    def upcall(self, vector: int) -> None:
        """Let the guest take its events: by an interrupt, if it has chosen a vector (0: none)."""

    def own_upcall(self, vector: int) -> None:
        """Let the guest take its events by a vector that this vCPU has chosen."""

    @property
    def deadline(self) -> int | None:
        """When a timer of the CPU's own interrupts, in system time; `expire` is to be called then."""

    def expire(self) -> None:
        """Do what the CPU's timer does when it is due."""

    def interrupted(self) -> None:
        """Hear that another vCPU has sent it an interrupt."""

    # Hypercalls

    @property
    def wide(self) -> bool:
        """Tell whether 64-bit code runs."""

    def argument(self, number: int) -> int:
        """Return an argument of the hypercall in which the CPU is, of 64-bit code; the first is 0."""

    def answer(self, result: int) -> None:
        """Let a hypercall that is over return something else."""

    # Memory

    def translate(self, address: int, root: int | None = None) -> int:
        """Return the physical address of a virtual one. Raises BadAddress."""

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of a virtual range. Raises BadAddress."""

    def write(self, address: int, data: bytes) -> None:
        """Overwrite a virtual range. Raises BadAddress, with nothing or the first pages written."""

    def map_extra(self, frame: int) -> None:
        """Show the guest a frame beyond its memory. Raises BadAddress where something of ours lies."""

    def map_device(
        self,
        start: int,
        length: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> None:
        """Have accesses to addresses where no memory is done by `read` and `write`.

        They are given address, size and value. Pages that the range touches are theirs as a whole; harmless where
        they are it already. While the CPU does not run, or in an exit. Raises BadAddress where something is.
        """

    def forget_code(self, start: int, end: int) -> None:
        """Let bytes of `Memory.bytes` that the host has written be translated anew; on the thread that runs it."""


class Platform(Protocol):
    """What virtual CPUs ask of the machine around them, on the thread that runs them."""

    def hypercall(self, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
        """Do a hypercall of up to five arguments and return its result, negative for an error."""

    @property
    def port_in(self) -> Callable[[int, int], int]:
        """What reads a port, given its number and the size, 1, 2 or 4 bytes, where the architecture has ports."""

    @property
    def port_out(self) -> Callable[[int, int, int], None]:
        """What writes a port, given its number, the size and the value."""

    def write_page(self, address: int, content: bytes) -> None:
        """Overwrite a page of the guest's RAM, code or not. Raises BadAddress where it has none of its own."""

    def reset_cpu(self, number: int) -> None:
        """Take a vCPU offline."""

    def start_cpu(self, number: int, page: int) -> None:
        """Let a vCPU that is offline begin at the start of a page, a frame number."""

    def wake_cpu(self, number: int) -> None:
        """Let a vCPU take an interrupt that another has sent it."""
