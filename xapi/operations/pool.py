"""When an operation of the pool may start, and what the pool's state means for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.operations.busy import held
from xapi.operations.sources import Guests, Source, own, when

if TYPE_CHECKING:
    from xapi.datamodel.records import pool
    from xapi.store.memory import Store

BLOCKING = {
    "ha_enable": errors.HA_ENABLE_IN_PROGRESS,
    "ha_disable": errors.HA_DISABLE_IN_PROGRESS,
    "cluster_create": errors.CLUSTER_CREATE_IN_PROGRESS,
    "designate_new_master": errors.DESIGNATE_NEW_MASTER_IN_PROGRESS,
    "tls_verification_enable": errors.TLS_VERIFICATION_ENABLE_IN_PROGRESS,
    "configure_repositories": errors.CONFIGURE_REPOSITORIES_IN_PROGRESS,
    "sync_updates": errors.SYNC_UPDATES_IN_PROGRESS,
    "sync_bundle": errors.SYNC_BUNDLE_IN_PROGRESS,
    "apply_updates": errors.APPLY_UPDATES_IN_PROGRESS,
}
"""The operations that refuse each other, in the order in which they are looked for."""


def of(db: Store) -> pool | None:
    """Return the one pool, or None before there is one."""
    for pool in db.pool:
        return pool
    return None


def rolling_upgrade(pool: pool | None) -> bool:
    """Tell whether the pool's hosts are being upgraded one by one."""
    return pool is not None and "rolling_upgrade_in_progress" in pool.other_config


def refuse(db: Store, pool: pool, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None."""
    if called and pool.is_psr_pending:
        return errors.POOL_SECRET_ROTATION_PENDING()
    return _refuse_beside(pool, operation) or _refuse_in_state(db, pool, operation)


def _refuse_beside(pool: pool, operation: str) -> Fault | None:
    running = pool.current_operations
    if not running:
        return None
    in_progress = next((error for name, error in BLOCKING.items() if name in running.values()), None)
    waiting = next(((task, name) for task, name in running.items() if name not in BLOCKING), None)
    if operation in BLOCKING and in_progress is not None:
        return in_progress()
    if waiting is not None:
        return held("pool", pool._ref, *waiting)
    return errors.OTHER_OPERATION_IN_PROGRESS("pool", pool._ref)


def _refuse_in_state(db: Store, pool: pool, operation: str) -> Fault | None:
    if operation in ("ha_enable", "tls_verification_enable") and pool.ha_enabled:
        return errors.HA_IS_ENABLED()
    if operation == "ha_disable" and not pool.ha_enabled:
        return errors.HA_NOT_ENABLED()
    if operation in ("cluster_create", "tls_verification_enable") and rolling_upgrade(pool):
        return errors.NOT_SUPPORTED_DURING_UPGRADE()
    if operation == "cluster_create" and len(db.Cluster):
        return errors.CLUSTER_ALREADY_EXISTS()
    if operation == "cluster_create" and pool.ha_enabled:
        return errors.INCOMPATIBLE_CLUSTER_STACK_ACTIVE(pool.ha_cluster_stack)
    return None


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what the pool's list follows from."""
    return {
        "pool": own("current_operations ha_enabled other_config"),
        "Cluster": when("", lambda cluster: list(db.pool.rows), new=True),
    }
