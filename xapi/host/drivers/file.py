"""VHD files in a directory of the host that device_config:location names; if that is lost, in one of our own."""

from __future__ import annotations

from pathlib import Path

from hypervisor.api import SR, StorageType, Surroundings
from hypervisor.storage.layout import Layout
from xapi.host.disk_repository import FILES, DirectoryDriver
from xapi.host.driver import located


class Driver(DirectoryDriver):
    about = StorageType(
        "file", "Folder", "VHD files in a folder of the host", FILES, ("location",), ("vhd",),
        local={"location": "/var/opt/xen/sr"},
    )  # fmt: skip

    def place(self, sr: SR) -> Path:
        """Return the directory that is named, if it is a repository: an inventory may name what is not there."""
        location = sr.device_config.get("location", "")
        named = Path(location)
        return named if location.startswith("/") and Layout(named).is_marked() else super().place(sr)

    def create(self, sr: SR, surroundings: Surroundings) -> None:
        self._repository(Path(located(sr, absolute=True))).create()
