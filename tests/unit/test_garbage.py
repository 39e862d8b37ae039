"""When old garbage is collected."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator

import pytest

from xapi.process import garbage
from xapi.process.garbage import Collector


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


def clock(step: float) -> Callable[[], float]:
    """Return a clock that goes on by so many seconds whenever it is read."""
    times = itertools.count()
    return lambda: next(times) * step


def test_what_has_grown_old_is_collected() -> None:
    """At the next look."""
    knot = old_knot()
    Collector(clock(0)).look()
    assert knot() is None


@pytest.mark.parametrize(("step", "frozen"), [(garbage.LONG / 2, False), (garbage.LONG * 2, True)])
def test_what_survives_a_long_look_is_not_looked_at_again(step: float, frozen: bool) -> None:
    """So that the next is short."""
    old_knot()
    Collector(clock(step)).look()
    assert (gc.get_freeze_count() > 0) is frozen


@pytest.mark.parametrize(("more", "seen"), [(garbage.MOST - 1, True), (garbage.MOST, False)])
def test_a_flood_is_not_looked_at(more: int, seen: bool) -> None:
    """A look at all of it would be long, and it is what stays."""
    gc.collect()
    knot = old_knot()
    portions = gc.get_count()[2]
    for _ in range(more + 1 - portions):
        gc.collect(1)
    Collector(clock(0)).look()
    assert (knot() is None) is seen
    assert (gc.get_freeze_count() > 0) is not seen
