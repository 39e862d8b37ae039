"""VHD files on an SMB server."""

from __future__ import annotations

from hypervisor.api import StorageType
from hypervisor.storage.errors import Code
from xapi.host.disk_repository import FILES, RemoteDriver


class Driver(RemoteDriver):
    about = StorageType(
        "smb", "SMB", "VHD files on an SMB server", FILES, ("server", "username", "password"), ("vhd",), creatable=False
    )
    needed = (("server", Code.ConfigServerMissing),)
    unreachable = Code.SMBMount
