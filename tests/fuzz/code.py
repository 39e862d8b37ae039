"""Guests that execute nonsense: random bytes, and random sequences of the instructions that are most dangerous.

Each case is a domain of its own on a real host, made from a number: its code, registers, page tables,
descriptors and privilege level. It must end by itself or by a kick, soon, whatever it has done. A case that
kills the process is found by its number: `tests.fuzz` runs the cases in another process.
"""

from __future__ import annotations

import random
import struct
import threading
import time
from dataclasses import dataclass

from hypervisor.arch.x86_64.cpu.overlay import R8, RAX, RCX, RDI, RDX, RSI, RSP, VMCB_PAGE, long_mode
from hypervisor.domains.domain import Domain
from hypervisor.domains.event_channel import VIRQ_TIMER
from hypervisor.domains.life import Reason, State
from hypervisor.host import Host
from hypervisor.split.console import Console
from tests.fuzz.lives import is_saved
from tests.x86_64 import cpu_of

MEMORY = 4 << 20
OURS = 0xA00000
"""Where a guest sometimes maps our own page."""
CODE, STACK, GDT, TSS, IDT, SHARED, CONSOLE = 0x100000, 0x180000, 0x195000, 0x196000, 0x9000, 0x1A0, 0x1A1
KERNEL_STACK = 0x1B0000
PATIENCE = 5.0
"""Seconds after which a guest that does not heed a kick has hung its thread."""
_TOP = (1 << 64) - 1

# What random bytes would seldom hit. An entry is code, "?" a random byte, "I" 4 bytes of an address.
_INSTRUCTIONS = """
0f30 | 0f32 | 0f05 | 480f07 | 0f07 | 0f34 | 0f35 | 0f01c1 | 0f01d9 | 0f01d8 | 0f01da | 0f01db | 0f01dc | 0f01dd
0f01de | 0f01df | 0f01d0 | 0f01d1 | 0f01f8 | 0f01f9 | 0f01c8 | 0f01c9 | 0faa | 0f06 | 0f08 | 0f09 | 0f31 | 0f33
0fa2 | f4 | fa | fb | fc | fd | cf | 48cf | 66cf | cb | 48cb | ca? ? | c2? ? | cc | cd? | cdf3 | f1 | ce | 0f0b
0f22c0 | 0f22d8 | 0f22d0 | 0f22e0 | 440f22c0 | 0f20c0 | 0f20d8 | 0f20e0 | 440f20c0 | 0f21f8 | 0f23f8 | 0f23c0
0f0114 25I | 0f011c25I | 0f01 0425I | 0f010c25I | 0f012425I | 0f013425I | 0f013c25I | 0f00d8 | 0f00d0 | 0f00e0
0f00e8 | 0f00c8 | 0f00c0 | 0f02c0 | 0f03c0 | 8ed0 | 8ed8 | 8ec0 | 8ee0 | 8ee8 | 0fa1 | 0fa9 | 0fb20425I
0fb40425I | 0fb50425I | ff2c25I | ff1c25I | 48ff2c25I | ffe0 | ffd0 | eb? | e8? ? 0000 | 75? | e2? | 0f85? ? 0000
ec | ed | ee | ef | e4? | e5? | e6? | e7? | 6c | 6d | 6e | 6f | f36c | f36d | f36e | f36f | f2a4 | f3a4 | f348a5
f348ab | f3aa | f3a6 | f2ae | a4 | a5 | aa | ab | 480fae0425I | 480fae0c25I | 0fae0425I | 0fae0c25I | 0fae1425I
0fae1c25I | 0fae2425I | 0fae2c25I | 0fae3c25I | 0faef0 | 0fc70c25I | 480fc70c25I | f00fc70c25I | f0480fb10c25I
f0 ff0425I | 48890425I | 488b0425I | c60425I? | 66c70425I? ? | c70425I? ? ? ? | 8704 25I | 0fc10425I | 50 | 58 | 9c
9d | 669d | 8f0425I | ff3425I | c8? ? ? | c9 | d9e5 | 9b | dbe3 | dd2425I | dd3425I | d92425I | d93425I | 0f77
0fae38 | f30fc7f8 | 0fc7f0 | 0fc7f8 | 0f18? | 0f0d? | 0f1f00 | 90 | f390 | 0fb8c0 | f30fb8c0 | 0f38f00425I
0f3a0fc0? | 660f3a63c0? | 660f38dbc0 | 660f7f0425I | 660f6f0425I | c5f877 | c4e27d18 00 | 62? ? ? ? ? | f30fae? | 0f0e
0f0f? ? ? | 0f01fa | 0f01fb | 0f01ee | 0f01ef | 0f01ca | 0f01cb | 0f01ff | 0f78c0 | 0f79c0 | 0fc730 | 660fc730
f30fc730 | 0f0138 | 0f013b | 67? | 66? | 65? ? | 64? ? | 2e? | f0? ? | 4f? ? | b8? ? ? ? | b9800000c0 | b9810000c0
b9820000c0 | b9840000c0 | b91b000000 | b9000100c0 | b9010100c0 | b9020100c0 | b9150101c0 | b9170101c0 | b9? ? 00 00
b93a000000 | b9770200 00 | b90008 0000 | 31c0 | 31d2 | 31c9 | 48c7c0? ? ? ? | 4831e4 | 48ffc8 | 48f7d0 | f7f1 | 48f7f9
b900000040 | b9000000400f30 | b9000000400f32 | b9000000408b0425I31d20f30 | b9a00100000f32
"""


def _patterns() -> list[list[str]]:
    patterns = []
    for entry in _INSTRUCTIONS.replace("\n", "|").split("|"):
        text = entry.replace(" ", "")
        if text:
            parts, at = [], 0
            while at < len(text):
                step = 1 if text[at] in "?I" else 2
                parts.append(text[at : at + step])
                at += step
            patterns.append(parts)
    return patterns


_PATTERNS = _patterns()


@dataclass(frozen=True)
class Ending:
    """How a case ended: the state of the domain, why, and how many kicks it took."""

    state: State
    reason: Reason | None
    crash: str
    kicks: int

    @property
    def word(self) -> str:
        """Say it in a word."""
        return self.reason.name if self.reason is not None else "kicked" if self.kicks else "waiting"


def address(rng: random.Random) -> int:
    """Return an address that matters: inside, at an edge, beyond, at the CPU's tables."""
    place = rng.choice(
        [CODE, STACK, GDT, TSS, IDT, OURS + 0x60, SHARED << 12, 0x1000, 0x2000, 0x3000, MEMORY, MEMORY - 8,
         0x3FFFFFF8, 0x40000000, 0x7FFFF000, 0xFEE00000, 0, VMCB_PAGE, 0x7FFF_FFFF_FFF8, 0xFFFF_8000_0000_0000,
         _TOP - 7, rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(22)]
    )  # fmt: skip
    return (place + rng.choice([0, 0, 0, 1, 7, -1, -4, rng.randrange(4096)])) & _TOP


def code(rng: random.Random, length: int) -> bytes:
    """Return instructions: dangerous ones, or nothing but random bytes."""
    if rng.random() < 0.2:
        return rng.randbytes(length)
    made = bytearray()
    while len(made) < length:
        if rng.random() < 0.002:  # a long row of one instruction, or of one after a prefix
            row = code(rng, rng.randrange(2, 12)) if rng.random() < 0.3 else _encode(rng, rng.choice(_PATTERNS))
            made += (rng.choice([b"", b"\xf0", b"\x66", b"\x48"]) + row) * rng.randrange(50, 700)
        if rng.random() < 0.1:
            made += rng.randbytes(rng.randrange(1, 8))
            continue
        if rng.random() < 0.05:
            made.append(0xF0)
        made += _encode(rng, rng.choice(_PATTERNS))
    return bytes(made[:length])


def _encode(rng: random.Random, pattern: list[str]) -> bytes:
    made = bytearray()
    for part in pattern:
        if part == "?":
            made.append(rng.randrange(256))
        elif part == "I":
            made += struct.pack("<I", address(rng) & 0x7FFFFFFF)
        else:
            made += bytes.fromhex(part)
    return bytes(made)


def _descriptors(rng: random.Random, domain: Domain) -> None:
    """Write a GDT of good and random entries, a TSS, and an IDT of good, random and missing gates."""
    memory, regs = domain.memory, cpu_of(domain).overlay.regs
    table = [0, 0xAF9B000000FFFF, 0xCF93000000FFFF, 0xCFF3000000FFFF, 0xAFFB000000FFFF, 0xCF9B000000FFFF]
    table += [0x9B000000FFFF, 0x00008B19_60000067, 0, 0xEC00_0008_0000, 0x8500_0038_0000]
    table += [rng.getrandbits(64) | 1 << 47 for _ in range(20)]
    memory.write(GDT, struct.pack(f"<{len(table)}Q", *table))
    regs.gdt.base, regs.gdt.limit = GDT, 8 * len(table) - 1
    regs.idt.base, regs.idt.limit = IDT, 0xFFF
    regs.tr.base, regs.tr.limit, regs.tr.selector, regs.tr.flags = TSS, 0x67, 0x38, 0x8B00
    memory.write_u64(TSS + 4, KERNEL_STACK)
    memory.write_u64(TSS + 36, rng.choice([KERNEL_STACK, address(rng)]))
    handler = CODE + 0x2000
    for vector in range(256):
        kind = rng.random()
        if kind < 0.6:
            target, flags = handler, rng.choice([0x8E, 0xEE, 0x8F])
        elif kind < 0.9:
            target, flags = CODE + rng.randrange(4096), 0x8E | rng.choice([0, 0x60])
        else:
            target, flags = address(rng), rng.randrange(256)
        selector = 8 if rng.random() < 0.9 else rng.randrange(0x100)
        gate = struct.pack(
            "<HHBBHII", target & 0xFFFF, selector, rng.choice([0, 0, 0, 1, 2]), flags, target >> 16 & 0xFFFF,
            target >> 32, 0,
        )  # fmt: skip
        memory.write(IDT + 16 * vector, gate)


def _tables(rng: random.Random, domain: Domain) -> None:
    """Let user code see the memory, and sometimes spoil the page tables."""
    memory = domain.memory
    for at in (0x1000, 0x2000):
        memory.write_u64(at, memory.read_u64(at) | 7)
    if rng.random() < 0.2:  # our own page, through which interrupts are delivered
        memory.write_u64(0x3000 + 8 * (OURS >> 21), VMCB_PAGE | 0x87)
    if rng.random() < 0.3:
        for _ in range(rng.randrange(1, 20)):
            entry = rng.choice([rng.getrandbits(64), address(rng) & ~0xFFF | rng.randrange(512), 0x2007, 0x1007])
            memory.write_u64(
                rng.choice([0x1000, 0x2000, 0x3000]) + 8 * rng.choice([0, 1, 511, rng.randrange(512)]), entry
            )


def build(host: Host, number: int) -> Domain:
    """Return the domain of a case, ready to run."""
    rng = random.Random(number)
    domain = host.create([(0, MEMORY)])
    cpu = cpu_of(domain)
    long_mode(cpu.engine, cpu.overlay)
    _descriptors(rng, domain)
    _tables(rng, domain)
    memory = domain.memory
    memory.write(CODE, code(rng, 0x2000))
    # A handler that counts the return address on by one, so that most cases go far, and one that is nonsense.
    step = bytes.fromhex("48ff042448cf" if rng.random() < 0.5 else "4883c40848ff042448cf")
    memory.write(CODE + 0x2000, step if rng.random() < 0.8 else code(rng, 0x100))
    domain.place_shared_info(SHARED)
    domain.callback_vector = rng.choice([0, 0xF3, rng.randrange(256)])
    domain.params[0] = 2 << 56 | domain.callback_vector
    if rng.random() < 0.5:
        domain.events.unmask(domain.events.bind_virq(VIRQ_TIMER, 0))
    for register in range(16):
        cpu.general[register] = rng.choice([0, 1, 5, address(rng), rng.getrandbits(64), rng.randrange(64)])
    cpu.general[RAX] = rng.choice([cpu.general[RAX], rng.randrange(40)])
    cpu.general[RSP] = rng.choice([STACK, STACK, STACK, address(rng)])
    if rng.random() < 0.3:
        cpu.general[RCX] = rng.choice(
            [0xC0000080, 0xC0000081, 0xC0010117, 0x277, 0xC0000102, 0x1B, rng.getrandbits(32)]
        )
        cpu.general[RDX], cpu.general[RDI] = rng.randrange(4), address(rng)
        cpu.general[RSI], cpu.general[R8] = address(rng), rng.randrange(4096)
    if rng.random() < 0.4:
        cpu.overlay.set_code64(0x23, 3)
        cpu.overlay.set_stack(0x1B, 3)
    cpu.overlay.flags = 2 | rng.choice([0, 0x200, 0x3200, rng.getrandbits(18)])
    if rng.random() < 0.1:
        cpu.overlay.enter_flat32()
    if rng.random() < 0.3:
        cpu.overlay.efer.value |= rng.choice([0x1000, 0x4000, 1])
    cpu.overlay.regs.rip = CODE + (rng.randrange(16) if rng.random() < 0.9 else rng.randrange(0x2000))
    domain.vcpus[0].up = True
    domain.life.pauses, domain.life.state = 0, State.RUNNING
    return domain


def execute(domain: Domain, seconds: float = 0.01) -> Ending:
    """Run a guest for a while, then kick it until it comes back. Raises AssertionError if it does not heed that.

    And if it has found an error of the hypervisor's own.
    """
    kicks, over = 0, threading.Event()

    def kick() -> None:
        nonlocal kicks
        end = time.monotonic() + PATIENCE
        wait = seconds
        while not over.wait(wait):
            domain.vcpus.kick()
            kicks += 1
            wait = 0.0005
            if time.monotonic() > end:
                raise SystemExit(f"the guest does not stop: {cpu_of(domain).overlay.regs.rip:#x}")

    kicker = threading.Thread(target=kick)
    kicker.start()
    try:
        for _ in range(50):
            if not domain.run() or kicks:
                break
    finally:
        over.set()
        kicker.join()
    assert "internal error" not in domain.life.crash, domain.life.crash
    return Ending(domain.life.state, domain.life.reason, domain.life.crash, kicks)


def case(host: Host, number: int, seconds: float = 0.01) -> Ending:
    """Build, run and destroy one case."""
    domain = build(host, number)
    return lived(host, domain, number, seconds, Console(domain, CONSOLE, domain.events.alloc_unbound(0)))


def lived(host: Host, domain: Domain, number: int, seconds: float, console: Console) -> Ending:
    """Run a guest to whose console somebody types, save or clone it, as its number says, and end it."""
    rng = random.Random(-number)
    view = domain.memory.frame(rng.randrange(0x200))
    try:
        console.write(b"typed" * rng.choice([0, 1, 300]))
        ending = execute(domain, seconds)
        if rng.random() < 0.1:
            is_saved(host, domain, clone=rng.random() < 0.5, live=rng.random() < 0.5)
        console.write(b"typed")
        return ending
    finally:
        host.destroy(domain)
        assert console.write(b"late") == 0 and not any(view)
