"""`python -m hypervisor boot`: boot one guest with its console on the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from hypervisor.api import HostError
from hypervisor.arch.x86_64.cpu.support import why_no_guests
from hypervisor.command.options import OptionError, domain_config, parser

_INPUT, _OUTPUT, _ERRORS = 0, 1, 2
_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when the guest powered off or was left, 1 when it could not be run or crashed."""
    _open_standard_files()
    options = parser().parse_args(arguments)
    try:
        config = domain_config(options)
        if why := why_no_guests():
            _say(f"guests cannot run here: {why}")
            return 1
        from hypervisor.command.boot import boot

        status, said = boot(config, options.console)
        if said:
            _say(said)
        return status
    except (HostError, OptionError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


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
