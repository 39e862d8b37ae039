"""When an operation of a Cluster or of a Cluster_host may start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.operations.busy import held_by
from xapi.operations.pool import of, rolling_upgrade
from xapi.operations.sources import Guests, Source, own, when

if TYPE_CHECKING:
    from xapi.datamodel.records import Cluster, Cluster_host
    from xapi.store.memory import Store


def refuse(db: Store, cluster: Cluster, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation of a cluster may not start, or None."""
    if cluster.current_operations:
        return held_by("Cluster", cluster._ref, cluster.current_operations.items())
    if operation in ("add", "remove", "destroy") and rolling_upgrade(of(db)):
        return errors.NOT_SUPPORTED_DURING_UPGRADE()
    return None


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what a cluster's list follows from."""
    return {
        "Cluster": own("current_operations"),
        "pool": when("other_config", lambda pool: list(db.Cluster.rows)),
    }


def refuse_member(db: Store, member: Cluster_host, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation of a cluster's host may not start, or None."""
    if member.current_operations:
        return held_by("Cluster_host", member._ref, member.current_operations.items())
    if operation in ("enable", "disable") and not member.joined:
        return errors.CLUSTER_HOST_NOT_JOINED(member._ref)
    return None


def member_sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what the list of a cluster's host follows from."""
    return {"Cluster_host": own("current_operations joined")}
