"""Lists of allowed operations that are made once for all objects of which the same is so.

A class's rules look at nothing but facts, a tuple that a function of the class gathers from rows. References in facts
are null unless these are to be `named`, so ten thousand halted VMs have one list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from xapi.datamodel.errors import Fault
from xapi.store.memory import Store

MOST = 4096
"""Lists of a class that are remembered."""


def listing(
    operations: Callable[[], Iterable[str]], gather: Callable[..., Any], refuse: Callable[[Any, str], Fault | None]
) -> Callable[[Store, Any], tuple[str, ...]]:
    """Return what tells which of some operations may start on a row, in their order.

    `gather(db, row, named=False)` returns the facts, of which `refuse` is asked for each operation.
    """

    @lru_cache(MOST)
    def of(facts: Any) -> tuple[str, ...]:
        return tuple([operation for operation in operations() if refuse(facts, operation) is None])

    return lambda db, row: of(gather(db, row, named=False))
