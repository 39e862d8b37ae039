"""Network cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypervisor.api import NIC, Code, DeviceState, HostError
from hypervisor.network.lock import LockMode
from hypervisor.network.packets import mac_from_text
from hypervisor.split.net import NetConfig, NetDevice
from hypervisor.split.xenbus import DeviceClass
from hypervisor.toolstack.devices.plugged import Plugged, Slot
from hypervisor.xenstore.errors import XenstoreError
from hypervisor.xenstore.permissions import NONE, Permissions


class Card(Plugged[NIC]):
    """A card, the address that its network keeps for it, and what XenServer's agents read of it."""

    describes = NIC

    def __init__(self, slot: Slot, described: NIC) -> None:
        super().__init__(slot, described)
        self._device = NetDevice(slot.domain, slot.networks.switch(described.network), _config(described))
        self._settings = f"/local/domain/{slot.domain.domid}/xenserver/device/vif/{described.number}"

    def parts(self) -> Mapping[DeviceClass, int]:
        """Return the network device."""
        return {self._device: self.described.number}

    def prepare(self) -> None:
        """Have its address kept, and its agent told."""
        self._reserve(self.described)
        self._set_static_ip(self.described)

    def free(self, done: Callable[[], None]) -> None:
        """Give its address back."""
        self._release(self.described)
        with suppress(XenstoreError):
            self.slot.store.rm(self._settings)
        done()

    def change(self, described: NIC, done: Callable[[], None]) -> None:
        """Give a card another network, rate, locking, trunks or carrier. Raises HostError."""
        before = self.described
        try:
            if described.network != before.network:
                self._reserve(described)
            self._device.change(_config(described), self.slot.networks.switch(described.network))
        except ValueError as error:
            if described.network != before.network:
                self._release(described)
            raise HostError(Code.FAILED, f"device {described.number}: {error}") from error
        if described.network != before.network:
            self._release(before)
        if described.static_ip != before.static_ip:
            self._set_static_ip(described)
        self.described = described
        done()

    def state(self) -> DeviceState:
        """Return what the card has done."""
        return DeviceState(self.described, self.connected, asdict(self._device.counters))

    def _reserve(self, described: NIC) -> None:
        """Have the network keep a card's address for it. Raises ValueError."""
        service = self.slot.networks.service(described.network)
        if described.address and service is not None:
            with self.slot.domain.host.lock:
                service.reserve(mac_from_text(described.mac), address=IPv4Address(described.address))

    def _release(self, described: NIC) -> None:
        """Give a card's address back to the network that kept it."""
        service = self.slot.networks.service(described.network)
        if described.address and service is not None:
            with self.slot.domain.host.lock:
                service.forget(mac_from_text(described.mac))

    def _set_static_ip(self, described: NIC) -> None:
        """Tell the guest's agent what it is to configure; the directory is the guest's, as with xenopsd."""
        setting, domain = f"{self._settings}/static-ip-setting", self.slot.domain
        keys = {"mac": described.mac, "error-code": "0", "error-msg": "", **described.static_ip}
        own = Permissions(domain.domid, NONE)
        with domain.host.lock, self.slot.store.transaction() as transaction:
            for path in (self._settings, setting):
                if not transaction.exists(path):
                    transaction.mkdir(path)
                transaction.set_perms(path, own)
            for name in ("address", "gateway", "address6", "gateway6"):
                if name not in keys and transaction.exists(f"{setting}/{name}"):
                    transaction.rm(f"{setting}/{name}")
            for name, value in keys.items():
                transaction.write(f"{setting}/{name}", value.encode())  # and has the directory's permissions


def _config(described: NIC) -> NetConfig:
    """Return what the back end takes. Raises ValueError."""
    return NetConfig(
        mac=described.mac,
        number=described.number,
        network=described.network,
        trunks=described.trunks,
        mtu=described.mtu,
        kbps=described.rate,
        locking=LockMode(described.locking),
        ipv4=tuple(IPv4Network(each, strict=False) for each in described.allowed_ipv4),
        ipv6=tuple(IPv6Network(each, strict=False) for each in described.allowed_ipv6),
        carrier=described.carrier,
    )
