"""Logical volumes on a disk of an iSCSI target."""

from __future__ import annotations

from hypervisor.api import StorageType
from hypervisor.storage.errors import Code
from xapi.host.disk_repository import BLOCK, RemoteDriver


class Driver(RemoteDriver):
    about = StorageType(
        "lvmoiscsi",
        "LVM over iSCSI",
        "Logical volumes on an iSCSI disk",
        BLOCK,
        ("target", "targetIQN", "SCSIid", "port"),
        ("vhd",),
        creatable=False,
    )
    needed = (
        ("target", Code.ConfigTargetMissing),
        ("targetIQN", Code.ConfigTargetIQNMissing),
        ("SCSIid", Code.ConfigSCSIid),
    )
    unreachable = Code.ISCSITarget
