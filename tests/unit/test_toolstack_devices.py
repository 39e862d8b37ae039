"""A domain's devices as its toolstack has them, without a guest: each kind has one face, found by its description."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from hypervisor.api import NIC, Addresses, Device, Disk, Display, HostError, Network
from hypervisor.disks.disk import SECTOR, DiskError
from hypervisor.network.packets import mac_from_text
from hypervisor.split.xenbus import BusState
from hypervisor.storage.repositories import Repositories
from hypervisor.toolstack.devices.card import Card
from hypervisor.toolstack.devices.drive import Drive
from hypervisor.toolstack.devices.plugged import Slot
from hypervisor.toolstack.devices.table import Devices, kinds
from hypervisor.toolstack.networks import Networks
from tests.unit.block_front import a_domain

MAC = "00:16:3e:00:00:01"


class Plugs:
    """The devices of a domain that no CPU runs. What would run on threads of disks waits in `work`."""

    def __init__(self) -> None:
        self.host, self.domain = a_domain()
        self.networks = Networks(self.host.lock)
        self.work: deque[Callable[[], None]] = deque()
        self.devices = Devices(
            Slot(self.domain, self.host.xenstore, self.networks, Repositories(), self.work.append, lambda: None)
        )

    def run(self) -> None:
        while self.work:
            self.work.popleft()()


@pytest.fixture
def plugs() -> Plugs:
    return Plugs()


def test_whatever_can_be_described_has_a_kind() -> None:
    """By the modules that there are."""
    assert set(kinds()) == set(get_args(Device))


@pytest.mark.parametrize(
    "described", [Disk(0, "", "anonymous", size=SECTOR), NIC(0, MAC, "net"), Display()], ids=lambda each: type(each)
)
def test_a_device_that_was_asked_back_and_is_then_taken_is_gone_for_both(plugs: Plugs, described: Device) -> None:
    """Each who asked hears of it once, when all of it is free."""
    plugs.devices.plug(described)
    heard: list[str] = []
    store, front = plugs.host.xenstore, f"/local/domain/{plugs.domain.domid}/device"
    for kind in store.ls(front):
        for number in store.ls(f"{front}/{kind}"):
            store.write(f"{front}/{kind}/{number}/state", str(BusState.CLOSING.value))  # and stays there
    plugs.devices.unplug(type(described), 0, lambda: heard.append("asked"))
    assert not heard
    plugs.devices.unplug(type(described), 0, lambda: heard.append("taken"), force=True)
    plugs.run()
    assert heard == ["asked", "taken"] and not plugs.work
    assert all(not store.ls(f"{front}/{kind}") for kind in store.ls(front))
    with pytest.raises(HostError, match="no device 0"):
        plugs.devices.unplug(type(described), 0, lambda: None)
    plugs.devices.plug(described)


def test_a_disk_is_closed_before_its_drive_is_gone(plugs: Plugs, tmp_path: Path) -> None:
    """On a thread for disks, which may take its time."""
    (tmp_path / "disk").write_bytes(bytes(SECTOR))
    plugs.devices.plug(Disk(0, str(tmp_path / "disk")))
    disk = plugs.devices.find(Drive)._device.disk
    assert disk is not None
    heard: list[bool] = []
    plugs.devices.unplug(Disk, 0, lambda: heard.append(True), force=True)
    assert not heard
    plugs.run()
    assert heard == [True]
    with pytest.raises(DiskError, match="closed"):
        disk.read(0, SECTOR)


def test_a_change_of_a_card_that_is_refused_changes_nothing(plugs: Plugs) -> None:
    """Neither on the network where it is nor on the one where it was to go."""
    for name, subnet in (("one", 1), ("two", 2)):
        base = f"10.0.{subnet}"
        addresses = Addresses(f"{base}.0/24", f"{base}.1", f"{base}.2", f"{base}.9")
        plugs.networks.bring_up([Network(name, addresses=addresses)])
    card = NIC(0, MAC, "one", address="10.0.1.5")
    plugs.devices.plug(card)
    with pytest.raises(HostError, match="device 0"):
        plugs.devices.change(NIC(0, MAC, "two", address="10.0.2.5", rate=-1))
    assert plugs.devices.find(Card).described == card
    kept = {
        name: [lease.mac for lease in service.leases()]
        for name in ("one", "two")
        if (service := plugs.networks.service(name)) is not None
    }
    assert kept == {"one": [mac_from_text(MAC)], "two": []}
