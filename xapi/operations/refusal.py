"""Why an operation may not start now, for every class whose objects list their allowed operations.

Each class has a module of this package whose `refuse` reads like its part of the table of the API:
the first rule that applies wins. `allowed_operations` asks the same rules, so that the list and the
answer to a call cannot disagree; the store derives it at each change that matters (`register`).
What no message serves yet is refused last, and never listed (`xapi.operations.serving`).
Everything follows from rows: no clock, no host is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import EnumType, SetType
from xapi.operations import appliance, cluster, host, pool, sr, vbd, vdi, vif, vm, vtpm, vusb
from xapi.operations.serving import AMONG_HOSTS, served, unserved
from xapi.operations.sources import Guests, Source, either, when
from xapi.store.memory import Derivation, Store
from xapi.store.rows import Row

R = TypeVar("R", bound=Row)
R_contra = TypeVar("R_contra", bound=Row, contravariant=True)


class Refuse(Protocol[R_contra]):
    """Returns why an operation of an object may not start, or None."""

    def __call__(self, db: Store, row: R_contra, operation: str, /, *, strict: bool, called: bool) -> Fault | None: ...


class Rules(NamedTuple, Generic[R]):
    """What is known of the operations of one class."""

    refuse: Refuse[R]
    sources: Callable[[Store, Guests], Mapping[str, Source]]
    allowed: Callable[[Store, R], tuple[str, ...]] | None = None
    """A quicker way to the list than asking for each operation of the enum (`xapi.operations.alike`)."""
    unlisted: frozenset[str] = frozenset()


def _never(db: Store, row: Row, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Refuse nothing."""
    return None


RULES: Mapping[str, Rules[Any]] = {
    "VM": Rules(vm.refuse, vm.sources, vm.allowed),
    "VBD": Rules(vbd.refuse, vbd.sources, vbd.allowed),
    "VIF": Rules(vif.refuse, vif.sources, vif.allowed),
    "VDI": Rules(vdi.refuse, vdi.sources, vdi.allowed),
    "SR": Rules(sr.refuse, sr.sources, unlisted=sr.UNLISTED),
    "host": Rules(host.refuse, host.sources),
    "pool": Rules(pool.refuse, pool.sources),
    "VM_appliance": Rules(appliance.refuse, appliance.sources),
    "VUSB": Rules(vusb.refuse, vusb.sources),
    "VTPM": Rules(vtpm.refuse, vtpm.sources),
    "Cluster": Rules(cluster.refuse, cluster.sources),
    # Servers have never listed these two.
    "Cluster_host": Rules(cluster.refuse_member, cluster.member_sources, unlisted=frozenset({"destroy"})),
    "network": Rules(_never, lambda db, guests: {}, unlisted=frozenset({"attaching"})),
}
"""Every class that has allowed_operations but task, whose list `xapi.calls.tasks` knows."""


def refusal(db: Store, row: Row, operation: str, *, strict: bool = True, called: bool = True) -> Fault | None:
    """Return the fault for an operation that may not start now, or None.

    `strict` also asks for what a guest needs to cope; pool_migrate with force does without. With
    `called`, the rules count that refuse a call but do not show in the list.
    """
    name = row._table.name
    fault = RULES[name].refuse(db, row, operation, strict=strict, called=called)
    if fault is None and operation in (coming := unserved()[name]):
        return errors.NOT_IMPLEMENTED(coming[operation])
    return fault


def allowed_operations(db: Store, row: Row) -> tuple[str, ...]:
    """Return the operations that an object advertises now, in the order of the enum."""
    return _listing(row._table.name)(db, row)


def permitted(db: Store, row: Row) -> tuple[str, ...]:
    """Return the operations that the rules alone would let an object advertise now, in the order of the enum."""
    rules = RULES[row._table.name]
    if rules.allowed is not None:
        return rules.allowed(db, row)
    listed = row._table.cls.fields["allowed_operations"].type
    assert isinstance(listed, SetType) and isinstance(listed.item, EnumType)
    return tuple(
        [
            operation
            for operation in listed.item.values
            if operation not in rules.unlisted and rules.refuse(db, row, operation, strict=True, called=False) is None
        ]
    )


def _listing(name: str) -> Callable[[Store, Row], tuple[str, ...]]:
    """Return what makes the lists of a class."""
    allowed, absent = RULES[name].allowed or permitted, frozenset(unserved()[name])
    if name in AMONG_HOSTS:
        absent_among = absent | AMONG_HOSTS[name]
        return lambda db, row: served(allowed(db, row), absent if len(db.host) == 1 else absent_among)
    return (lambda db, row: served(allowed(db, row), absent)) if absent else allowed


def _otherwise(db: Store, name: str) -> Callable[[Row], Iterable[str]]:
    """Return what finds the lists of a class that were made in a pool of one host and are in one of several now, or
    the other way round, when a host comes or goes."""

    def reach(host: Row) -> Iterable[str]:
        rows = db.claimable(name).rows
        if len(db.host) == 1:
            return list(rows)
        return [ref for ref, row in rows.items() if not AMONG_HOSTS[name].isdisjoint(row.allowed_operations)]

    return reach


def register(db: Store) -> None:
    """Derive allowed_operations from now on, and bring the rows that exist up to date."""
    guests = Guests(db)
    for name, rules in RULES.items():
        sources = dict(rules.sources(db, guests))
        if name in AMONG_HOSTS:
            sources["host"] = either(sources["host"], when("", _otherwise(db, name), new=True))
        if sources:
            db.derive(Derivation(name, "allowed_operations", _listing(name), sources))
    with db.atomic():
        for name in RULES:
            for row in db.claimable(name):
                row.allowed_operations = allowed_operations(db, row)
