"""An open volume: what the block backend reads and writes, while the repository snapshots and grows it underneath.

All who have a volume open for writing share one chain of images and one lock, so that a snapshot may put a new leaf on
the chain between two requests: nobody need switch to another disk. A toolstack that holds the device meanwhile
(`BlockDevice.hold`) spares the guest's thread the wait for the lock. Readers have a chain each and wait for nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from hypervisor.disks.disk import DiskError, Kind
from hypervisor.disks.raw import RawDisk
from hypervisor.disks.vhd import VhdDisk


class Chain:
    """A volume's images, open, and the lock under which they are used and changed."""

    def __init__(self, disk: VhdDisk | RawDisk) -> None:
        self.disk = disk
        self.lock = threading.Lock()


class OpenVolume:
    """One opening of a volume, a `Disk`; it may be used by any thread."""

    def __init__(self, uuid: str, chain: Chain, *, read_only: bool, released: Callable[[OpenVolume], None]) -> None:
        """Join a chain; `released` is called once, when this is closed, and may close the chain."""
        self.uuid = uuid
        self.chain = chain
        self.read_only = read_only
        self._released = released
        self._open = True
        self._closing = threading.Lock()

    @property
    def size(self) -> int:
        return self.chain.disk.size

    @property
    def sector_size(self) -> int:
        return self.chain.disk.sector_size

    def _disk(self, *, writing: bool = False) -> VhdDisk | RawDisk:
        if not self._open:
            raise DiskError(Kind.CLOSED, self.uuid)
        if writing and self.read_only:
            raise DiskError(Kind.READ_ONLY, self.uuid)
        return self.chain.disk

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        with self.chain.lock:
            return self._disk().read(offset, length)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill a writable buffer."""
        with self.chain.lock:
            self._disk().readinto(offset, buffer)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`."""
        with self.chain.lock:
            self._disk(writing=True).write(offset, data)

    def flush(self) -> None:
        """Make all writes durable."""
        with self.chain.lock:
            self._disk().flush()

    def discard(self, offset: int, length: int) -> None:
        """Give space back."""
        with self.chain.lock:
            self._disk(writing=True).discard(offset, length)

    def allocated_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what the chain holds now."""
        with self.chain.lock:
            return iter(list(self._disk().allocated_ranges(offset, length)))

    def close(self) -> None:
        """Flush and let go; closing twice is harmless."""
        with self._closing:
            if not self._open:
                return
            with self.chain.lock:  # a request under way ends first
                self._open = False
        self._released(self)
