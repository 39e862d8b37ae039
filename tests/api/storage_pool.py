"""A pool over real repositories in a temporary directory, without a hypervisor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from hypervisor.api import VolumeHandle
from hypervisor.disks.disk import Disk
from tests.conftest import Pool
from xapi.calls.call import Call
from xapi.host.storage import LocalStorage

MIB = 1 << 20
NULL_REF = "OpaqueRef:NULL"


class Threads:
    """Runs the storage's work at once, or when the test says so."""

    def __init__(self) -> None:
        self.held: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] | None = None

    def run(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        if self.held is None:
            run_now(done, work, arguments)
        else:
            self.held.append((done, work, arguments))
        return done

    def release(self) -> None:
        waiting, self.held = self.held or [], None
        for each in waiting:
            run_now(*each)


def run_now(done: Deferred[Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        result = work(*arguments)
    except Exception as error:
        done.errback(error)
    else:
        done.callback(result)


class Disks(Pool):
    """A pool whose hosts have storage."""

    threads: Threads
    storage: LocalStorage

    @property
    def sr(self) -> Any:
        """The local storage of the first host."""
        return next(row for row in self.db.SR if row.name_label == "Local storage")

    @property
    def directory(self) -> Path:
        return self.storage.directory

    def folder(self, sr: Any) -> Path:
        return Path(self.directory, sr.uuid)

    def files(self, sr: Any = None) -> set[str]:
        """Return the images of an SR."""
        return {path.name for path in self.folder(sr or self.sr).iterdir() if path.suffix in (".vhd", ".raw", ".iso")}

    def create(self, size: int = 5 * MIB, sr: Any = None, **more: Any) -> Any:
        """Return the row of a new VDI."""
        record = {
            "name_label": "disk", "name_description": "", "SR": (sr or self.sr)._ref, "virtual_size": str(size),
            "type": "user", "sharable": False, "read_only": False, "other_config": {}, **more,
        }  # fmt: skip
        return self.db.VDI[self("VDI.create", record)]

    def open(self, vdi: Any, *, read_only: bool = True) -> Disk:
        """Open a VDI's volume as a domain would."""
        return self.storage.repositories.open(self.volume(vdi), read_only=read_only)

    def volume(self, vdi: Any) -> VolumeHandle:
        return VolumeHandle(str(self.folder(self.db.SR[vdi.SR])), vdi.location)

    def put(self, vdi: Any, data: bytes, offset: int = 0) -> None:
        """Write to a VDI's volume as a guest would."""
        disk = self.open(vdi, read_only=False)
        disk.write(offset, data)
        disk.close()

    def head(self, vdi: Any, length: int = 4) -> bytes:
        disk = self.open(vdi)
        try:
            return disk.read(0, length)
        finally:
            disk.close()

    def call(self) -> Call:
        return self.daemon.dispatcher.own("VDI.create")[0]

    def run(self, coroutine: Any) -> Any:
        return self.outcome(Deferred.fromCoroutine(coroutine))

    def drive(self, vdi: Any, **fields: Any) -> Any:
        """Return the drive of a halted VM with a VDI."""
        with self.db.atomic():
            vm = self.db.VM.create(power_state="Halted", domid=-1)
            metrics = self.db.VBD_metrics.create()
            given = {"userdevice": "0", "type": "Disk", "mode": "RW", "metrics": metrics._ref}
            return self.db.VBD.create(VM=vm._ref, VDI=vdi._ref, **(given | fields))


def fit(pool: Any, threads: Threads) -> Disks:
    """Give the hosts of a pool storage of their own machine, and a disk besides the system's."""
    pool.__class__ = Disks
    pool.threads = threads
    pool.storage = LocalStorage(
        pool.storage_directory,
        threads.run,
        lambda work, *arguments: work(*arguments),
        lambda: int(pool.clock.seconds() * 1e9),
    )
    for host in pool.db.host:
        pool.make_backend(host).storage = pool.storage
        host.other_config = {**host.other_config, "local-disks": "/dev/sdb,/dev/nvme0n1"}
    disks: Disks = pool
    return disks


def make_sr(disks: Disks, kind: str, config: dict[str, str], shared: bool = False) -> Any:
    host = next(iter(disks.db.host))._ref
    return disks.db.SR[disks("SR.create", host, config, "0", "new", "text", kind, "user", shared, {"k": "v"})]
