"""The screen of a guest: the virtual framebuffer of public/io/fbif.h (xen-fbfront in Linux).

The front draws into frames of its own, whose numbers stand in a page directory, and tells by events which part of
the screen has changed, and when the screen's shape has. We only ever read the frames: `Framebuffer.pixels` copies
a part of the screen, in the format of `pixels`, and a `Follower` gathers what has changed since it last looked.

The front's page directory is read once, when it connects; each number in it must be RAM of the guest's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hypervisor.api import Area, Damage
from hypervisor.domains.domain import Domain
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.pixels import DEPTHS, clipped, converted, merged
from hypervisor.split.shared_page import SharedPage, ram
from hypervisor.split.xenbus import Backend, BusState, Frontend, FrontendError

MIB = 1 << 20
VIDEO_MEMORY = 8 * MIB
"""What a front may have at most, if nobody says otherwise."""
VIDEO_MEMORY_MOST = 128 * MIB
"""Its directory still ends before the rings."""
_UPDATE, _RESIZE = 2, 3
"""XENFB_TYPE_*."""
_IN_RING, _OUT_RING = (1024, 1024), (2048, 2048)
_SHAPE = struct.Struct("<iiIIB")
"""Of the page: width, height, line_length, mem_length, depth."""
_SHAPE_AT = 16
_RECTANGLE = struct.Struct("<4x4i")
_RESIZED = struct.Struct("<4x5i")
_DIRECTORIES = {"x86_64-abi": (40, "Q"), "x86_32-abi": (36, "I")}
"""Protocol to where in the page the directory begins, and its entries' code: `unsigned long` of the guest's."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the screen lies in the video memory: pixels, bits of a pixel, bytes."""

    width: int
    height: int
    depth: int
    stride: int
    offset: int

    def checked(self, memory: int) -> Shape:
        """Return itself if it lies in so many bytes of memory. Raises FrontendError."""
        row = self.width * (self.depth // 8)
        if self.depth not in DEPTHS:
            raise FrontendError(f"a depth of {self.depth} bits is unknown")
        if self.width <= 0 or self.height <= 0 or self.stride < row or self.offset < 0:
            raise FrontendError(f"a screen of {self.width} x {self.height}, {self.stride} bytes a line, is none")
        if self.offset + (self.height - 1) * self.stride + row > memory:
            raise FrontendError(f"a screen of {self.width} x {self.height} does not fit into {memory} bytes")
        return self

    @property
    def area(self) -> Area:
        """Return the whole screen."""
        return Area(0, 0, self.width, self.height)


@dataclass(frozen=True, slots=True)
class Picture:
    """A copy of the screen: `data` is 4 bytes a pixel, see `pixels`."""

    width: int
    height: int
    data: bytes


class Follower:
    """What of the screen somebody has not seen yet. `changed` is called once, until `take`, when there is something.

    It is called under the host's lock, on the domain's thread as a rule; it should only wake somebody up.
    """

    def __init__(self, screen: Framebuffer, changed: Callable[[], None]) -> None:
        self._screen = screen
        self._changed = changed
        self._areas: list[Area] = []
        self._told = False
        self.ended = False
        """True once the screen was taken away, with its domain or before: nothing more comes."""

    def take(self) -> Damage:
        """Return what has changed since last time; all of it when the front does not tell (`Framebuffer.tells`)."""
        with self._screen.domain.host.lock:
            areas, self._areas, self._told = self._areas, [], False
            shape = self._screen.shape
            if shape is None:
                return Damage(0, 0, ())
            return Damage(shape.width, shape.height, tuple(areas) if self._screen.tells else (shape.area,))

    def add(self, area: Area) -> None:
        """Hear of a change."""
        self._areas = merged(self._areas, area)
        self._tell()

    def reset(self, shape: Shape | None) -> None:
        """Hear that it is another screen, or none."""
        self._areas = [] if shape is None else [shape.area]
        self._tell()

    def lose(self) -> None:
        """Hear that there will be no screen any more."""
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._changed()

    def close(self) -> None:
        """Hear no more."""
        self._screen.unfollow(self)


class Framebuffer:
    """A screen to be plugged with `xenbus.Backend`; `width` and `height` are a wish that Linux's front follows.

    `video_memory` is what the front may have at most, in bytes, a multiple of 1 MiB. Methods may be called from any
    thread.
    """

    kind = "vfb"
    ready = frozenset({BusState.INITIALISED, BusState.CONNECTED})

    def __init__(self, domain: Domain, *, width: int = 0, height: int = 0, video_memory: int = VIDEO_MEMORY) -> None:
        if video_memory % MIB or not 0 < video_memory <= VIDEO_MEMORY_MOST:
            raise ValueError(f"{video_memory} bytes of video memory are no whole MiB up to 128")
        self.domain = domain
        self.shape: Shape | None = None
        """None while no front is connected."""
        self.tells = False
        """Whether the front tells what has changed; without that only `pixels` tells."""
        self.updates = 0
        """How many events of changes have come."""
        self._wish = (width, height)
        self._limit = video_memory
        self._bus: Backend | None = None
        self._page: SharedPage | None = None
        self._memory = 0
        self._frames: list[int] = []
        self._followers: dict[Follower, None] = {}
        self._gone = False

    # For xenbus

    def back_nodes(self) -> Mapping[str, str]:
        """Return nothing: all is said by `features`."""
        return {}

    def front_nodes(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}

    def features(self) -> Mapping[str, str]:
        """Return what we offer."""
        nodes = {"feature-resize": "1", "videoram": str(self._limit // MIB)}
        if all(self._wish):
            nodes |= {"width": str(self._wish[0]), "height": str(self._wish[1])}
        return nodes

    def connect(self, frontend: Frontend, bus: Backend) -> Mapping[str, str]:
        """Map the page, read the directory and begin to hear events. Raises FrontendError."""
        protocol = frontend.text("protocol", "x86_64-abi")
        if protocol not in _DIRECTORIES:
            raise FrontendError(f"protocol {protocol[:40]!r} is unknown")
        tells = frontend.flag("feature-update")
        page = SharedPage(self.domain, frontend, _IN_RING, _OUT_RING, self._heard)
        try:
            # Linux has got only so far that all of this is filled; what it writes later is not looked at.
            width, height, stride, memory, depth = _SHAPE.unpack_from(page.bytes, _SHAPE_AT)
            if memory > self._limit:
                raise FrontendError(f"{memory} bytes of video memory are more than {self._limit}")
            shape = Shape(width, height, depth, stride, 0).checked(memory)
            self._frames = self._directory(page, memory, *_DIRECTORIES[protocol])
        except FrontendError:
            page.close()
            raise
        self._page, self._bus, self._memory, self.tells = page, bus, memory, tells
        self._reshape(shape)
        return {"request-update": str(int(self.tells))}

    def _directory(self, page: SharedPage, memory: int, at: int, code: str) -> list[int]:
        """Return where the frames of the video memory begin. Raises FrontendError."""
        size, count = struct.calcsize(code), -(-memory // PAGE)
        each = PAGE // size
        pages = -(-count // each)
        frames: list[int] = []
        for directory in struct.unpack_from(f"<{pages}{code}", page.bytes, at):
            start = ram(self.domain, directory)
            entries = struct.unpack_from(f"<{min(each, count - len(frames))}{code}", self.domain.memory.bytes, start)
            frames += [ram(self.domain, frame) for frame in entries]
        return frames

    def disconnect(self, done: Callable[[], None], drop: bool = False) -> None:
        """Let go of everything of the guest's; see `DeviceClass`."""
        page, self._page = self._page, None
        if page is not None:
            page.close()
            self._frames, self.tells = [], False
            self._reshape(None)
        if drop:
            self._bus = None
            self.close()
        done()

    def close(self) -> None:
        """Tell those who look that the screen was taken away; under the host's lock."""
        self._gone = True
        for follower in list(self._followers):
            follower.lose()

    # The front's events, on the domain's thread

    def _heard(self) -> None:
        if self._page is None or self._bus is None:
            return
        try:
            for event in self._page.take():
                self._event(event)
        except FrontendError as error:
            self._bus.fail(str(error))

    def _event(self, event: bytes) -> None:
        """Do what an event says. Raises FrontendError for one that is unknown, as fbif.h has it."""
        if event[0] == _UPDATE and self.shape is not None:
            self.updates += 1
            area = clipped(_RECTANGLE.unpack_from(event), self.shape.area)
            if area is not None:
                for follower in list(self._followers):
                    follower.add(area)
        elif event[0] == _RESIZE:
            width, height, stride, depth, offset = _RESIZED.unpack_from(event)
            shape = Shape(width, height, depth, stride, offset).checked(self._memory)
            if shape != self.shape:
                self._reshape(shape)
        else:
            raise FrontendError(f"events of type {event[0]} are unknown")

    def _reshape(self, shape: Shape | None) -> None:
        self.shape = shape
        for follower in list(self._followers):
            follower.reset(shape)

    # What those who look at it ask

    def follow(self, changed: Callable[[], None]) -> Follower:
        """Return a follower; all that is on the screen now is new to it."""
        follower = Follower(self, changed)
        with self.domain.host.lock:
            self._followers[follower] = None
            if self._gone:
                follower.lose()
            elif self.shape is not None:
                follower.reset(self.shape)
        return follower

    def unfollow(self, follower: Follower) -> None:
        """Stop `follow`."""
        with self.domain.host.lock:
            self._followers.pop(follower, None)

    def picture(self) -> Picture:
        """Return what is on the screen, 0 x 0 when there is none; the guest may be drawing meanwhile."""
        with self.domain.host.lock:
            if self.shape is None:
                return Picture(0, 0, b"")
            return Picture(self.shape.width, self.shape.height, self._copy(self.shape.area, self.shape))

    def pixels(self, x: int, y: int, width: int, height: int) -> bytes:
        """Return a part of the screen, 4 bytes a pixel, see `pixels`. Raises ValueError for one that is not on it."""
        with self.domain.host.lock:
            area = Area(x, y, width, height)
            if self.shape is None or width <= 0 or height <= 0 or area not in self.shape.area:
                raise ValueError(f"{area} is not on the screen")
            return self._copy(area, self.shape)

    def _copy(self, area: Area, shape: Shape) -> bytes:
        pixel = shape.depth // 8
        start = shape.offset + area.y * shape.stride + area.x * pixel
        row = area.width * pixel
        if row == shape.stride:
            return converted(shape.depth, self._read(start, row * area.height))
        rows = [self._read(start + line * shape.stride, row) for line in range(area.height)]
        return converted(shape.depth, b"".join(rows))

    def _read(self, start: int, length: int) -> bytes:
        """Return bytes of the video memory, which lie in it."""
        memory, parts = self.domain.memory.bytes, []
        while length:
            page, at = divmod(start, PAGE)
            taken = min(PAGE - at, length)
            place = self._frames[page] + at
            parts.append(memory[place : place + taken])
            start, length = start + taken, length - taken
        return b"".join(parts)
