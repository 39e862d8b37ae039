"""Steps that a cancel does not disturb: what undoes others, and what comes after there is no way back.

A cancel may come at any moment and more than once. It ends what is awaited with CancelledError, and what is awaited
then may be the very step that puts things right.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class _Undisturbed(Deferred[T]):
    """A Deferred that takes no notice of being cancelled."""

    def cancel(self) -> None:
        """Do nothing."""


def to_its_end(step: Coroutine[Any, Any, T]) -> Deferred[T]:
    """Begin a step and return its result: who awaits it and is cancelled waits all the same."""
    done: _Undisturbed[T] = _Undisturbed()
    Deferred.fromCoroutine(step).chainDeferred(done)
    return done
