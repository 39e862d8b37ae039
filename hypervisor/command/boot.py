"""One guest from its start to its end, with its console on the terminal."""

from __future__ import annotations

import os

from hypervisor.api import Addresses, DomainConfig, Network
from hypervisor.command.terminal import End, Terminal
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.host import Host
from hypervisor.toolstack.toolstack import Toolstack

_INPUT, _OUTPUT = 0, 1
_ADDRESSES = Addresses("169.254.0.0/16", "169.254.0.1", "169.254.0.2", "169.254.255.254")
"""What each network gives out; nothing of the machine's own networks is reached by it."""


def boot(config: DomainConfig, console: bool) -> tuple[int, str]:
    """Run a guest until it is down, again when it reboots; return a status and how it ended. Raises HostError."""
    host = Host(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    toolstack = Toolstack(host)
    terminal = Terminal(_INPUT, _OUTPUT)

    def changed(domain: Domain) -> None:
        if domain.life.reason is not None:
            terminal.down()

    host.listen(changed)
    toolstack.start()
    try:
        for nic in config.nics:
            toolstack.networks.bring_up([Network(nic.network, addresses=_ADDRESSES)])
        while True:
            guest = toolstack.build(config)
            terminal.up()
            toolstack.unpause(config.uuid)
            end = terminal.run(guest.console if console else None)
            reason, crash = guest.domain.life.reason, guest.domain.life.crash
            if end is not End.DOWN or reason is not Reason.REBOOT:
                break
            toolstack.destroy(config.uuid)
    finally:
        toolstack.stop()
        terminal.close()
    said = "" if reason is None else f"the guest is down: {reason.name.lower()} {crash}"
    return int(reason in (Reason.CRASH, Reason.WATCHDOG) or end is End.CLOSED), said
