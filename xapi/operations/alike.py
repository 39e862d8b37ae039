"""Lists of allowed operations that are made once for all objects of which the same is so.

A class's rules look at nothing but facts, a tuple that a function of the class gathers from rows. References in facts
are null unless these are to be `named`, so ten thousand halted VMs have one list.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from typing import Protocol, TypeVar

from xapi.datamodel.errors import Fault
from xapi.store.memory import Store
from xapi.store.rows import Row

R = TypeVar("R", bound=Row)
R_contra = TypeVar("R_contra", bound=Row, contravariant=True)
F = TypeVar("F", bound=Hashable)
F_co = TypeVar("F_co", bound=Hashable, covariant=True)
MOST = 4096
"""Lists of a class that are remembered."""


class Gather(Protocol[R_contra, F_co]):
    """Returns the facts of a row; what it refers to is null, unless that is to be named."""

    def __call__(self, db: Store, row: R_contra, /, *, named: bool) -> F_co: ...


def listing(
    operations: Callable[[], Iterable[str]], gather: Gather[R, F], refuse: Callable[[F, str], Fault | None]
) -> Callable[[Store, R], tuple[str, ...]]:
    """Return what tells which of some operations may start on a row, in their order.

    `gather(db, row, named=False)` returns the facts, of which `refuse` is asked for each operation.
    """

    @lru_cache(MOST)
    def of(facts: F) -> tuple[str, ...]:
        return tuple([operation for operation in operations() if refuse(facts, operation) is None])

    return lambda db, row: of(gather(db, row, named=False))
