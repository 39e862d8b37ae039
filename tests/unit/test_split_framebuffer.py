"""The screen, against a front that the test plays."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from hypervisor.api import Area, Damage
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.framebuffer import MIB, Framebuffer
from hypervisor.split.pixels import MOST_AREAS, converted, merged
from tests.unit.display_front import DIRECTORY, MASK, SHARED, VIDEO, Screen

WHOLE = Area(0, 0, 40, 30)


class Watcher:
    """Counts its calls, and looks when it is told to."""

    def __init__(self, screen: Screen) -> None:
        self.calls = 0
        self.follower = screen.device.follow(self.called)

    def called(self) -> None:
        self.calls += 1

    def take(self) -> tuple[Area, ...]:
        return self.follower.take().areas


def test_connects_and_asks_for_updates() -> None:
    """The front's shape is the screen's, and it is told that its updates are wanted."""
    screen = Screen().connect()
    assert (screen.back("state"), screen.back("request-update"), screen.back("feature-resize")) == ("4", "1", "1")
    assert screen.device.shape is not None and screen.device.shape.area == WHOLE
    assert screen.back("videoram") == "8" and screen.back("width") is None


def test_offers_the_size_that_is_wished() -> None:
    """Linux's front takes its size from the back's nodes."""
    screen = Screen(width=1024, height=768, video_memory=4 * MIB)
    screen.backend.plug()
    assert [screen.back(key) for key in ("width", "height", "videoram")] == ["1024", "768", "4"]
    for memory in (0, MIB + 1, 129 * MIB):
        with pytest.raises(ValueError):
            Framebuffer(screen.domain, video_memory=memory)


def test_does_not_connect_before_the_front_is_ready() -> None:
    """A front in Initialising is not looked at, whatever it has written."""
    screen = Screen()
    screen.backend.plug()
    screen.write("page-ref", SHARED)
    assert screen.back("state") == "2" and screen.device.shape is None
    assert screen.device.picture().data == b"" and screen.device.follow(lambda: None).take() == Damage(0, 0, ())


def test_a_front_that_does_not_tell_is_all_news() -> None:
    """Without feature-update nothing is requested, and whoever looks must look at everything."""
    screen = Screen().connect(feature_update=None)
    assert screen.back("request-update") == "0" and not screen.device.tells
    watcher = Watcher(screen)
    assert watcher.take() == watcher.take() == (WHOLE,)


@pytest.mark.parametrize("stride", [160, 200])
def test_pixels_come_from_where_the_directory_says(stride: int) -> None:
    """Across frames that are no neighbours, row for row, with gaps between rows or without."""
    screen = Screen().connect(stride=stride)
    video = bytes(number * 7 % 251 for number in range(stride * 30))
    screen.draw(0, video)
    rows = [video[line * stride : line * stride + 160] for line in range(30)]
    picture = screen.device.picture()
    assert (picture.width, picture.height, picture.data) == (40, 30, b"".join(rows))
    assert screen.device.pixels(3, 24, 10, 4) == b"".join(row[12:52] for row in rows[24:28])
    assert screen.device.pixels(39, 29, 1, 1) == rows[29][156:]


@pytest.mark.parametrize(
    "area", [(0, 0, 41, 1), (-1, 0, 2, 1), (0, 0, 0, 1), (0, 29, 1, 2), (0, 0, 1, -1), (40, 0, 1, 1)]
)
def test_pixels_off_the_screen_are_refused(area: tuple[int, int, int, int]) -> None:
    """Nothing is cut or made up."""
    with pytest.raises(ValueError):
        Screen().connect().device.pixels(*area)


@pytest.mark.parametrize(
    ("depth", "pixel", "expected"),
    [
        (8, b"\xe3", b"\xff\x00\xff"),
        (8, b"\x1c", b"\x00\xff\x00"),
        (16, b"\x00\xf8", b"\x00\x00\xff"),
        (16, b"\xe0\x07", b"\x00\xff\x00"),
        (16, b"\x1f\x00", b"\xff\x00\x00"),
        (16, b"\x10\x84", b"\x83\x82\x83"),
        (24, b"\x01\x02\x03", b"\x01\x02\x03"),
    ],
)
def test_depths_become_one(depth: int, pixel: bytes, expected: bytes) -> None:
    """Blue, green, red, and a byte of no meaning; full is full and nothing is nothing."""
    assert converted(depth, pixel * 3) == (expected + b"\0") * 3
    screen = Screen().connect(depth=depth)
    screen.draw((40 * 7 + 3) * depth // 8, pixel)
    assert screen.device.pixels(3, 7, 1, 1)[:3] == expected
    assert screen.device.pixels(4, 7, 1, 1)[:3] == bytes(3)


def test_all_shades_of_16_bits_are_near() -> None:
    """Each of the colours is its share of 255, one step more or less."""
    for value in range(0, 1 << 16, 37):
        blue, green, red, _ = converted(16, struct.pack("<H", value))
        exact = ((value & 31) * 255 / 31, (value >> 5 & 63) * 255 / 63, (value >> 11) * 255 / 31)
        assert all(abs(ours - theirs) <= 1 for ours, theirs in zip((blue, green, red), exact, strict=True))


def test_updates_are_gathered_until_they_are_taken() -> None:
    """One call for many; each follower has its own; what was taken does not come again."""
    screen = Screen().connect()
    first, second = Watcher(screen), Watcher(screen)
    assert first.calls == 1 and first.take() == (WHOLE,)
    screen.update(1, 2, 3, 4)
    screen.update(20, 20, 1, 1)
    assert first.calls == 2 and first.take() == (Area(1, 2, 3, 4), Area(20, 20, 1, 1))
    assert first.take() == ()
    assert second.calls == 1 and second.take() == (WHOLE,)
    first.follower.close()
    screen.update(0, 0, 1, 1)
    assert (first.calls, second.calls) == (2, 2)
    assert screen.device.updates == 3


def test_updates_are_clipped_to_the_screen() -> None:
    """Also those that Linux sends of what it never drew, and numbers that would overflow."""
    screen = Screen().connect()
    watcher = Watcher(screen)
    watcher.take()
    largest = (1 << 31) - 1
    for wild in [(40, 0, 1, 1), (0, 0, 0, 5), (largest, largest, -largest, -largest), (5, 5, -1, 2), (-9, -9, 9, 9)]:
        screen.update(*wild)
    assert watcher.calls == 1 and watcher.take() == ()
    screen.update(-5, 28, largest, largest)
    assert watcher.take() == (Area(0, 28, 40, 2),)
    assert screen.back("state") == "4"


def test_the_front_is_told_that_its_events_were_taken() -> None:
    """Its index is followed, and an event is sent, for it may wait for room."""
    screen = Screen().connect()
    pending = 0x800 // 8 + screen.port // 64
    for number in range(120):
        screen.update(number % 40, 0, 1, 1)
        assert screen.word(8) == screen.word(12) == number + 1
    assert screen.memory.words[11 * PAGE // 8 + pending] >> screen.port & 1


def test_areas_are_joined_where_nothing_is_lost() -> None:
    """Neighbours and covered areas become one; too many become their common frame."""
    assert merged([Area(0, 0, 4, 4)], Area(1, 1, 2, 2)) == [Area(0, 0, 4, 4)]
    assert merged([Area(1, 1, 2, 2)], Area(0, 0, 4, 4)) == [Area(0, 0, 4, 4)]
    assert merged([Area(0, 0, 4, 4)], Area(4, 0, 4, 4)) == [Area(0, 0, 8, 4)]
    assert len(merged([Area(0, 0, 1, 1)], Area(9, 9, 1, 1))) == 2
    areas: list[Area] = []
    for number in range(MOST_AREAS + 1):
        areas = merged(areas, Area(number * 2, number * 2, 1, 1))
    assert areas == [Area(0, 0, 2 * MOST_AREAS + 1, 2 * MOST_AREAS + 1)]


def test_a_resize_is_another_screen() -> None:
    """Followers see all of it; shape and offset count for what is read."""
    screen = Screen().connect()
    watcher = Watcher(screen)
    watcher.take()
    screen.draw(160 + 8, b"abcd")
    screen.resize(20, 10, 160, 32, 160)
    change = watcher.follower.take()
    assert (watcher.calls, change) == (2, Damage(20, 10, (Area(0, 0, 20, 10),)))
    assert screen.device.pixels(2, 0, 1, 1) == b"abcd"
    screen.resize(20, 10, 160, 32, 160)
    assert watcher.calls == 2, "the same again is no news"


@pytest.mark.parametrize(
    "shape",
    [
        {"width": 0},
        {"width": -1},
        {"height": 0},
        {"height": -(1 << 31)},
        {"height": 31, "memory": 4800},
        {"width": 41, "stride": 160},
        {"depth": 0},
        {"depth": 15},
        {"depth": 64},
        {"stride": 0},
        {"stride": 1 << 31},
        {"stride": MASK, "memory": MASK},
        {"memory": 0},
        {"memory": 8 * MIB + 1},
        {"memory": MASK},
        {"width": (1 << 31) - 1, "height": (1 << 31) - 1, "stride": 160, "memory": 4800},
    ],
    ids=str,
)
def test_shapes_that_cannot_be_are_refused(shape: dict[str, int]) -> None:
    """At connect, with an error node and nothing held."""
    screen = Screen()
    options: dict[str, Any] = {"width": 40, "height": 30, "stride": 160, "memory": 4800, **shape}
    screen.connect(**options)
    assert screen.back("state") == "5" and screen.error.startswith("22 ")
    assert screen.device.shape is None and not screen.device.picture().data
    assert screen.domain.events.channels[screen.port].notify is None


@pytest.mark.parametrize(
    "event",
    [
        struct.pack("<B3x5i", 3, 41, 30, 160, 32, 0),
        struct.pack("<B3x5i", 3, 40, 30, 160, 32, 4),
        struct.pack("<B3x5i", 3, 40, 30, -160, 32, 4640),
        struct.pack("<B3x5i", 3, 40, 30, 160, 32, -4),
        struct.pack("<B3x5i", 3, 40, 1, (1 << 31) - 1, 48, 0),
        struct.pack("<B3x5i", 3, -40, -30, 160, 32, 0),
        b"\x01",
        b"\x00",
        b"\xff" * 40,
    ],
    ids=str,
)
def test_events_that_cannot_be_end_the_connection(event: bytes) -> None:
    """The device fails, with nothing of the guest's held, and the followers see that the screen is gone."""
    screen = Screen().connect()
    watcher = Watcher(screen)
    watcher.take()
    screen.send(event)
    assert screen.back("state") == "5" and screen.error
    assert (watcher.calls, watcher.follower.take()) == (2, Damage(0, 0, ()))
    screen.kick()


@pytest.mark.parametrize("ahead", [52, 1 << 31, MASK])
def test_a_wild_index_ends_the_connection(ahead: int) -> None:
    """An index beyond the ring is not followed."""
    screen = Screen().connect()
    screen.set_word(12, ahead)
    screen.kick()
    assert screen.back("state") == "5" and "wild" in screen.error


def test_a_full_ring_is_taken_across_the_end_of_the_numbers() -> None:
    """51 events at once, with indexes that go round."""
    screen = Screen()
    screen.shape(40, 30)
    screen.set_word(8, MASK - 10)
    screen.set_word(12, MASK - 10)
    screen.begin(feature_update=1)
    for _ in range(51):
        produced = screen.word(12)
        at = 2048 + produced % 51 * 40
        screen.page[at : at + 40] = struct.pack("<B3x4i", 2, 0, 0, 1, 1).ljust(40, b"\0")
        screen.set_word(12, produced + 1)
    screen.kick()
    assert screen.device.updates == 51 and screen.word(8) == screen.word(12) == 40


@pytest.mark.parametrize("frame", [1024, 1 << 36, (1 << 64) - 1, 1 << 52])
@pytest.mark.parametrize("where", ["page-ref", "directory", "frame"])
def test_frames_that_are_no_ram_are_refused(frame: int, where: str) -> None:
    """Beyond the memory, and numbers whose address would overflow."""
    screen = Screen()
    screen.backend.plug()
    screen.shape(40, 30)
    if where == "directory":
        struct.pack_into("<Q", screen.page, 40, frame)
    elif where == "frame":
        struct.pack_into("<Q", screen.memory.frame(DIRECTORY), 8, frame)
    screen.begin(page_ref=frame if where == "page-ref" else SHARED)
    assert screen.back("state") == "5" and screen.device.shape is None


def test_a_hole_in_the_memory_is_no_ram() -> None:
    """Between the ranges of a large guest there is address space, but nothing that it owns."""
    screen = Screen()
    screen.domain.ranges = ((0, 90 * PAGE), (95 * PAGE, 1024 * PAGE))
    screen.connect()
    assert screen.back("state") == "4" and VIDEO >= 95
    screen = Screen()
    screen.domain.ranges = ((0, VIDEO * PAGE), ((VIDEO + 1) * PAGE, 1024 * PAGE))
    screen.connect()
    assert screen.back("state") == "5" and "no RAM" in screen.error


def test_the_largest_directory_ends_before_the_rings() -> None:
    """64 pages of it, every entry looked at: the last one is no RAM."""
    screen = Screen(video_memory=128 * MIB)
    screen.shape(40, 30, memory=128 * MIB)
    struct.pack_into("<64Q", screen.page, 40, *[DIRECTORY] * 64)
    struct.pack_into("<512Q", screen.memory.frame(DIRECTORY), 0, *range(512))
    screen.begin()
    assert screen.back("state") == "4" and screen.device.shape is not None
    screen.backend.restart()
    struct.pack_into("<Q", screen.memory.frame(DIRECTORY), 511 * 8, 1024)
    screen.begin()
    assert screen.back("state") == "5" and "frame 0x400 is no RAM" in screen.error


def test_the_directory_is_read_once() -> None:
    """What the front writes there later moves nothing."""
    screen = Screen().connect()
    screen.draw(0, b"wxyz")
    struct.pack_into("<Q", screen.memory.frame(DIRECTORY), 0, 5)
    struct.pack_into("<Q", screen.page, 40, 6)
    assert screen.device.pixels(0, 0, 1, 1) == b"wxyz"


def test_the_32_bit_protocol_has_its_own_directory() -> None:
    """Entries of 32 bits that begin 4 bytes before."""
    screen = Screen()
    screen.shape(40, 30)
    struct.pack_into("<I", screen.page, 36, DIRECTORY)
    struct.pack_into("<2I", screen.memory.frame(DIRECTORY), 0, 50, 51)
    screen.begin(protocol="x86_32-abi", feature_update=1)
    screen.memory.bytes[51 * PAGE : 51 * PAGE + 4] = b"wxyz"
    assert screen.device.pixels((PAGE // 4) % 40, PAGE // 160, 1, 1) == b"wxyz"


@pytest.mark.parametrize("key", ["page-ref", "event-channel", "protocol"])
@pytest.mark.parametrize("value", ["", "-1", "x", "99999999999999999999999", "\x00"])
def test_keys_that_make_no_sense_are_refused(key: str, value: str) -> None:
    """An error, not an exception."""
    screen = Screen()
    screen.backend.plug()
    screen.shape(40, 30)
    screen.begin(**{key.replace("-", "_"): value})
    assert screen.back("state") == "5" and screen.error


def test_a_front_comes_back_after_a_restart() -> None:
    """With another page and screen; the old page is not touched any more."""
    screen = Screen().connect()
    watcher = Watcher(screen)
    screen.backend.restart()
    assert screen.device.shape is None and watcher.follower.take() == Damage(0, 0, ())
    screen.connect(width=20, height=10)
    assert watcher.follower.take() == Damage(20, 10, (Area(0, 0, 20, 10),))


@pytest.mark.parametrize("force", [False, True])
def test_an_unplugged_screen_is_gone(force: bool) -> None:
    """With the front's consent or without; the domain can end afterwards."""
    screen = Screen().connect()
    done: list[bool] = []
    if force:
        screen.backend.remove(lambda: done.append(True))
    else:
        screen.backend.unplug(lambda: done.append(True))
        assert screen.back("state") == "5" and screen.device.picture().data
        screen.write("state", 6)
    assert done and screen.backend.gone and screen.device.shape is None
    screen.kick()
    screen.page.release()
    screen.host.destroy(screen.domain)


def test_a_domain_ends_with_its_screen() -> None:
    """The memory is let go of, and a follower sees an empty screen."""
    screen = Screen().connect()
    watcher = Watcher(screen)
    screen.page.release()
    screen.host.destroy(screen.domain)
    assert watcher.follower.take() == Damage(0, 0, ()) and screen.device.picture().width == 0
