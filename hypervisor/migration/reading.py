"""Access to a domain's memory for a copy that takes its time, and what the domain's end does to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

from hypervisor.domains.domain import Domain
from hypervisor.domains.life import State
from hypervisor.migration.context import Shape

_Step = TypeVar("_Step")


class NotSuspended(Exception):
    """The domain cannot be saved: its guest has not suspended itself, or it has ended."""


class Reading:
    """A domain's memory, in steps, until `close`; made under the host's lock. Raises NotSuspended for one that ends.

    A step is what is done in a `with`, or one turn of `each`. The domain's end waits for the step that is under way,
    calls `ended`, and there are no more: what they would read is not the domain's any more.
    """

    def __init__(self, domain: Domain, ended: Callable[[], None] = lambda: None) -> None:
        self._domain = domain
        self._ended = ended
        self._step = threading.RLock()
        self._over = False
        if domain.life.state is State.DYING:
            raise self._refusal()
        self.shape = Shape.of(domain)
        domain.at_end.append(self._domain_ends)

    def _refusal(self) -> NotSuspended:
        return NotSuspended(f"domain {self._domain.domid} has ended")

    def _domain_ends(self) -> None:
        with self._step:
            self._over = True
            self._ended()

    def close(self) -> None:
        """Read no more; harmless when the domain has ended, or a second time."""
        if self._domain_ends in self._domain.at_end:
            self._domain.at_end.remove(self._domain_ends)

    def __enter__(self) -> None:
        self._step.acquire()
        if self._over:
            self._step.release()
            raise self._refusal()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._step.release()

    def each(self, steps: Iterator[_Step]) -> Iterator[_Step]:
        """Yield what reads the memory one by one."""
        while True:
            with self:
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step
