"""Fronts of a display and of a keyboard played by the test: they fill the shared page and the keys as Linux does."""

from __future__ import annotations

import struct
from typing import Any

from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.framebuffer import Framebuffer
from hypervisor.split.keyboard import Keyboard
from hypervisor.split.xenbus import Backend
from tests.unit.block_front import GRANT_FRAME, a_domain

SHARED, DIRECTORY, VIDEO = 30, 31, 100
"""Frames: the shared page, the page directory's first page, the video memory's last frame."""
MASK = 0xFFFF_FFFF


class DisplayFront:
    """What the two fronts have in common: a domain that no CPU runs, a page, an event channel."""

    def __init__(self, make: Any, **options: Any) -> None:
        self.host, self.domain = a_domain()
        self.memory = self.domain.memory
        self.store = self.host.xenstore
        self.device = make(self.domain, **options)
        self.states: list[int] = []
        self.backend = Backend(self.domain, self.store, self.device, 0, self.states.append)
        self.page = self.memory.frame(SHARED)
        self.port = 0

    def write(self, key: str, value: object) -> None:
        self.store.write(f"{self.backend.front}/{key}", str(value))

    def back(self, key: str) -> str | None:
        return self.store.read_text(f"{self.backend.back}/{key}")

    @property
    def error(self) -> str:
        """What the backend says is wrong with us."""
        return self.store.read_text(f"/local/domain/0/error/backend/{self.device.kind}/{self.domain.domid}/0/error", "")

    def begin(self, **keys: object) -> None:
        """Plug the device if it is not, offer the page, and say Initialised."""
        if not self.backend.online:
            self.backend.plug()
        self.port = self.domain.events.alloc_unbound(0)
        for key, value in {"event_channel": self.port, "page_ref": SHARED, **keys}.items():
            if value is not None:
                self.write(key.replace("_", "-"), value)
        self.write("state", 3)

    def word(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.page, at)[0])

    def set_word(self, at: int, value: int) -> None:
        struct.pack_into("<I", self.page, at, value & MASK)

    def kick(self) -> None:
        """Send an event, and let what was posted for the domain's thread happen."""
        channel = self.domain.events.channels.get(self.port)
        if channel is not None and channel.notify is not None:
            channel.notify()
        self.domain.events.drain()


class Screen(DisplayFront):
    """A front of a screen of 40 x 30 points, its frames in reverse order in memory."""

    device: Framebuffer

    def __init__(self, **options: Any) -> None:
        super().__init__(Framebuffer, **options)

    def shape(
        self, width: int, height: int, depth: int = 32, stride: int | None = None, memory: int | None = None
    ) -> None:
        """Fill the page: a screen, its frames and their directory."""
        stride = width * depth // 8 if stride is None else stride
        memory = stride * height if memory is None else memory
        self.page[:] = bytes(PAGE)
        self.stride, self.depth = stride, depth
        struct.pack_into("<iiIIB", self.page, 16, width, height, stride & MASK, memory & MASK, depth)
        self.frames = [VIDEO - number for number in range(min(60, -(-memory // PAGE)))]
        struct.pack_into("<Q", self.page, 40, DIRECTORY)
        struct.pack_into(f"<{len(self.frames)}Q", self.memory.frame(DIRECTORY), 0, *self.frames)

    def connect(self, width: int = 40, height: int = 30, depth: int = 32, **options: Any) -> Screen:
        keys = {key: options.pop(key) for key in list(options) if key in ("feature_update", "protocol", "page_gref")}
        self.shape(width, height, depth, **options)
        self.begin(**{"feature_update": 1, "protocol": "x86_64-abi", **keys})
        return self

    def draw(self, at: int, data: bytes) -> None:
        """Write into the video memory."""
        for number, byte in enumerate(data, at):
            self.memory.bytes[self.frames[number // PAGE] * PAGE + number % PAGE] = byte

    def send(self, *events: bytes) -> None:
        for event in events:
            produced = self.word(12)
            at = 2048 + produced % 51 * 40
            self.page[at : at + 40] = event.ljust(40, b"\0")
            self.set_word(12, produced + 1)
        self.kick()

    def update(self, x: int, y: int, width: int, height: int) -> None:
        self.send(struct.pack("<B3x4i", 2, x, y, width, height))

    def resize(self, width: int, height: int, stride: int, depth: int = 32, offset: int = 0) -> None:
        self.send(struct.pack("<B3x5i", 3, width, height, stride, depth, offset))


class Keys(DisplayFront):
    """A front of a keyboard and pointer, its page granted as Linux does since 4.15."""

    device: Keyboard

    def __init__(self, **options: Any) -> None:
        super().__init__(Keyboard, **options)

    def connect(self, **keys: object) -> Keys:
        self.page[:] = bytes(PAGE)
        struct.pack_into("<HHI", self.memory.bytes, GRANT_FRAME * PAGE + 8 * 8, 1, 0, SHARED)
        self.begin(**{"page_gref": 8, **keys})
        return self

    def take(self, most: int = 1000) -> list[tuple[int, ...]]:
        """Take events: (1, dx, dy, dz), (3, pressed, code) or (4, x, y, dz)."""
        self.domain.events.drain()
        taken = list[tuple[int, ...]]()
        while self.word(4) != self.word(0) and len(taken) < most:
            consumed = self.word(0)
            kind, pressed, *words = struct.unpack_from("<BBxxiii", self.page, 1024 + consumed % 51 * 40)
            taken.append((kind, pressed, words[0]) if kind == 3 else (kind, *words))
            self.set_word(0, consumed + 1)
        return taken
