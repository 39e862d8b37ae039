"""The block device of a guest, as blkback serves it (public/io/blkif.h).

A `BlockDevice` is one disk (or CD drive) of a domain: plug it with `xenbus.Backend`. It offers what it has: flush
and barrier (both are real: `Disk.flush`), discard, indirect segments, several pages a ring, several rings and
persistent grants. All rings feed one `BlockQueue`, for a disk is used by one thread at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hypervisor.disks.disk import SECTOR, Disk
from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import Grant
from hypervisor.errors import XenError
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.block_queue import BlockQueue, Counters, Execute, Item
from hypervisor.split.block_request import INDIRECT_SEGMENTS, LAYOUTS, Frames, Layout, decode
from hypervisor.split.granted import whole_pages
from hypervisor.split.ring import Ring
from hypervisor.split.xenbus import Backend, BusState, Frontend, FrontendError

MAX_QUEUES = 4
MAX_RING_ORDER = 4
PERSISTENT_GRANTS = 1056
"""Grants kept for each ring, as Linux's blkback keeps by default: a one-page ring with 32 segments a request."""
_CDROM, _REMOVABLE, _READ_ONLY = 1, 2, 4
"""VDISK_* of public/io/blkif.h."""
_LAST_REF, _LAST_PORT = (1 << 32) - 1, (1 << 32) - 1


def number_of(name: str) -> int:
    """Return the virtual device number of a name such as xvda or xvdb2 (docs/man/xen-vbd-interface.7).

    Raises ValueError for anything else.
    """
    match = re.fullmatch(r"xvd([a-z]{1,3})(\d{0,3})", name)
    if match is None:
        raise ValueError(f"{name!r} is no name of a disk")
    disk = 0
    for letter in match[1]:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    disk, partition = disk - 1, int(match[2] or 0)
    if disk < 16 and partition < 16:
        return 202 << 8 | disk << 4 | partition
    if disk >= 1 << 20 or partition >= 256:
        raise ValueError(f"{name!r} has no number")
    return 1 << 28 | disk << 8 | partition


@dataclass(slots=True, eq=False)
class _Channel:
    """A ring that is connected, and what must be given back."""

    ring: Ring
    port: int
    pages: list[Grant]
    frames: Frames
    finished: list[Item]
    closed: bool = False


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """A drive as it is described: `name` as in xvda, `params` is what xenstore tells of the source."""

    name: str = "xvda"
    read_only: bool = False
    cdrom: bool = False
    bootable: bool = False
    params: str = ""


class BlockDevice:
    """A disk of a domain, or with `disk` None an empty CD drive. It does not own the disk.

    `execute` runs the transfers, see `block_queue`; `config` is as it is now. Methods may be called from any thread.
    """

    kind = "vbd"
    ready = frozenset({BusState.INITIALISED, BusState.CONNECTED})

    def __init__(self, domain: Domain, disk: Disk | None, execute: Execute, config: BlockConfig) -> None:
        """Make a drive. Raises ValueError for a name that is none, and for no disk where there must be one."""
        if disk is None and not config.cdrom:
            raise ValueError("only a CD drive can be empty")
        self.domain = domain
        self.config = config
        self.number = number_of(config.name)
        read_only = config.read_only or config.cdrom or (disk is not None and disk.read_only)
        self.queue = BlockQueue(domain, execute, disk, read_only, INDIRECT_SEGMENTS)
        self._bus: Backend | None = None
        self._layout: Layout = LAYOUTS["x86_64-abi"]
        self._channels: list[_Channel] = []

    @property
    def counters(self) -> Counters:
        """Return what the disk has done; read it under the host's lock to have it consistent."""
        return self.queue.counters

    @property
    def disk(self) -> Disk | None:
        """Return the disk, None for an empty drive."""
        return self.queue.disk

    @property
    def ring_slots(self) -> int:
        """Return how many requests the front's rings hold; 0 while there are none."""
        return sum(channel.ring.slots for channel in self._channels)

    # For xenbus

    def back_nodes(self) -> Mapping[str, str]:
        """Return the nodes that libxl writes."""
        return {
            "params": self.config.params,
            "type": "file",
            "device-type": "cdrom" if self.config.cdrom else "disk",
            "mode": "r" if self.queue.read_only else "w",
            "dev": self.config.name,
            "removable": str(int(self.config.cdrom)),
            "bootable": str(int(self.config.bootable)),
            "discard-enable": str(int(not self.queue.read_only)),
        }

    def front_nodes(self) -> Mapping[str, str]:
        """Return the nodes that tell the front which disk it is.

        A CD drive is a disk here, other than libxl has it: Linux, outside of PV, leaves a "cdrom" to the emulated
        drive, which our domains have not got. It learns by the back's `info` that it is one.
        """
        return {"virtual-device": str(self.number), "device-type": "disk"}

    def features(self) -> Mapping[str, str]:
        """Return what we offer."""
        nodes = {
            "feature-flush-cache": "1",
            "feature-barrier": "1",
            "feature-persistent": "1",
            "feature-max-indirect-segments": str(INDIRECT_SEGMENTS),
            "multi-queue-max-queues": str(MAX_QUEUES),
            "max-ring-page-order": str(MAX_RING_ORDER),
            "feature-discard": str(int(not self.queue.read_only)),
        }
        if not self.queue.read_only:
            nodes |= {"discard-granularity": str(PAGE), "discard-alignment": "0", "discard-secure": "0"}
        return nodes | self._medium()

    def _medium(self) -> dict[str, str]:
        """Return the nodes that tell of the disk itself."""
        info = (_CDROM | _REMOVABLE) * self.config.cdrom | _READ_ONLY * self.queue.read_only
        nodes = {
            "sectors": str(self.disk.size // SECTOR if self.disk is not None else 0),
            "info": str(info),
            "sector-size": str(SECTOR),
            "physical-sector-size": str(PAGE),
        }
        if self.config.cdrom:
            nodes |= {"params": self.config.params, "media-present": str(int(self.disk is not None))}
        return nodes

    def connect(self, frontend: Frontend, bus: Backend) -> Mapping[str, str]:
        """Map the rings and serve them. Raises FrontendError."""
        protocol = frontend.text("protocol", "x86_64-abi")
        if protocol not in LAYOUTS:
            raise FrontendError(f"protocol {protocol[:40]!r} is unknown")
        self._layout, self._bus = LAYOUTS[protocol], bus
        queues = frontend.number("multi-queue-num-queues", 1, MAX_QUEUES, 1)
        persistent = frontend.flag("feature-persistent")
        try:
            for number in range(queues):
                self._open(frontend, f"queue-{number}/" if queues > 1 else "", persistent)
        except FrontendError:
            self._close_channels()
            raise
        return self._medium()

    def _open(self, frontend: Frontend, prefix: str, persistent: bool) -> None:
        """Connect one ring. Raises FrontendError; what was begun is in `_channels`."""
        keys = ["ring-ref"]
        if frontend.has("ring-page-order"):
            keys = [f"ring-ref{page}" for page in range(1 << frontend.number("ring-page-order", 0, MAX_RING_ORDER))]
        refs = [frontend.number(prefix + key, 0, _LAST_REF) for key in keys]
        port = frontend.number(f"{prefix}event-channel", 1, _LAST_PORT)
        pages = whole_pages(self.domain, refs, "the ring")
        frames = Frames(self.domain.grants, persistent, PERSISTENT_GRANTS)
        channel = _Channel(Ring([page.bytes for page in pages], self._layout.slot), port, pages, frames, [])
        try:
            self.domain.events.connect_backend(
                port, lambda: self._heard(channel), lambda: self._closed_by_guest(channel)
            )
        except XenError:
            for page in pages:
                page.end()
            raise FrontendError(f"the ring cannot be mapped: event channel {port}") from None
        self._channels.append(channel)

    def disconnect(self, done: Callable[[], None], drop: bool = False) -> None:
        """Take no more requests; see `DeviceClass`.

        When the disk is torn out, a driver that still has requests would wait for ever for answers, and Linux's
        with it for all of xenbus. So the rings are answered, with errors and without a look at the disk or the
        guest's buffers, until the guest closes their event channels.
        """
        if drop:
            self._bus = None
            self.queue.tear_out()
            self.queue.finish(done)
            return
        channels, self._channels = self._channels, []
        for channel in channels:
            channel.closed = True
            self.domain.events.disconnect_backend(channel.port)

        def emptied() -> None:
            self._close_channels(channels)
            done()

        self.queue.finish(emptied)

    def _closed_by_guest(self, channel: _Channel) -> None:
        """Let go of a ring whose device was torn out; any other is closed by xenbus."""
        if self.queue.torn_out and channel in self._channels:
            self._channels.remove(channel)
            self.queue.finish(lambda: self._close_channels([channel]))

    def _close_channels(self, channels: list[_Channel] | None = None) -> None:
        if channels is None:
            channels, self._channels = self._channels, []
        for channel in channels:
            channel.closed = True
            self.domain.events.disconnect_backend(channel.port)
            channel.frames.close()
            for page in channel.pages:
                page.end()

    # The rings, on the domain's thread

    def _heard(self, channel: _Channel) -> None:
        """Take all requests of a ring: at most as many as it has slots."""
        if channel.closed:
            return
        ring, now = channel.ring, self.domain.time.clock.now()
        taken = ring.requests(ring.slots + 1)  # one more than there can be, so that we hear of the next
        if taken:
            layout = self._layout
            answer = self._answering(channel)
            self.queue.submit([Item(decode(layout, slot), answer, channel.frames, now) for slot in taken])
        if ring.broken and self._bus is not None:
            self._bus.fail("the ring's request index is wild")

    def _answering(self, channel: _Channel) -> Callable[[Item], None]:
        def answer(item: Item) -> None:
            channel.finished.append(item)
            if len(channel.finished) == 1:
                self.domain.events.post(lambda: self._respond(channel))

        return answer

    def _respond(self, channel: _Channel) -> None:
        """Put the answers of what is done into the ring."""
        finished, channel.finished = channel.finished, []
        if channel.closed:
            return
        pack = self._layout.response.pack
        answers = [pack(item.request.id, item.request.operation, item.status) for item in finished]
        if channel.ring.respond(answers):
            self.domain.events.notify(channel.port)

    # What the toolstack changes

    def change_medium(self, disk: Disk | None, params: str, done: Callable[[], None]) -> None:
        """Eject (`disk` None), insert or exchange a CD; call `done` when the old one is not used any more.

        Raises ValueError for a disk that is no CD.
        """
        if not self.config.cdrom:
            raise ValueError("a disk's medium cannot be changed")
        self.config = replace(self.config, params=params)
        self.exchange(disk, done)

    def exchange(self, disk: Disk | None, done: Callable[[], None]) -> None:
        """Serve from another disk from the next request on: a snapshot's new leaf. See `change_medium` for `done`."""

        def idle() -> None:
            self.queue.disk = disk
            self.queue.release()
            self.resized()
            done()

        with self.domain.host.lock:
            self.queue.hold(idle)

    def resized(self) -> None:
        """Tell the guest the size that the disk has now."""
        with self.domain.host.lock:
            if self._bus is not None:
                self._bus.update(self._medium())

    def hold(self, done: Callable[[], None]) -> None:
        """Let requests wait; call `done`, under the lock, when the disk is not used any more, until `release`."""
        with self.domain.host.lock:
            self.queue.hold(done)

    def release(self) -> None:
        """Undo one `hold`."""
        with self.domain.host.lock:
            self.queue.release()
