"""Frames that a domain's memory shows of another's: what a mapped grant is to the host.

The host's MMU does it. The page of the borrower's mapping is replaced by a page of the lender's file, at the same
host address, so that translated code, backends and hypercalls see it without knowing, and no TLB needs a flush.
Measured: 4 µs to show a page, 6 to take it back, and two of the mappings of which the kernel gives a process
65,530. To map it in Unicorn (uc_mem_unmap, uc_mem_map_ptr) took 75 ms the first time, 56 to 88 ms for each further
frame, since it rebuilds a region around each, 30 µs only for a frame that was mapped before, and only translated
code would have seen it.

A frame that may only be read is shown by a private mapping: what its borrower writes becomes the borrower's own, in
a copy from which the lender's later writes are missing. Xen discards such writes; neither reaches the lender.

No loan leaves a dangling address: the kernel keeps a file's page for as long as it is mapped. When the lender goes,
or begins to share its file with clones, the borrower keeps a copy of what it saw (`Loan.keep`).

Code that is run from such a frame is translated anew when the frame is shown and when it is taken back, but not when
the other domain writes to it: each engine notices its own guest's writes only.

A clone cannot lend: its pages are private to its mapping, in no file that another could map. It can borrow.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from hypervisor.memory.guest_memory import PAGE, Memory

MOST = 1024
"""Frames of others' that a domain may see: each costs the process up to two of the host kernel's mappings."""
_READ_WRITE = 3
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE = 1, 2, 0x10, 0x20, 0x4000
_MAY_MOVE, _MOVE_FIXED = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


@dataclass(eq=False, slots=True)
class Loan:
    """A frame of a lender's that a borrower's memory shows, until `end`. Under the host's lock."""

    lender: Memory
    frame: int
    borrower: Memory
    at: int
    """The borrower's number for it."""
    writable: bool
    ended: bool = False

    def begin(self) -> None:
        """Show the frame. Raises BadAddress where there is none, OSError if the host cannot map it."""
        target = self.borrower.address + self.borrower.offset(self.at)
        _map(target, _SHARED if self.writable else _PRIVATE, self.lender.file, self.lender.offset(self.frame))
        self.borrower.foreign[self.at] = self
        self.lender.lent.setdefault(self.frame, []).append(self)

    def end(self) -> None:
        """Let the borrower's frame be empty again; harmless a second time. Raises OSError with the loan as it was."""
        if self.ended:
            return
        memory = self.borrower
        offset = memory.offset(self.at)
        if memory.private:
            _map(memory.address + offset, _PRIVATE | _ANONYMOUS, -1, 0)
        else:
            _map(memory.address + offset, _SHARED, memory.file, offset)
        del memory.foreign[self.at]
        self.ended = True
        self._give_back()

    def keep(self) -> None:
        """Let the borrower have a copy from here on, which it may write. Raises OSError with the loan as it was.

        What it writes while the copy is made may get lost.
        """
        memory = self.borrower
        target = memory.address + memory.offset(self.at)
        copy = _map(None, _PRIVATE | _ANONYMOUS, -1, 0)
        ctypes.memmove(copy, target, PAGE)
        if _libc.mremap(copy, PAGE, PAGE, _MAY_MOVE | _MOVE_FIXED, target) != target:
            code = ctypes.get_errno()
            _libc.munmap(copy, PAGE)
            raise OSError(code, os.strerror(code))
        self._give_back()

    def abandon(self) -> None:
        """Forget the loan with its borrower, whose mapping goes as a whole."""
        self.ended = True
        self._give_back()

    def _give_back(self) -> None:
        lender = self.lender
        loans = lender.lent.get(self.frame, [])
        if self in loans:
            loans.remove(self)
            if lender.freed is not None:  # what the borrower wrote no copy of the lender can have noticed
                lender.freed[self.frame] = 1
        if not loans:
            lender.lent.pop(self.frame, None)


def _map(address: int | None, kind: int, file: int, offset: int) -> int:
    """Map one page, in place of what is there if an address is given; no other thread finds it missing meanwhile."""
    flags = kind | _NORESERVE | (_FIXED if address is not None else 0)
    found = _libc.mmap(address, PAGE, _READ_WRITE, flags, file, offset)
    if found is None or found == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map a frame: {os.strerror(code)}")
    return int(found)
