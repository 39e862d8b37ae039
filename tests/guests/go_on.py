"""A process of its own that restores an image and lets the guest go on: `python -m tests.guests.go_on IMAGE …`.

Arguments are the image, ``demo``, ``linux`` or the file that is the disk of a `ServedDemo`, seconds by which the wall
clock is later, and commands for the guest's shell; each one's output is printed as a JSON string on a line. The first
line is the domid.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path

from hypervisor.host import Host
from hypervisor.migration.restore import Image
from hypervisor.split.console import Console
from tests.guests.resumed import ResumedDemo, join
from tests.guests.served import ServedDemo

_SECONDS = 60


def main(path: str, kind: str, later: str, *commands: str) -> None:
    """Restore, and run the commands."""
    host = Host(1 << 30, 1, lambda: time.time_ns() + int(later) * 10**9)
    host.start()
    for _ in range(3):  # so that the domid is another one
        host.destroy(host.create(((0, 2 << 20),)))
    if kind not in ("demo", "linux"):
        served = ServedDemo(host, Path(kind), Path(path)).go_on()
        for said in (served.domain.domid, *map(served.run, commands)):
            say(said)
        served.end()
        return host.stop()
    with open(path, "rb") as file:
        domain = Image(file).build(host, code_cache=64 << 20)
    say(domain.domid)
    if kind == "demo":
        guest = ResumedDemo(host, domain).go_on()
        for command in commands:
            say(guest.run(command))
    else:
        shell = LinuxShell(host, join(host, domain).console)
        host.unpause(domain)
        for command in commands:
            say(shell.run(command))
    host.pause(domain)
    host.destroy(domain)
    return host.stop()


def say(value: object) -> None:
    """Print a value on a line of its own."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


class LinuxShell:
    """The shell on a resumed Linux's console."""

    def __init__(self, host: Host, console: Console) -> None:
        self.console = console
        self._heard = bytearray()
        self._news = threading.Condition()
        console.listen(self._hear)

    def _hear(self, data: bytes) -> None:
        with self._news:
            self._heard += data
            self._news.notify_all()

    def run(self, command: str) -> str:
        """Run a command; return its output."""
        self._heard.clear()
        self.console.write(f"{command}\necho ==$?==\n".encode())
        end = re.compile(rb"==\d+==\r?\n")
        with self._news:
            assert self._news.wait_for(lambda: end.search(self._heard) is not None, _SECONDS), bytes(self._heard)
        text = self._heard.decode(errors="replace").replace("\r", "")
        return text[: text.rindex("==", 0, text.rindex("==\n"))].strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
