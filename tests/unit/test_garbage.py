"""When old garbage is collected."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from xapi import garbage
from xapi.garbage import Collector


class Thread:
    """The CPU time and the clock of a thread, both moved by the test."""

    def __init__(self) -> None:
        self.used = self.now = 0.0
        self.step = 0.0

    def cpu(self) -> float:
        return self.used

    def clock(self) -> float:
        self.now += self.step
        return self.now


class Knot:
    """An object that knows itself."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave the collector as other tests have it."""
    threshold = gc.get_threshold()
    gc.collect()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def old_knot() -> weakref.ref[Knot]:
    """Return garbage that has survived two collections of the young."""
    knot = Knot()
    seen = weakref.ref(knot)
    gc.collect(0)
    gc.collect(1)
    del knot
    gc.collect(1)
    assert seen() is not None
    return seen


def test_a_quiet_thread_collects_what_is_old() -> None:
    """At the next look."""
    thread = Thread()
    collector = Collector(thread.cpu, thread.clock)
    knot = old_knot()
    collector.look()
    assert knot() is None


def test_a_busy_thread_waits_until_it_is_quiet() -> None:
    """For a full collection stops it."""
    thread = Thread()
    collector = Collector(thread.cpu, thread.clock)
    knot = old_knot()
    thread.used += garbage.QUIET * 2
    collector.look()
    assert knot() is not None
    collector.look()
    assert knot() is None


def test_a_thread_that_is_never_quiet_collects_at_last() -> None:
    """Or memory would grow for ever."""
    thread = Thread()
    collector = Collector(thread.cpu, thread.clock)
    knot = old_knot()
    for _ in range(garbage.PATIENCE - 1):
        thread.used += garbage.QUIET * 2
        collector.look()
    assert knot() is not None
    thread.used += garbage.QUIET * 2
    collector.look()
    assert knot() is None


@pytest.mark.parametrize(("step", "frozen"), [(garbage.LONGEST / 2, False), (garbage.LONGEST * 2, True)])
def test_what_survives_a_long_collection_is_not_looked_at_again(step: float, frozen: bool) -> None:
    """So that the next is short."""
    thread = Thread()
    collector = Collector(thread.cpu, thread.clock)
    old_knot()
    thread.step = step
    collector.look()
    assert (gc.get_freeze_count() > 0) is frozen
