"""Guest-physical addresses where nothing is: reads give all ones and writes are lost, as Xen has it.

What is no memory is a device of Unicorn's, from end to end, that answers all ones by two instructions of our own: a
read takes 0.04 µs, to put a page into a hole 0.5 ms, and nothing anywhere else. To leave holes to Unicorn's errors was
tried and is unsound: a run that ends where the CPU reads its tables for an interrupt, as a guest can have it, is begun
again inside of Unicorn for ever.
A page walk through a hole finds ones, which is a page fault; code in a hole is a general protection fault.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

from unicorn import Uc, UcError
from unicorn.unicorn_py3.unicorn import MMIO_READ_CFUNC, MMIO_WRITE_CFUNC, uclib

from hypervisor.arch.x86_64.cpu.overlay import without_cpu
from hypervisor.memory.guest_memory import PAGE

_code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
_code.write(bytes.fromhex("4883c8ff c3 c3"))  # or rax, -1; ret: what a read gives; ret: what a write does
_start = ctypes.addressof(ctypes.c_char.from_buffer(_code))
_read, _write = MMIO_READ_CFUNC(_start), MMIO_WRITE_CFUNC(_start + 5)


class Holes:
    """What is around the memory of an engine, at `ranges`, below an address; on the thread that runs it."""

    def __init__(self, engine: Uc, ranges: Sequence[tuple[int, int]], end: int) -> None:
        self._engine = engine
        starts, stops = [0, *(stop for _, stop in ranges)], [*(start for start, _ in ranges), end]
        self._gaps: list[tuple[int, int]] = []
        for start, stop in zip(starts, stops):
            if start < stop:
                self._gaps.append((start, stop))
                if status := uclib.uc_mmio_map(engine._uch, start, stop - start, _read, None, _write, None):
                    raise UcError(status)

    def clear(self, page: int) -> None:
        """Make room at a page for something that is mapped next; nothing is done where there is no hole.

        Unicorn would flush each page of the whole hole by itself, for seconds: so it is told that it has no CPU yet,
        and all is flushed when something is mapped there.
        """
        for at, (start, stop) in enumerate(self._gaps):
            if start <= page < stop:
                with without_cpu(self._engine):
                    self._engine.mem_unmap(page, PAGE)
                parts = ((start, page), (page + PAGE, stop))
                self._gaps[at : at + 1] = [part for part in parts if part[0] < part[1]]
                return
