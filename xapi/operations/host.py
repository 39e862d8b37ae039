"""When an operation of a host may start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.operations.busy import held
from xapi.operations.sources import Guests, Source, either, own, when
from xapi.operations.sr import attached

if TYPE_CHECKING:
    from xapi.datamodel.records import PBD, SR, host, host_metrics, task
    from xapi.store.memory import Store

BRINGING = frozenset({"provision", "vm_resume", "vm_migrate"})
"""The operations that bring VMs to a host."""
REMOVING = frozenset({"evacuate", "reboot", "shutdown"})
GOING_DOWN = frozenset({"reboot", "shutdown", "apply_updates"})
REFUSED_BESIDE = {
    "reboot": ("shutdown", "apply_updates"),
    "shutdown": ("reboot", "apply_updates"),
    "apply_updates": ("reboot", "shutdown", "enable"),
    "provision": ("provision",),
}
"""A current operation, and those that wait for its end."""
HEALTH_CHECK = "SR Recovering"
"""The name of the task that lasts while a clustered SR recovers; its description is the SR's reference."""


def refuse(db: Store, host: host, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None."""
    if host.current_operations and (refused := _refuse_beside(host, operation)):
        return refused
    if operation in GOING_DOWN:
        return errors.HOST_NOT_DISABLED() if host.enabled else _refuse_degraded(db)
    if operation == "power_on":
        metrics = db.host_metrics.get(host.metrics)
        if metrics is not None and metrics.live:
            return errors.HOST_IS_LIVE(host._ref)
        if not host.power_on_mode:
            return errors.HOST_POWER_ON_MODE_DISABLED()
    return None


def _refuse_beside(host: host, operation: str) -> Fault | None:
    running = host.current_operations.items()
    conflicts = REMOVING if operation in BRINGING else BRINGING if operation in REMOVING else ()
    for task, other in running:
        if other in conflicts:
            return held("host", host._ref, task, other)
    for barred_by, barred in REFUSED_BESIDE.items():
        for task, other in running:
            if other == barred_by and operation in barred:
                return held("host", host._ref, task, other)
    return None


def _refuse_degraded(db: Store) -> Fault | None:
    """Refuse to take a host down while a clustered SR could not bear it."""
    clustered = [sr for sr in db.SR if sr.clustered and attached(db, sr)]
    if not clustered:
        return None
    for member in db.Cluster_host:
        host = db.host.get(member.host)
        metrics = db.host_metrics.get(host.metrics) if host is not None else None
        if member.enabled and metrics is not None and not metrics.live:
            return errors.CLUSTERED_SR_DEGRADED(clustered[0]._ref)
    recovering = {task.name_description for task in db.task.by_name_label(HEALTH_CHECK)}
    degraded = next((sr for sr in clustered if sr._ref in recovering), None)
    return None if degraded is None else errors.CLUSTERED_SR_DEGRADED(degraded._ref)


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what a host's list follows from; clustered SRs make all hosts look at each other."""

    def every(row: object) -> list[str]:
        return list(db.host.rows)

    def measured(metrics: host_metrics) -> Iterable[str]:
        if any(sr.clustered for sr in db.SR):
            return every(metrics)
        return [host._ref for host in db.host if host.metrics == metrics._ref]

    def plugged(pbd: PBD) -> Iterable[str]:
        sr = db.SR.get(pbd.SR)
        return every(pbd) if sr is not None and sr.clustered else ()

    def clustered(sr: SR) -> Iterable[str]:
        return every(sr) if sr.clustered else ()

    def recovering(task: task) -> Iterable[str]:
        return every(task) if task.name_label == HEALTH_CHECK else ()

    def members(host: host) -> Iterable[str]:
        return every(host) if len(db.Cluster_host) else ()

    return {
        "host": either(own("current_operations enabled metrics power_on_mode"), when("metrics", members, new=True)),
        "host_metrics": when("live", measured),
        "SR": either(when("clustered", every), when("PBDs", clustered)),
        "PBD": when("currently_attached", plugged),
        "Cluster_host": when("enabled host", every, new=True),
        "task": when("name_description", recovering, new=True),
    }
