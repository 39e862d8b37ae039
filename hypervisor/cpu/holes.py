"""Guest-physical addresses where nothing is: reads give all ones and writes are lost, as Xen has it.

Unicorn ends a run at such a read, before it, and at a write at the end of the block, with the write dropped. So a
write needs nothing but to go on. For a read its page is shown for a while as a device that answers all ones by two
instructions of our own; only `MOST` pages at once, for a guest may look at each of 2^28. A page walk through a hole
finds entries that are not present, which Unicorn does by itself; code in a hole is a general protection fault.

The first read of a page costs 50 µs, the next ones 0.1 µs: none of it when nobody looks at holes.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import deque

from unicorn import Uc, UcError
from unicorn.unicorn_py3.unicorn import MMIO_READ_CFUNC, MMIO_WRITE_CFUNC, uclib

from hypervisor.memory.guest_memory import PAGE

MOST = 64
"""Pages shown at once; an instruction can touch four."""

_code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
_code.write(bytes.fromhex("4883c8ff c3 c3"))  # or rax, -1; ret: what a read gives; ret: what a write does
_start = ctypes.addressof(ctypes.c_char.from_buffer(_code))
_read, _write = MMIO_READ_CFUNC(_start), MMIO_WRITE_CFUNC(_start + 5)


class Holes:
    """The pages of holes that an engine shows now; on the thread that runs it, between runs."""

    def __init__(self, engine: Uc) -> None:
        self._engine = engine
        self._pages: deque[int] = deque()

    def show(self, address: int) -> None:
        """Let the page of an address be read. Raises UcError when it cannot be shown."""
        page = address & -PAGE
        if len(self._pages) >= MOST:
            self.hide(self._pages[0])
        status = uclib.uc_mmio_map(self._engine._uch, page, PAGE, _read, None, _write, None)
        if status:
            raise UcError(status)
        self._pages.append(page)

    def hide(self, page: int) -> None:
        """Make room for something else at a page, which is a hole no more."""
        if page in self._pages:
            self._pages.remove(page)
            self._engine.mem_unmap(page, PAGE)
