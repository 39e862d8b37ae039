"""A guest's fault in the place of `abort`, by which Unicorn 2.1.4 would end the process.

QEMU takes it for impossible that a stack is looked up in a task register without a present TSS of 32 or 64 bits,
and calls ``cpu_abort`` there: for an interrupt from ring 3 or by an IST, or a far call through a gate, after LTR
with a null selector, or before any LTR. Unicorn's ``cpu_abort`` is ``abort()``. A guest can do all that.

`raise_instead` lets ``cpu_abort`` jump to a few instructions of ours, which raise the exception that a CPU raises
then, #TS. That it works is proved in `hypervisor.arch.x86_64.cpu.proof`.
"""

from __future__ import annotations

import ctypes
import struct

from hypervisor.arch.x86_64.cpu.patch import JUMP, UnknownCode, address, divert

_INVALID_TSS = 10
_PUSH_CALL = b"\x50\xe8"
"""push rax and call rel32, which is how the function of this build begins."""


def raise_instead(env: int) -> None:
    """Make the change, once; `env` is the distance from a CPU object to its registers. Raises UnknownCode."""
    function = address("cpu_abort_x86_64")
    code = ctypes.string_at(function, 5)
    if code[:1] == JUMP:
        return
    if code[:2] != _PUSH_CALL:
        raise UnknownCode("Unicorn's cpu_abort is not the one known here")
    raise_tss = (
        b"\x48\x8d\xbf" + struct.pack("<i", env)  # lea rdi, [rdi + env]
        + b"\xbe" + struct.pack("<i", _INVALID_TSS)  # mov esi, 10
        + b"\x31\xd2"  # xor edx, edx
    )  # fmt: skip
    divert(function, raise_tss, address("raise_exception_err_x86_64"))
