"""The code that an engine has translated, and how to make it forget what the host has overwritten.

Unicorn notices what its guest writes to translated code, and nothing else: bytes that come through the host's
mapping, as those that a backend reads from a disk, leave the old translation in use (tested). Its own call for this,
uc_ctl_remove_cache, takes a virtual address and walks the page tables of the moment; so QEMU's function beneath is
called, ``tb_invalidate_phys_range`` of accel/tcg/translate-all.c, which looks each page up in a tree of those that
hold code. Measured: 1 µs for a call, and 6 ns for each page without code. To look into that tree from Python first
took longer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from unicorn import Uc
from unicorn.unicorn_py3.unicorn import uclib

from hypervisor.arch.x86_64.cpu.support import UnsupportedUnicorn
from hypervisor.memory.guest_memory import Memory

_NOWHERE = (1 << 64) - 1

_library = ctypes.PyDLL(uclib._name)
"""The same library, but a call keeps Python's lock: it is shorter than what another thread would do with it."""
try:
    _invalidate, _ram_address = _library.tb_invalidate_phys_range_x86_64, _library.qemu_ram_addr_from_host_x86_64
except AttributeError as error:
    raise UnsupportedUnicorn(f"Unicorn lacks a function of the build known here: {error}") from None
_invalidate.argtypes, _invalidate.restype = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64), None
_ram_address.argtypes, _ram_address.restype = (ctypes.c_void_p, ctypes.c_void_p), ctypes.c_uint64


class TranslatedCode:
    """What an engine over `ranges` of a memory has translated; on the thread that runs it, or while it does not run."""

    def __init__(self, engine: Uc, memory: Memory, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self._handle = engine._uch
        self._host = memory.address
        numbers = [(start, end, self._number(start)) for start, end in ranges or ((0, memory.size),)]
        self._ranges = [(start, end, number - start) for start, end, number in numbers]

    def _number(self, offset: int) -> int:
        """Return the engine's own address (ram_addr_t) of a byte, `_NOWHERE` if it does not have it."""
        return int(_ram_address(self._handle, self._host + offset))

    def forget(self, start: int, end: int) -> None:
        """Let bytes, from and to an offset into `Memory.bytes`, be translated anew when they are next executed.

        They must lie in one range, or in one frame beyond the memory.
        """
        for low, high, difference in self._ranges:
            if low <= start < high:
                _invalidate(self._handle, start + difference, end + difference)
                return
        first = self._number(start)
        if first != _NOWHERE:
            _invalidate(self._handle, first, first + end - start)
