"""A part of a disk that is read with care: never outside of it, and never without end.

The disk belongs to a guest that may be hostile, so each look for something to boot has one `Budget`: bytes
read and steps done (reads, directory entries, commands of a script). What would loop for ever, in a directory
that contains itself or a script that never ends, uses it up, and that is a `BootError` like all others, but one
that stays: whoever makes up for an error does a `step`, which then fails again.
"""

from __future__ import annotations

from hypervisor.bootloader.errors import BootError, one_line
from hypervisor.disks.disk import Disk, DiskError

_READ_STEPS = 8
"""A read costs as much time as so many directory entries."""


class Budget:
    """What may still be spent. The limits are far above what any real disk needs, and end within seconds."""

    def __init__(self, size: int = 3 << 30, steps: int = 1_500_000) -> None:
        """Allow to read `size` bytes and to do `steps` steps of some microseconds each."""
        self._size, self._steps = size, steps

    def step(self, count: int = 1) -> None:
        """Spend steps. Raises BootError when there are none left."""
        self._steps -= count
        if self._steps < 0 or self._size < 0:
            raise BootError("gave up: the disk asks for too much work")

    def take(self, size: int) -> None:
        """Spend a read of so many bytes. Raises BootError."""
        self._size -= size
        self.step(_READ_STEPS)


class Volume:
    """`size` bytes of a disk from `start` on: a partition, or all of it."""

    def __init__(self, disk: Disk, budget: Budget, start: int = 0, size: int | None = None) -> None:
        """Cut the part to what the disk has."""
        self._disk = disk
        self.budget = budget
        self.start = min(max(start, 0), disk.size)
        self.size = min(disk.size - self.start, disk.size if size is None else max(size, 0))

    @property
    def sector_size(self) -> int:
        """Bytes of a logical sector of the disk."""
        return self._disk.sector_size

    def part(self, start: int, size: int) -> Volume:
        """Return a part of this part, as far as it is inside."""
        return Volume(self._disk, self.budget, self.start + start, min(size, self.size - start))

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes. Raises BootError when they are not all inside, or the disk fails."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BootError(f"something points outside of the partition or disk ({length} bytes at {offset})")
        self.budget.take(length)
        try:
            return self._disk.read(self.start + offset, length)
        except DiskError as error:
            raise BootError(f"the disk cannot be read: {one_line(error)}") from None

    def peek(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes: what there is of them, for a look whether a signature is there."""
        return self.read(offset, min(length, self.size - offset)) if 0 <= offset < self.size else b""
