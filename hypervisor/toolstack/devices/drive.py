"""Disk drives and CD drives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from msgspec import structs

from hypervisor.api import Code, DeviceState, Disk, HostError, disk_name
from hypervisor.disks import disk as disks
from hypervisor.disks import raw, vhd
from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.disks.disk import DiskError
from hypervisor.split.block import BlockConfig, BlockDevice
from hypervisor.split.xenbus import DeviceClass
from hypervisor.storage.errors import StorageError
from hypervisor.storage.repositories import Volumes
from hypervisor.toolstack.devices.plugged import Plugged, Slot


def open_disk(described: Disk, volumes: Volumes, *, read_only: bool = False) -> disks.Disk | None:
    """Open what a disk is kept in; None for an empty drive. Raises HostError."""
    if described.format == "anonymous":
        return AnonymousDisk(described.size)
    read_only = read_only or described.read_only or described.is_cdrom
    try:
        if described.volume is not None:
            return volumes.open(described.volume, read_only=read_only)
        if not described.path:
            return None
        return (vhd.open if described.format == "vhd" else raw.open)(Path(described.path), read_only=read_only)
    except (DiskError, StorageError) as error:
        raise HostError(Code.BAD_DISK, str(error)) from error


class Drive(Plugged[Disk]):
    """A drive with its disk, which it owns. Files are opened where it is made, and closed where transfers run."""

    describes = Disk

    def __init__(self, slot: Slot, described: Disk) -> None:
        super().__init__(slot, described)
        self._disk = open_disk(described, slot.volumes)
        config = BlockConfig(
            name=disk_name(described.number),
            read_only=described.read_only,
            cdrom=described.is_cdrom,
            bootable=described.bootable,
            params=_params(described),
        )
        try:
            self._device = BlockDevice(slot.domain, self._disk, slot.execute, config)
        except ValueError:
            _close(self._disk)
            raise

    def parts(self) -> Mapping[DeviceClass, int]:
        """Return the block device."""
        return {self._device: self._device.number}

    def free(self, done: Callable[[], None]) -> None:
        """Close the disk."""
        self._close_then(self._disk, done)

    def change(self, described: Disk, done: Callable[[], None]) -> None:
        """Eject, insert or exchange a CD. Raises HostError."""
        if not self.described.is_cdrom:
            raise HostError(Code.NO_CDROM, f"device {described.number} is no CD drive")
        old, self._disk = self._disk, open_disk(described, self.slot.volumes)
        self.described = structs.replace(described, is_cdrom=True)
        self._device.change_medium(self._disk, _params(described), lambda: self._close_then(old, done))

    def state(self) -> DeviceState:
        """Return what the drive has done."""
        return DeviceState(self.described, self.connected, asdict(self._device.counters))

    def _close_then(self, disk: disks.Disk | None, done: Callable[[], None]) -> None:
        if disk is None:
            done()
            return

        def close() -> None:
            _close(disk)
            done()

        self.slot.execute(close)


def _params(described: Disk) -> str:
    """Return what xenstore says that a disk is kept in."""
    return described.path if described.volume is None else described.volume.location


def _close(disk: disks.Disk | None) -> None:
    if disk is not None:
        with suppress(DiskError, StorageError):  # a guest has had its error already when it flushed
            disk.close()
