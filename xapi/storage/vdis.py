"""What messages do to claimed VDIs: work of the storage, and the rows that follow. All raise Fault."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from hypervisor.api import Description, Effect, NewVolume, StorageFailure, VolumeHandle
from xapi.calls.claim import SHORT, claim
from xapi.calls.tasks import Tasks
from xapi.calls.work import Work
from xapi.cancelling import to_its_end
from xapi.datamodel import errors, records
from xapi.datamodel.lexical import EPOCH, format_datetime
from xapi.datamodel.types import NULL
from xapi.operations.sr import can
from xapi.storage import volumes
from xapi.storage.faults import UNIMPLEMENTED, answering, backend_failure
from xapi.storage.repository import Repository, Storage
from xapi.storage.unfinished import new_image

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.store.memory import Store

COPIED = ("name_label", "name_description", "type", "sharable", "other_config", "xenstore_data", "on_boot")
"""What a snapshot or clone has from its source, with allow_caching and tags."""


async def prepared(work: Work, vdi: records.VDI) -> Repository:
    """Return the repository of a VDI that clients may change, whose volume is there."""
    used = await work[Storage].repository(work, work.db.SR[vdi.SR])
    if not vdi.managed:
        raise errors.VDI_NOT_MANAGED(vdi._ref)
    await work[Storage].provide(work, used, vdi)
    used.volume(vdi)
    return used


async def create(
    work: Work, sr: records.SR, size: int, said: Description, sm_config: Mapping[str, str], fields: Mapping[str, object]
) -> records.VDI:
    """Return a new VDI on a claimed SR, with these fields of the row alone."""
    used = await work[Storage].repository(work, sr)
    kept = {key: value for key, value in sm_config.items() if key != "vhd-parent"}
    async with new_image(work, sr) as new:
        with answering():
            effect = await used.storage.make(used.handle, NewVolume(new, size, said, dict(sm_config)))
        return await adopt(
            work,
            used,
            sr,
            effect,
            {**asdict(said), "snapshot_of": NULL, "snapshot_time": EPOCH, "sm_config": kept, **fields},
        )


async def adopt(
    work: Work, used: Repository, sr: records.SR, effect: Effect, fields: Mapping[str, object]
) -> records.VDI:
    """Return the row of a volume that was just made, with these fields; without a row it goes again."""
    location = effect.volumes[0].location
    try:
        with work.db.atomic():
            volumes.apply(work.db, sr, effect)
            row = volumes.find(work.db, sr, location)
            if row is None:
                raise errors.DB_UNIQUENESS_CONSTRAINT_VIOLATION("VDI", "uuid", effect.volumes[0].uuid)
            for name, value in fields.items():
                setattr(row, name, value)
    except BaseException:
        with suppress(StorageFailure):
            await to_its_end(used.storage.delete(used.at(location)))
        raise
    return row


async def snapshot(work: Work, vdi: records.VDI) -> records.VDI:
    """Return a new VDI that keeps what a claimed one holds now."""
    used = await prepared(work, vdi)
    now = work.now
    said = replace(
        volumes.description(work.db, vdi),
        is_a_snapshot=True,
        snapshot_of=vdi.uuid,
        snapshot_time=format_datetime(now),
        read_only=False,
    )
    fields = {"is_a_snapshot": True, "snapshot_of": vdi._ref, "snapshot_time": now}
    return await _branch(work, used, vdi, used.storage.snapshot, said, fields)


async def clone(work: Work, vdi: records.VDI) -> records.VDI:
    """Return a new VDI that holds what a claimed one does; where the storage cannot share, a full copy."""
    used, sr = await prepared(work, vdi), work.db.SR[vdi.SR]
    said = _plain(work, vdi)
    try:
        return await _branch(work, used, vdi, used.storage.clone, said, {})
    except errors.Fault as fault:
        if fault.code != f"SR_BACKEND_FAILURE_{UNIMPLEMENTED}" or not can(work.db, sr, "VDI_ACTIVATE"):
            raise
    return await _copied(work, used, vdi, used, sr, {})


def _plain(work: Work, vdi: records.VDI) -> Description:
    return replace(
        volumes.description(work.db, vdi), is_a_snapshot=False, snapshot_of="", snapshot_time="", read_only=False
    )


async def _branch(
    work: Work,
    used: Repository,
    vdi: records.VDI,
    how: Callable[[VolumeHandle, str, Description], Awaitable[Effect]],
    said: Description,
    fields: Mapping[str, object],
) -> records.VDI:
    sr = work.db.SR[vdi.SR]
    async with new_image(work, sr) as new:
        with answering():
            effect = await how(used.volume(vdi), new, said)
        kept = {name: getattr(vdi, name) for name in (*COPIED, "allow_caching", "tags")}
        return await adopt(work, used, sr, effect, {**kept, **fields})


async def copy(work: Work, vdi: records.VDI, sr: records.SR) -> records.VDI:
    """Return a new VDI on an SR with all that a claimed one holds, written anew; its task tells how far it is."""
    used = await prepared(work, vdi)
    async with claim(work, "vdi_create", sr, patience=SHORT):
        into = await work[Storage].repository(work, sr)
    if not can(work.db, sr, "VDI_ACTIVATE"):
        raise backend_failure(UNIMPLEMENTED, f"{sr.name_label} takes no copies of disks")
    new = await _copied(work, used, vdi, into, sr, {})
    if new.on_boot == "reset":
        await freeze(work, new)
    return new


async def _copied(
    work: Work, used: Repository, vdi: records.VDI, into: Repository, sr: records.SR, sm_config: Mapping[str, str]
) -> records.VDI:
    said = _plain(work, vdi)
    async with new_image(work, sr) as new:
        wanted = NewVolume(new, vdi.virtual_size, said, sm_config)
        with answering():
            effect = await used.storage.copy(used.volume(vdi), into.handle, wanted, telling(work))
        kept = {name: getattr(vdi, name) for name in (*COPIED, "allow_caching", "tags")}
        return await adopt(work, into, sr, effect, kept)


async def copy_into(work: Work, vdi: records.VDI, other: records.VDI) -> None:
    """Write all that a claimed VDI holds over another, which is claimed, too."""
    used = await prepared(work, vdi)
    into = await prepared(work, other)
    with answering():
        effect = await used.storage.copy_into(used.volume(vdi), into.volume(other), telling(work))
    with work.db.atomic():
        volumes.apply(work.db, work.db.SR[other.SR], effect)


async def copy_suspend_image(work: Work, vdi: records.VDI) -> records.VDI:
    """Return a new VDI of type suspend with the same memory, for a copy of a suspended VM."""
    sr = work.db.SR[vdi.SR]
    async with claim(work, "copy", vdi, patience=SHORT):
        used = await work[Storage].repository(work, sr)
        return await _copied(work, used, vdi, used, sr, {"type": "raw"})


def telling(work: Work) -> Callable[[float], None]:
    """Return what shows how far a call's task is, as long as it goes on."""
    task = work.task

    def tell(fraction: float) -> None:
        if task._ref in work.db.task and task.status == "pending":
            work[Tasks].progress(task, fraction)

    return tell


async def resize(work: Work, vdi: records.VDI, size: int) -> None:
    """Make a claimed VDI larger."""
    used = await prepared(work, vdi)
    with answering():
        effect = await used.storage.resize(used.volume(vdi), size)
    with work.db.atomic():
        volumes.apply(work.db, work.db.SR[vdi.SR], effect)


async def freeze(work: Work, vdi: records.VDI) -> None:
    """Make what a VDI holds that to which it goes back when its VM starts."""
    used = await prepared(work, vdi)
    with answering():
        effect = await used.storage.freeze(used.volume(vdi))
    with work.db.atomic():
        volumes.apply(work.db, work.db.SR[vdi.SR], effect)


async def describe(work: Work, vdi: records.VDI, **fields: object) -> None:
    """Change what is said of a VDI, beside its volume and in its row."""
    used = await work[Storage].repository(work, work.db.SR[vdi.SR])
    if can(work.db, work.db.SR[vdi.SR], "VDI_UPDATE") and vdi.managed and not volumes.declared(vdi):
        said = volumes.description(work.db, vdi)
        if vdi.is_a_snapshot and not said.snapshot_of:  # its disk has no row now; what it was is kept
            with answering():
                beside = await used.storage.volume(used.volume(vdi))
            said = replace(said, snapshot_of=beside.description.snapshot_of)
        known: dict[str, Any] = {name: value for name, value in fields.items() if hasattr(said, name)}
        with answering():
            await used.storage.describe(used.volume(vdi), replace(said, **known))
    with work.db.atomic():
        for name, value in fields.items():
            setattr(vdi, name, value)


async def look(work: Work, vdi: records.VDI) -> None:
    """Bring a VDI's row in line with its volume."""
    used = await work[Storage].repository(work, work.db.SR[vdi.SR])
    if volumes.declared(vdi):
        return
    with answering():
        volume = await used.storage.volume(used.volume(vdi))
        space = await used.storage.space(used.handle)
    with work.db.atomic():
        volumes.apply(work.db, work.db.SR[vdi.SR], Effect((volume,), (), space))
        volumes.read_description(work.db, vdi, volume)


def assert_unknown(db: Store, sr: records.SR, location: str, *, unless: str = "") -> None:
    """Raise LOCATION_NOT_UNIQUE if an image has a row on an SR, unless by this uuid."""
    others = (db.VDI[ref] for ref in sr.VDIs)
    if any(other.location == location and other.uuid != unless for other in others):
        raise errors.LOCATION_NOT_UNIQUE(sr._ref, location)


async def introduce(work: Work, sr: records.SR, location: str, fields: Mapping[str, object]) -> records.VDI:
    """Return the row of a volume that is on a claimed SR, made if there is none."""
    used = await work[Storage].repository(work, sr)
    with answering():
        volume = await used.storage.volume(used.at(location))
        space = await used.storage.space(used.handle)
    with work.db.atomic():
        volumes.apply(work.db, sr, Effect((volume,), (), space))
        row = volumes.find(work.db, sr, location)
        if row is None:
            raise errors.DB_UNIQUENESS_CONSTRAINT_VIOLATION("VDI", "uuid", volume.uuid)
        for name, value in fields.items():
            setattr(row, name, value)
    return row


def may_write(work: Work, sr: str) -> None:
    """Raise PERMISSION_DENIED unless the session is that of the SR's own driver."""
    session = work.caller.session
    if session is None or session.other_config.get("_sm_session", NULL) != sr:
        raise errors.PERMISSION_DENIED("")
