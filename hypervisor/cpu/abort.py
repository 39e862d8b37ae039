"""A guest's fault in the place of `abort`, by which Unicorn 2.1.4 would end the process.

QEMU takes it for impossible that a stack is looked up in a task register without a present TSS of 32 or 64 bits,
and calls ``cpu_abort`` there: for an interrupt from ring 3 or by an IST, or a far call through a gate, after LTR
with a null selector, or before any LTR. Unicorn's ``cpu_abort`` is ``abort()``. A guest can do all that.

`raise_instead` lets ``cpu_abort`` jump to a few instructions of ours, which raise the exception that a CPU raises
then, #TS. In this process only; the caller proves that it works (`hypervisor.cpu.overlay`).
"""

from __future__ import annotations

import ctypes
import mmap
import struct

from hypervisor.cpu.translation import UnknownCode, _address, _write

_INVALID_TSS = 10
_JUMP, _PUSH_CALL = b"\xe9", b"\x50\xe8"
"""jmp rel32; push rax and call rel32, which is how the function of this build begins."""
_NEAR = 1 << 31
_STEP = 16 << 20


def raise_instead(env: int) -> None:
    """Make the change, once; `env` is the distance from a CPU object to its registers. Raises UnknownCode."""
    function = _address("cpu_abort_x86_64")
    code = ctypes.string_at(function, 5)
    if code[:1] == _JUMP:
        return
    if code[:2] != _PUSH_CALL:
        raise UnknownCode("Unicorn's cpu_abort is not the one known here")
    stub = (
        b"\x48\x8d\xbf" + struct.pack("<i", env)  # lea rdi, [rdi + env]
        + b"\xbe" + struct.pack("<i", _INVALID_TSS)  # mov esi, 10
        + b"\x31\xd2"  # xor edx, edx
        + b"\x48\xb8" + struct.pack("<Q", _address("raise_exception_err_x86_64"))  # mov rax, …
        + b"\xff\xe0"  # jmp rax
    )  # fmt: skip
    _write(function, _JUMP + struct.pack("<i", _place(function, stub) - (function + 5)))


def _place(near: int, code: bytes) -> int:
    """Return the address of executable memory with some code, for good, where a jump from `near` reaches it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    for distance in range(_STEP, _NEAR - _STEP, _STEP):
        wanted = (near - distance) & -mmap.PAGESIZE
        at = libc.mmap(wanted, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, 0)
        if at is None or at == ctypes.c_void_p(-1).value:
            break
        if abs(at - near) < _NEAR - mmap.PAGESIZE:
            ctypes.memmove(at, code, len(code))
            if libc.mprotect(at, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
                break
            return int(at)
        libc.munmap(at, mmap.PAGESIZE)
    raise UnknownCode("there is no executable memory near Unicorn's code")
