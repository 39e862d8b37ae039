"""When an operation of an SR may start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.operations.busy import held
from xapi.operations.pool import of, rolling_upgrade
from xapi.operations.sources import Guests, Source, own, when

if TYPE_CHECKING:
    from xapi.datamodel.records import SM, SR
    from xapi.store.memory import Store

UNLISTED = frozenset(
    (
        "vdi_blocked",
        "vdi_copy",
        "vdi_force_unlock",
        "vdi_forget",
        "vdi_generate_config",
        "vdi_resize_online",
        "vdi_update",
    )
)
"""The operations that are never listed: old clients do not know them."""

NOT_DURING_UPGRADE = UNLISTED | frozenset(
    (
        "vdi_mirror",
        "vdi_enable_cbt",
        "vdi_disable_cbt",
        "vdi_data_destroy",
        "vdi_list_changed_blocks",
        "vdi_set_on_boot",
        "vdi_revert",
    )
)

FEATURES = {
    "vdi_create": "VDI_CREATE",
    "vdi_destroy": "VDI_DELETE",
    "vdi_resize": "VDI_RESIZE",
    "vdi_introduce": "VDI_INTRODUCE",
    "vdi_mirror": "VDI_MIRROR",
    "vdi_enable_cbt": "VDI_CONFIG_CBT",
    "vdi_disable_cbt": "VDI_CONFIG_CBT",
    "vdi_data_destroy": "VDI_CONFIG_CBT",
    "vdi_list_changed_blocks": "VDI_CONFIG_CBT",
    "vdi_set_on_boot": "VDI_RESET_ON_BOOT",
    "update": "SR_UPDATE",
    "vdi_revert": "VDI_REVERT",
    "vdi_snapshot": "VDI_SNAPSHOT",
}
"""What the driver must be able to do."""


def driver(db: Store, kind: str) -> SM | None:
    """Return the driver of SRs of a type, or None."""
    for sm in db.SM:
        if sm.type == kind:
            return sm
    return None


def can(db: Store, sr: SR, feature: str) -> bool:
    """Tell whether the driver of an SR's type has a feature."""
    sm = driver(db, sr.type)
    return sm is not None and feature in sm.features


def attached(db: Store, sr: SR) -> bool:
    """Tell whether a host has the SR plugged."""
    return any(db.PBD[ref].currently_attached for ref in sr.PBDs)


def refuse(db: Store, sr: SR, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None."""
    if operation in NOT_DURING_UPGRADE and rolling_upgrade(of(db)):
        return errors.NOT_SUPPORTED_DURING_UPGRADE()
    feature = FEATURES.get(operation)
    if feature is not None:
        sm = driver(db, sr.type)
        if sm is None or feature not in sm.features or (sr.is_tools_sr and feature in ("VDI_CREATE", "VDI_DELETE")):
            return errors.SR_OPERATION_NOT_SUPPORTED(sr._ref)
    return (
        _refuse_removal(db, sr, operation)
        or _refuse_beside(sr, operation)
        or (_refuse_cluster_stack(db, sr) if operation == "plug" else None)
    )


def _refuse_removal(db: Store, sr: SR, operation: str) -> Fault | None:
    if operation in ("destroy", "forget") and attached(db, sr):
        return errors.SR_HAS_PBD(sr._ref)
    if operation == "destroy" and not sr.PBDs:
        return errors.SR_HAS_NO_PBDS(sr._ref)
    if operation == "destroy":
        disks = (db.VDI[ref] for ref in sr.VDIs)
        if any(vdi.managed and vdi.type != "rrd" for vdi in disks):
            return errors.SR_NOT_EMPTY()
    return None


def _refuse_beside(sr: SR, operation: str) -> Fault | None:
    for task, running in sr.current_operations.items():
        if operation != "plug" or running != "plug":
            return held("SR", sr._ref, task, running)
    return None


def _refuse_cluster_stack(db: Store, sr: SR) -> Fault | None:
    """Refuse an SR whose driver needs another cluster stack than the one that keeps the pool alive."""
    pool = of(db)
    sm = driver(db, sr.type)
    if pool is None or not pool.ha_enabled or sm is None or not sm.required_cluster_stack:
        return None
    if pool.ha_cluster_stack in sm.required_cluster_stack:
        return None
    return errors.INCOMPATIBLE_CLUSTER_STACK_ACTIVE(",".join(sm.required_cluster_stack))


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what an SR's list follows from."""
    return {
        "SR": own("current_operations type is_tools_sr PBDs VDIs"),
        "PBD": when("currently_attached", lambda pbd: (pbd.SR,)),
        "VDI": when("managed type", lambda vdi: (vdi.SR,)),
        "SM": when("type features required_cluster_stack", lambda sm: list(db.SR.rows), new=True),
        "pool": when("other_config ha_enabled ha_cluster_stack", lambda pool: list(db.SR.rows)),
    }
