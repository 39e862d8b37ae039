"""VHD files on an NFS server."""

from __future__ import annotations

from hypervisor.api import StorageType
from hypervisor.storage.errors import Code
from xapi.host.disk_repository import FILES, RemoteDriver


class Driver(RemoteDriver):
    about = StorageType(
        "nfs",
        "NFS",
        "VHD files on an NFS server",
        FILES,
        ("server", "serverpath", "nfsversion", "options"),
        ("vhd",),
        creatable=False,
    )
    needed = (("server", Code.ConfigServerMissing), ("serverpath", Code.ConfigServerPathMissing))
    unreachable = Code.NFSMount
