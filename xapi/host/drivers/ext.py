"""VHD files on a file system of a disk of the host."""

from __future__ import annotations

from hypervisor.api import StorageType
from xapi.host.disk_repository import FILES
from xapi.host.local_disks import INSTALLED_ON, LocalDiskDriver


class Driver(LocalDiskDriver):
    about = StorageType(
        "ext", "Local EXT", "VHD files on a local file system", FILES, ("device",), ("vhd",), local=INSTALLED_ON
    )
