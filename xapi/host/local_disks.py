"""SRs on disks of the host: those that a toolstack names, and /dev/sda, on which it is installed.

They are nothing but names, for an SR on one is a directory of ours.
"""

from __future__ import annotations

import re

from hypervisor.api import SR, Surroundings
from hypervisor.storage.errors import Code, StorageError
from xapi.host.disk_repository import DirectoryDriver

INSTALLED_ON = {"device": "/dev/sda3"}
"""The device_config of the SR that a host is installed with."""
_SYSTEM_DISK = "/dev/sda"
_SYSTEM = frozenset({_SYSTEM_DISK, f"{_SYSTEM_DISK}1", f"{_SYSTEM_DISK}2"})


class LocalDiskDriver(DirectoryDriver):
    """A type of SR that takes whole disks, or partitions."""

    def create(self, sr: SR, surroundings: Surroundings) -> None:
        """Refuse a device that is not named, in use, the system's or not there."""
        _assert_free(sr, surroundings)
        super().create(sr, surroundings)


def _assert_free(sr: SR, surroundings: Surroundings) -> None:
    given = sr.device_config.get("device", "")
    devices = list(filter(None, given.split(",")))
    if not devices:
        raise StorageError(Code.ConfigDeviceMissing, "")
    for other in surroundings.device_configs:
        if not set(devices).isdisjoint(other.get("device", "").split(",")):
            raise StorageError(Code.SRInUse, given)
    for device in devices:
        if device in _SYSTEM:
            text = f"Device {device} contains core system files, please use another device"
            raise StorageError(Code.RootDev, text)
        if not any(_is_part(device, disk) for disk in (_SYSTEM_DISK, *surroundings.disks)):
            raise StorageError(Code.InvalidDev, f"Device {device} does not exist")


def _is_part(device: str, disk: str) -> bool:
    """Tell whether a path is that of a disk or of one of its partitions."""
    partition = "p[0-9]+" if disk[-1].isdigit() else "[0-9]+"
    return re.fullmatch(f"{re.escape(disk)}({partition})?", device) is not None
