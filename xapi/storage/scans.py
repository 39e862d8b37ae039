"""SR.scan: the rows of an SR's VDIs made equal to what lies there.

Volumes without a row get one. Rows whose volumes are gone go, as on XCP, but those that a drive, a suspended VM or a
pool refers to: these stay and are `missing`, as are those whose images are damaged. Rows that have never had a file
(see `xapi.storage.volumes`) stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from hypervisor.api import Contents, Volume
from xapi.calls.work import Work
from xapi.log.guests import named
from xapi.operations.sr import can
from xapi.storage import volumes
from xapi.storage.faults import answering
from xapi.storage.repository import Storage

if TYPE_CHECKING:
    from xapi.datamodel import records

log = Logger()

BATCH = 200
"""Rows that are written in one turn of the reactor."""


async def scan(work: Work, sr: records.SR) -> None:
    """Bring the rows of a claimed SR in line with what it holds. Raises Fault."""
    db = work.db
    used = await work[Storage].repository(work, sr)
    if not can(db, sr, "SR_SCAN"):
        return
    generation = db.generation
    with answering():
        contents = await used.storage.scan(used.handle)
    _tell(work, sr, contents)
    snapshots = tuple(volume for volume in contents.volumes if volume.description.is_a_snapshot)
    # Snapshots a second time, when there are rows of all that they can be of.
    for batch in (*_batches(contents.volumes), *_batches(snapshots)):
        await _turn(work)
        with db.atomic():
            for volume in batch:
                row = volumes.write(db, sr, volume)
                if row is not None:
                    volumes.read_description(db, row, volume)
                    row.is_tools_iso = row.is_tools_iso or sr.is_tools_sr
    await _turn(work)
    with db.atomic():
        _miss(work, sr, contents, generation)
        sr.virtual_allocation = volumes.allocation(db, sr.VDIs)
        volumes.write_space(sr, contents.space)
        sr.other_config = {key: value for key, value in sr.other_config.items() if key != "dirty"}


def _tell(work: Work, sr: records.SR, contents: Contents) -> None:
    """Log what cannot be used and why, once and not with each scan."""
    told = work[Storage].damaged
    for location, why in contents.damaged.items():
        if told.get(sr.uuid, {}).get(location) != why:
            log.warn("{sr}: {location} cannot be used: {why}", sr=named(sr), location=location, why=why)
    if contents.damaged:
        told[sr.uuid] = contents.damaged
    else:
        told.pop(sr.uuid, None)


def _miss(work: Work, sr: records.SR, contents: Contents, generation: int) -> None:
    """Drop the rows without volumes, or say that these are missing.

    A row younger than the scan is left alone, and so is one whose volume an operation is about to make.
    """
    db = work.db
    there = {volume.location for volume in contents.volumes}
    gone = [
        row
        for ref in list(sr.VDIs)
        if (row := db.VDI[ref]).location not in there
        and row._modified <= generation
        and row.uuid not in sr.unfinished
        and _should_be_there(row)
    ]
    if not gone:
        return
    suspended = {vm.suspend_VDI for vm in db.VM}
    for row in gone:
        if row.VBDs or row.is_tools_iso or row.location in contents.damaged or row._ref in suspended:
            row.missing = not (row.is_tools_iso and volumes.declared(row))
        else:
            volumes.drop(db, row)


def _should_be_there(vdi: records.VDI) -> bool:
    """A row without a file is right if it has never had one; a suspend image is written, not declared."""
    return not volumes.declared(vdi) or vdi.type == "suspend"


def _batches(found: tuple[Volume, ...]) -> Iterator[tuple[Volume, ...]]:
    for at in range(0, len(found), BATCH):
        yield found[at : at + BATCH]


async def _turn(work: Work) -> None:
    """Let the reactor do other things."""
    turn: Deferred[None] = Deferred()
    timer = work.clock.callLater(0, turn.callback, None)
    try:
        await turn
    finally:
        if timer.active():
            timer.cancel()
