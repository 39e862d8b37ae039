"""Logical volumes on a disk of a Fibre Channel network."""

from __future__ import annotations

from hypervisor.api import StorageType
from hypervisor.storage.errors import Code
from xapi.host.disk_repository import BLOCK, RemoteDriver


class Driver(RemoteDriver):
    about = StorageType(
        "lvmohba",
        "LVM over FC",
        "Logical volumes on a Fibre Channel disk",
        BLOCK,
        ("SCSIid",),
        ("vhd",),
        creatable=False,
    )
    unreachable = Code.ConfigSCSIid
