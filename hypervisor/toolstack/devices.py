"""The disks, cards and display of one domain: from what a toolstack describes to what the guest's drivers meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

from msgspec import structs

from hypervisor.api import NIC, Device, DeviceState, Disk, Display, HostError, disk_name
from hypervisor.disks import disk as disks
from hypervisor.disks import raw, vhd
from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.disks.disk import DiskError
from hypervisor.domains.domain import Domain
from hypervisor.network.lock import LockMode
from hypervisor.network.packets import mac_from_text
from hypervisor.network.port import trunk
from hypervisor.split.block import BlockDevice, number_of
from hypervisor.split.block_queue import Execute
from hypervisor.split.framebuffer import Framebuffer
from hypervisor.split.keyboard import Keyboard
from hypervisor.split.net import NetDevice
from hypervisor.split.xenbus import Backend, BusState, DeviceClass
from hypervisor.storage.errors import StorageError
from hypervisor.storage.repositories import Repositories
from hypervisor.toolstack.networks import Networks
from hypervisor.xenstore.errors import XenstoreError
from hypervisor.xenstore.permissions import NONE, Permissions
from hypervisor.xenstore.store import Store


def open_disk(described: Disk, repositories: Repositories, *, read_only: bool = False) -> disks.Disk | None:
    """Open what a disk is kept in; None for an empty drive. Raises HostError."""
    if described.format == "anonymous":
        return AnonymousDisk(described.size)
    if not described.path:
        return None
    path, read_only = Path(described.path), read_only or described.read_only or described.is_cdrom
    try:
        volume = repositories.open(path, read_only=read_only)
        if volume is not None:
            return volume
        return (vhd.open if described.format == "vhd" else raw.open)(path, read_only=read_only)
    except (DiskError, StorageError) as error:
        raise HostError("bad_disk", str(error)) from error


@dataclass(slots=True, eq=False)
class _Plugged:
    """A device that the guest has, or is to have."""

    described: Device
    device: BlockDevice | NetDevice | Framebuffer
    buses: tuple[Backend, ...]
    """Of the device, and of what comes with it."""
    disk: disks.Disk | None = None
    keyboard: Keyboard | None = None


class Devices:
    """The devices of one domain. Blocks for the work itself, for files too; any thread may call.

    `execute` runs transfers, and closes disks; `changed` hears of a device that came or went.
    """

    def __init__(
        self,
        domain: Domain,
        store: Store,
        networks: Networks,
        repositories: Repositories,
        execute: Execute,
        changed: Callable[[], None],
    ) -> None:
        self._domain = domain
        self._store = store
        self._networks = networks
        self._repositories = repositories
        self._execute = execute
        self._changed = changed
        self._plugged: dict[tuple[type[Device], int], _Plugged] = {}

    def plug(self, described: Device) -> None:
        """Offer a device to the guest. Raises HostError, with nothing left behind."""
        key = type(described), described.number
        if key in self._plugged:
            raise HostError("device_exists", f"device {described.number} is plugged already")
        disk = open_disk(described, self._repositories) if isinstance(described, Disk) else None
        buses: list[Backend] = []
        try:
            plugged = self._made(described, disk)
            if isinstance(described, NIC):
                self._reserve(described)
                self._set_static_ip(described)
            for bus in plugged.buses:
                bus.plug()
                buses.append(bus)
        except (ValueError, XenstoreError) as error:
            for bus in buses:
                bus.remove()
            if disk is not None:
                disk.close()
            if isinstance(described, NIC):
                self._forget(described)
            raise HostError("failed", f"device {described.number}: {error}") from error
        self._plugged[key] = plugged

    def _made(self, described: Device, disk: disks.Disk | None) -> _Plugged:
        """Return a device that is not plugged yet. Raises ValueError."""
        if isinstance(described, Disk):
            drive = self._disk(described, disk)
            return _Plugged(described, drive, (self._bus(drive, number_of(drive.name)),), disk)
        if isinstance(described, NIC):
            card = self._nic(described)
            return _Plugged(described, card, (self._bus(card, card.number),))
        number, (width, height) = described.number, (described.width, described.height)
        screen = Framebuffer(self._domain, width=width, height=height, video_memory=described.memory)
        keyboard = Keyboard(self._domain, width=width, height=height)
        buses = self._bus(screen, number), self._bus(keyboard, number)
        return _Plugged(described, screen, buses, keyboard=keyboard)

    def _bus(self, device: DeviceClass, number: int) -> Backend:
        return Backend(self._domain, self._store, device, number, lambda _: self._changed())

    def _settings(self, number: int) -> str:
        """Return where XenServer's agents look for what concerns a card."""
        return f"/local/domain/{self._domain.domid}/xenserver/device/vif/{number}"

    def _set_static_ip(self, described: NIC) -> None:
        """Tell the guest's agent what it is to configure; the directory is the guest's, as with xenopsd."""
        setting = f"{self._settings(described.number)}/static-ip-setting"
        keys = {"mac": described.mac, "error-code": "0", "error-msg": "", **described.static_ip}
        own = Permissions(self._domain.domid, NONE)
        with self._domain.machine.lock, self._store.transaction() as transaction:
            for path in (self._settings(described.number), setting):
                if not transaction.exists(path):
                    transaction.mkdir(path)
                transaction.set_perms(path, own)
            for name in ("address", "gateway", "address6", "gateway6"):
                if name not in keys and transaction.exists(f"{setting}/{name}"):
                    transaction.rm(f"{setting}/{name}")
            for name, value in keys.items():
                transaction.write(f"{setting}/{name}", value.encode())  # and has the directory's permissions

    def _reserve(self, described: NIC) -> None:
        """Have the network keep a card's address for it. Raises ValueError."""
        service = self._networks.service(described.network)
        if described.address and service is not None:
            with self._domain.machine.lock:
                service.reserve(mac_from_text(described.mac), address=IPv4Address(described.address))

    def _release(self, described: NIC) -> None:
        """Give a card's address back to the network that kept it."""
        service = self._networks.service(described.network)
        if described.address and service is not None:
            with self._domain.machine.lock:
                service.forget(mac_from_text(described.mac))

    def _forget(self, described: NIC) -> None:
        """Give back what a card that goes has."""
        self._release(described)
        with suppress(XenstoreError):
            self._store.rm(self._settings(described.number))

    def _disk(self, described: Disk, disk: disks.Disk | None) -> BlockDevice:
        return BlockDevice(
            self._domain,
            disk,
            self._execute,
            name=disk_name(described.number),
            read_only=described.read_only,
            cdrom=described.is_cdrom,
            bootable=described.bootable,
            params=described.path,
        )

    def _nic(self, described: NIC) -> NetDevice:
        device = NetDevice(
            self._domain,
            self._networks.switch(described.network),
            described.mac,
            number=described.number,
            network=described.network,
            mtu=described.mtu,
            kbps=described.rate,
            locking=LockMode(described.locking),
            ipv4=[IPv4Network(each, strict=False) for each in described.allowed_ipv4],
            ipv6=[IPv6Network(each, strict=False) for each in described.allowed_ipv6],
            carrier=described.carrier,
        )
        device.port.membership = trunk(described.trunks)
        return device

    def unplug(self, kind: type[Device], number: int, done: Callable[[], None], *, force: bool = False) -> None:
        """Take a device away; `done` is called, on some thread, when it is gone and its disk closed.

        Without `force` that is when the guest agrees, which it may never do. Raises HostError.
        """
        plugged = self._find(kind, number)

        left = list(plugged.buses)

        def gone(bus: Backend) -> None:
            left.remove(bus)
            if left:
                return
            self._plugged.pop((kind, number), None)
            if isinstance(plugged.device, Framebuffer):
                plugged.device.close()
            if isinstance(plugged.described, NIC):
                self._forget(plugged.described)
            if plugged.disk is None:
                done()
            else:
                self._execute(lambda: _close_then(plugged.disk, done))

        for bus in plugged.buses:
            (bus.remove if force else bus.unplug)(partial(gone, bus))

    def change_medium(self, described: Disk, done: Callable[[], None]) -> None:
        """Eject, insert or exchange a CD; `done` is called when the old one is closed. Raises HostError."""
        plugged = self._find(Disk, described.number)
        if not isinstance(plugged.device, BlockDevice) or not plugged.device.cdrom:
            raise HostError("no_cdrom", f"device {described.number} is no CD drive")
        old, new = plugged.disk, open_disk(described, self._repositories)
        plugged.described, plugged.disk = structs.replace(described, is_cdrom=True), new

        def changed() -> None:
            self._execute(lambda: _close_then(old, done))

        plugged.device.change_medium(new, described.path, changed)

    def change_nic(self, described: NIC) -> None:
        """Give a card another network, rate, locking or carrier. Raises HostError."""
        plugged = self._find(NIC, described.number)
        device, before = plugged.device, plugged.described
        assert isinstance(device, NetDevice) and isinstance(before, NIC)
        try:
            if described.network != before.network:
                self._reserve(described)
                device.move(self._networks.switch(described.network), described.network)
                self._release(before)
            with self._domain.machine.lock:
                device.port.membership = trunk(described.trunks)
            device.limit_rate(described.rate)
            device.lock(
                LockMode(described.locking),
                [IPv4Network(each, strict=False) for each in described.allowed_ipv4],
                [IPv6Network(each, strict=False) for each in described.allowed_ipv6],
            )
        except ValueError as error:
            raise HostError("failed", f"device {described.number}: {error}") from error
        if described.carrier != before.carrier:
            device.carrier(described.carrier)
        if described.static_ip != before.static_ip:
            self._set_static_ip(described)
        plugged.described = described

    def _find(self, kind: type[Device], number: int) -> _Plugged:
        plugged = self._plugged.get((kind, number))
        if plugged is None:
            raise HostError("no_device", f"there is no device {number}")
        return plugged

    def states(self) -> Iterator[DeviceState]:
        """Yield what is true of each disk and card; under the machine's lock."""
        for plugged in list(self._plugged.values()):
            if not isinstance(plugged.described, Display) and not isinstance(plugged.device, Framebuffer):
                counters = asdict(plugged.device.counters)
                yield DeviceState(plugged.described, plugged.buses[0].state is BusState.CONNECTED, counters)

    def display(self, number: int = 0) -> tuple[Framebuffer, Keyboard]:
        """Return the screen, and the keyboard that belongs to it. Raises HostError."""
        plugged = self._find(Display, number)
        assert isinstance(plugged.device, Framebuffer) and plugged.keyboard is not None
        return plugged.device, plugged.keyboard

    def disks(self, *, cdroms: bool) -> list[disks.Disk]:
        """Return the open disks, or the CDs in drives, in the order of their numbers."""
        found = sorted(
            (plugged.described.number, plugged.disk)
            for plugged in self._plugged.values()
            if isinstance(plugged.described, Disk) and plugged.described.is_cdrom is cdroms and plugged.disk is not None
        )
        return [disk for _, disk in found]

    def close(self) -> None:
        """Take all devices from a domain that does not run any more, and close its disks; waits for their transfers."""
        for bus in [bus for plugged in self._plugged.values() for bus in plugged.buses]:
            quiet = threading.Event()
            bus.remove(quiet.set)
            quiet.wait()
        plugged, self._plugged = self._plugged, {}
        for each in plugged.values():
            if isinstance(each.described, NIC):
                self._forget(each.described)
            _close(each.disk)


def _close(disk: disks.Disk | None) -> None:
    if disk is not None:
        with suppress(DiskError, StorageError):  # a guest has had its error already when it flushed
            disk.close()


def _close_then(disk: disks.Disk | None, done: Callable[[], None]) -> None:
    _close(disk)
    done()
