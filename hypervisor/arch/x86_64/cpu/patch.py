"""Changing Unicorn's machine code, in this process only: the pages of a library are mapped privately.

Code is found by the names that the library exports and by the bytes of the build known here. What is not where it
was raises `UnknownCode`; that a change is obeyed is for those who make it to prove.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import struct

from unicorn.unicorn_py3.unicorn import uclib

JUMP = b"\xe9"
"""jmp rel32."""
_NEAR = 1 << 31
_STEP = 16 << 20


class UnknownCode(Exception):
    """The installed Unicorn's code is not the one known here, or cannot be changed."""


def address(function: str) -> int:
    """Return where a function is. Raises UnknownCode."""
    try:
        found = ctypes.cast(getattr(uclib, function), ctypes.c_void_p).value
    except AttributeError:
        found = None
    if found is None:
        raise UnknownCode(f"Unicorn has no function {function}")
    return found


def find(start: int, end: int, pattern: bytes) -> tuple[int, int]:
    """Return the range of a pattern (of `re`) that occurs once between two addresses. Raises UnknownCode."""
    found = list(re.finditer(pattern, ctypes.string_at(start, end - start), re.DOTALL))
    if len(found) != 1:
        raise UnknownCode(f"a piece of Unicorn's code is not where it was in the build known here: {pattern!r}")
    return start + found[0].start(), start + found[0].end()


def write(place: int, value: bytes) -> None:
    """Write into code, which is ours alone afterwards. Raises UnknownCode."""
    libc = _libc()
    start = place & -mmap.PAGESIZE
    length = place + len(value) - start
    readable = mmap.PROT_READ | mmap.PROT_EXEC
    if libc.mprotect(start, length, readable | mmap.PROT_WRITE):
        raise UnknownCode("the system does not let us change Unicorn's code")
    ctypes.memmove(place, value, len(value))
    if libc.mprotect(start, length, readable):
        raise UnknownCode("the system does not let us protect Unicorn's code again")


def divert(place: int, code: bytes, *targets: int) -> None:
    """Let Unicorn's code at a place go on in code of ours, which ends with a jump to each target, in their order."""
    at = _reserve(place)
    end = at + len(code)
    jumps = b"".join(jump(end + 5 * number, target) for number, target in enumerate(targets))
    ctypes.memmove(at, code + jumps, len(code + jumps))
    if _libc().mprotect(at, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
        raise UnknownCode("the system does not let us execute code of ours")
    write(place, jump(place, at))


def jump(origin: int, target: int) -> bytes:
    """Return the jump from one address to another within 2 GiB."""
    return JUMP + struct.pack("<i", target - (origin + 5))


def _reserve(near: int) -> int:
    """Return the address of a page, for good, from which all of Unicorn's code is in reach, and it from there."""
    libc = _libc()
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    for distance in range(_STEP, _NEAR - _STEP, _STEP):
        wanted = (near - distance) & -mmap.PAGESIZE
        at = libc.mmap(wanted, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, 0)
        if at is None or at == ctypes.c_void_p(-1).value:
            break
        if abs(at - near) < _NEAR - _STEP:
            return int(at)
        libc.munmap(at, mmap.PAGESIZE)
    raise UnknownCode("there is no memory near Unicorn's code")


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
