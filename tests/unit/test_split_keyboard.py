"""Keyboard and pointer, against a front that the test plays."""

from __future__ import annotations

import pytest

from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.keyboard import BUTTON_LEFT, KEY_LAST, WAITING_MOST, Keyboard
from tests.unit.block_front import GRANT_FRAME
from tests.unit.display_front import MASK, Keys

A, SLOTS = 30, 51
MOTION, KEY, POSITION = 1, 3, 4


def test_keys_arrive_in_order() -> None:
    """Presses, releases and buttons, by Linux's codes."""
    keys = Keys().connect()
    for code, pressed in ((A, True), (A, False), (BUTTON_LEFT, True), (KEY_LAST, False)):
        assert keys.device.key(code, pressed)
    assert keys.take() == [(KEY, 1, A), (KEY, 0, A), (KEY, 1, BUTTON_LEFT), (KEY, 0, KEY_LAST)]
    assert keys.device.sent == 4 and keys.device.dropped == 0


@pytest.mark.parametrize("code", [0, -1, KEY_LAST + 1, 1 << 40])
def test_there_are_no_other_keys(code: int) -> None:
    """A code beyond Linux's would be an index beyond its tables."""
    with pytest.raises(ValueError):
        Keys().connect().device.key(code, True)


def test_the_grant_is_held_while_connected() -> None:
    """Linux frees the page only when the mark is gone."""
    keys = Keys().connect()
    entry = GRANT_FRAME * PAGE + 8 * 8
    assert keys.memory.bytes[entry] & 24 == 24
    keys.backend.remove()
    assert keys.memory.bytes[entry] & 24 == 0


def test_a_page_by_its_frame_will_do() -> None:
    """Old fronts, and MiniOS, do not grant it."""
    keys = Keys().connect(page_gref=None)
    assert keys.device.key(A, True) and keys.take() == [(KEY, 1, A)]


def test_nothing_is_taken_before_the_front_is_there() -> None:
    """What is typed then is not kept for later."""
    keys = Keys()
    keys.backend.plug()
    assert not keys.device.key(A, True) and not keys.device.move_to(1, 1) and not keys.device.move_by(1, 1)
    keys.connect()
    assert keys.take() == [] and keys.device.connected
    assert keys.back("feature-abs-pointer") == keys.back("feature-raw-pointer") == "1"
    assert (keys.back("width"), keys.back("height")) == ("800", "600")


def test_positions_are_scaled_to_the_fronts_screen() -> None:
    """Edge to edge, and never beyond it."""
    keys = Keys(width=400, height=300).connect(request_abs_pointer=1)
    for x, y, within in (
        (0, 0, None),
        (399, 299, None),
        (799, 0, (800, 600)),
        (400, 599, (800, 600)),
        (-5, 9999, None),
    ):
        keys.device.move_to(x, y, within=within)
    assert keys.take() == [(POSITION, x, y, 0) for x, y in ((0, 0), (399, 299), (399, 0), (199, 299), (0, 299))]
    keys.device.move_to(5, 5, within=(1, 1))
    assert keys.take() == [(POSITION, 0, 0, 0)]


def test_raw_positions_have_the_full_range() -> None:
    """For a front that asks for them, whatever the screen."""
    keys = Keys(width=400, height=300).connect(request_abs_pointer=1, request_raw_pointer=1)
    keys.device.move_to(399, 0)
    keys.device.move_by(-399, 299)
    assert keys.take() == [(POSITION, 0x7FFF, 0, 0), (POSITION, 0, 0x7FFF, 0)]


def test_a_front_without_positions_gets_movements() -> None:
    """The difference to where the pointer was, in the front's pixels; and movements as they are."""
    keys = Keys(width=400, height=300).connect()
    keys.device.move_to(100, 50)
    keys.device.move_to(790, 0, within=(800, 600))
    keys.device.move_by(-1000, 3)
    keys.device.move_to(0, 3)
    assert keys.take() == [(MOTION, 100, 50, 0), (MOTION, 294, -50, 0), (MOTION, -1000, 3, 0), (MOTION, 0, 0, 0)]


def test_a_front_may_ask_for_positions_late() -> None:
    """Linux did so between Initialised and Connected, up to 4.x; that is no change of its keys."""
    keys = Keys().connect()
    keys.write("request-abs-pointer", 1)
    keys.write("state", 4)
    assert keys.back("state") == "4"
    keys.device.move_by(7, 8)
    assert keys.take() == [(POSITION, 7, 8, 0)]


def test_the_wheel_turns_up_with_positive_steps() -> None:
    """In the ring down is positive."""
    keys = Keys().connect()
    keys.device.move_by(0, 0, 2)
    keys.write("request-abs-pointer", 1)
    keys.device.move_to(3, 4, -1)
    assert keys.take() == [(MOTION, 0, 0, -2), (POSITION, 3, 4, 1)]


def test_wild_movements_are_bounded() -> None:
    """Numbers beyond 32 bits do not break the packing."""
    keys = Keys().connect()
    assert keys.device.move_by(1 << 80, -(1 << 80), 1 << 80)
    largest = (1 << 31) - 1
    assert keys.take() == [(MOTION, largest, -largest, -largest)]


def test_what_finds_no_room_waits_and_then_is_dropped() -> None:
    """The newest first, and counted; order is kept when the front goes on."""
    keys = Keys().connect()
    for number in range(SLOTS + WAITING_MOST + 5):
        keys.device.move_by(number, 0)
        keys.domain.events.drain()
    assert keys.device.dropped == 5 and keys.device.sent == SLOTS + WAITING_MOST
    seen = []
    while taken := keys.take():
        seen += [event[1] for event in taken]
        assert len(taken) <= SLOTS
        keys.kick()
    assert seen == list(range(SLOTS + WAITING_MOST))


def test_no_key_stays_pressed_for_want_of_room() -> None:
    """The release of a press that was sent always waits; that of a press that was dropped does not."""
    keys = Keys().connect()
    assert keys.device.key(A, True)
    while keys.device.move_by(1, 1):
        keys.domain.events.drain()
    assert not keys.device.key(A + 1, True) and not keys.device.key(A + 1, False)
    assert keys.device.key(A, False) and not keys.device.key(A, False)
    seen: list[tuple[int, ...]] = []
    while taken := keys.take():
        seen += taken
        keys.kick()
    assert [event for event in seen if event[0] == KEY] == [(KEY, 1, A), (KEY, 0, A)]


@pytest.mark.parametrize("consumer", [1, MASK - 60, 1 << 31])
def test_a_wild_consumer_ends_the_connection(consumer: int) -> None:
    """More taken than was sent, or more waiting than there is room for."""
    keys = Keys().connect()
    keys.set_word(0, consumer)
    keys.device.key(A, True)
    keys.domain.events.drain()
    assert keys.back("state") == "5" and "wild" in keys.error and not keys.device.connected
    assert not keys.device.key(A, False)


def test_the_fronts_own_events_are_let_go() -> None:
    """None is defined; a wild index ends the connection."""
    keys = Keys().connect()
    keys.set_word(12, 25)
    keys.kick()
    assert keys.word(8) == 25 and keys.back("state") == "4"
    keys.set_word(12, 25 + 26)
    keys.kick()
    assert keys.back("state") == "5"


@pytest.mark.parametrize("keys", [{"page_gref": 9}, {"page_gref": 1 << 31}, {"page_gref": ""}, {"event_channel": 0}])
def test_pages_that_cannot_be_mapped_are_refused(keys: dict[str, object]) -> None:
    """And nothing is held."""
    front = Keys().connect(**keys)
    assert front.back("state") == "5" and front.error and not front.device.connected
    assert front.memory.bytes[GRANT_FRAME * PAGE + 64] & 24 == 0


def test_a_taken_event_channel_is_refused() -> None:
    """One that is bound to something else."""
    keys = Keys()
    keys.backend.plug()
    port = keys.domain.events.bind_ipi(0)
    keys.connect(event_channel=port)
    assert keys.back("state") == "5" and keys.memory.bytes[GRANT_FRAME * PAGE + 64] & 24 == 0


def test_a_restart_forgets_what_waits() -> None:
    """Another kernel does not get the old one's keys."""
    keys = Keys().connect()
    keys.device.key(A, True)
    keys.backend.restart()
    keys.connect()
    assert keys.take() == []
    keys.device.key(A, False)
    assert keys.take() == [(KEY, 0, A)]


@pytest.mark.parametrize("size", [(0, 1), (1, 0), (0x8001, 1)])
def test_screens_that_are_none_are_refused(size: tuple[int, int]) -> None:
    """They could not be scaled to."""
    with pytest.raises(ValueError):
        Keyboard(Keys().domain, width=size[0], height=size[1])
