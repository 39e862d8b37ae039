"""What an exit costs, by kind: a few instructions that do nothing else, against a bare Unicorn hook of the kind.

Guests run on the caller's thread (`Host.step`), but for the wake from a halt by another thread, which goes through
the scheduler; its limit is two threads that hand a token to each other.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INSN_INVALID, UC_MODE_64, Uc
from unicorn import x86_const as x86

from hypervisor.arch.x86_64.cpu.overlay import Overlay, long_mode
from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from tests.benchmarks.figures import Figure, median, times
from tests.benchmarks.machine import MIB, SECONDS
from tests.benchmarks.processes import run
from tests.benchmarks.stage import Stage, say
from tests.x86_64 import cpu_of

EXITS = 40_000
WAKES = 5_000
ROUNDS = 5
CODE, ARGUMENT, GDT, IDT, SHARED = 0x100000, 0x180000, 0x190000, 0x191000, 0x192000
VECTOR = 0xF3
_OFF = "fa f4"  # cli; hlt: the end of the domain
_HANDLER = (
    f"c6 04 25 {struct.pack('<I', SHARED).hex()} 00"  # movb $0, evtchn_upcall_pending
    f"48 c7 04 25 {struct.pack('<I', SHARED + 8).hex()} 00 00 00 00"  # movq $0, evtchn_pending_sel
    f"48 c7 04 25 {struct.pack('<I', SHARED + 0x800).hex()} 00 00 00 00"  # movq $0, evtchn_pending[0]
)
_RETURN = "48 cf"  # iretq


@dataclass(frozen=True)
class Kind:
    """An exit: how it is called, the instructions that cause it, and the hook of the limit."""

    name: str
    code: str
    hook: tuple[int, ...] = ()


_SEND = f"b8 20 00 00 00 bf 04 00 00 00 be {struct.pack('<I', ARGUMENT).hex()} 0f 01 c1"
KINDS = (
    Kind("hypercall (xen_version)", "b8 11 00 00 00 31 ff 0f 01 c1", (UC_HOOK_INSN_INVALID,)),
    Kind("CPUID", "b8 00 00 00 40 31 c9 0f a2", (UC_HOOK_INSN, x86.UC_X86_INS_CPUID)),
    Kind("port input", "e4 60", (UC_HOOK_INSN, x86.UC_X86_INS_IN)),
    Kind("port output", "e6 80", (UC_HOOK_INSN, x86.UC_X86_INS_OUT)),
    Kind("event channel notify to a backend", _SEND, (UC_HOOK_INSN_INVALID,)),
)


def benchmark(stage: Stage) -> list[Figure]:
    """Count exits a second, by kind."""
    say("exits by kind")
    raw = run("tests.benchmarks.exits")
    note = "Limit: a Unicorn engine with nothing but a Python hook that makes the exit good by the public interface."
    figures = [_figure(f"exits a second: {kind.name}", raw[kind.name], note) for kind in KINDS]
    halt = "exits a second: HLT, woken on the same thread by an event; limit: emu_start to HLT"
    figures.append(_figure(halt, raw["halt"], "Ours: event queued, raised, interrupt taken, handler, HLT again."))
    wake = "round trips a second of an event to a halted guest on a pCPU and its event back; limit: two threads"
    figures.append(_figure(wake, raw["wake"], "Limit: two threads that hand each other a semaphore."))
    return figures


def _figure(what: str, raw: list[float], note: str) -> Figure:
    ours, limit = raw
    return Figure(what, f"{ours:,.0f}", f"{limit:,.0f}", times(ours / limit), note=note)


# Ours


def machine_code(body: str, count: int) -> bytes:
    """Return a loop around some instructions that leave R12 alone."""
    loop = bytes.fromhex(body) + bytes.fromhex("49 ff cc")  # dec r12
    back = struct.pack("b", -(len(loop) + 2))
    return b"\x49\xc7\xc4" + struct.pack("<i", count) + loop + b"\x75" + back + bytes.fromhex(_OFF)


class Bare:
    """A domain with nothing in it but some instructions, in 64-bit mode, and an event channel to us."""

    def __init__(self, host: Host, code: bytes, heard: Callable[[], None], handler_code: str = "") -> None:
        self.host = host
        self.domain: Domain = host.create([(0, 4 * MIB)])
        domain, memory = self.domain, self.domain.memory
        cpu = cpu_of(domain)
        with host.lock:
            domain.events.place_shared_info(SHARED >> 12)
            self.port = domain.events.alloc_unbound(0)
            domain.events.connect_backend(self.port, heard)
            domain.events.unmask(self.port)
        long_mode(cpu.engine, cpu.overlay)
        # null, 64-bit code, data
        memory.write(GDT, struct.pack("<3Q", 0, 0xAF9B000000FFFF, 0xCF93000000FFFF))
        handler = CODE + 0x1000
        gate = struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0)
        memory.write(IDT + 16 * VECTOR, gate)
        memory.write(handler, bytes.fromhex(_HANDLER + handler_code + _RETURN))
        memory.write(CODE, code)
        memory.write(ARGUMENT, struct.pack("<I", self.port))
        regs = cpu.overlay.regs
        regs.gdt.base, regs.gdt.limit = GDT, 23
        regs.idt.base, regs.idt.limit = IDT, 0xFFF
        regs.rip = CODE
        domain.callback_vector = VECTOR
        domain.vcpus[0].up = True

    def start(self) -> None:
        """Let it run, on a pCPU or by `step`."""
        self.host.unpause(self.domain)

    def end(self) -> None:
        """Destroy it. Raises RuntimeError when it has crashed."""
        crash = self.domain.life.crash
        self.host.destroy(self.domain)
        if crash:
            raise RuntimeError(crash)


def ours(kind: Kind) -> float:
    """Return exits a second."""
    heard: list[None] = []
    bare = Bare(Host(64 * MIB), machine_code(kind.code, EXITS), lambda: heard.append(None))
    bare.start()
    heard.clear()
    begun = time.perf_counter()
    while bare.host.step(bare.domain):
        pass
    taken = time.perf_counter() - begun
    bare.end()
    if kind.code == _SEND and len(heard) != EXITS:
        raise RuntimeError(f"{len(heard)} of {EXITS} events were heard")
    return EXITS / taken


_HALT_LOOP = bytes.fromhex("fb f4 eb fc")  # sti; hlt; again


def halts() -> float:
    """Return how often a second an event wakes a halted guest by `step`."""
    bare = Bare(Host(64 * MIB), _HALT_LOOP, _nothing)
    bare.start()
    domain, step = bare.domain, bare.host.step
    step(domain)
    begun = time.perf_counter()
    for _ in range(EXITS):
        domain.events.notify(bare.port)
        step(domain)
    taken = time.perf_counter() - begun
    bare.end()
    return EXITS / taken


def wakes() -> float:
    """Return round trips a second between this thread and a guest on a pCPU, which answers each event by one."""
    back = threading.Semaphore(0)
    host = Host(64 * MIB, 1)
    bare = Bare(host, _HALT_LOOP, back.release, _SEND)
    host.start()
    bare.start()
    domain, port = bare.domain, bare.port
    if not back.acquire(timeout=SECONDS):  # connecting has sent one
        raise TimeoutError("the guest does not answer")
    begun = time.perf_counter()
    for _ in range(WAKES):
        domain.events.notify(port)
        if not back.acquire(timeout=SECONDS):
            raise TimeoutError(f"the guest does not answer: {domain.life.crash}")
    taken = time.perf_counter() - begun
    host.pause(domain)
    bare.end()
    host.stop()
    return WAKES / taken


# The limits


def _engine(code: bytes) -> Uc:
    engine = Uc(UC_ARCH_X86, UC_MODE_64)
    engine.mem_map(0, 4 * MIB)
    long_mode(engine, Overlay(engine))
    engine.mem_write(CODE, code)
    return engine


def limit(kind: Kind) -> float:
    """Return exits a second of a bare hook."""
    engine = _engine(machine_code(kind.code, EXITS))
    hook = kind.hook[0]
    if hook == UC_HOOK_INSN_INVALID:
        engine.hook_add(hook, _skip)
    else:
        callbacks: dict[int, Callable[..., Any]] = {
            x86.UC_X86_INS_CPUID: _cpuid,
            x86.UC_X86_INS_IN: _zero,
            x86.UC_X86_INS_OUT: _nothing,
        }
        engine.hook_add(hook, callbacks[kind.hook[1]], None, 1, 0, kind.hook[1])
    begun = time.perf_counter()
    engine.emu_start(CODE, 0)
    taken = time.perf_counter() - begun
    if engine.reg_read(x86.UC_X86_REG_R12) != 0:
        raise RuntimeError("the engine stopped early")
    return EXITS / taken


def _skip(engine: Uc, _: Any) -> bool:
    engine.reg_write(x86.UC_X86_REG_RIP, engine.reg_read(x86.UC_X86_REG_RIP) + 3)
    return True


def _cpuid(engine: Uc, _: Any) -> int:
    return 1


def _zero(engine: Uc, port: int, size: int, _: Any) -> int:
    return 0


def _nothing(*_: Any) -> None:
    """Stand for a device."""


def limit_of_halts() -> float:
    """Return how often a second a bare engine runs to a HLT."""
    engine = _engine(_HALT_LOOP)
    begun = time.perf_counter()
    for _ in range(EXITS):
        engine.emu_start(CODE, 0)
    return EXITS / (time.perf_counter() - begun)


def limit_of_wakes() -> float:
    """Return round trips a second of two threads."""
    there, back = threading.Semaphore(0), threading.Semaphore(0)

    def answer() -> None:
        for _ in range(WAKES):
            there.acquire()
            back.release()

    thread = threading.Thread(target=answer)
    thread.start()
    begun = time.perf_counter()
    for _ in range(WAKES):
        there.release()
        back.acquire()
    taken = time.perf_counter() - begun
    thread.join()
    return WAKES / taken


def main() -> dict[str, list[float]]:
    """Return the medians, ours and the limit's by turns."""
    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        kind.name: (lambda kind=kind: ours(kind), lambda kind=kind: limit(kind))  # type: ignore[misc]
        for kind in KINDS
    }
    pairs |= {"halt": (halts, limit_of_halts), "wake": (wakes, limit_of_wakes)}
    found: dict[str, list[float]] = {}
    for name, (mine, other) in pairs.items():
        runs = [(mine(), other()) for _ in range(ROUNDS)]
        found[name] = [median([each for each, _ in runs]), median([each for _, each in runs])]
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
