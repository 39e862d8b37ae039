"""Two changes to Unicorn 2.1.4's translator, without which a guest, even its user code, can end the process.

Found by `tests.fuzz`; Unicorn has no setting for either, so a constant in its code is changed, and it is proved
that the change is obeyed.

The length of a block. Unicorn translates up to 512 instructions at once. Its translator has room for 512
temporary values of such a block, some 50 of them taken, and does not look whether there is room left; some
instructions take one for good (``mov`` from a control register, ``mov`` to FS or GS, FXAM, FLDENV, PALIGNR and
others). 464 of one of these in a row overwrite the translator's own pointers. The limit is in ``tb_gen_code``.

The LOCK prefix. ``lock bts eax, eax``, which the processor refuses, and BT, BTR and BTC likewise, make the
translator use a value that it never set, and call abort(3). The prefix is ignored here, where ``disas_insn``
reads it: a domain's vCPUs run in turn on one thread, so that every instruction is as good as locked.
"""

from __future__ import annotations

import re

from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_64, Uc, UcError

from hypervisor.arch.x86_64.cpu.patch import UnknownCode, address, find, write

INSTRUCTIONS = 96
"""Most instructions of a block: each may leak four temporary values."""
_ORIGINAL = 512

# Machine code before the constants, which are little-endian.
_COMPARE, _LOAD = re.escape(bytes.fromhex("81fb")), re.escape(bytes.fromhex("bb"))
"""cmp ebx, imm32 and mov ebx, imm32: ``if (max_insns > TCG_MAX_INSNS) max_insns = TCG_MAX_INSNS``."""
_LOCK = re.escape(bytes.fromhex("3cf0 0f85")) + b"...." + re.escape(bytes.fromhex("4183cd"))
"""cmp al, 0xF0; jne …; or r13d, imm8: ``case 0xf0: prefixes |= PREFIX_LOCK``."""
_PREFIX_LOCK = 4
_AHEAD = 0x14000
"""``disas_insn`` has no name that is exported; it lies in so many bytes before ``gen_intermediate_code``."""


def mend() -> None:
    """Make both changes, once, for all engines of this process. Raises UnknownCode."""
    if _longest() != INSTRUCTIONS:
        limit, size = INSTRUCTIONS.to_bytes(4, "little"), _ORIGINAL.to_bytes(4, "little")
        start = address("tb_gen_code_x86_64")
        for pattern in (_COMPARE, _LOAD):
            _replace(start, start + 256, pattern, size, limit)
    if (longest := _longest()) != INSTRUCTIONS:
        raise UnknownCode(f"Unicorn translates {longest} instructions at once, and was told {INSTRUCTIONS}")
    if not _ignores_lock():
        end = address("gen_intermediate_code_x86_64")
        _replace(end - _AHEAD, end, _LOCK, bytes([_PREFIX_LOCK]), b"\0")
    if not _ignores_lock():
        raise UnknownCode("Unicorn heeds the LOCK prefix, and was told not to")


def _replace(start: int, end: int, before: bytes, old: bytes, new: bytes) -> None:
    """Replace the constant behind a pattern."""
    _, behind = find(start, end, before + re.escape(old))
    write(behind - len(old), new)


# The proofs


def _engine(code: bytes) -> Uc:
    engine = Uc(UC_ARCH_X86, UC_MODE_64)
    engine.ctl_set_tcg_buffer_size(1 << 20)
    engine.mem_map(0, 0x2000)
    engine.mem_write(0, code)
    return engine


def _longest() -> int:
    """Return how many instructions of a long row of NOPs are translated at once."""
    engine = _engine(b"\x90" * 0x1000)
    try:
        engine.emu_start(0, 0x1000)
        return int(engine.ctl_request_cache(0)[1])
    except UcError as error:
        raise UnknownCode(f"Unicorn does not tell what it translates: {error}") from error


def _ignores_lock() -> bool:
    """Tell whether ``lock add eax, eax`` is no invalid opcode."""
    engine, faults = _engine(bytes.fromhex("f001c0 90")), []

    def fault(engine: Uc, vector: int, _: object) -> None:
        faults.append(vector)
        engine.emu_stop()

    engine.hook_add(UC_HOOK_INTR, fault)
    try:
        engine.emu_start(0, 4)
    except UcError:
        return False
    return not faults
