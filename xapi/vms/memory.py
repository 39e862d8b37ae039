"""Memory of VMs and hosts: what a VM needs, which limits it may have, what a host has left.

All of it is book-keeping from rows, as in xapi: a guest counts with what its balloon can be told to keep (its
dynamic minimum) and its overhead, from the moment that a host is chosen for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.store.memory import Derivation
from xapi.vms.domains import domain_kind

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.datamodel.records import VM
    from xapi.store.memory import Store

MIB = 2**20
_PAGE = 4096
_MOST_VCPUS = 64
"""What maximise_memory assumes when its answer shall hold for other numbers of vCPUs too."""
_OVERHEAD_FIELDS = frozenset(
    {"memory_static_max", "VCPUs_max", "HVM_shadow_multiplier", "domain_type", "HVM_boot_policy"}
)


# What a VM needs


def _pages_in_mib(pages: int) -> int:
    """Return the MiB that hold so many pages."""
    return -(-pages * _PAGE // MIB)


def memory_overhead(domain_type: str, static_max: int, vcpus: int, shadow_multiplier: float) -> int:
    """Return the bytes that a VM needs beyond its own memory, all of them whole MiB."""
    static = -(-static_max // MIB)
    shadow = max(1, int(_pages_in_mib(256 * vcpus + 2 * static) * shadow_multiplier))
    total = shadow + 1 + _pages_in_mib(38 * vcpus)
    if domain_type != "pv":
        total += 1
    if domain_type == "pv_in_pvh":
        total += 23 + static // 90
    return total * MIB


def overhead(vm: VM) -> int:
    """Return the bytes that a VM needs beyond its own memory."""
    return memory_overhead(domain_kind(vm), vm.memory_static_max, vm.VCPUs_max, vm.HVM_shadow_multiplier)


def register(db: Store) -> None:
    """Keep memory_overhead true of each VM from now on."""

    def stale(vm: VM, names: Collection[str]) -> Iterable[str]:
        return () if _OVERHEAD_FIELDS.isdisjoint(names) else (vm._ref,)

    db.derive(Derivation("VM", "memory_overhead", lambda _, vm: overhead(vm), {"VM": stale}))


def _footprint(vm: VM, own: int, static_max: int, vcpus: int) -> int:
    """Return the bytes that a VM takes of a host while its guest holds `own` bytes."""
    kind = domain_kind(vm)
    multiplier = 1.0 if kind == "pv" else vm.HVM_shadow_multiplier
    return -(-own // MIB) * MIB + memory_overhead(kind, static_max, vcpus, multiplier)


def to_start(vm: VM) -> int:
    """Return the bytes that a host must have free for a VM to start as small as it may be."""
    own = vm.memory_static_max if domain_kind(vm) == "pv_in_pvh" else vm.memory_dynamic_min
    return _footprint(vm, own, vm.memory_static_max, vm.VCPUs_max)


def maximum(vm: VM, total: int, *, approximate: bool) -> int:
    """Return the largest static maximum, in whole MiB, with which a VM fits into `total` bytes; 0 for none.

    An approximate answer is smaller, so that it stays right with other numbers of vCPUs.
    """
    vcpus = _MOST_VCPUS if approximate else vm.VCPUs_max
    least, most = 0, max(0, total // MIB) + 1
    while most - least > 1:
        middle = (least + most) // 2
        if _footprint(vm, middle * MIB, middle * MIB, vcpus) <= total:
            least = middle
        else:
            most = middle
    return least * MIB


# The limits of a VM


class Limits(NamedTuple):
    """The four limits of a VM's memory, in bytes."""

    static_min: int
    dynamic_min: int
    dynamic_max: int
    static_max: int

    @property
    def ordered(self) -> bool:
        """Whether each lies within the other pair."""
        return self.static_min <= self.dynamic_min <= self.dynamic_max <= self.static_max

    @property
    def pinned(self) -> bool:
        """Whether the guest always has its static maximum."""
        return self.ordered and self.dynamic_min == self.static_max

    @property
    def usable(self) -> bool:
        """Whether dynamic limits can be found that lie within the static ones."""
        return self.static_min <= self.static_max and self.dynamic_min <= self.dynamic_max


def limits(vm: VM) -> Limits:
    """Return the limits of a VM."""
    return Limits(vm.memory_static_min, vm.memory_dynamic_min, vm.memory_dynamic_max, vm.memory_static_max)


def check_limits(db: Store, vm: VM, wanted: Limits) -> None:
    """Raise the Fault for limits that a VM must not have."""
    reason = _reason_to_pin(db, vm)
    if reason and not wanted.pinned:
        raise errors.MEMORY_CONSTRAINT_VIOLATION_MAXPIN(reason)
    if not wanted.ordered:
        raise errors.MEMORY_CONSTRAINT_VIOLATION_ORDER()


def check_usable(vm: VM) -> None:
    """Raise MEMORY_CONSTRAINT_VIOLATION for a VM that cannot start with its limits."""
    if not limits(vm).usable:
        raise Fault("MEMORY_CONSTRAINT_VIOLATION")  # xapi names no constraint here


def _reason_to_pin(db: Store, vm: VM) -> str:
    pool = next(iter(db.pool), None)
    if pool is not None and pool.restrictions.get("restrict_dmc") == "true":
        return "DMC disabled"
    if vm.is_control_domain:
        return "control domain"
    metrics = db.VM_metrics.get(vm.metrics)
    if metrics is None:
        nested = vm.platform.get("nested-virt", "").lower() in ("true", "1")
    else:
        nested = metrics.nested_virt
    return "nested virt" if nested else ""


# What a host has


class Room(NamedTuple):
    """The memory of a host and the claims on it, in bytes."""

    available: int
    """What guests may have of it altogether."""
    dynamic_min: int
    dynamic_max: int
    static_max: int

    @property
    def free(self) -> int:
        """What is left when every guest is as small as it may be."""
        return max(0, self.available - self.dynamic_min)

    def beside(self, vm: VM) -> Room:
        """Return what would be with one VM more."""
        return Room(
            self.available - vm.memory_overhead,
            self.dynamic_min + vm.memory_dynamic_min,
            self.dynamic_max + vm.memory_dynamic_max,
            self.static_max + vm.memory_static_max,
        )


def expected(db: Store) -> Mapping[str, list[VM]]:
    """Return the VMs that are being started, resumed or moved, by the host that expects them. Costs a look at each."""
    found: dict[str, list[VM]] = {}
    for vm in db.VM:
        if vm.scheduled_to_be_resident_on != NULL:
            found.setdefault(vm.scheduled_to_be_resident_on, []).append(vm)
    return found


def room(db: Store, host: records.host, coming: Mapping[str, list[VM]], besides: str = "") -> Room:
    """Return how full a host is, with those that it expects, but for one VM that is not to count as such."""
    metrics = db.host_metrics.get(host.metrics)
    here = [db.VM[ref] for ref in host.resident_VMs]
    here += [vm for vm in coming.get(host._ref, ()) if vm._ref != besides]
    total = 0 if metrics is None else metrics.memory_total
    return Room(
        total - host.memory_overhead - sum([vm.memory_overhead for vm in here]),
        sum([vm.memory_dynamic_min for vm in here]),
        sum([vm.memory_dynamic_max for vm in here]),
        sum([vm.memory_static_max for vm in here]),
    )


def free(db: Store, host: records.host, besides: str = "") -> int:
    """Return the bytes that a new guest could have on a host; see `room`."""
    return room(db, host, expected(db), besides).free
