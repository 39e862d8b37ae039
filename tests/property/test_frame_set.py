"""A set of frames against Python's own."""

from __future__ import annotations

import sys
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.memory.frame_set import FrameSet

frames = st.one_of(st.integers(0, 40), st.integers(4080, 4110), st.integers(0, 3 * 4096), st.just((1 << 36) - 9000))
counts = st.one_of(st.integers(0, 5), st.integers(0, 9000))
steps = st.lists(st.tuples(st.sampled_from(["add", "remove", "count"]), frames, counts), max_size=30)


@settings(deadline=None)
@given(steps=steps)
def test_it_holds_what_a_set_would(steps: list[tuple[str, int, int]]) -> None:
    """After any steps, over the borders of parts and far up; each call tells what it changed."""
    made, like = FrameSet(), set[int]()
    for what, first, count in steps:
        run = set(range(first, first + count))
        if what == "add":
            assert made.add(first, count) == len(run - like)
            like |= run
        elif what == "remove":
            assert made.remove(first, count) == len(run & like)
            like -= run
        else:
            assert made.count(first, count) == len(run & like)
        assert all((frame in made) == (frame in like) for frame in (first - 1, first, first + count) if frame >= 0)
    assert len(made) == len(like)
    runs = list(made.runs())
    assert [frame for first, count in runs for frame in range(first, first + count)] == sorted(like)
    assert all(first + count < second for (first, count), (second, _) in pairwise(runs))


def test_a_tebibyte_costs_megabytes() -> None:
    """Every second frame of it, the worst that a guest can do; and nothing when all are taken out again."""
    made, every = FrameSet(), (1 << 40) // 4096
    made.add(0, every)
    made._parts = dict.fromkeys(made._parts, int.from_bytes(b"\x55" * 512, "little"))
    assert len(made) == every // 2
    assert sum(map(sys.getsizeof, made._parts.values())) + sys.getsizeof(made._parts) < 45 << 20
    assert made.remove(0, every) == every // 2 and len(made) == 0 and not made._parts
