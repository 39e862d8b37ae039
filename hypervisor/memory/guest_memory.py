"""The memory of one domain: a memfd, mapped once, shared by its vCPUs and by our backends.

The guest's physical addresses 0 … size are one mapping of one file without a name, which makes the
host kernel do the work: pages exist when they are first written, freed ones (ballooning) are holes
punched in the file, a snapshot is the file, and a clone maps a frozen file privately, so that the
kernel copies on write. A 1 TiB domain costs 2 MiB until it is used (measured).

All access from outside the guest goes through the methods here: they check bounds, and nothing else
holds host addresses but the CPU layer.

**The range of host addresses is there as long as anybody has a view of it**, whatever becomes of the domain: a
slice of a memoryview cannot be taken back, so backends and threads may hold one when the domain ends. Its end lays
zeros over the range (0.1 ms, and what it takes the kernel to free the pages). Who reads there from then on sees
zeros, who writes there writes to nobody, and no other domain's memory can come to lie there before the last view
is gone.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from hypervisor.memory import pagemap
from hypervisor.memory.frame_set import FrameSet
from hypervisor.memory.shared import SharedFrames

if TYPE_CHECKING:
    from hypervisor.memory.foreign import Loan

PAGE = 4096
"""Bytes of a frame; a frame number times this is an address."""
EXTRA = 256
"""How many frames a domain may have beyond its memory."""
_REMAPPED = 512
"""From so many frames on, those that a clone gives back are mapped anew; fewer would need too many mappings."""
_COPIED = 1 << 20
"""Bytes moved at a time."""
_ZEROS = bytes(PAGE)

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_PRIVATE_ZEROS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_FALLOC_FL_PUNCH_HOLE = 0x02 | 0x01  # with FALLOC_FL_KEEP_SIZE, as fallocate(2) demands

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


class BadAddress(Exception):
    """An address, or a length from it, outside the domain's memory."""


class Memory:
    """`size` bytes of guest-physical memory, a multiple of `PAGE`, and a few frames beyond.

    Guests ask for Xen's own frames (grant tables) at numbers of their choice, also above their memory:
    `place_extra` finds a frame for such a number. `offset` says where in `bytes` a frame lies.

    Raises OSError when the host cannot map it, ValueError for a size that is none.
    """

    def __init__(self, size: int, shared: SharedFrames | None = None) -> None:
        if size <= 0 or size % PAGE:
            raise ValueError(f"memory of {size} bytes is no multiple of {PAGE}")
        self.size = size
        self.shared = shared
        """What the frames are of that it has not written, where it has any together with others; it holds that."""
        self.file = os.memfd_create("domain") if shared is None else shared.file
        """Descriptor of the file; -1 once the memory is closed."""
        if shared is None:
            os.ftruncate(self.file, size + EXTRA * PAGE)
        self._apart = FrameSet()
        """Frames that show nothing shared any more, for they were given back."""
        self.extra: dict[int, int] = {}
        """Frame number to offset, of frames beyond the memory."""
        try:
            whole = size + EXTRA * PAGE
            self._range: mmap.mmap | None = mmap.mmap(-1, whole, _PRIVATE_ZEROS, mmap.PROT_READ | mmap.PROT_WRITE)
            """What gives the range back to the kernel, when nobody refers to it."""
            self.address = ctypes.addressof(ctypes.c_ubyte.from_buffer(self._range))
            """Host address of guest-physical 0; only the CPU layer uses it."""
            self._map()
        except OSError:
            self._close_file()
            raise
        self.bytes = memoryview(self._range)
        self.words = self.bytes.cast("Q")
        """The same as 64-bit words: the fastest way to a word, some 60 ns."""
        self.hole = (size, size)
        """Start and end of a part that is no memory; what the guest had written there nobody would count."""
        self.present = size // PAGE
        """How many frames the domain holds: ballooned-out ones are not counted."""
        self.freed: bytearray | None = None
        """While somebody copies the memory: 1 for each frame that was freed meanwhile, which reads as zero since, and
        for each that was written where this mapping does not show it."""
        self.foreign: dict[int, Loan] = {}
        """Frames that are another domain's, by their numbers here."""
        self.lent: dict[int, list[Loan]] = {}
        """Frames of this memory that others show."""

    @property
    def private(self) -> bool:
        """Tell whether what it writes is in no file, but copies of its own."""
        return self.shared is not None

    def is_shared(self, frame: int) -> bool:
        """Tell whether a frame is one of `shared`, not yet a copy of its own; False where the kernel cannot tell."""
        at = frame * PAGE
        return self.private and frame not in self._apart and not self._own(at, at + PAGE)

    def _close_file(self) -> None:
        file, self.file = self.file, -1
        if self.shared is None:
            os.close(file)
        else:
            self.shared.drop()

    def _map(self) -> None:
        """Let the range show the file."""
        kind = mmap.MAP_PRIVATE if self.private else mmap.MAP_SHARED
        self._lay(kind | _MAP_NORESERVE, self.file)

    def _lay(self, flags: int, file: int, start: int = 0, length: int = 0) -> None:
        """Map over the range, or over a part of it; nobody finds anything missing meanwhile. Raises OSError."""
        address, length = self.address + start, length or self.size + EXTRA * PAGE
        found = _libc.mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags | _MAP_FIXED, file, 0)
        if found != address:
            code = ctypes.get_errno()
            raise OSError(code, f"cannot map {length} bytes: {os.strerror(code)}")

    @property
    def closed(self) -> bool:
        """Tell whether the memory was given back."""
        return self.file < 0

    def close(self) -> None:
        """Give the memory back, at once. No engine may run over it any more; later accesses raise.

        Views that others have stay good, and are of zeros.
        """
        if self.file >= 0:
            self.let_go()
            with suppress(OSError):  # then the pages, which are nobody else's, go with the last view
                self._lay(_PRIVATE_ZEROS, -1)
            self._range = None
            self._close_file()

    def let_go(self) -> None:
        """End all that others share with this memory, and all access by its methods; under the host's lock."""
        for loan in list(self.foreign.values()):
            loan.abandon()
        self.call_in(forced=True)
        self.words.release()
        self.bytes.release()

    # Access

    def check(self, address: int, length: int) -> None:
        """Raise BadAddress unless the range lies in the memory."""
        end = address + length
        if address < 0 or length < 0 or end > self.size or (end > self.hole[0] and address < self.hole[1]):
            raise BadAddress(f"{length} bytes at {address:#x} of {self.size:#x}")

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of a range. Raises BadAddress."""
        self.check(address, length)
        return bytes(self.bytes[address : address + length])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Overwrite a range. Raises BadAddress."""
        self.check(address, len(data))
        self.bytes[address : address + len(data)] = data

    def read_u32(self, address: int) -> int:
        """Return a little-endian word of 32 bits. Raises BadAddress."""
        self.check(address, 4)
        return int(struct.unpack_from("<I", self.bytes, address)[0])

    def write_u32(self, address: int, value: int) -> None:
        """Store a little-endian word of 32 bits. Raises BadAddress."""
        self.check(address, 4)
        struct.pack_into("<I", self.bytes, address, value & 0xFFFFFFFF)

    def read_u64(self, address: int) -> int:
        """Return a little-endian word of 64 bits. Raises BadAddress."""
        self.check(address, 8)
        return int(struct.unpack_from("<Q", self.bytes, address)[0])

    def write_u64(self, address: int, value: int) -> None:
        """Store a little-endian word of 64 bits. Raises BadAddress."""
        self.check(address, 8)
        struct.pack_into("<Q", self.bytes, address, value & 0xFFFFFFFFFFFFFFFF)

    def offset(self, frame: int) -> int:
        """Return where in `bytes` a frame begins. Raises BadAddress."""
        if 0 <= frame < self.size // PAGE:
            self.check(frame * PAGE, PAGE)
            return frame * PAGE
        if frame not in self.extra:
            raise BadAddress(f"there is no frame {frame:#x}")
        return self.extra[frame]

    def place_extra(self, frame: int) -> int:
        """Return the offset of a frame, giving the domain one of the extra ones for a number beyond its memory.

        The CPU layer must map it then. Raises BadAddress when all are taken.
        """
        if frame * PAGE >= self.size and frame not in self.extra:
            if len(self.extra) >= EXTRA or frame >= 1 << 36:
                raise BadAddress(f"no room for frame {frame:#x}")
            self.extra[frame] = self.size + len(self.extra) * PAGE
        return self.offset(frame)

    def frame(self, number: int) -> memoryview:
        """Return a frame, for a ring or a shared page: reads and writes go to the guest. Raises BadAddress."""
        at = self.offset(number)
        return self.bytes[at : at + PAGE]

    # Frames that come and go

    def free(self, frame: int, count: int = 1) -> None:
        """Give frames back to the host; they read as zero until written again. Raises BadAddress."""
        self.check(frame * PAGE, count * PAGE)
        if self.freed is not None:
            self.freed[frame : frame + count] = b"\1" * count
        if self.private:
            self._free_private(frame, count)
        elif _libc.fallocate(self.file, _FALLOC_FL_PUNCH_HOLE, frame * PAGE, count * PAGE):
            code = ctypes.get_errno()
            raise OSError(code, f"cannot free frames: {os.strerror(code)}")

    def _free_private(self, frame: int, count: int) -> None:
        """Let frames read as zero; those that others have too stay as they are."""
        self._apart.add(frame, count)
        if count >= _REMAPPED:
            with suppress(OSError):
                self._lay(_PRIVATE_ZEROS, -1, frame * PAGE, count * PAGE)
                return
        for at in range(frame * PAGE, (frame + count) * PAGE, PAGE):
            if bytes(self.bytes[at : at + PAGE]) != _ZEROS:
                self.bytes[at : at + PAGE] = _ZEROS

    def call_in(self, forced: bool = False) -> None:
        """Let all who show frames of this memory keep copies. Raises OSError unless `forced`."""
        for loan in [loan for loans in self.lent.values() for loan in loans]:
            try:
                loan.keep()
            except OSError:  # where it must be done the frame stays as it is: a file lives while it is mapped
                if not forced:
                    raise
                loan.lender.lent.pop(loan.frame, None)

    def used(self) -> int:
        """Return how many bytes the host holds for the domain's file (a clone's own pages not counted)."""
        return os.fstat(self.file).st_blocks * 512

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of the ranges that were ever written, in order, without a look at their content."""
        if self.private:
            yield from merged([*self._file_extents(self.size), *self._own(0, self.size)])
        else:
            yield from self._file_extents(self.size)

    def _own(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of a range that a private mapping has copied; all, where the kernel does not tell."""
        try:
            found = pagemap.own_pages(self.address + start, end - start)
            return [(start + low, start + high) for low, high in found]
        except OSError:
            return [(start, end)]

    def _file_extents(self, end: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of the ranges before `end` that the file has."""
        at = 0
        while at < end:
            try:
                start = os.lseek(self.file, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only holes follow
                    return
                raise
            at = os.lseek(self.file, start, os.SEEK_HOLE)
            if start < end:
                yield start, min(at, end)

    # Copies

    def freeze(self) -> SharedFrames:
        """Stop sharing writes with the file and return what was written so far, to be held by the caller.

        From here on this memory is private too; any number of clones can be made of what is returned. The first
        time takes microseconds; memory that is private already is copied to a file of its own, all that is in use
        of it. No vCPU and no backend may write meanwhile. Frames of others are empty afterwards, and those who have
        frames of this memory keep copies: nobody else may write to what is frozen. Raises OSError.
        """
        for loan in list(self.foreign.values()):
            loan.end()
        self.call_in()
        shared = self.shared
        if shared is None:
            shared = self.shared = SharedFrames(self.file)
            self._map()
        elif len(self._apart) or self._own(0, self.size + EXTRA * PAGE):
            self.shared = SharedFrames(self._copied())
            shared.drop()
            shared, self.file = self.shared, self.shared.file
            self._apart = FrameSet()
            self._map()
        return shared.hold()

    def _copied(self) -> int:
        """Return a new file with the content of this private memory."""
        whole = self.size + EXTRA * PAGE
        file = os.memfd_create("domain")
        try:
            os.ftruncate(file, whole)
            for start, end in merged([*self._file_extents(whole), *self._own(0, whole)]):
                for at in range(start, end, _COPIED):
                    part = bytes(self.bytes[at : min(at + _COPIED, end)])
                    if part != bytes(len(part)):
                        os.pwrite(file, part, at)
        except OSError:
            os.close(file)
            raise
        return file

    @classmethod
    def clone(cls, shared: SharedFrames, size: int) -> Memory:
        """Return memory that begins as what is shared, which it holds too, and copies on write."""
        return cls(size, shared.hold())


def merged(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield ranges in order, those that touch or overlap joined."""
    ranges.sort()
    start = end = -1
    for low, high in ranges:
        if low > end and end > 0:
            yield start, end
        if low > end:
            start = low
        end = max(end, high)
    if end > 0:
        yield start, end
