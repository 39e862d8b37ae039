"""Logical volumes on a disk of the host, which are files of ours: they take what they hold, not what they promise."""

from __future__ import annotations

from hypervisor.api import StorageType
from xapi.host.disk_repository import BLOCK
from xapi.host.local_disks import INSTALLED_ON, LocalDiskDriver


class Driver(LocalDiskDriver):
    about = StorageType(
        "lvm", "Local LVM", "Logical volumes on a local disk", BLOCK, ("device",), ("vhd",), local=INSTALLED_ON
    )
