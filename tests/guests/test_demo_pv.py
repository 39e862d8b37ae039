"""The demo guest by its PV entry: the same kernel and shell as by PVH, over other hypercalls."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hypervisor.api import Shutdown
from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.domains.life import Reason
from hypervisor.guests import DEMO_KERNEL, DEMO_PROMPT
from hypervisor.host import Host
from hypervisor.split.block import BlockConfig, BlockDevice
from hypervisor.split.block_queue import DiskThreads
from hypervisor.split.xenbus import Backend
from tests.guests.demo_guest import checksum, pattern
from tests.guests.pv_guest import MIB, PVGuest
from tests.guests.served import GATEWAY, ServedDemo

_SECONDS = 30


class Demo(PVGuest):
    """A demo guest with a shell to type into."""

    def __init__(self, host: Host, ram: int) -> None:
        super().__init__(host, DEMO_KERNEL, ram=ram)
        self._heard = bytearray()
        self._news = threading.Condition()
        self.console.listen(self._hear)

    def _hear(self, data: bytes) -> None:
        with self._news:
            self._heard += data
            self._news.notify_all()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so, which the console, or time, tells."""
        end = time.monotonic() + _SECONDS
        while not true():
            assert time.monotonic() < end, (
                f"{self.domain.life.reason} {self.domain.life.crash} {bytes(self._heard[-500:])!r}"
            )
            with self._news:
                self._news.wait(0.01)

    def boot(self) -> Demo:
        """Start it and wait for the prompt."""
        self.host.unpause(self.domain)
        self.until(lambda: self._heard.endswith(DEMO_PROMPT))
        return self

    def run(self, command: str) -> dict[str, str]:
        """Run a command; return its lines "key: value"."""
        self._heard.clear()
        self.console.write(command.encode() + b"\r")
        self.until(lambda: self._heard.endswith(DEMO_PROMPT))
        return dict(re.findall(r"^([^:\r\n]+): ?(.*?)\r?$", self._heard.decode(), re.MULTILINE))

    def end(self, command: str) -> Reason:
        """Run a command that ends the domain."""
        self.console.write(command.encode() + b"\r")
        self.until(lambda: self.domain.life.reason is not None)
        assert self.domain.life.reason is not None
        return self.domain.life.reason


@pytest.mark.parametrize("mib", [4, 8, 96])
def test_demo_boots_in_small_and_in_larger_memory_and_powers_off(host: Host, mib: int) -> None:
    """All its RAM is mapped, of which Xen maps only the first 4 MiB."""
    guest = Demo(host, mib * MIB).boot()
    assert guest.run("info")["boot"] == "pv"
    assert int(guest.run("mem")["total-kib"]) == mib * 1024 - 4, "all but page 0"
    half = mib // 2
    assert guest.run(f"touch {half}")["touched-kib"] == str(half * 1024)
    assert guest.end("poweroff") is Reason.POWEROFF


def test_demo_reads_and_writes_a_disk(host: Host) -> None:
    """Grants by frame, in a table that Xen placed."""
    threads, disk = DiskThreads(), AnonymousDisk(8 * MIB)
    guest = Demo(host, 8 * MIB).boot()
    device = BlockDevice(guest.domain, disk, threads.put, BlockConfig("xvda"))
    with host.lock:
        Backend(guest.domain, host.xenstore, device, device.number).plug()
    guest.until(lambda: "state=connected" in guest.run("disks").get("xvda", ""))
    assert guest.run(f"write xvda 0 {MIB} 5")["checksum"] == checksum(pattern(5, 0, MIB))
    assert disk.read(0, MIB) == pattern(5, 0, MIB)
    assert guest.run(f"verify xvda 0 {MIB} 5")["verify"] == "ok"
    threads.stop()


def test_demo_balloons(host: Host) -> None:
    """Down by 4 MiB and up again."""
    guest = Demo(host, 16 * MIB).boot()
    full = guest.domain.memory.present
    assert guest.run("balloon 12") == {"held-kib": str(12 << 10), "done": "ok"}
    assert full - guest.domain.memory.present == 1024
    assert guest.run("balloon 16") == {"held-kib": str(16 << 10), "done": "ok"}
    assert guest.domain.memory.present == full
    assert guest.run("touch 8")["touched-kib"] == "8192"


def test_demo_goes_on_in_another_process_with_its_devices(host: Host, tmp_path: Path) -> None:
    """Suspended by the toolstack; as another domain it counts on, and disk and network are connected again."""
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.write_bytes(bytes(MIB))
    guest = ServedDemo(host, disk).boot()
    guest.wait_for(lambda: guest.run(f"ping {GATEWAY}").get("received") == "1")
    assert guest.run("write xvda 0 65536 5")["checksum"] == checksum(pattern(5, 0, 65536))
    guest.run("counter")
    guest.wait_for(lambda: int(guest.run("counter")["counter"]) > 2)
    guest.toolstack.request(guest.config.uuid, Shutdown.SUSPEND)
    assert guest.ended() is Reason.SUSPEND
    guest.toolstack.save(guest.config.uuid, image)
    guest.end()
    commands = ["counter", "verify xvda 0 65536 5", f"ping {GATEWAY}", "write xvda 65536 65536 6", "info"]
    command = [sys.executable, "-m", "tests.guests.go_on", str(image), str(disk), "60", *commands]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    domid, counter, verify, ping, written, info = (json.loads(line) for line in done.stdout.splitlines())
    assert int(counter["counter"]) > 2 and (info["boot"], info["resumes"], info["domid"]) == ("pv", "1", str(domid))
    assert (verify["verify"], ping["received"]) == ("ok", "1")
    assert written["checksum"] == checksum(pattern(6, 65536, 65536))
    assert disk.read_bytes()[65536:131072] == pattern(6, 65536, 65536)


def test_demo_reports_a_fault_of_its_own(host: Host) -> None:
    """The exception comes by the trap table, and its report by both consoles."""
    guest = Demo(host, 8 * MIB).boot()
    assert guest.end("fault") is Reason.CRASH
    assert b"panic: exception" in bytes(guest.domain.platform.console.text)
