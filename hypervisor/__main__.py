"""`python -m hypervisor boot`: boot one guest with its console on the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from hypervisor.api import Addresses, DomainConfig, HostError
from hypervisor.command.options import domain_config, parser
from hypervisor.command.terminal import End, Terminal
from hypervisor.domains.domain import Domain, Reason
from hypervisor.host import Host
from hypervisor.toolstack.toolstack import Toolstack

_INPUT, _OUTPUT, _ERRORS = 0, 1, 2
_ADDRESSES = Addresses("169.254.0.0/16", "169.254.0.1", "169.254.0.2", "169.254.255.254")
"""What each network gives out; nothing of the machine's own networks is reached by it."""
_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when the guest powered off or was left, 1 when it could not be run or crashed."""
    _open_standard_files()
    options = parser().parse_args(arguments)
    try:
        return _boot(domain_config(options), options.console)
    except HostError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def _boot(config: DomainConfig, console: bool) -> int:
    """Run a guest until it is down, again when it reboots. Raises HostError."""
    host = Host(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    toolstack = Toolstack(host)
    terminal = Terminal(_INPUT, _OUTPUT)

    def changed(domain: Domain) -> None:
        if domain.reason is not None:
            terminal.down()

    host.listen(changed)
    toolstack.start()
    try:
        for nic in config.nics:
            toolstack.networks.serve(nic.network, _ADDRESSES)
        while True:
            guest = toolstack.build(config)
            terminal.up()
            toolstack.unpause(config.uuid)
            end = terminal.run(guest.console if console else None)
            reason, crash = guest.domain.reason, guest.domain.crash
            if end is not End.DOWN or reason is not Reason.REBOOT:
                break
            toolstack.destroy(config.uuid)
    finally:
        toolstack.stop()
        terminal.close()
    if reason is not None:
        _say(f"the guest is down: {reason.name.lower()} {crash}")
    return int(reason in (Reason.CRASH, Reason.WATCHDOG) or end is End.CLOSED)


def _open_standard_files() -> None:
    """Open what of the three standard files the caller has closed, so that their numbers are not another file's."""
    for number in (_INPUT, _OUTPUT, _ERRORS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _say(text: str) -> None:
    """Tell people something, in one line, if anybody listens."""
    with suppress(OSError):
        os.write(_ERRORS, f"hypervisor: {' '.join(text.split())}\n".encode(errors="replace"))


def _terminate(number: int, frame: FrameType | None) -> None:
    """End in order when somebody asks: the terminal is restored and disks are closed."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for asked in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(asked, _terminate)
    sys.exit(main())
