"""The storage of the pool as VMs need it: images of VDIs on a host, and those of suspended memory.

Where an SR lies on a host:

- one of type file, in the directory that its PBD's device_config:location names, if that is a repository; one of
  type iso likewise in any directory that exists (`iso_path` below it);
- all others, and those whose location is not there, in a directory of the storage directory that bears the SR's
  uuid: local ones of an installation, and whatever an inventory declares though this machine does not have it;
- one of type udev nowhere: it is empty.

Such a directory is made when it is first used, unless VDIs of the SR have had files already: then they are lost, and
nothing is made up in their place. Repositories are taken into use when they are first needed, so a plugged PBD costs
nothing when the daemon starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import DeferredLock

from hypervisor.api import Description, Effect, Space, StorageFailure
from hypervisor.api import Storage as HostStorage
from xapi.calls.claim import SHORT, claim
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.hosts.backends import Backends
from xapi.storage import unfinished, volumes
from xapi.storage.faults import (
    EXISTS,
    NO_CD_DIRECTORY,
    NO_CD_SERVER,
    NO_REPOSITORY,
    NO_VOLUME,
    UNIMPLEMENTED,
    answering,
    backend_failure,
)
from xapi.storage.volumes import allocation, declared, drop, is_uuid
from xapi.vms.domains import Image

if TYPE_CHECKING:
    from xapi.calls.work import Work
    from xapi.store.memory import Store

NO_REPOSITORY_TYPES = frozenset({"udev"})
SUSPEND_EXTRA = 100 << 20
"""Bytes that a suspend image may need besides the VM's memory, as xapi reckons."""
TOOLS = {"README.TXT": b"This CD stands for the guest tools: the guests of this host have what they need.\r\n"}
_CD_NAME = re.compile(r"[^/\0]+\.(iso|img)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Repository:
    """An SR on a host, in use. `kind` is as in `hypervisor.api.Storage`, or ``none`` for one that is always empty."""

    storage: HostStorage
    path: str
    kind: str

    def image(self, vdi: Any) -> Image:
        """Return where a VDI's volume lies. Raises VDI_MISSING for a location that leads elsewhere."""
        if "/" in vdi.location or not vdi.location or self.kind == "none":
            raise errors.VDI_MISSING(vdi.SR, vdi._ref)
        if self.kind == "cds":
            return Image(f"{self.path}/{vdi.location}", "raw")
        form = "raw" if vdi.sm_config.get("type") == "raw" else "vhd"
        return Image(f"{self.path}/{vdi.location}.{form}", form)


class Storage:
    """The SRs of the pool on their hosts; those that have no other place lie below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._used: dict[str, Repository] = {}
        """By PBD."""
        self._beginning = DeferredLock()
        self.damaged: dict[str, Mapping[str, str]] = {}
        """By SR's uuid, what its last scan found that cannot be used, and why."""

    # Repositories

    async def repository(self, work: Work, sr: Any, host: Any = None) -> Repository:
        """Return an SR on a host that has it plugged, ready for use.

        Raises SR_HAS_NO_PBDS when no host has, SR_NOT_ATTACHED when `host` has not, and what storage refuses.
        """
        pbd = plugged(work.db, sr, host)
        return self._used.get(pbd._ref) or await self.begin(work, sr, pbd)

    async def begin(self, work: Work, sr: Any, pbd: Any, *, strict: bool = False) -> Repository:
        """Take an SR into use through a PBD; with `strict` it must be there already. Raises Fault."""
        await self._beginning.acquire()
        try:
            used = self._used.get(pbd._ref)
            if used is None:
                with answering():
                    used = await self._begin(work, sr, pbd, strict)
                self._used[pbd._ref] = used
            return used
        finally:
            self._beginning.release()

    async def _begin(self, work: Work, sr: Any, pbd: Any, strict: bool) -> Repository:
        storage = work[Backends].of(work.db.host[pbd.host]).storage
        kind = kind_of(sr)
        if kind == "none":
            return Repository(storage, "", kind)
        path, there = await self.place(storage, sr, pbd.device_config)
        if not there:
            if strict or any(_had_file(work.db.VDI[ref]) for ref in sr.VDIs):
                raise _lost(kind, pbd.device_config, path)
            await storage.create(path, kind)
        await storage.attach(path, kind, sr.uuid)
        return Repository(storage, path, kind)

    async def place(self, storage: HostStorage, sr: Any, device_config: Any) -> tuple[str, bool]:
        """Return where an SR lies on a host, and whether it is there."""
        if not is_uuid(sr.uuid):
            raise errors.UUID_INVALID("SR", sr.uuid)
        own, location = str(self.directory / sr.uuid), device_config.get("location", "")
        if sr.type == "file" and location.startswith("/") and await storage.look(location) == "repository":
            return location, True
        if sr.type == "iso":
            folder = cd_directory(device_config)
            if folder and await storage.look(folder):
                return folder, True
            return own, bool(await storage.look(own))
        return own, await storage.look(own) == "repository"

    async def end(self, work: Work, sr: Any, pbd: Any) -> None:
        """Let an SR on a host go; it is there afterwards, even if it has never been used. Raises Fault."""
        used = self._used.get(pbd._ref) or await self.begin(work, sr, pbd)
        others = [other.path for ref, other in self._used.items() if ref != pbd._ref]
        if used.kind != "none" and used.path not in others:
            with answering():
                await used.storage.detach(used.path)
        self._used.pop(pbd._ref, None)

    # Images

    async def attach(self, work: Work, host: Any, vm: Any, *, reset: bool) -> dict[str, Image]:
        """Return where the images of a VM's disks and CDs lie, by VDI, ready to be opened on a host.

        With `reset` the disks whose on_boot says so lose what was written to them: the VM starts. Raises Fault.
        """
        images: dict[str, Image] = {}
        for ref in vm.VBDs:
            vbd = work.db.VBD[ref]
            if vbd.empty:
                continue
            vdi = work.db.VDI[vbd.VDI]
            images[vbd.VDI] = await self.image(work, host, vdi)
            if reset and vdi.on_boot == "reset" and vbd.mode == "RW":
                await self._reset(work, host, vdi)
        return images

    async def _reset(self, work: Work, host: Any, vdi: Any) -> None:
        sr = work.db.SR[vdi.SR]
        used = await self.repository(work, sr, host)
        with answering():
            effect = await used.storage.reset(used.path, vdi.location)
        with work.db.atomic():
            volumes.apply(work.db, sr, effect)

    async def image(self, work: Work, host: Any, vdi: Any) -> Image:
        """Return where the image of a VDI lies, ready to be opened on a host. Raises Fault."""
        used = await self.repository(work, work.db.SR[vdi.SR], host)
        if vdi.missing:
            raise errors.VDI_MISSING(vdi.SR, vdi._ref)
        await self.provide(work, used, vdi)
        return used.image(vdi)

    async def provide(self, work: Work, used: Repository, vdi: Any) -> None:
        """Make the volume of a VDI that was only declared, or the tools' CD. Raises Fault."""
        if not (declared(vdi) or vdi.is_tools_iso):
            return
        sr = work.db.SR[vdi.SR]
        with answering():
            if used.kind == "cds":
                effect = await self._provide_cd(used, vdi)
            else:
                effect = await _provide_disk(work.db, used, vdi)
        with work.db.atomic():
            if vdi._ref in work.db.VDI:
                volumes.apply(work.db, sr, effect)

    async def _provide_cd(self, used: Repository, vdi: Any) -> Effect:
        """Find a CD, or make it, but in nobody's directory but our own."""
        with suppress(StorageFailure):
            return Effect((await used.storage.volume(used.path, vdi.location),), (), await _space(used))
        if Path(used.path).parent != self.directory:
            raise errors.VDI_MISSING(vdi.SR, vdi._ref)
        name = vdi.location if _CD_NAME.fullmatch(vdi.location) else f"{vdi.uuid}.iso"
        if vdi.is_tools_iso:
            effect = await used.storage.make_cd(used.path, name, vdi.virtual_size, TOOLS)
        else:
            effect = await used.storage.make(used.path, name, vdi.virtual_size, "raw", Description())
        vdi.location = name
        return effect

    async def remove(self, work: Work, vdi: Any) -> None:
        """Remove a claimed VDI: image and row. Raises Fault."""
        async with unfinished.leaving(work, vdi):
            await self._remove(work, vdi)

    async def _remove(self, work: Work, vdi: Any) -> None:
        sr = work.db.SR[vdi.SR]
        used = await self.repository(work, sr)
        effect = Effect((), (), await _space(used))
        if vdi.location and used.kind != "none" and (not declared(vdi) or vdi.type == "suspend"):
            effect = await _delete(used, vdi.location)
        with work.db.atomic():
            if vdi._ref in work.db.VDI:
                sr.virtual_allocation = max(0, sr.virtual_allocation - allocation(work.db, [vdi._ref]))
                drop(work.db, vdi)
            volumes.apply(work.db, sr, effect)

    async def discard(self, work: Work, sr: Any, image: str) -> None:
        """Remove an image of an SR by its uuid, with its row, as far as there are any. Raises Fault."""
        used = await self.repository(work, sr)
        vdi: Any = volumes.find(work.db, sr, image)
        if vdi is not None:
            await self._remove(work, vdi)
        elif used.kind == "disks":
            effect = await _delete(used, image)
            with work.db.atomic():
                volumes.apply(work.db, sr, effect)

    async def destroy(self, work: Work, vdi: Any) -> None:
        """Remove a VDI: image and row. Raises Fault."""
        async with (
            claim(work, "vdi_destroy", work.db.SR[vdi.SR], patience=SHORT),
            claim(work, "destroy", vdi, patience=SHORT),
        ):
            await self.remove(work, vdi)

    # Suspended memory

    async def make_suspend_image(self, work: Work, vm: Any, host: Any) -> tuple[Any, str]:
        """Return a new VDI of type suspend, and the path on a host of a file that does not exist yet. Raises Fault."""
        db = work.db
        sr, size = suspend_sr(db, vm, host), vm.memory_static_max + SUSPEND_EXTRA
        async with claim(work, "vdi_create", sr, patience=SHORT):
            used = await self.repository(work, sr, host)
            if used.kind != "disks":
                raise backend_failure(UNIMPLEMENTED, f"{sr.name_label} holds no suspend images")
            space = await _space(used)
            if space.physical_size - space.physical_utilisation < vm.memory_static_max:
                raise errors.SR_SUSPEND_SPACE_INSUFFICIENT(sr._ref)
            async with unfinished.new_image(work, sr) as image:
                with db.atomic():
                    vdi = _suspend_row(db, sr, image, size)
                    sr.virtual_allocation += size
        return vdi, used.image(vdi).path

    async def suspend_image_written(self, work: Work, vdi: Any) -> None:
        """Hear that a suspend image is complete. Raises Fault."""
        sr = work.db.SR[vdi.SR]
        used = await self.repository(work, sr)
        with answering():
            volume = await used.storage.volume(used.path, vdi.location)
            await used.storage.describe(used.path, vdi.location, volumes.description(work.db, vdi))
            effect = Effect((volume,), (), await used.storage.space(used.path))
        with work.db.atomic():
            volumes.apply(work.db, sr, effect)

    async def suspend_image(self, work: Work, vdi: Any, host: Any) -> str:
        """Return the path of a suspend image on a host. Raises Fault."""
        used = await self.repository(work, work.db.SR[vdi.SR], host)
        if vdi.missing or declared(vdi):
            raise errors.VDI_MISSING(vdi.SR, vdi._ref)
        return used.image(vdi).path


def kind_of(sr: Any) -> str:
    """Return the kind of repository that an SR is."""
    return "none" if sr.type in NO_REPOSITORY_TYPES else "cds" if sr.type == "iso" else "disks"


def plugged(db: Store, sr: Any, host: Any = None) -> Any:
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


def suspend_sr(db: Store, vm: Any, host: Any) -> Any:
    """Return the SR that a VM's memory goes to: its own, the pool's or the host's. Raises VM_NO_SUSPEND_SR."""
    for ref in (vm.suspend_SR, next(iter(db.pool)).suspend_image_SR, host.suspend_image_sr):
        sr = db.SR.get(ref)
        if sr is not None and any(db.PBD[pbd].host == host._ref for pbd in sr.PBDs):
            return sr
    raise errors.VM_NO_SUSPEND_SR(vm._ref)


def cd_directory(device_config: Any) -> str:
    """Return the host's directory that an SR of CDs names, "" when it names none."""
    location, below = device_config.get("location", ""), device_config.get("iso_path", "")
    return str(Path(location, below.lstrip("/"))) if location.startswith("/") else ""


def _lost(kind: str, device_config: Any, path: str) -> Fault:
    if kind == "cds":
        legacy = "legacy_mode" in device_config
        return backend_failure(NO_CD_DIRECTORY if legacy else NO_CD_SERVER, device_config.get("location", ""))
    return backend_failure(NO_REPOSITORY, f"no such directory {path}")


def _had_file(vdi: Any) -> bool:
    return not (declared(vdi) or vdi.is_tools_iso)


async def _delete(used: Repository, location: str) -> Effect:
    """Delete a volume, which may have gone already."""
    with answering():
        try:
            return await used.storage.delete(used.path, location)
        except StorageFailure as failure:
            if failure.number != NO_VOLUME:
                raise
    return Effect((), (), await _space(used))


async def _space(used: Repository) -> Space:
    with answering():
        return Space(0, 0) if used.kind == "none" else await used.storage.space(used.path)


async def _provide_disk(db: Store, used: Repository, vdi: Any) -> Effect:
    """Make a disk's volume, unless another call is quicker, or a crash came before the row was written."""
    if used.kind == "none" or vdi.location != vdi.uuid or vdi.type == "suspend":
        raise errors.VDI_MISSING(vdi.SR, vdi._ref)
    form = "raw" if vdi.sm_config.get("type") == "raw" else "vhd"
    said = volumes.description(db, vdi)
    try:
        return await used.storage.make(used.path, vdi.location, vdi.virtual_size, form, said)
    except StorageFailure as failure:
        if failure.number != EXISTS:
            raise
    return Effect((await used.storage.volume(used.path, vdi.location),), (), await _space(used))


def _suspend_row(db: Store, sr: Any, image: str, size: int) -> Any:
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
