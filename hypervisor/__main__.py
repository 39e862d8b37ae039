"""`python -m hypervisor boot`: boot one guest with its console on the terminal."""

from __future__ import annotations

import argparse
import os
import queue
import re
import select
import sys
import termios
import threading
import tty
import uuid
from collections.abc import Sequence
from contextlib import ExitStack

from hypervisor.api import DirectBoot, DomainConfig, HostError
from hypervisor.domain import Domain, Reason
from hypervisor.guests import DEMO_KERNEL, DEMO_MEMORY
from hypervisor.host import Host
from hypervisor.toolstack import Guest, Toolstack

_ESCAPE = b"\x1d"
"""Ctrl-]: leave."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text: str) -> int:
    """Read a size such as 256M."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is no size; write 256M or 1G")
    return int(match.group(1)) * _UNITS[match.group(2)]


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    commands = argparse.ArgumentParser(prog="python -m hypervisor", description="Emulated Xen: run a guest.")
    boot = commands.add_subparsers(required=True).add_parser(
        "boot", help="boot one guest with its console here", description="Boot one guest; Ctrl-] leaves."
    )
    what = boot.add_mutually_exclusive_group(required=True)
    what.add_argument("--kernel", metavar="FILE", help="a bzImage or an ELF file with a PVH entry")
    what.add_argument("--demo", action="store_true", help="boot our own small guest; type help at its prompt")
    boot.add_argument("--initrd", metavar="FILE", default="", help="an initial RAM disk")
    boot.add_argument("--append", metavar="TEXT", default="console=hvc0", help="the command line (%(default)s)")
    boot.add_argument("--memory", type=size, metavar="SIZE", help="such as 256M (the default; 4M with --demo)")
    return commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when the guest powered off or was left, 1 when it could not be or crashed."""
    options = parser().parse_args(arguments)
    memory = options.memory or (DEMO_MEMORY if options.demo else 256 << 20)
    kernel = str(DEMO_KERNEL) if options.demo else os.path.abspath(options.kernel)
    host = Host(memory)
    toolstack = Toolstack(host)
    config = DomainConfig(
        uuid=str(uuid.uuid4()),
        name="guest",
        memory_max=memory,
        memory_target=memory,
        vcpus=1,
        boot=DirectBoot(kernel, options.initrd, options.append),
    )
    try:
        guest = toolstack.build(config)
    except HostError as error:
        print(f"hypervisor: {error}", file=sys.stderr)
        return 1
    ended: queue.SimpleQueue[Domain] = queue.SimpleQueue()
    wake_read, wake_write = os.pipe()

    def down(domain: Domain) -> None:
        ended.put(domain)
        os.write(wake_write, b"x")

    host.listen(down)
    host.start()
    try:
        toolstack.unpause(config.uuid)
        _terminal(guest, wake_read)
    except KeyboardInterrupt:
        pass
    finally:
        host.stop()
    domain = guest.domain
    if domain.reason is not None:
        print(f"\r\nthe guest is down: {domain.reason.name.lower()} {domain.crash}".rstrip())
    return 1 if domain.reason in (Reason.CRASH, Reason.WATCHDOG) else 0


def _terminal(guest: Guest, wake: int) -> None:
    """Join the console to standard input and output until the guest is down or Ctrl-] is typed."""
    output = threading.Lock()

    def show(data: bytes) -> None:
        with output:
            os.write(sys.stdout.fileno(), data)

    with ExitStack() as restore:
        source = sys.stdin.fileno()
        if os.isatty(source):
            before = termios.tcgetattr(source)
            tty.setraw(source)
            restore.callback(termios.tcsetattr, source, termios.TCSADRAIN, before)
        guest.console.listen(show)
        restore.callback(guest.console.unlisten, show)
        sources = [source, wake]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if wake in ready:
                return
            typed = os.read(source, 1024)
            if not typed:  # end of input: go on showing what the guest does
                sources.remove(source)
            elif _ESCAPE in typed:
                return
            else:
                guest.console.write(typed)


if __name__ == "__main__":
    sys.exit(main())
