"""When an operation of a VDI may start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.operations.alike import listing
from xapi.operations.busy import Busy, busy, held
from xapi.operations.pool import of, rolling_upgrade
from xapi.operations.sources import Guests, Source, either, own, when
from xapi.operations.sr import attached, driver

if TYPE_CHECKING:
    from xapi.datamodel.records import SM, VBD, VDI, pool
    from xapi.store.memory import Store

ADVERTISED = ("clone", "copy", "resize", "resize_online", "snapshot", "destroy", "forget", "update", "generate_config")
"""The operations that are ever listed; old clients do not know the others."""

DURING_UPGRADE = frozenset((*ADVERTISED, "force_unlock", "blocked"))
LIVE = frozenset(
    (
        "snapshot",
        "resize_online",
        "blocked",
        "clone",
        "revert_to",
        "mirror",
        "enable_cbt",
        "disable_cbt",
        "data_destroy",
    )
)
"""The operations that do not mind that a VM uses the disk."""
FOR_CBT_METADATA = frozenset(
    (
        "blocked",
        "data_destroy",
        "destroy",
        "force_unlock",
        "forget",
        "generate_config",
        "list_changed_blocks",
        "update",
    )
)
"""The operations that change tracking data alone can take part in."""
DESTROYING = frozenset({"destroy", "revert_from", "data_destroy"})
FEATURES = {
    "snapshot": "VDI_SNAPSHOT",
    "destroy": "VDI_DELETE",
    "resize": "VDI_RESIZE",
    "update": "VDI_UPDATE",
    "resize_online": "VDI_RESIZE_ONLINE",
    "generate_config": "VDI_GENERATE_CONFIG",
    "clone": "VDI_CLONE",
    "revert_to": "VDI_CLONE",
    "revert_from": "VDI_CLONE",
    "mirror": "VDI_MIRROR",
    "enable_cbt": "VDI_CONFIG_CBT",
    "disable_cbt": "VDI_CONFIG_CBT",
    "data_destroy": "VDI_CONFIG_CBT",
    "list_changed_blocks": "VDI_CONFIG_CBT",
    "set_on_boot": "VDI_RESET_ON_BOOT",
}
"""What the driver must be able to do."""
HA_TYPES = frozenset({"ha_statefile", "redo_log"})
"""The types of disks that high availability uses itself."""


class Facts(NamedTuple):
    """All that decides what may be done to a VDI."""

    ref: str
    sr: str
    busy: Busy
    type: str
    sharable: bool
    resets: bool
    snapshot: bool
    cbt: bool
    attached: bool
    features: tuple[str, ...]
    physical: bool
    """Its driver finds what is in the machine, and makes nothing."""
    tools: bool
    active: bool
    written: bool
    by_snapshots: bool
    """Only VBDs of snapshots are active."""
    vbd_busy: Busy
    rolling: bool
    ha: bool
    ha_changing: str
    """ha_enable or ha_disable while it runs."""


def refuse(db: Store, vdi: VDI, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None."""
    return _refuse(_facts(db, vdi, named=True), operation)


def _refuse(vdi: Facts, operation: str) -> Fault | None:
    return (
        _refuse_in_use(vdi, operation)
        or _refuse_kind(vdi, operation)
        or (_refuse_destroying(vdi, operation) if operation in DESTROYING else None)
        or _refuse_rest(vdi, operation)
    )


def _refuse_in_use(vdi: Facts, operation: str) -> Fault | None:
    if vdi.rolling and operation not in DURING_UPGRADE:
        return errors.NOT_SUPPORTED_DURING_UPGRADE()
    if vdi.busy and not (operation == "destroy" and any(running == "mirror" for _, running in vdi.busy)):
        for task, running in vdi.busy:
            if running != "copy":
                return held("VDI", vdi.ref, task, running)
    if operation == "resize" and not vdi.attached:
        return errors.SR_HAS_NO_PBDS(vdi.sr)
    if operation not in LIVE and _in_use(vdi, operation):
        return errors.VDI_IN_USE(vdi.ref, operation)
    if vdi.vbd_busy and operation != "data_destroy":
        return held("VDI", vdi.ref, *vdi.vbd_busy[0])
    return None


def _in_use(vdi: Facts, operation: str) -> bool:
    if operation == "copy":
        return vdi.written
    return vdi.active and not (operation == "list_changed_blocks" and vdi.by_snapshots)


def _refuse_kind(vdi: Facts, operation: str) -> Fault | None:
    feature = FEATURES.get(operation)
    if feature is not None and feature not in vdi.features:
        return errors.SR_OPERATION_NOT_SUPPORTED(vdi.sr)
    if vdi.type == "cbt_metadata" and operation not in FOR_CBT_METADATA:
        return errors.VDI_INCOMPATIBLE_TYPE(vdi.ref, vdi.type)
    if vdi.cbt and operation in ("mirror", "set_on_boot"):
        return errors.VDI_CBT_ENABLED(vdi.ref)
    if operation == "forget" and vdi.ha and vdi.type in HA_TYPES:
        return errors.HA_IS_ENABLED()
    if operation == "forget" and vdi.type == "rrd":
        return errors.VDI_HAS_RRDS(vdi.ref)
    if operation == "data_destroy" and not vdi.snapshot:
        return errors.OPERATION_NOT_ALLOWED(f"VDI is not a snapshot: {vdi.ref}")
    if operation == "data_destroy" and not vdi.cbt:
        return errors.VDI_NO_CBT_METADATA(vdi.ref)
    return None


def _refuse_destroying(vdi: Facts, operation: str) -> Fault | None:
    if vdi.physical:
        return errors.VDI_IS_A_PHYSICAL_DEVICE(vdi.ref)
    if vdi.tools:
        return errors.SR_OPERATION_NOT_SUPPORTED(vdi.sr)
    if vdi.type == "rrd":
        return errors.VDI_HAS_RRDS(vdi.ref)
    if vdi.type not in HA_TYPES:
        return None
    if vdi.ha:
        return errors.HA_IS_ENABLED()
    if vdi.ha_changing == "ha_enable":
        return errors.HA_ENABLE_IN_PROGRESS()
    return errors.HA_DISABLE_IN_PROGRESS() if vdi.ha_changing else None


def _refuse_rest(vdi: Facts, operation: str) -> Fault | None:
    if operation in ("resize", "resize_online") and vdi.ha and vdi.type in HA_TYPES:
        return errors.HA_IS_ENABLED()
    if operation == "snapshot" and vdi.sharable:
        return errors.VDI_IS_SHARABLE(vdi.ref)
    if operation in ("snapshot", "copy") and vdi.resets:
        return errors.VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION()
    if operation == "snapshot" and any(running == "copy" for _, running in vdi.busy):
        return errors.OPERATION_NOT_ALLOWED("Snapshot operation not allowed during copy.")
    if operation == "copy" and vdi.type in HA_TYPES:
        return errors.OPERATION_NOT_ALLOWED("The disks that high availability uses itself cannot be copied")
    if operation in ("enable_cbt", "disable_cbt"):
        if vdi.snapshot:
            return errors.OPERATION_NOT_ALLOWED(f"VDI is a snapshot: {vdi.ref}")
        if vdi.type not in ("user", "system"):
            return errors.VDI_INCOMPATIBLE_TYPE(vdi.ref, vdi.type)
        if vdi.resets:
            return errors.VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION()
    if operation == "revert_to" and not vdi.snapshot:
        return errors.REVERT_ONLY_ALLOWED_ON_SNAPSHOT()
    return None


def _facts(db: Store, vdi: VDI, *, named: bool) -> Facts:
    sr = db.SR.get(vdi.SR)
    sm = driver(db, sr.type) if sr is not None else None
    active: list[VBD] = []
    vbd_busy: Busy = ()
    for ref in vdi.VBDs:
        vbd = db.VBD[ref]
        if vbd.currently_attached or vbd.reserved:
            active.append(vbd)
        if vbd.current_operations and not vbd_busy:
            vbd_busy = busy(vbd.current_operations, named=named)
    pool = of(db)
    return Facts(
        vdi._ref if named else NULL,
        vdi.SR if named else NULL,
        busy(vdi.current_operations, named=named),
        vdi.type,
        vdi.sharable,
        vdi.on_boot == "reset",
        vdi.is_a_snapshot,
        vdi.cbt_enabled,
        sr is not None and attached(db, sr),
        tuple(sm.features) if sm is not None else (),
        sm is not None and "VDI_INTRODUCE" in sm.features and "VDI_CREATE" not in sm.features,
        sr is not None and sr.is_tools_sr,
        bool(active),
        any(vbd.mode == "RW" for vbd in active) if active else False,
        _of_snapshots(db, active) if active else False,
        vbd_busy,
        rolling_upgrade(pool),
        pool is not None and pool.ha_enabled,
        _ha_changing(pool),
    )


def _of_snapshots(db: Store, vbds: list[VBD]) -> bool:
    return all(vm is not None and vm.is_a_snapshot for vm in (db.VM.get(vbd.VM) for vbd in vbds))


def _ha_changing(pool: pool | None) -> str:
    if pool is None or not pool.current_operations:
        return ""
    running = pool.current_operations.values()
    return next((operation for operation in ("ha_enable", "ha_disable") if operation in running), "")


allowed = listing(lambda: ADVERTISED, _facts, _refuse)


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what a VDI's list follows from; a rolling upgrade refuses nothing that is advertised."""

    def in_srs(refs: Iterable[str]) -> Iterator[str]:
        return chain.from_iterable(list(sr.VDIs) for ref in refs if (sr := db.SR.get(ref)) is not None)

    def plugged(ref: str) -> Iterable[str]:
        """Find the lists made when the SR was otherwise: an SR that no host has plugged allows no resize."""
        sr = db.SR.get(ref)
        if sr is None:
            return ()
        now = attached(db, sr)
        disks = (db.VDI.get(ref) for ref in sr.VDIs)
        return [vdi._ref for vdi in disks if vdi is not None and ("resize" in vdi.allowed_operations) != now]

    def driven(sm: SM) -> Iterable[str]:
        return in_srs([sr._ref for sr in db.SR if sr.type == sm.type])

    return {
        "VDI": own("current_operations SR VBDs type on_boot sharable is_a_snapshot cbt_enabled"),
        "VBD": when("currently_attached reserved mode current_operations", lambda vbd: (vbd.VDI,)),
        "SR": either(when("type is_tools_sr", lambda sr: list(sr.VDIs)), when("PBDs", lambda sr: plugged(sr._ref))),
        "PBD": when("currently_attached", lambda pbd: plugged(pbd.SR)),
        "SM": either(when("features", driven, new=True), when("type", lambda sm: in_srs(db.SR.rows))),
        "pool": when(
            "ha_enabled current_operations", lambda pool: [vdi._ref for vdi in db.VDI if vdi.type in HA_TYPES]
        ),
    }
