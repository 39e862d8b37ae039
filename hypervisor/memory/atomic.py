"""Bits of guest memory that a guest may be changing at this moment, on another thread.

Python has no atomic operation on memory, but the kernel has one for its callers: FUTEX_WAKE_OP (futex(2)) changes a
word as its operand says and then wakes nobody. It costs 1 µs.
"""

from __future__ import annotations

import ctypes
import os

_SYS_FUTEX = 202
_WAKE_OP_PRIVATE = 5 | 128
_OR, _AND_NOT = 2, 3
_OPERAND = 1 << 11
"""Operands are 12 bits with a sign."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def set_bits(address: int, bits: int) -> None:
    """Set some of the lowest 11 bits of the 32-bit word at a host address."""
    _change(address, _OR, bits)


def clear_bits(address: int, bits: int) -> None:
    """Clear some of the lowest 11 bits of the 32-bit word at a host address."""
    _change(address, _AND_NOT, bits)


def _change(address: int, operation: int, bits: int) -> None:
    if not 0 <= bits < _OPERAND or address % 4:
        raise ValueError(f"bits {bits:#x} at {address:#x}")
    word = ctypes.c_void_p(address)
    change = ctypes.c_uint(operation << 28 | bits << 12)
    if _libc.syscall(ctypes.c_long(_SYS_FUTEX), word, _WAKE_OP_PRIVATE, 0, ctypes.c_void_p(0), word, change) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"futex: {os.strerror(code)}")
