"""What messages do to claimed VDIs: work of the storage, and the rows that follow. All raise Fault."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

from hypervisor.api import Description, Effect, Space, StorageFailure
from xapi.calls.call import Call
from xapi.cancelling import to_its_end
from xapi.datamodel import errors
from xapi.datamodel.lexical import EPOCH, format_datetime
from xapi.datamodel.types import NULL
from xapi.operations.claim import SHORT, claim
from xapi.storage import volumes
from xapi.storage.faults import BAD_TYPE, UNIMPLEMENTED, answering, backend_failure
from xapi.storage.repository import Repository
from xapi.storage.unfinished import new_image

COPIED = ("name_label", "name_description", "type", "sharable", "other_config", "xenstore_data", "on_boot")
"""What a snapshot or clone has from its source, with allow_caching and tags."""
FORMATS = ("vhd", "raw")


@asynccontextmanager
async def held(call: Call, vdi: Any, on_sr: str, operation: str) -> AsyncIterator[None]:
    """Hold an operation of a VDI, and that of its SR which goes with it."""
    async with (
        claim(call, on_sr, call.db.SR[vdi.SR], patience=SHORT),
        claim(call, operation, vdi, patience=SHORT),
    ):
        yield


async def prepared(call: Call, vdi: Any) -> Repository:
    """Return the repository of a VDI that clients may change, whose volume is there."""
    used = await call.daemon.storage.repository(call, call.db.SR[vdi.SR])
    if not vdi.managed:
        raise errors.VDI_NOT_MANAGED(vdi._ref)
    await call.daemon.storage.provide(call, used, vdi)
    used.image(vdi)
    return used


async def create(
    call: Call, sr: Any, size: int, said: Description, sm_config: Mapping[str, str], fields: Mapping[str, Any]
) -> Any:
    """Return a new VDI on a claimed SR, with these fields of the row alone."""
    used = await call.daemon.storage.repository(call, sr)
    if used.kind == "none":
        raise backend_failure(UNIMPLEMENTED, f"{sr.name_label} holds devices")
    disks, form = used.kind == "disks", sm_config.get("type", "vhd")
    if disks and form not in FORMATS:
        raise backend_failure(BAD_TYPE, f"Invalid VDI type {form}")
    kept = {key: value for key, value in sm_config.items() if key != "vhd-parent"}
    async with new_image(call, sr) as new:
        name = new if disks else sm_config.get("path", f"{new}.img")
        with answering():
            effect = await used.storage.make(used.path, name, size, form, said)
        return await adopt(
            call,
            used,
            sr,
            effect,
            {**asdict(said), "snapshot_of": NULL, "snapshot_time": EPOCH, "sm_config": kept, **fields},
        )


async def adopt(call: Call, used: Repository, sr: Any, effect: Effect, fields: Mapping[str, Any]) -> Any:
    """Return the row of a volume that was just made, with these fields; without a row it goes again."""
    location = effect.volumes[0].location
    try:
        with call.db.atomic():
            volumes.apply(call.db, sr, effect)
            row = volumes.find(call.db, sr, location)
            for name, value in fields.items():
                setattr(row, name, value)
    except BaseException:
        with suppress(StorageFailure):
            await to_its_end(used.storage.delete(used.path, location))
        raise
    return row


async def snapshot(call: Call, vdi: Any) -> Any:
    """Return a new VDI that keeps what a claimed one holds now."""
    used = await prepared(call, vdi)
    now = call.now
    said = replace(
        volumes.description(call.db, vdi),
        is_a_snapshot=True,
        snapshot_of=vdi.uuid,
        snapshot_time=format_datetime(now),
        read_only=False,
    )
    fields = {"is_a_snapshot": True, "snapshot_of": vdi._ref, "snapshot_time": now}
    return await _branch(call, used, vdi, used.storage.snapshot, said, fields)


async def clone(call: Call, vdi: Any) -> Any:
    """Return a new VDI that holds what a claimed one does; where the storage cannot share, a full copy."""
    used = await prepared(call, vdi)
    said = _plain(call, vdi)
    try:
        return await _branch(call, used, vdi, used.storage.clone, said, {})
    except errors.Fault as fault:
        if fault.code != f"SR_BACKEND_FAILURE_{UNIMPLEMENTED}" or used.kind != "disks":
            raise
    return await _copied(call, used, vdi, used, call.db.SR[vdi.SR], "vhd")


def _plain(call: Call, vdi: Any) -> Description:
    return replace(
        volumes.description(call.db, vdi), is_a_snapshot=False, snapshot_of="", snapshot_time="", read_only=False
    )


async def _branch(
    call: Call, used: Repository, vdi: Any, how: Callable[..., Any], said: Description, fields: Mapping[str, Any]
) -> Any:
    sr = call.db.SR[vdi.SR]
    async with new_image(call, sr) as new:
        with answering():
            effect = await how(used.path, vdi.location, new, said)
        kept = {name: getattr(vdi, name) for name in (*COPIED, "allow_caching", "tags")}
        return await adopt(call, used, sr, effect, {**kept, **fields})


async def copy(call: Call, vdi: Any, sr: Any) -> Any:
    """Return a new VDI on an SR with all that a claimed one holds, written anew; its task tells how far it is."""
    used = await prepared(call, vdi)
    async with claim(call, "vdi_create", sr, patience=SHORT):
        into = await call.daemon.storage.repository(call, sr)
    if into.kind != "disks":
        raise backend_failure(UNIMPLEMENTED, f"{sr.name_label} takes no copies of disks")
    new = await _copied(call, used, vdi, into, sr, "vhd")
    if new.on_boot == "reset":
        await freeze(call, new)
    return new


async def _copied(call: Call, used: Repository, vdi: Any, into: Repository, sr: Any, form: str) -> Any:
    said = _plain(call, vdi)
    async with new_image(call, sr) as new:
        with answering():
            effect = await used.storage.copy(used.path, vdi.location, into.path, new, form, said, telling(call))
        kept = {name: getattr(vdi, name) for name in (*COPIED, "allow_caching", "tags")}
        return await adopt(call, into, sr, effect, kept)


async def copy_into(call: Call, vdi: Any, other: Any) -> None:
    """Write all that a claimed VDI holds over another, which is claimed, too."""
    used = await prepared(call, vdi)
    into = await prepared(call, other)
    with answering():
        effect = await used.storage.copy_into(used.path, vdi.location, into.path, other.location, telling(call))
    with call.db.atomic():
        volumes.apply(call.db, call.db.SR[other.SR], effect)


async def copy_suspend_image(call: Call, vdi: Any) -> Any:
    """Return a new VDI of type suspend with the same memory, for a copy of a suspended VM."""
    sr = call.db.SR[vdi.SR]
    async with claim(call, "copy", vdi, patience=SHORT):
        used = await call.daemon.storage.repository(call, sr)
        return await _copied(call, used, vdi, used, sr, "raw")


def telling(call: Call) -> Callable[[float], None]:
    """Return what shows how far a call's task is, as long as it goes on."""
    task = call.task

    def tell(fraction: float) -> None:
        if task._ref in call.db.task and task.status == "pending":
            call.daemon.tasks.progress(task, fraction)

    return tell


async def resize(call: Call, vdi: Any, size: int) -> None:
    """Make a claimed VDI larger."""
    used = await prepared(call, vdi)
    with answering():
        effect = await used.storage.resize(used.path, vdi.location, size)
    with call.db.atomic():
        volumes.apply(call.db, call.db.SR[vdi.SR], effect)


async def freeze(call: Call, vdi: Any) -> None:
    """Make what a VDI holds that to which it goes back when its VM starts."""
    used = await prepared(call, vdi)
    with answering():
        effect = await used.storage.freeze(used.path, vdi.location)
    with call.db.atomic():
        volumes.apply(call.db, call.db.SR[vdi.SR], effect)


async def describe(call: Call, vdi: Any, **fields: Any) -> None:
    """Change what is said of a VDI, beside its volume and in its row."""
    used = await call.daemon.storage.repository(call, call.db.SR[vdi.SR])
    if used.kind == "disks" and vdi.managed and not volumes.declared(vdi):
        said = volumes.description(call.db, vdi)
        if vdi.is_a_snapshot and not said.snapshot_of:  # its disk has no row now; what it was is kept
            with answering():
                beside = await used.storage.volume(used.path, vdi.location)
            said = replace(said, snapshot_of=beside.description.snapshot_of)
        known = {name: value for name, value in fields.items() if hasattr(said, name)}
        with answering():
            await used.storage.describe(used.path, vdi.location, replace(said, **known))
    with call.db.atomic():
        for name, value in fields.items():
            setattr(vdi, name, value)


async def look(call: Call, vdi: Any) -> None:
    """Bring a VDI's row in line with its volume."""
    used = await call.daemon.storage.repository(call, call.db.SR[vdi.SR])
    if volumes.declared(vdi):
        return
    with answering():
        volume = await used.storage.volume(used.path, vdi.location)
        space = await used.storage.space(used.path)
    with call.db.atomic():
        volumes.apply(call.db, call.db.SR[vdi.SR], Effect((volume,), (), space))
        volumes.read_description(call.db, vdi, volume)


async def introduce(call: Call, sr: Any, location: str, fields: Mapping[str, Any]) -> Any:
    """Return the row of a volume that is on a claimed SR, made if there is none."""
    used = await call.daemon.storage.repository(call, sr)
    if used.kind == "none":
        raise backend_failure(UNIMPLEMENTED, f"{sr.name_label} holds devices")
    with answering():
        volume = await used.storage.volume(used.path, location)
        space: Space = await used.storage.space(used.path)
    with call.db.atomic():
        volumes.apply(call.db, sr, Effect((volume,), (), space))
        row = volumes.find(call.db, sr, location)
        if row is None:
            raise errors.DB_UNIQUENESS_CONSTRAINT_VIOLATION("VDI", "uuid", volume.uuid)
        for name, value in fields.items():
            setattr(row, name, value)
    return row


def may_write(call: Call, sr: str) -> None:
    """Raise PERMISSION_DENIED unless the session is that of the SR's own driver."""
    session = call.session
    if session is None or session.other_config.get("_sm_session", NULL) != sr:
        raise errors.PERMISSION_DENIED("")
