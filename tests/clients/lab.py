"""One daemon with a client, and short ways to make VMs in it and to reach their guests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.daemon import Daemon
from tests.clients.guest_console import GuestConsole

MIB = 1 << 20


class Lab:
    """One daemon with a client, and short ways to make things in it."""

    def __init__(self, daemon: Daemon, client: Any) -> None:
        self.daemon = daemon
        self.client = client
        self.xapi = client.xenapi
        self._shells: dict[str, GuestConsole] = {}
        self.network = self.xapi.network.get_by_name_label("Pool-wide network associated with eth0")[0]
        self.storage = self.xapi.SR.get_by_name_label("Local storage")[0]

    def vm(self, name: str = "guest", template: str = "Demo guest") -> str:
        """Return a new halted VM of a template."""
        vm: str = self.xapi.VM.clone(self.xapi.VM.get_by_name_label(template)[0], name)
        self.xapi.VM.provision(vm)
        return vm

    def card(self, vm: str, network: str = "", device: str = "0", mac: str = "", **more: Any) -> str:
        record = {
            "VM": vm, "network": network or self.network, "device": device, "MAC": mac, "MTU": "1500",
            "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}, **more,
        }  # fmt: skip
        ref: str = self.xapi.VIF.create(record)
        return ref

    def disk(self, vm: str, size: int = 16 * MIB, userdevice: str = "0", **more: Any) -> tuple[str, str]:
        """Give a VM a new disk; return its VDI and VBD."""
        vdi = self.xapi.VDI.create(
            {"SR": self.storage, "name_label": "disk", "virtual_size": str(size), "type": "user",
             "sharable": False, "read_only": False, "other_config": {}}
        )  # fmt: skip
        record = {
            "VM": vm, "VDI": vdi, "userdevice": userdevice, "bootable": False, "mode": "RW", "type": "Disk",
            "empty": False, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}, **more,
        }  # fmt: skip
        return vdi, self.xapi.VBD.create(record)

    def shell(self, vm: str) -> GuestConsole:
        """Return the shell of a VM that runs; an earlier one's connection is closed."""
        if vm in self._shells:
            self._shells.pop(vm).close()
        shell = self._shells[vm] = GuestConsole(self.client, self.daemon.http, vm).prompt()
        return shell

    def close(self) -> None:
        """Close all shells."""
        while self._shells:
            self._shells.popitem()[1].close()

    def until(self, happened: Callable[[], Any]) -> Any:
        """Wait by events until something is so."""
        token = ""
        for _ in range(200):
            if found := happened():
                return found
            token = self.xapi.event_from(["VM", "VM_metrics", "VM_guest_metrics", "VBD", "VIF"], token, 1.0)["token"]
        pytest.fail("it did not happen")

    def address(self, vm: str) -> str:
        def found() -> str:
            metrics = self.xapi.VM.get_guest_metrics(vm)
            if metrics == "OpaqueRef:NULL":
                return ""
            return str(self.xapi.VM_guest_metrics.get_networks(metrics).get("0/ip", ""))

        return str(self.until(found))

    def ends(self, vm: str) -> None:
        self.until(lambda: self.xapi.VM.get_power_state(vm) == "Halted")
