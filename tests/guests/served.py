"""The PV demo guest with a disk and a network, built by the toolstack or going on from its image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypervisor.api import NIC, Addresses, Disk, Network
from hypervisor.host import Host
from hypervisor.toolstack.guest import Guest
from tests.guests.demo_guest import DemoGuest

GATEWAY = "169.254.0.1"


class ServedDemo(DemoGuest):
    """A demo guest whose disk is a file; `boot` it, or with an image let it `go_on`."""

    def __init__(self, host: Host, disk: Path, image: Path | None = None) -> None:
        self._disk, self._image = disk, image
        super().__init__(host, kind="pv")

    def _build(self) -> Guest:
        networks = self.toolstack.networks
        addresses = Addresses("169.254.0.0/16", GATEWAY, "169.254.0.10", "169.254.0.99")
        networks.bring_up([Network("net", addresses=addresses)])
        networks.start()
        nic = NIC(0, "00:16:3e:11:22:33", "net")
        self.config = replace(self.config, disks=(Disk(0, str(self._disk)),), nics=(nic,))
        if self._image is not None:
            guest = self.toolstack.restore(self.config, self._image)
            guest.console.listen(self._hear)
            return guest
        return super()._build()

    def go_on(self) -> ServedDemo:
        """Let it run, from the prompt at which it was suspended, and wait until its devices are connected again."""
        self.toolstack.unpause(self.config.uuid)
        for command, name in (("disks", "xvda"), ("net", "eth0")):
            self.wait_for(lambda: "state=connected" in self.run(command).get(name, ""))  # noqa: B023
        return self

    def end(self) -> None:
        """Destroy it and end the toolstack's threads; the host stays."""
        self.toolstack.destroy(self.config.uuid)
        self.toolstack.networks.stop()
