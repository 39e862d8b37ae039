"""Drives of the host: an emulated one has none, so such an SR is empty."""

from __future__ import annotations

from hypervisor.api import SR, StorageType, Surroundings
from xapi.host import driver
from xapi.host.driver import Repository, located


class Driver(driver.Driver):
    about = StorageType(
        "udev", "Devices", "Drives of the host",
        dict.fromkeys(("SR_UPDATE", "VDI_INTRODUCE", "VDI_ATTACH", "VDI_DETACH"), 1), ("location",),
    )  # fmt: skip

    def create(self, sr: SR, surroundings: Surroundings) -> None:
        located(sr)

    def attach(self, sr: SR, handle: str) -> Repository:
        return Repository()
