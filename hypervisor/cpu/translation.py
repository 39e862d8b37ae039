"""A limit to what Unicorn 2.1.4 translates at once, without which a guest can end the process.

Unicorn translates up to 512 instructions into one block of code. Its translator has room for 512 temporary
values of such a block, some 50 of them taken, and does not look whether there is room left; some
instructions take one for good (in 2.1.4 ``mov`` from a control register, ``mov`` to FS or GS, FXAM, FLDENV,
PALIGNR and others). 464 of one of these in a row overwrite the translator's own pointers and the process
dies of it: a ring-0 or user program of less than 2 KiB (found by `tests.fuzz`).

Unicorn has no setting for the length of a block; it is a constant in the code of ``tb_gen_code``, twice.
`limit_blocks` writes a smaller one there, in this process only, and proves that it is obeyed.
"""

from __future__ import annotations

import ctypes
import mmap

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc, UcError
from unicorn.unicorn_py3.unicorn import uclib

INSTRUCTIONS = 96
"""Most instructions of a block: each may leak four temporary values."""
_COMPARE, _LOAD = bytes.fromhex("81fb"), bytes.fromhex("bb")
"""cmp ebx, imm32 and mov ebx, imm32: ``if (max_insns > TCG_MAX_INSNS) max_insns = TCG_MAX_INSNS``."""
_ORIGINAL = 512
_LENGTH = 256
"""Bytes of the function in which the constant must be."""


class UnknownCode(Exception):
    """The installed Unicorn's code is not the one known here, or cannot be changed."""


def limit_blocks() -> None:
    """Make Unicorn translate at most `INSTRUCTIONS` at once, for all engines of this process. Raises UnknownCode."""
    if _longest() == INSTRUCTIONS:
        return
    start = ctypes.cast(uclib.tb_gen_code_x86_64, ctypes.c_void_p).value
    if start is None:
        raise UnknownCode("Unicorn has no function tb_gen_code_x86_64")
    code = ctypes.string_at(start, _LENGTH)
    places = []
    for opcode in (_COMPARE, _LOAD):
        pattern = opcode + _ORIGINAL.to_bytes(4, "little")
        if code.count(pattern) != 1:
            raise UnknownCode("Unicorn's limit for blocks is not where it was in the build known here")
        places.append(start + code.index(pattern) + len(opcode))
    _write(places, INSTRUCTIONS.to_bytes(4, "little"))
    if (longest := _longest()) != INSTRUCTIONS:
        raise UnknownCode(f"Unicorn translates {longest} instructions at once, and was told {INSTRUCTIONS}")


def _write(places: list[int], value: bytes) -> None:
    """Write into code, which is ours alone afterwards: the pages of a library are mapped privately."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = min(places) & -mmap.PAGESIZE
    length = max(places) + len(value) - start
    readable = mmap.PROT_READ | mmap.PROT_EXEC
    if libc.mprotect(start, length, readable | mmap.PROT_WRITE):
        raise UnknownCode("the system does not let us change Unicorn's code")
    for place in places:
        ctypes.memmove(place, value, len(value))
    if libc.mprotect(start, length, readable):
        raise UnknownCode("the system does not let us protect Unicorn's code again")


def _longest() -> int:
    """Return how many instructions of a long row of NOPs are translated at once."""
    engine = Uc(UC_ARCH_X86, UC_MODE_64)
    try:
        engine.ctl_set_tcg_buffer_size(1 << 20)
        engine.mem_map(0, 0x2000)
        engine.mem_write(0, b"\x90" * 0x1000)
        engine.emu_start(0, 0x1000)
        return int(engine.ctl_request_cache(0)[1])
    except UcError as error:
        raise UnknownCode(f"Unicorn does not tell what it translates: {error}") from error
