"""How a change of one row reaches the rows whose allowed_operations follow from it.

A source is called for every change of a row of its class, so it must tell at once that a change
does not matter. Objects on the two sides of a relation hear of each other's coming and going through
the relation sets; what is merely pointed at (metrics, drivers) needs the care that `when` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xapi.datamodel.records import VM
    from xapi.store.memory import Store
    from xapi.store.rows import Row

Source = Callable[[Any, Collection[str]], Iterable[str]]


def own(fields: str) -> Source:
    """Derive a row anew when one of its own fields changes, or it comes back from the dead."""
    watched = frozenset(fields.split())

    def source(row: Row, names: Collection[str]) -> Iterable[str]:
        # A row without a birth that has not all fields changed is one whose deletion was undone.
        return (row._ref,) if row._created == 0 or not watched.isdisjoint(names) else ()

    return source


def when(fields: str, reach: Callable[[Any], Iterable[str]], *, new: bool = False) -> Source:
    """Derive the rows that `reach` names when a field changes, or when the row goes or comes back.

    A row that is new or just loaded has all its fields changed. It reaches others only with `new`:
    what can know of it already has changed with it.
    """
    watched = frozenset(fields.split())

    def source(row: Row, names: Collection[str]) -> Iterable[str]:
        if watched.isdisjoint(names) and row._created and row._ref in row._table.rows:
            return ()
        if not new and len(names) == len(row._table.cls.fields):
            return ()
        return reach(row)

    return source


def either(*sources: Source) -> Source:
    """Return a source that reaches what any of several does."""
    return lambda row, names: chain.from_iterable(source(row, names) for source in sources)


class Guests:
    """Which VM a VM_metrics or VM_guest_metrics belongs to; the schema has no relation for that.

    One belongs to one VM at most. Entries are hints: they outlive what they tell of, and `of` makes
    them anew when one is missing or turns out wrong.
    """

    def __init__(self, db: Store) -> None:
        self._db = db
        self._vms: dict[str, str] = {}
        self._renew()

    def note(self, vm: VM, names: Collection[str]) -> None:
        """Learn of a VM's change."""
        if "metrics" in names or "guest_metrics" in names:
            self._vms[vm.metrics] = self._vms[vm.guest_metrics] = vm._ref
            if len(self._vms) > 4 * len(self._db.VM) + 1000:
                self._renew()

    def of(self, metrics: Row) -> VM | None:
        """Return the VM of a row of either class; for one that is deleted, the VM that it may have had."""
        ref = metrics._ref
        vm = self._known(ref)
        wrong = vm is None or ref not in (vm.metrics, vm.guest_metrics)
        if ref not in self._vms or (wrong and ref in metrics._table.rows):
            self._renew()
            vm = self._known(ref)
        return vm

    def _known(self, ref: str) -> VM | None:
        return self._db.VM.get(self._vms.get(ref, ""))

    def _renew(self) -> None:
        self._vms = {ref: vm._ref for vm in self._db.VM for ref in (vm.metrics, vm.guest_metrics)}
