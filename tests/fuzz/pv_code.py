"""Paravirtual kernels that execute nonsense, with hypercalls strewn in: `tests.fuzz.code` for the other CPU."""

from __future__ import annotations

import random
import struct

from hypervisor.host import Host
from tests.fuzz import code
from tests.guests.pv_guest import PVGuest
from tests.unit.loader_images import kernel, note

RAM, CODE, SIZE = 4 << 20, 0x100000, 0x4000
_NOTES = note(1, struct.pack("<Q", CODE)) + note(3, struct.pack("<Q", 0))
_TRAPS = 0x800
"""Where in the code a trap table lies, for some cases."""
_NUMBERS = (0, 1, 2, 3, 12, 13, 14, 17, 18, 20, 21, 22, 23, 24, 25, 26, 29, 32)


def text(rng: random.Random) -> bytes:
    """Return the kernel: it sets its traps, then executes instructions, one in ten of them a hypercall."""
    made = bytearray(code.code(rng, 0xF00))
    for _ in range(rng.choice([0, 20, 60])):
        at = rng.randrange(len(made) - 16)
        number = rng.choice([*_NUMBERS, rng.randrange(64)])
        call = b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"  # mov eax, number; syscall
        made[at : at + len(call)] = call
    if rng.random() < 0.7:  # HYPERVISOR_set_trap_table: {u8 vector, flags; u16 cs; u64 address}, ended by address 0
        begin = b"\xbf" + struct.pack("<I", CODE + _TRAPS) + bytes.fromhex("31c0 0f05")
        made[: len(begin)] = begin
        entries = b"".join(
            struct.pack("<BBHxxxxQ", vector, rng.choice([0, 3, 4]), 0xE033, CODE + rng.randrange(0xF00))
            for vector in range(32)
        )
        made[_TRAPS : _TRAPS + len(entries) + 16] = entries + bytes(16)
    return bytes(made)


def case(host: Host, number: int, seconds: float = 0.01) -> code.Ending:
    """Build, run and destroy one case."""
    rng = random.Random(number)
    guest = PVGuest(host, kernel(text(rng), _NOTES, size=SIZE), ram=RAM)
    for register in range(16):
        value = rng.choice(
            [0, 1, rng.randrange(64), CODE + rng.randrange(SIZE), code.address(rng), rng.getrandbits(64)]
        )
        if register != 4 or rng.random() < 0.1:
            guest.cpu.general[register] = value
    host.unpause(guest.domain)
    try:
        return code.lived(host, guest.domain, number, seconds, guest.console)
    finally:
        with host.lock:
            host.xenstore.release(guest.domain.domid)
            host.xenstore.rm(guest.home)
