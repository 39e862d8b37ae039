"""The storage of the pool as VMs need it: volumes of VDIs on a host, and those of suspended memory.

An SR is taken into use on a host by its driver there, when it is first needed: so a plugged PBD costs nothing when the
daemon starts. One that is not there is made then, unless VDIs of it have had volumes already: then they are lost, and
nothing is made up in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import DeferredLock

from hypervisor.api import SR, Effect, NewVolume, StorageFailure, VolumeHandle
from hypervisor.api import Storage as HostStorage
from xapi.calls.claim import SHORT, claim
from xapi.datamodel import errors
from xapi.hosts.backends import Backends
from xapi.operations.sr import can
from xapi.storage import unfinished, volumes
from xapi.storage.faults import NO_VOLUME, UNIMPLEMENTED, answering, backend_failure
from xapi.storage.volumes import allocation, declared, drop, is_uuid

if TYPE_CHECKING:
    from xapi.calls.work import Work
    from xapi.datamodel import records
    from xapi.store.memory import Store

SUSPEND_EXTRA = 100 << 20
"""Bytes that a suspend image may need besides the VM's memory, as xapi reckons."""
TOOLS = {"README.TXT": b"This CD stands for the guest tools: the guests of this host have what they need.\r\n"}


@dataclass(frozen=True, slots=True)
class Repository:
    """An SR on a host, in use: `handle` is what the host calls it."""

    storage: HostStorage
    handle: str

    def volume(self, vdi: records.VDI) -> VolumeHandle:
        """Return what a VDI's volume is called. Raises VDI_MISSING for a location that would lead elsewhere."""
        if "/" in vdi.location or not vdi.location:
            raise errors.VDI_MISSING(vdi.SR, vdi._ref)
        return self.at(vdi.location)

    def at(self, location: str) -> VolumeHandle:
        """Return what a volume is called."""
        return VolumeHandle(self.handle, location)


class Storage:
    """The SRs of the pool on their hosts."""

    def __init__(self) -> None:
        self._used: dict[str, Repository] = {}
        """By PBD."""
        self._plugging = DeferredLock()
        self.damaged: dict[str, Mapping[str, str]] = {}
        """By SR's uuid, what its last scan found that cannot be used, and why."""

    # Repositories

    async def repository(self, work: Work, sr: records.SR, host: records.host | None = None) -> Repository:
        """Return an SR on a host that has it plugged, ready for use.

        Raises SR_HAS_NO_PBDS when no host has, SR_NOT_ATTACHED when `host` has not, and what storage refuses.
        """
        pbd = plugged(work.db, sr, host)
        return self._used.get(pbd._ref) or await self.plug(work, sr, pbd)

    async def plug(self, work: Work, sr: records.SR, pbd: records.PBD, *, strict: bool = False) -> Repository:
        """Take an SR into use through a PBD; with `strict` it must be there already. Raises Fault."""
        await self._plugging.acquire()
        try:
            used = self._used.get(pbd._ref)
            if used is None:
                with answering():
                    used = await self._plug(work, sr, pbd, strict)
                self._used[pbd._ref] = used
            return used
        finally:
            self._plugging.release()

    async def _plug(self, work: Work, sr: records.SR, pbd: records.PBD, strict: bool) -> Repository:
        storage = work[Backends].of(work.db.host[pbd.host]).storage
        make = not strict and not any(_had_volume(work.db.VDI[ref]) for ref in sr.VDIs)
        return Repository(storage, await storage.attach(known(sr, pbd), make=make))

    async def unplug(self, work: Work, sr: records.SR, pbd: records.PBD) -> None:
        """Let an SR on a host go; it is there afterwards, even if it has never been used. Raises Fault."""
        used = self._used.get(pbd._ref) or await self.plug(work, sr, pbd)
        if used not in [other for ref, other in self._used.items() if ref != pbd._ref]:
            with answering():
                await used.storage.detach(used.handle)
        self._used.pop(pbd._ref, None)

    def forget(self, pbds: Iterable[str]) -> None:
        """Take into use anew what a host had that was restarted."""
        for pbd in pbds:
            self._used.pop(pbd, None)

    # Volumes

    async def attach(self, work: Work, host: records.host, vm: records.VM, *, reset: bool) -> dict[str, VolumeHandle]:
        """Return the volumes of a VM's disks and CDs, by VDI, ready to be opened on a host.

        With `reset` the disks whose on_boot says so lose what was written to them: the VM starts. Raises Fault.
        """
        found: dict[str, VolumeHandle] = {}
        for ref in vm.VBDs:
            vbd = work.db.VBD[ref]
            if vbd.empty:
                continue
            vdi = work.db.VDI[vbd.VDI]
            found[vbd.VDI] = await self.volume(work, host, vdi)
            if reset and vdi.on_boot == "reset" and vbd.mode == "RW":
                await self._reset(work, host, vdi)
        return found

    async def _reset(self, work: Work, host: records.host, vdi: records.VDI) -> None:
        sr = work.db.SR[vdi.SR]
        used = await self.repository(work, sr, host)
        with answering():
            effect = await used.storage.reset(used.volume(vdi))
        with work.db.atomic():
            volumes.apply(work.db, sr, effect)

    async def volume(self, work: Work, host: records.host, vdi: records.VDI) -> VolumeHandle:
        """Return the volume of a VDI, ready to be opened on a host. Raises Fault."""
        used = await self.repository(work, work.db.SR[vdi.SR], host)
        if vdi.missing:
            raise errors.VDI_MISSING(vdi.SR, vdi._ref)
        await self.provide(work, used, vdi)
        return used.volume(vdi)

    async def provide(self, work: Work, used: Repository, vdi: records.VDI) -> None:
        """Make the volume of a VDI that was only declared, or the tools' CD. Raises Fault."""
        if not (declared(vdi) or vdi.is_tools_iso):
            return
        new = NewVolume(
            vdi.uuid,
            vdi.virtual_size,
            volumes.description(work.db, vdi),
            dict(vdi.sm_config),
            vdi.location,
            TOOLS if vdi.is_tools_iso else {},
        )
        with answering():
            try:
                effect = await used.storage.provide(used.handle, new)
            except StorageFailure as failure:
                if failure.number != NO_VOLUME:
                    raise
                raise errors.VDI_MISSING(vdi.SR, vdi._ref) from failure
        with work.db.atomic():
            if vdi._ref in work.db.VDI:
                vdi.location = effect.volumes[0].location
                volumes.apply(work.db, work.db.SR[vdi.SR], effect)

    async def remove(self, work: Work, vdi: records.VDI) -> None:
        """Remove a claimed VDI: image and row. Raises Fault."""
        async with unfinished.leaving(work, vdi):
            await self._remove(work, vdi)

    async def _remove(self, work: Work, vdi: records.VDI) -> None:
        sr = work.db.SR[vdi.SR]
        used = await self.repository(work, sr)
        effect = Effect()
        if vdi.location and (not declared(vdi) or vdi.type == "suspend"):
            effect = await _delete(used, vdi.location)
        with work.db.atomic():
            if vdi._ref in work.db.VDI:
                sr.virtual_allocation = max(0, sr.virtual_allocation - allocation(work.db, [vdi._ref]))
                drop(work.db, vdi)
            volumes.apply(work.db, sr, effect)

    async def discard(self, work: Work, sr: records.SR, image: str) -> None:
        """Remove an image of an SR by its uuid, with its row, as far as there are any. Raises Fault."""
        used = await self.repository(work, sr)
        vdi = volumes.find(work.db, sr, image)
        if vdi is not None:
            await self._remove(work, vdi)
        else:
            effect = await _delete(used, image)
            with work.db.atomic():
                volumes.apply(work.db, sr, effect)

    async def destroy(self, work: Work, vdi: records.VDI) -> None:
        """Remove a VDI: image and row. Raises Fault."""
        async with (
            claim(work, "vdi_destroy", work.db.SR[vdi.SR], patience=SHORT),
            claim(work, "destroy", vdi, patience=SHORT),
        ):
            await self.remove(work, vdi)

    # Suspended memory

    async def make_suspend_image(
        self, work: Work, vm: records.VM, host: records.host
    ) -> tuple[records.VDI, VolumeHandle]:
        """Return a new VDI of type suspend, and what its volume is called that does not exist yet. Raises Fault."""
        db = work.db
        sr, size = suspend_sr(db, vm, host), vm.memory_static_max + SUSPEND_EXTRA
        async with claim(work, "vdi_create", sr, patience=SHORT):
            used = await self.repository(work, sr, host)
            if not can(db, sr, "VDI_ACTIVATE"):
                raise backend_failure(UNIMPLEMENTED, f"{sr.name_label} holds no suspend images")
            with answering():
                space = await used.storage.space(used.handle)
            if space is not None and space.physical_size - space.physical_utilisation < vm.memory_static_max:
                raise errors.SR_SUSPEND_SPACE_INSUFFICIENT(sr._ref)
            async with unfinished.new_image(work, sr) as image:
                with db.atomic():
                    vdi = _suspend_row(db, sr, image, size)
                    sr.virtual_allocation += size
        return vdi, used.volume(vdi)

    async def suspend_image_written(self, work: Work, vdi: records.VDI) -> None:
        """Hear that a suspend image is complete. Raises Fault."""
        sr = work.db.SR[vdi.SR]
        used = await self.repository(work, sr)
        with answering():
            volume = await used.storage.volume(used.volume(vdi))
            await used.storage.describe(used.volume(vdi), volumes.description(work.db, vdi))
            effect = Effect((volume,), (), await used.storage.space(used.handle))
        with work.db.atomic():
            volumes.apply(work.db, sr, effect)

    async def suspend_image(self, work: Work, vdi: records.VDI, host: records.host) -> VolumeHandle:
        """Return the volume of a suspend image on a host. Raises Fault."""
        used = await self.repository(work, work.db.SR[vdi.SR], host)
        if vdi.missing or declared(vdi):
            raise errors.VDI_MISSING(vdi.SR, vdi._ref)
        return used.volume(vdi)


def known(sr: records.SR, pbd: records.PBD) -> SR:
    """Return an SR as a host is told of it. Raises UUID_INVALID."""
    if not is_uuid(sr.uuid):
        raise errors.UUID_INVALID("SR", sr.uuid)
    return SR(sr.type, sr.uuid, dict(pbd.device_config))


def plugged(db: Store, sr: records.SR, host: records.host | None = None) -> records.PBD:
    """Return a PBD that is plugged: a host's, else the coordinator's if it has one.

    Raises SR_NOT_ATTACHED, or SR_HAS_NO_PBDS when no host is named.
    """
    found = [pbd for ref in sr.PBDs if (pbd := db.PBD[ref]).currently_attached]
    if host is not None:
        found = [pbd for pbd in found if pbd.host == host._ref]
        if not found:
            raise errors.SR_NOT_ATTACHED(sr._ref)
    if not found:
        raise errors.SR_HAS_NO_PBDS(sr._ref)
    master = next(iter(db.pool)).master
    return next((pbd for pbd in found if pbd.host == master), found[0])


def suspend_sr(db: Store, vm: records.VM, host: records.host) -> records.SR:
    """Return the SR that a VM's memory goes to: its own, the pool's or the host's. Raises VM_NO_SUSPEND_SR."""
    for ref in (vm.suspend_SR, next(iter(db.pool)).suspend_image_SR, host.suspend_image_sr):
        sr = db.SR.get(ref)
        if sr is not None and any(db.PBD[pbd].host == host._ref for pbd in sr.PBDs):
            return sr
    raise errors.VM_NO_SUSPEND_SR(vm._ref)


def _had_volume(vdi: records.VDI) -> bool:
    return not (declared(vdi) or vdi.is_tools_iso)


async def _delete(used: Repository, location: str) -> Effect:
    """Delete a volume, which may have gone already."""
    with answering():
        try:
            return await used.storage.delete(used.at(location))
        except StorageFailure as failure:
            if failure.number != NO_VOLUME:
                raise
    return Effect()


def _suspend_row(db: Store, sr: records.SR, image: str, size: int) -> records.VDI:
    return db.VDI.create(
        uuid=image,
        location=image,
        SR=sr._ref,
        name_label="Suspend image",
        name_description="Suspend image",
        type="suspend",
        virtual_size=size,
        managed=True,
        sm_config={"type": "raw"},
    )
