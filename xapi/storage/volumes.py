"""What storage says of volumes, written into the rows of VDIs; and the other way.

A VDI's location is what its SR's driver calls its volume: its uuid, or the name of a CD's file. A row whose
physical_utilisation is 0 has never had a file: an inventory has declared it, and its volume is made when it is first
used. So every row that has one shows some bytes (`LEAST`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from hypervisor.api import Description, Effect, Space, Volume
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import EPOCH, DecodeError, format_datetime, parse_datetime
from xapi.datamodel.types import NULL, EnumType

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.store.memory import Store

LEAST = 512
"""Bytes that a file takes at least in our accounts, though it may be one hole."""
BASE_COPY = "base copy"
_PARENT, _FORMAT = "vhd-parent", "type"


def declared(vdi: records.VDI) -> bool:
    """Tell whether a VDI has no file yet, and never had one."""
    return bool(vdi.physical_utilisation == 0)


def is_uuid(text: str) -> bool:
    """Tell whether a text is a uuid as the API writes them."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def description(db: Store, vdi: records.VDI) -> Description:
    """Return what is kept beside a VDI's volume."""
    origin = db.VDI.get(vdi.snapshot_of)
    return Description(
        name_label=vdi.name_label,
        name_description=vdi.name_description,
        type=vdi.type,
        is_a_snapshot=vdi.is_a_snapshot,
        snapshot_of="" if origin is None else origin.uuid,
        snapshot_time=format_datetime(vdi.snapshot_time) if vdi.snapshot_time != EPOCH else "",
        read_only=vdi.read_only,
        sharable=vdi.sharable,
    )


def find(db: Store, sr: records.SR, location: str) -> records.VDI | None:
    """Return the row of an SR's volume, or None."""
    if is_uuid(location):
        with suppress(Fault):
            row = db.VDI.by_uuid(location)
            return row if sr._ref == row.SR else None
        return None
    return next((row for ref in sr.VDIs if (row := db.VDI[ref]).location == location), None)


def write(db: Store, sr: records.SR, volume: Volume) -> records.VDI | None:
    """Make a volume's row true, and make it if there is none; return it, None when another SR has its uuid."""
    row = find(db, sr, volume.location)
    if row is None:
        return _new(db, sr, volume)
    for name, value in _facts(volume, row.sm_config).items():
        setattr(row, name, value)
    if volume.hidden:
        row.read_only = True
    return row


def _facts(volume: Volume, sm_config: Mapping[str, str]) -> dict[str, object]:
    """Return the fields that follow from the files alone."""
    config = {key: value for key, value in sm_config.items() if key != _PARENT}
    if volume.parent:
        config[_PARENT] = volume.parent
    if volume.format == "raw" and is_uuid(volume.location):
        config[_FORMAT] = "raw"
    return {
        "virtual_size": volume.virtual_size,
        "physical_utilisation": max(volume.physical_utilisation, LEAST),
        "managed": not volume.hidden,
        "missing": False,
        "sm_config": config,
    }


def _new(db: Store, sr: records.SR, volume: Volume) -> records.VDI | None:
    uuid = {"uuid": volume.uuid}
    with suppress(Fault):
        db.VDI.by_uuid(volume.uuid)
        if is_uuid(volume.location):
            return None
        uuid = {}
    said = _said(db, volume.description)
    label = BASE_COPY if volume.hidden else said["name_label"]
    fields = {**said, "name_label": label, "read_only": volume.hidden or said["read_only"], **_facts(volume, {})}
    return db.VDI.create(**uuid, SR=sr._ref, location=volume.location, **fields)


def _said(db: Store, said: Description) -> dict[str, object]:
    """Return the fields of a description."""
    origin = NULL
    with suppress(Fault):
        origin = db.VDI.by_uuid(said.snapshot_of)._ref
    return {
        "name_label": said.name_label,
        "name_description": said.name_description,
        "type": said.type if said.type in _types(db) else "user",
        "is_a_snapshot": said.is_a_snapshot,
        "snapshot_of": origin,
        "snapshot_time": _time(said.snapshot_time),
        "read_only": said.read_only,
        "sharable": said.sharable,
    }


def _types(db: Store) -> Collection[str]:
    kind = db.model.classes["VDI"].fields["type"].type
    assert isinstance(kind, EnumType)
    return kind.values


def _time(text: str) -> datetime:
    try:
        return parse_datetime(text) if text else EPOCH
    except DecodeError:
        return EPOCH


def read_description(db: Store, vdi: records.VDI, volume: Volume) -> None:
    """Take over what is kept beside a volume, unless nothing is: somebody else has put the file there."""
    if volume.hidden or volume.description == Description() or not is_uuid(volume.location):
        return
    fields = _said(db, volume.description)
    if fields["snapshot_of"] == NULL:
        del fields["snapshot_of"]  # it dangles when the disk is gone, as clients know it
    for name, value in fields.items():
        setattr(vdi, name, value)


def apply(db: Store, sr: records.SR, effect: Effect) -> None:
    """Write what a request has done into the rows of an SR."""
    growth = 0
    for location in effect.gone:
        row = find(db, sr, location)
        if row is not None:
            growth -= _promised(row)
            drop(db, row)
    for volume in effect.volumes:
        before = find(db, sr, volume.location)
        growth -= 0 if before is None else _promised(before)
        row = write(db, sr, volume)
        growth += 0 if row is None else _promised(row)
    sr.virtual_allocation = max(0, sr.virtual_allocation + growth)
    write_space(sr, effect.space)


def write_space(sr: records.SR, space: Space | None) -> None:
    """Write how large an SR is, and how full, as far as that is known."""
    if space is not None:
        sr.physical_size, sr.physical_utilisation = space.physical_size, space.physical_utilisation


def _promised(vdi: records.VDI) -> int:
    return int(vdi.virtual_size) if vdi.managed else 0


def allocation(db: Store, refs: Iterable[str]) -> int:
    """Return the bytes promised to VDIs."""
    return sum(_promised(db.VDI[ref]) for ref in refs)


def drop(db: Store, vdi: records.VDI) -> None:
    """Remove the row of a VDI: its disk drives go with it, its CD drives are empty then."""
    for ref in list(vdi.VBDs):
        vbd = db.VBD[ref]
        if vbd.type == "CD":
            vbd.VDI, vbd.empty = NULL, True
        else:
            if vbd.metrics in db.VBD_metrics:
                db.VBD_metrics.delete(vbd.metrics)
            db.VBD.delete(ref)
    if vdi.type == "suspend":
        for vm in db.VM:
            if vm.suspend_VDI == vdi._ref:
                vm.suspend_VDI = NULL
    db.VDI.delete(vdi._ref)
