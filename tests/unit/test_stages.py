"""Services in a row: each waits for the one before, at the start and at the end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from xapi.process.stages import Doing, Stage, Stages, Timer


class Slow(Stage):
    """A stage whose start and end a test lets go on."""

    def __init__(self, name: str, said: list[str]) -> None:
        self._name, self._said = name, said
        self.started: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()

    async def start(self) -> None:
        self._said.append(f"{self._name} starts")
        await self.started
        self._said.append(f"{self._name} has started")

    async def stop(self) -> None:
        self._said.append(f"{self._name} ends")
        await self.ended
        self._said.append(f"{self._name} has ended")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def slow(said: list[str]) -> tuple[Slow, Slow]:
    return Slow("database", said), Slow("ports", said)


def over(deferred: Deferred[None]) -> bool:
    """Tell whether something has been waited for to its end."""
    return bool(deferred.called)


def taken(said: list[str]) -> list[str]:
    """Return what was said since the last time."""
    now = said[:]
    said.clear()
    return now


def test_each_starts_when_the_one_before_has_and_ends_before_it(said: list[str], slow: tuple[Slow, Slow]) -> None:
    """Be it in a row of its own."""
    database, ports = slow
    whole = Stages(database, Stages(ports))
    begun = whole.startService()
    assert taken(said) == ["database starts"]
    database.started.callback(None)
    assert taken(said) == ["database has started", "ports starts"]
    assert not over(begun)
    ports.started.callback(None)
    assert taken(said) == ["ports has started"]
    assert over(begun) and whole.running
    ended = whole.stopService()
    assert taken(said) == ["ports ends"]
    ports.ended.callback(None)
    assert taken(said) == ["ports has ended", "database ends"]
    assert not over(ended)
    database.ended.callback(None)
    assert taken(said) == ["database has ended"]
    assert over(ended) and not (whole.running or database.running or ports.running)


def test_a_start_that_fails_starts_none_of_the_later_and_is_ended_itself(
    said: list[str], slow: tuple[Slow, Slow]
) -> None:
    """It may have come half way."""
    database, ports = slow
    whole = Stages(database, ports)
    failures: list[Any] = []
    whole.startService().addErrback(failures.append)
    database.started.errback(OSError("no space"))
    assert failures[0].check(OSError)
    assert taken(said) == ["database starts"]
    ended = whole.stopService()
    database.ended.callback(None)
    assert taken(said) == ["database ends", "database has ended"]
    assert over(ended)


def test_an_end_cancels_a_start_that_is_not_over(said: list[str], slow: tuple[Slow, Slow]) -> None:
    """What has started by then ends; what has not, does nothing."""
    database, ports = slow
    whole = Stages(database, ports)
    failures: list[Any] = []
    whole.startService().addErrback(failures.append)
    ended = whole.stopService()
    assert failures[0].check(CancelledError)
    database.ended.callback(None)
    assert taken(said) == ["database starts", "database ends", "database has ended"]
    assert over(ended)


def test_what_fails_at_its_end_lets_the_others_end(said: list[str], slow: tuple[Slow, Slow]) -> None:
    """And is told in the log."""
    database, ports = slow
    whole = Stages(database, ports)
    whole.startService()
    database.started.callback(None)
    ports.started.callback(None)
    taken(said)
    ended = whole.stopService()
    ports.ended.errback(OSError("no such port"))
    database.ended.callback(None)
    assert taken(said) == ["ports ends", "database ends", "database has ended"]
    assert over(ended)


def test_two_functions_are_a_stage(said: list[str]) -> None:
    """They may return what is to be waited for; one may be missing."""
    going: Deferred[None] = Deferred()
    whole = Stages(
        Doing(lambda: going, lambda: said.append("first ends")), Doing(stop=lambda: said.append("second ends"))
    )
    begun = whole.startService()
    assert not over(begun)
    going.callback(None)
    assert over(begun)
    whole.stopService()
    assert said == ["second ends", "first ends"]


def test_a_timer_goes_on_after_an_error_and_not_after_its_end() -> None:
    """It calls first when its time has passed."""
    clock = Clock()
    calls: list[float] = []

    def tick() -> None:
        calls.append(clock.seconds())
        if len(calls) == 1:
            raise ValueError("once")

    timer = Timer(5.0, tick, clock)
    timer.startService()
    assert calls == []
    clock.pump([5.0, 5.0])
    timer.stopService()
    clock.pump([5.0, 5.0])
    assert calls == [5.0, 10.0]
