"""A front end played by the test: it writes grants, rings and xenstore keys as a guest's driver does."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.disks.disk import Disk
from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.block import BlockConfig, BlockDevice
from hypervisor.split.block_request import DISCARD, INDIRECT
from hypervisor.split.ring import HEADER, slots_of
from hypervisor.split.xenbus import Backend

GRANT_FRAME, SHARED_FRAME, RING_FRAME, DATA_FRAME = 10, 11, 20, 300
SLOT = 112
MIB = 1 << 20


def a_domain(memory: int = 4 * MIB) -> tuple[Host, Domain]:
    """A domain that no CPU runs, with a grant table and a shared page."""
    host = Host(64 * MIB, 1)
    domain = host.create([(0, memory)])
    host.xenstore.introduce(domain.domid)
    domain.grants.place(0, GRANT_FRAME)
    domain.place_shared_info(SHARED_FRAME)
    return host, domain


class Front:
    """A block front of a domain of its own. Disk work waits in `work` until `run`."""

    def __init__(self, disk: Disk | None = None, **options: Any) -> None:
        self.host, self.domain = a_domain()
        self.memory = self.domain.memory
        self.store = self.host.xenstore
        self.work: deque[Callable[[], None]] = deque()
        disk = AnonymousDisk(MIB) if disk is None and not options.get("cdrom") else disk
        self.device = BlockDevice(self.domain, disk, self.work.append, BlockConfig(**options))
        self.states: list[int] = []
        self.backend = Backend(self.domain, self.store, self.device, self.device.number, self.states.append)
        self.produced = self.consumed = 0
        self.port = 0
        self.pages = 1

    # Grants and xenstore

    def grant(self, ref: int, frame: int, readonly: bool = False, domid: int = 0) -> int:
        """Write a grant entry, version 1."""
        at = GRANT_FRAME * PAGE + ref * 8
        struct.pack_into("<HHI", self.memory.bytes, at, 1 | 4 * readonly, domid, frame)
        return ref

    def granted(self, ref: int) -> int:
        """Return a grant entry's flags."""
        return int(struct.unpack_from("<H", self.memory.bytes, GRANT_FRAME * PAGE + ref * 8)[0])

    def write(self, key: str, value: object) -> None:
        self.store.write(f"{self.backend.front}/{key}", str(value))

    def back(self, key: str) -> str | None:
        return self.store.read_text(f"{self.backend.back}/{key}")

    def connect(self, order: int | None = None, queue: str = "", first_ref: int = 8, **keys: object) -> Front:
        """Plug the device if it is not, offer a ring of 2**order pages, and say Initialised."""
        if not self.backend.online:
            self.backend.plug()
        self.pages = 1 << (order or 0)
        self.ring = memoryview(self.memory.bytes)[RING_FRAME * PAGE : (RING_FRAME + self.pages) * PAGE]
        self.ring[:] = bytes(len(self.ring))
        struct.pack_into("<II", self.ring, 4, 1, 0)
        struct.pack_into("<I", self.ring, 12, 1)
        self.produced = self.consumed = 0
        self.port = self.domain.events.alloc_unbound(0)
        for page in range(self.pages):
            name = "ring-ref" if order is None else f"ring-ref{page}"
            self.write(name, self.grant(first_ref + page, RING_FRAME + page))
        if order is not None:
            self.write("ring-page-order", order)
        self.write("event-channel", self.port)
        for key, value in keys.items():
            self.write(key.replace("_", "-"), value)
        self.write("state", 3)
        return self

    # The ring

    def push(self, *slots: bytes) -> None:
        """Put requests into the ring and send an event."""
        count = slots_of(self.pages, SLOT)
        for slot in slots:
            at = HEADER + self.produced % count * SLOT
            self.ring[at : at + len(slot)] = slot
            self.produced += 1
        struct.pack_into("<I", self.ring, 0, self.produced)
        self.kick()

    def kick(self) -> None:
        channel = self.domain.events.channels.get(self.port)
        if channel is not None and channel.notify is not None:
            channel.notify()

    def run(self) -> list[tuple[int, int, int]]:
        """Let the disk threads work; return (id, operation, status) of the new responses."""
        while self.work:
            self.work.popleft()()
        self.domain.events.drain()
        produced = struct.unpack_from("<I", self.ring, 8)[0]
        answers = []
        while self.consumed != produced:
            at = HEADER + self.consumed % slots_of(self.pages, SLOT) * SLOT
            answers.append(struct.unpack_from("<QBxh", self.ring, at))
            self.consumed += 1
        return answers

    def do(self, *slots: bytes) -> list[int]:
        """Push requests and return their statuses in order."""
        self.push(*slots)
        return [status for _, _, status in self.run()]


def request(operation: int, sector: int, segments: list[tuple[int, int, int]], number: int = 7) -> bytes:
    """A slot as a 64-bit front writes it."""
    head = struct.pack("<BBH4xQQ", operation, len(segments), 0, number, sector)
    return head + b"".join(struct.pack("<IBBxx", *segment) for segment in segments)


def discard(sector: int, count: int) -> bytes:
    return struct.pack("<BBH4xQQQ", DISCARD, 0, 0, 7, sector, count)


def indirect(operation: int, sector: int, count: int, page: int) -> bytes:
    return struct.pack("<BBH4xQQH2x8I", INDIRECT, operation, count, 7, sector, 0, page, *[0] * 7)
