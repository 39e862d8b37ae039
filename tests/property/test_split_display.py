"""Hostile fronts of a screen and of a keyboard: any page, any directory, any indexes, any keys, at any time."""

from __future__ import annotations

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.api import Area
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.framebuffer import MIB
from hypervisor.split.keyboard import WAITING_MOST
from hypervisor.split.pixels import MOST_AREAS, clipped, merged
from tests.unit.block_front import GRANT_FRAME
from tests.unit.display_front import DIRECTORY, MASK, SHARED, DisplayFront, Keys, Screen

few = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
signed = st.one_of(st.integers(-2, 70), st.integers(-(1 << 31), (1 << 31) - 1))
unsigned = st.one_of(st.integers(0, 9000), st.integers(0, MASK))
frames = st.one_of(st.integers(28, 120), st.integers(1000, 1030), st.integers(0, (1 << 64) - 1))
depths = st.one_of(st.sampled_from([8, 16, 24, 32]), st.integers(0, 255))
events = st.one_of(
    st.binary(min_size=40, max_size=40),
    st.builds(lambda *numbers: struct.pack("<B3x4i", 2, *numbers), signed, signed, signed, signed),
    st.builds(lambda *numbers: struct.pack("<B3x5i", 3, *numbers), signed, signed, signed, depths, signed),
)


def untouched(front: DisplayFront, before: bytes) -> bool:
    """Nothing but the shared page and the grant table was written."""
    mine = (SHARED, GRANT_FRAME, 11)
    now = bytes(front.memory.bytes[: 120 * PAGE])
    return all(
        now[frame * PAGE : (frame + 1) * PAGE] == before[frame * PAGE : (frame + 1) * PAGE]
        for frame in range(120)
        if frame not in mine
    )


@few
@given(signed, signed, unsigned, unsigned, depths, st.lists(frames, max_size=5), st.lists(frames, max_size=5))
def test_no_page_makes_us_read_or_write_elsewhere(
    width: int, height: int, stride: int, memory: int, depth: int, directories: list[int], video: list[int]
) -> None:
    """It fails or it connects, and then all of the screen can be read."""
    screen = Screen()
    screen.shape(40, 30)
    struct.pack_into("<iiIIB", screen.page, 16, width, height, stride, memory, depth)
    struct.pack_into(f"<{len(directories)}Q", screen.page, 40, *directories)
    struct.pack_into(f"<{len(video)}Q", screen.memory.frame(DIRECTORY), 0, *video)
    before = bytes(screen.memory.bytes[: 120 * PAGE])
    screen.begin(feature_update=1)
    assert screen.back("state") in ("4", "5")
    picture = screen.device.picture()
    assert len(picture.data) == 4 * picture.width * picture.height <= 4 * 8 * MIB
    assert (screen.back("state") == "4") == bool(picture.data)
    assert untouched(screen, before)


@few
@given(st.lists(st.tuples(st.lists(events, max_size=8), st.one_of(st.integers(0, 60), unsigned)), max_size=6))
def test_no_event_and_no_index_escapes(rounds: list[tuple[list[bytes], int]]) -> None:
    """Whatever comes, damage stays on the screen and is bounded, and a broken device stays broken."""
    screen = Screen().connect()
    follower = screen.device.follow(lambda: None)
    before = bytes(screen.memory.bytes[: 120 * PAGE])
    for batch, ahead in rounds:
        produced = screen.word(12)
        for number, event in enumerate(batch):
            at = 2048 + (produced + number & MASK) % 51 * 40
            screen.page[at : at + 40] = event.ljust(40, b"\0")
        screen.set_word(12, produced + (ahead if ahead > 60 else len(batch)))
        screen.kick()
        change = follower.take()
        whole = Area(0, 0, max(1, change.width), max(1, change.height))
        assert len(change.areas) <= MOST_AREAS and all(area in whole for area in change.areas)
        picture = screen.device.picture()
        assert (picture.width, picture.height) == (change.width, change.height)
        assert len(picture.data) == 4 * picture.width * picture.height
    assert untouched(screen, before)


areas = st.builds(Area, st.integers(0, 30), st.integers(0, 30), st.integers(1, 9), st.integers(1, 9))


def covered(rectangles: list[Area]) -> set[tuple[int, int]]:
    return {
        (x, y)
        for area in rectangles
        for x in range(area.x, area.x + area.width)
        for y in range(area.y, area.y + area.height)
    }


@given(st.lists(areas, max_size=40))
def test_merging_never_loses_a_pixel(new: list[Area]) -> None:
    """And keeps no more areas than it may."""
    kept: list[Area] = []
    for area in new:
        kept = merged(kept, area)
        assert len(kept) <= MOST_AREAS
    assert covered(new) <= covered(kept)


@given(signed, signed, signed, signed)
def test_clipping_keeps_what_is_on_the_screen(x: int, y: int, width: int, height: int) -> None:
    """Exactly that."""
    screen = Area(0, 0, 7, 5)
    part = clipped((x, y, width, height), screen)
    inside = {(a, b) for a in range(7) for b in range(5) if x <= a < x + width and y <= b < y + height}
    assert covered([part] if part is not None else []) == inside


class Typing(RuleBasedStateMachine):
    """A keyboard between a user who types too much and a front that does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = Keys().connect()
        self.before = bytes(self.keys.memory.bytes[: 120 * PAGE])

    @rule(code=st.integers(1, 0x2FF), pressed=st.booleans(), times=st.integers(1, 80))
    def press(self, code: int, pressed: bool, times: int) -> None:
        for _ in range(times):
            self.keys.device.key(code, pressed)

    @rule(x=st.integers(), y=st.integers(), wheel=st.integers(), within=st.sampled_from([None, (1, 1), (9999, 3)]))
    def point(self, x: int, y: int, wheel: int, within: tuple[int, int] | None) -> None:
        self.keys.device.move_to(x, y, wheel, within)
        self.keys.device.move_by(x, y, wheel)

    @rule(at=st.sampled_from([0, 4, 8, 12]), value=st.one_of(st.integers(0, 60), unsigned))
    def index(self, at: int, value: int) -> None:
        self.keys.set_word(at, value)

    @rule()
    def kick(self) -> None:
        self.keys.kick()

    @rule()
    def read(self) -> None:
        self.keys.take(60)

    @rule(key=st.sampled_from(["request-abs-pointer", "request-raw-pointer", "page-gref"]), value=st.binary(max_size=3))
    def key(self, key: str, value: bytes) -> None:
        self.keys.store.write(f"{self.keys.backend.front}/{key}", value)

    @rule(state=st.integers(0, 9))
    def state(self, state: int) -> None:
        self.keys.write("state", state)

    @rule()
    def come_back(self) -> None:
        self.keys.write("state", 1)
        self.keys.connect()

    @invariant()
    def what_waits_is_bounded_and_nothing_else_is_written(self) -> None:
        assert len(self.keys.device._waiting) <= WAITING_MOST + 0x300
        assert len(self.keys.domain.events.queued) < 200
        assert untouched(self.keys, self.before)


Typing.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestTyping = Typing.TestCase
