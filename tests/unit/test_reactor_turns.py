"""Long work takes turns: no turn of the reactor is long, and nobody waits for another's end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from xapi.turns import SLICE, TURN, Turns


def test_a_turn_of_the_reactor_has_few_long_steps_and_nobody_waits_for_another() -> None:
    """However many work and however long a step takes."""
    taken: list[bytes] = []
    turns: list[int] = []

    class Noted(Clock):
        def callLater(self, *arguments: Any, **more: Any) -> Any:
            turns.append(len(taken))
            return super().callLater(*arguments, **more)

    def steps(who: bytes) -> Iterator[bytes]:
        for number in range(100):
            taken.append(b"%b%d" % (who, number))
            clock.rightNow += TURN / 2
            yield taken[-1]

    clock = Noted()
    shared = Turns(clock)
    works = [Deferred.fromCoroutine(shared.take(steps(name))) for name in (b"a", b"b")]
    clock.advance(0)
    assert [work.result for work in works] == [[step for step in taken if step[:1] == name] for name in (b"a", b"b")]
    assert max(after - before for before, after in pairwise([0, *turns])) <= SLICE
    assert {step[:1] for step in taken[: 3 * SLICE]} == {b"a", b"b"} and len(taken) == 200


def test_what_is_short_is_done_at_once() -> None:
    """It waits for no turn, and takes no step too many."""
    clock = Clock()
    work = Deferred.fromCoroutine(Turns(clock).take(iter([1, 2, 3])))
    assert work.result == [1, 2, 3]


def test_steps_that_take_no_time_share_a_turn() -> None:
    """Ten thousand that do next to nothing are one."""
    clock = Clock()
    work = Deferred.fromCoroutine(Turns(clock).take(iter(range(10_000))))
    assert work.result == list(range(10_000))


def test_an_error_ends_the_work_and_keeps_nobody_waiting() -> None:
    """It is raised to whoever wants the steps."""
    clock = Clock()
    shared = Turns(clock)

    def steps() -> Iterator[int]:
        yield 1
        raise OSError("no")

    failed: list[Any] = []
    Deferred.fromCoroutine(shared.take(steps())).addErrback(failed.append)
    after = Deferred.fromCoroutine(shared.take(iter([1])))
    clock.advance(0)
    assert failed[0].check(OSError) and after.result == [1]


def test_who_goes_away_keeps_nobody_waiting() -> None:
    """Whether it has its turn just now or waits for it."""
    clock = Clock()
    shared = Turns(clock)

    def steps() -> Iterator[bytes]:
        for _ in range(3 * SLICE):
            clock.rightNow += TURN / 2
            yield b"x"

    works = [Deferred.fromCoroutine(shared.take(steps())) for _ in range(3)]
    for work in works[:2]:
        work.addErrback(lambda failure: failure.trap(CancelledError))
        work.cancel()
    clock.advance(0)
    assert works[2].result == [b"x"] * 3 * SLICE
    assert Deferred.fromCoroutine(shared.take(iter([1]))).result == [1]
