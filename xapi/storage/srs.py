"""What messages do to SRs and their PBDs. What raises, raises Fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hypervisor.api import Surroundings
from xapi.calls.work import Work
from xapi.cancelling import to_its_end
from xapi.datamodel import errors, records
from xapi.datamodel.types import NULL
from xapi.hosts.backends import Backends
from xapi.operations.sr import driver
from xapi.storage import device_config, volumes
from xapi.storage.faults import answering
from xapi.storage.repository import Storage, known, plugged
from xapi.storage.scans import scan
from xapi.store.memory import Store
from xapi.store.rows import Row

LOCAL_DISKS = "local-disks"
"""Key of a host's other_config: the disks that it has besides its own, such as "/dev/sdb,/dev/nvme0n1"."""
UNKNOWN = -1
"""A size that nobody has asked for yet."""


def introduce(db: Store, *, uuid: str, type: str, **fields: object) -> records.SR:
    """Make the row of an SR. Raises SR_UUID_EXISTS, UUID_INVALID. Under `atomic`."""
    if uuid:
        if not volumes.is_uuid(uuid):
            raise errors.UUID_INVALID("SR", uuid)
        if any(sr.uuid == uuid for sr in db.SR):
            raise errors.SR_UUID_EXISTS(uuid)
        fields["uuid"] = uuid
    sizes: dict[str, object] = {"virtual_allocation": 0, "physical_utilisation": UNKNOWN, "physical_size": UNKNOWN}
    return db.SR.create(type=type.lower(), default_vdi_visibility=True, **sizes, **fields)


def add_pbd(db: Store, sr: records.SR, host: records.host, config: Mapping[str, str]) -> records.PBD:
    """Make an SR's connection to a host. Raises PBD_EXISTS. Under `atomic`."""
    for ref in sr.PBDs:
        if db.PBD[ref].host == host._ref:
            raise errors.PBD_EXISTS(sr._ref, host._ref, ref)
    return db.PBD.create(SR=sr._ref, host=host._ref, device_config=device_config.kept(db, config))


def drop_pbd(db: Store, pbd: records.PBD) -> None:
    """Remove a PBD with its secrets. Under `atomic`."""
    device_config.forget_secrets(db, pbd.device_config)
    db.PBD.delete(pbd._ref)


async def create(work: Work, sr: records.SR, pbd: records.PBD) -> None:
    """Make the storage of a new SR where its first PBD says."""
    if driver(work.db, sr.type) is None:
        raise errors.SR_UNKNOWN_DRIVER(sr.type)
    host = work.db.host[pbd.host]
    disks = filter(None, host.other_config.get(LOCAL_DISKS, "").split(","))
    others = (dict(work.db.PBD[ref].device_config) for ref in host.PBDs if ref != pbd._ref)
    with answering():
        await work[Backends].of(host).storage.create(known(sr, pbd), Surroundings(tuple(disks), tuple(others)))


async def plug(work: Work, sr: records.SR, pbd: records.PBD) -> None:
    """Connect a claimed SR to a host, and look what it holds."""
    if driver(work.db, sr.type) is None:
        raise errors.SR_UNKNOWN_DRIVER(sr.type)
    if pbd.currently_attached:
        return
    if not sr.shared:
        for ref in sr.PBDs:
            other = work.db.PBD[ref]
            if other.currently_attached and other.host != pbd.host:
                raise errors.SR_NOT_SHARABLE(sr._ref, other.host)
    storage = work[Storage]
    await storage.plug(work, sr, pbd, strict=True)
    pbd.currently_attached = True
    try:
        if plugged(work.db, sr) is pbd:
            await scan(work, sr)
    except BaseException:
        pbd.currently_attached = False
        await to_its_end(storage.unplug(work, sr, pbd))
        raise


def assert_unpluggable(db: Store, sr: records.SR, pbd: records.PBD) -> None:
    """Raise HA_IS_ENABLED or VDI_IN_USE for a PBD over which something is in use."""
    pool = next(iter(db.pool))
    if pool.ha_enabled and any(sr._ref == db.VDI[ref].SR for ref in pool.ha_statefiles if ref in db.VDI):
        raise errors.HA_IS_ENABLED()
    active = list(dict.fromkeys(_active(db, sr, pbd.host)))
    if active:
        raise errors.Fault("VDI_IN_USE", *active)


def _active(db: Store, sr: records.SR, host: str) -> Iterable[str]:
    """Yield the VDIs of an SR that VMs on a host use."""
    for ref in sr.VDIs:
        vdi = db.VDI[ref]
        if vdi.type == "metadata":
            continue
        for used in vdi.VBDs:
            vbd = db.VBD[used]
            vm = db.VM.get(vbd.VM)
            attached = (vbd.currently_attached or vbd.reserved) and not vbd.empty
            if attached and vm is not None and vm.resident_on == host:
                yield ref


async def erase(work: Work, sr: records.SR) -> None:
    """Erase the storage of a claimed SR; its rows stay. Raises SR_HAS_NO_PBDS."""
    pbds = [work.db.PBD[ref] for ref in sr.PBDs]
    if not pbds:
        raise errors.SR_HAS_NO_PBDS(sr._ref)
    master = next(iter(work.db.pool)).master
    pbd = next((each for each in pbds if each.host == master), pbds[0])
    with answering():
        await work[Backends].of(work.db.host[pbd.host]).storage.destroy(known(sr, pbd))


def forget(db: Store, sr: records.SR) -> None:
    """Remove an SR's rows: of itself, its PBDs and VDIs; nothing refers to it afterwards. Under `atomic`."""
    for ref in list(sr.PBDs):
        drop_pbd(db, db.PBD[ref])
    for vdi in list(sr.VDIs):
        volumes.drop(db, db.VDI[vdi])
    for pool in db.pool:
        _unset(pool, sr, "default_SR", "suspend_image_SR", "crash_dump_SR")
    for host in db.host:
        _unset(host, sr, "suspend_image_sr", "crash_dump_sr", "local_cache_sr")
    for vm in db.VM:
        _unset(vm, sr, "suspend_SR")
    for blob in sr.blobs.values():
        if blob in db.blob:
            db.blob.delete(blob)
    device_config.forget_secrets(db, sr.sm_config)
    db.SR.delete(sr._ref)


def _unset(row: Row, sr: records.SR, *fields: str) -> None:
    for name in fields:
        if getattr(row, name) == sr._ref:
            setattr(row, name, NULL)
