"""Messages of SR."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger

from xapi.calls.call import Call
from xapi.calls.claim import SHORT, claim
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import Ref
from xapi.log.guests import named
from xapi.operations.pool import rolling_upgrade
from xapi.operations.sr import driver
from xapi.storage import srs, vdis
from xapi.storage.faults import UNIMPLEMENTED, answering, backend_failure
from xapi.storage.repository import Storage
from xapi.storage.scans import scan as scan_rows
from xapi.storage.volumes import write_space

log = Logger()

SR = Ref[records.SR]
Host = Ref[records.host]
Keys = Mapping[str, str]
STATEFILE_SPACE = (4 + 256) << 20
"""Bytes that an SR must have free for high availability's two disks: 4 MiB, and 256 MiB for the redo log."""


# Life cycle


@message("SR.create")
async def create(
    call: Call,
    host: Host,
    device_config: Keys,
    physical_size: int,
    name_label: str,
    name_description: str,
    type: str,
    content_type: str,
    shared: bool,
    sm_config: Keys,
) -> SR:
    """Make an SR where its device_config says, and plug it; one that is shared, on every host."""
    db = call.db
    where = db.host[call.pool.master if shared else host]
    if rolling_upgrade(call.pool):
        raise errors.NOT_SUPPORTED_DURING_UPGRADE()
    hosts = [where, *(each for each in db.host if each is not where)] if shared else [where]
    with db.atomic():
        row = srs.introduce(
            db, uuid="", name_label=name_label, name_description=name_description, type=type,
            content_type=content_type, shared=shared, sm_config=sm_config,
        )  # fmt: skip
        pbds = [srs.add_pbd(db, row, each, device_config) for each in hosts]
    try:
        await srs.create(call, row, pbds[0])
    except BaseException:
        with db.atomic():
            srs.forget(db, row)
        raise
    for pbd in pbds:
        try:
            async with claim(call, "plug", row, patience=SHORT):
                await srs.plug(call, row, pbd)
        except Fault as fault:
            log.error("{sr} cannot be plugged: {fault}", sr=named(row), fault=fault)
    made: SR = row._ref
    return made


@message("SR.introduce")
def introduce(
    call: Call,
    uuid: str,
    name_label: str,
    name_description: str,
    type: str,
    content_type: str,
    shared: bool,
    sm_config: Keys,
) -> SR:
    """Make the row of an SR that exists; a PBD makes it usable."""
    made: SR = srs.introduce(
        call.db, uuid=uuid, name_label=name_label, name_description=name_description, type=type,
        content_type=content_type, shared=shared, sm_config=sm_config,
    )._ref  # fmt: skip
    return made


@message("SR.make")
def make(
    call: Call,
    host: Host,
    device_config: Keys,
    physical_size: int,
    name_label: str,
    name_description: str,
    type: str,
    content_type: str,
    sm_config: Keys,
) -> str:
    """Refuse: SR.create has taken its place."""
    raise errors.MESSAGE_DEPRECATED()


@message("SR.destroy", patience=SHORT)
async def destroy(call: Call, sr: SR) -> None:
    """Erase an SR without disks, with all its rows."""
    db = call.db
    row = db.SR[sr]
    if row.other_config.get("indestructible") == "true":
        raise errors.SR_INDESTRUCTIBLE(sr)
    for host in db.host:
        if host.local_cache_sr == sr:
            raise errors.SR_IS_CACHE_SR(host._ref)
    await srs.erase(call, row)
    with db.atomic():
        srs.forget(db, row)


@message("SR.forget", patience=SHORT)
async def forget(call: Call, sr: SR) -> None:
    """Drop an SR's rows; the data stay."""
    row = call.db.SR[sr]
    with call.db.atomic():
        srs.forget(call.db, row)


# Looking


@message("SR.scan", patience=SHORT)
async def scan(call: Call, sr: SR) -> None:
    """Bring the rows in line with what the storage holds."""
    row = call.db.SR[sr]
    await scan_rows(call, row)


@message("SR.update")
async def update(call: Call, sr: SR) -> None:
    """Measure an SR anew."""
    row = call.db.SR[sr]
    used = await call[Storage].repository(call, row)
    with answering():
        space = await used.storage.space(used.handle)
    with call.db.atomic():
        write_space(row, space)


@message("SR.get_supported_types")
def get_supported_types(call: Call) -> tuple[str, ...]:
    """Name the types that there are drivers for."""
    return tuple(sorted(sm.type for sm in call.db.SM))


@message("SR.probe")
async def probe(call: Call, host: Host, device_config: Keys, type: str, sm_config: Keys) -> str:
    """Refuse: the storage of this machine does not say which SR lay where."""
    _assert_probed(call, host, type)
    raise backend_failure(UNIMPLEMENTED, "SR.probe")


@message("SR.probe_ext")
async def probe_ext(call: Call, host: Host, device_config: Keys, type: str, sm_config: Keys) -> tuple[object, ...]:
    """Refuse, as for all drivers of the older kind."""
    _assert_probed(call, host, type)
    raise Fault("SR_OPERATION_NOT_SUPPORTED")


def _assert_probed(call: Call, host: Host, type: str) -> None:
    """Raise what a probe fails with before its driver is asked."""
    _ = call.db.host[host]
    if driver(call.db, type.lower()) is None:
        raise errors.SR_UNKNOWN_DRIVER(type.lower())


@message("SR.get_live_hosts")
def get_live_hosts(call: Call, sr: SR) -> tuple[Host, ...]:
    """List the hosts that can use an SR now."""
    db, found = call.db, []
    for ref in db.SR[sr].PBDs:
        pbd = db.PBD[ref]
        host = db.host[pbd.host]
        metrics = db.host_metrics.get(host.metrics)
        if pbd.currently_attached and host.enabled and metrics is not None and metrics.live:
            found.append(host._ref)
    return tuple(found)


# Settings


@message("SR.set_shared")
def set_shared(call: Call, sr: SR, value: bool) -> None:
    """Say whether several hosts may use an SR."""
    row = call.db.SR[sr]
    if not value and len(row.PBDs) > 1:
        raise Fault("SR_HAS_MULTIPLE_PBDS", *row.PBDs)
    row.shared = value


@message("SR.set_name_label")
async def set_name_label(call: Call, sr: SR, value: str) -> None:
    """Name an SR that is plugged."""
    row = call.db.SR[sr]
    await call[Storage].repository(call, row)
    row.name_label = value


@message("SR.set_name_description")
async def set_name_description(call: Call, sr: SR, value: str) -> None:
    """Describe an SR that is plugged."""
    row = call.db.SR[sr]
    await call[Storage].repository(call, row)
    row.name_description = value


@message("SR.set_physical_size", "SR.set_physical_utilisation", "SR.set_virtual_allocation")
def record(call: Call, self: SR, value: int) -> None:
    """Record what the SR's driver says: its capacity, and the bytes in use and promised to disks."""
    row = call.db.SR[self]
    vdis.may_write(call, self)
    setattr(row, call.message.name.removeprefix("set_"), value)


# What an SR can be for


@message("SR.assert_can_host_ha_statefile")
def assert_can_host_ha_statefile(call: Call, sr: SR) -> None:
    """Say why an SR cannot hold the disks of high availability, if so."""
    row = call.db.SR[sr]
    _assert_everywhere(call, row)
    sm = driver(call.db, row.type)
    if sm is None or not {"VDI_GENERATE_CONFIG", "VDI_ATTACH_OFFLINE"} & set(sm.features):
        raise errors.SR_OPERATION_NOT_SUPPORTED(sr)
    if row.physical_size - row.physical_utilisation < STATEFILE_SPACE:
        raise errors.SR_SOURCE_SPACE_INSUFFICIENT(sr)


@message("SR.assert_supports_database_replication")
def assert_supports_database_replication(call: Call, sr: SR) -> None:
    """Say why the pool's database cannot be kept on an SR, if so."""
    row = call.db.SR[sr]
    _assert_everywhere(call, row)
    sm = driver(call.db, row.type)
    if sm is None or "SR_METADATA" not in sm.features:
        raise errors.SR_OPERATION_NOT_SUPPORTED(sr)


def _assert_everywhere(call: Call, sr: records.SR) -> None:
    """Raise SR_HAS_NO_PBDS unless every host has an SR, and all have it plugged."""
    pbds = [call.db.PBD[ref] for ref in sr.PBDs]
    if {pbd.host for pbd in pbds} < set(call.db.host.rows) or not all(pbd.currently_attached for pbd in pbds):
        raise errors.SR_HAS_NO_PBDS(sr._ref)
