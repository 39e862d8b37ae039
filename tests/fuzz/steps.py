"""How many steps the state machines have made in this process, for the report of `python -m tests.fuzz`."""

from __future__ import annotations

from itertools import count

_steps = count(1)
_last = [0]


def counted() -> None:
    """Count a step."""
    _last[0] = next(_steps)


def steps() -> int:
    """Return how many there were."""
    return _last[0]
