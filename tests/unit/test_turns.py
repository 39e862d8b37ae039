"""Whose turn it is among a domain's vCPUs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.domains.turns import SHORTEST, TURN, Turns


def test_one_alone_has_no_end_to_its_turn() -> None:
    """Nobody is to be waited for."""
    turns = Turns(2)
    assert turns.next([1], 0) == 1 and turns.end is None


def test_an_interruption_does_not_end_a_turn() -> None:
    """It goes on until the time that it began with."""
    turns = Turns(2)
    first = turns.next([0, 1], 0)
    assert turns.end == TURN
    turns.leave(TURN // 2, gave_up=False)
    assert turns.next([0, 1], TURN // 2) == first and turns.end == TURN
    turns.leave(TURN, gave_up=False)
    assert turns.next([0, 1], TURN) == 1 - first


def test_who_waits_for_another_goes_behind_it() -> None:
    """However little it ran; unless there is nobody else."""
    turns = Turns(2)
    first = turns.next([0, 1], 0)
    turns.leave(10, gave_up=True)
    assert turns.next([0, 1], 10) == 1 - first
    turns.leave(20, gave_up=True)
    assert turns.next([1 - first], 20) == 1 - first


def test_who_wakes_comes_soon() -> None:
    """The one that runs has its shortest time."""
    turns = Turns(2)
    assert turns.next([0], 1000) == 0
    assert turns.wake(1, [0], 1500) and turns.end == 1000 + SHORTEST
    assert not turns.wake(1, [0], 1600)
    turns.leave(1000 + SHORTEST, gave_up=False)
    assert turns.next([0, 1], 1000 + SHORTEST) == 1


def test_two_that_wake_each_other_leave_the_third_its_share() -> None:
    """They run in turn for 50 µs each and sleep; it only runs."""
    turns, now, ran = Turns(3), 0, [0, 0, 0]
    waker, asleep = 0, 1
    for _ in range(5000):
        able = [waker, 2]
        number = turns.next(able, now)
        spent = 50_000
        now, ran[number] = now + spent, ran[number] + spent
        if number == waker:
            turns.wake(asleep, able, now)
            waker, asleep = asleep, waker
        turns.leave(now, gave_up=False)
    assert ran[2] > now * 0.3 and ran[0] + ran[1] > now * 0.3, ran


@given(st.integers(2, 6), st.data())
def test_busy_ones_have_equal_shares(count: int, data: st.DataObject) -> None:
    """Whenever they are interrupted."""
    turns, now, ran = Turns(count), 0, [0] * count
    able = list(range(count))
    for _ in range(40 * count):
        number = turns.next(able, now)
        assert turns.end is not None and now < turns.end <= now + TURN
        spent = data.draw(st.sampled_from([turns.end - now, (turns.end - now + 1) // 2]))
        now, ran[number] = now + spent, ran[number] + spent
        turns.leave(now, gave_up=False)
    assert max(ran) - min(ran) <= 2 * TURN
