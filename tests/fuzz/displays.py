"""A display's two fronts that write what they like: page, directory, indexes, events, keys; and who looks and types."""

from __future__ import annotations

import struct
from functools import partial

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from hypervisor.api import Area
from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.framebuffer import Follower
from hypervisor.split.keyboard import WAITING_MOST
from hypervisor.split.pixels import MOST_AREAS
from tests.fuzz.lives import Lives
from tests.fuzz.steps import counted
from tests.property.test_split_display import depths, events, frames, signed, unsigned, untouched
from tests.unit.display_front import DIRECTORY, DisplayFront, Keys, Screen

KEYS = ("state", "page-ref", "page-gref", "event-channel", "protocol", "feature-update", "request-abs-pointer",
        "request-raw-pointer")  # fmt: skip
MOST_FOLLOWERS = 4
values = st.one_of(
    st.integers(-1, 10), st.integers(0, 1 << 33), st.binary(max_size=6), st.sampled_from([b"x86_64-abi", b"x86_32-abi"])
)
indexes = st.sampled_from([0, 4, 8, 12])


class Displays(Lives):
    """A guest's screen and keyboard, in domains of their own; `both` is how a rule names one of them."""

    def __init__(self) -> None:
        super().__init__()
        self._plug()

    def _plug(self) -> None:
        self.screen, self.keys = Screen().connect(), Keys().connect()
        self.both: tuple[DisplayFront, DisplayFront] = self.screen, self.keys
        self.before = [bytes(front.memory.bytes[: 120 * PAGE]) for front in self.both]
        self.followers: list[Follower] = []
        self.told = 0

    def subject(self, which: int) -> tuple[Host, Domain]:
        return self.both[which].host, self.both[which].domain

    def begin_anew(self, which: int) -> None:
        """Plug both anew; who looked at the old screen is told, and keys go nowhere."""
        assert all(follower.ended for follower in self.followers) or which
        for follower in self.followers:
            follower.take()
        screen, keys = self.both
        assert which == 0 or not keys.device.key(30, True)
        other = self.both[1 - which]
        other.host.destroy(other.domain)
        assert screen.device.picture().data == b"" and screen.device.follow(self._changed).ended
        self._plug()

    # The guest

    @rule(
        size=st.tuples(signed, signed),
        stride=unsigned,
        memory=unsigned,
        depth=depths,
        directory=st.lists(frames, max_size=5),
        video=st.lists(frames, max_size=5),
        keep=st.booleans(),
    )
    def come_back(
        self,
        size: tuple[int, int],
        stride: int,
        memory: int,
        depth: int,
        directory: list[int],
        video: list[int],
        keep: bool,
    ) -> None:
        """Begin anew, with a screen that is one or with any page."""
        counted()
        self.screen.write("state", 1)
        if keep:
            self.screen.connect(40, 30, depth if depth in (8, 16, 24, 32) else 32)
        else:
            struct.pack_into("<iiIIB", self.screen.page, 16, *size, stride, memory, depth)
            struct.pack_into(f"<{len(directory)}Q", self.screen.page, 40, *directory)
            struct.pack_into(f"<{len(video)}Q", self.screen.memory.frame(DIRECTORY), 0, *video)
            self.screen.begin(feature_update=1)
        self._take_directory()

    def _take_directory(self) -> None:
        """Note what the guest itself has written."""
        start, end = DIRECTORY * PAGE, (DIRECTORY + 1) * PAGE
        before, _ = self.before
        self.before[0] = before[:start] + bytes(self.screen.memory.frame(DIRECTORY)) + before[end:]

    @rule(many=st.lists(events, min_size=1, max_size=60))
    def tell(self, many: list[bytes]) -> None:
        counted()
        self.screen.send(*many)

    @rule(which=st.integers(0, 1), at=indexes, value=st.one_of(st.integers(0, 60), unsigned))
    def index(self, which: int, at: int, value: int) -> None:
        counted()
        self.both[which].set_word(at, value)
        self.both[which].kick()

    @rule(which=st.integers(0, 1), content=st.binary(min_size=1, max_size=64), at=st.integers(0, PAGE - 64))
    def scribble(self, which: int, content: bytes, at: int) -> None:
        counted()
        self.both[which].page[at : at + len(content)] = content
        self.both[which].kick()

    @rule(which=st.integers(0, 1), key=st.sampled_from(KEYS), value=values)
    def write(self, which: int, key: str, value: int | bytes) -> None:
        counted()
        front = self.both[which]
        front.store.write(f"{front.backend.front}/{key}", value if isinstance(value, bytes) else str(value).encode())

    @rule(which=st.integers(0, 1), remove=st.booleans())
    def lose(self, which: int, remove: bool) -> None:
        """Close the event channel, or remove the whole directory."""
        counted()
        front = self.both[which]
        if remove and front.store.exists(front.backend.front):
            front.store.rm(front.backend.front)
        elif front.port in front.domain.events.channels:
            front.domain.events.close(front.port)

    @rule()
    def keys_come_back(self) -> None:
        counted()
        self.keys.write("state", 1)
        self.keys.connect()

    @rule()
    def read(self) -> None:
        self.keys.take(60)

    # Who looks and types

    def _changed(self) -> None:
        self.told += 1

    @rule()
    def follow(self) -> None:
        if len(self.followers) == MOST_FOLLOWERS:
            self.followers.pop(0).close()
        self.followers.append(self.screen.device.follow(self._changed))

    @rule()
    def look(self) -> None:
        """Take what has changed, and the pixels of it: all of it is on the screen."""
        counted()
        for follower in self.followers:
            damage = follower.take()
            assert len(damage.areas) <= MOST_AREAS
            for area in damage.areas:
                assert area in Area(0, 0, damage.width, damage.height)
                assert len(self.screen.device.pixels(area.x, area.y, area.width, area.height)) == 4 * area.size
        picture = self.screen.device.picture()
        assert len(picture.data) == 4 * picture.width * picture.height

    @rule(code=st.integers(1, 0x2FF), times=st.integers(1, 300), pressed=st.booleans())
    def press(self, code: int, times: int, pressed: bool) -> None:
        counted()
        for _ in range(times):
            self.keys.device.key(code, pressed)

    @rule(x=st.integers(), y=st.integers(), wheel=st.integers(), within=st.sampled_from([None, (1, 1), (9999, 3)]))
    def point(self, x: int, y: int, wheel: int, within: tuple[int, int] | None) -> None:
        counted()
        self.keys.device.move_to(x, y, wheel, within)
        self.keys.device.move_by(x, y, wheel)

    @rule(force=st.booleans())
    def unplug(self, force: bool) -> None:
        """Take the display away; its domains' memory is let go of, and a new one comes."""
        counted()
        for front in self.both:
            done: list[bool] = []
            if force:
                front.backend.remove(partial(done.append, True))
            else:
                front.backend.unplug(partial(done.append, True))
                front.write("state", 6)
            assert done and front.backend.gone
            front.host.destroy(front.domain)
        self._plug()

    @invariant()
    def what_waits_is_bounded_and_nothing_else_is_written(self) -> None:
        assert len(self.keys.device._waiting) <= WAITING_MOST + 0x300
        for front, before in zip(self.both, self.before):
            assert len(front.domain.events.queued) < 200
            assert untouched(front, before)
        shape = self.screen.device.shape
        assert (shape is None) == (not self.screen.device._frames)

    def teardown(self) -> None:
        for front in self.both:
            front.host.destroy(front.domain)
