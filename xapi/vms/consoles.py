"""Consoles of VMs, as records: which there are, and the address at which each can be reached.

Clients connect to what `location` says, so it names the port where that is not the scheme's own, and plain HTTP where
no TLS is served; a real host always has HTTPS at 443. One process serves the consoles of all its hosts, at one address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.datamodel.records import VM
    from xapi.store.memory import Store

PROTOCOLS = ("rfb", "vt100")
"""Of each VM that runs: a screen and a terminal."""
_PORTS = {"http": 80, "https": 443}


class Door(NamedTuple):
    """Where the process serves consoles; without an address, at that of each host."""

    scheme: str = "https"
    port: int = 443
    address: str = ""

    def url(self, host_address: str, query: str) -> str:
        """Return where a console is that a query names, such as ``uuid=…``, of a host with an address."""
        address = self.address or host_address
        host = f"[{address}]" if ":" in address else address
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}/console?{query}"


class Consoles:
    """Keeps `location` true."""

    def __init__(self, db: Store) -> None:
        self._db = db
        self._door = Door()

    def open(self, vm: VM, host: records.host) -> None:
        """Make the consoles of a VM that begins to live. Under `atomic`."""
        for ref in list(vm.consoles):
            self._db.console.delete(ref)
        for protocol in PROTOCOLS:
            console = self._db.console.create(protocol=protocol, VM=vm._ref)
            console.location = self._door.url(host.address, f"uuid={console.uuid}")

    def served_at(self, door: Door) -> None:
        """Have the consoles that there are, the control domains', and all that come, say where they are served now."""
        self._door = door
        with self._db.atomic():
            for console in list(self._db.console):
                host = self._db.host.get(self._db.VM[console.VM].resident_on)
                if host is not None:
                    location = door.url(host.address, console.location.partition("?")[2])
                    if console.location != location:
                        console.location = location
