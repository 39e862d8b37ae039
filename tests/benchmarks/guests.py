"""Many guests on one machine, in a process of its own: how long they take, what they cost, how they share.

``python -m tests.benchmarks.guests`` prints the raw figures as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from hypervisor.api import DirectBoot, DomainConfig
from hypervisor.guests import DEMO_KERNEL, DEMO_PROMPT
from hypervisor.host import Host
from hypervisor.toolstack.guest import Guest
from hypervisor.toolstack.toolstack import Toolstack
from tests.benchmarks import linux
from tests.benchmarks.figures import Figure, ms, percent, quantile
from tests.benchmarks.linux import Linux
from tests.benchmarks.machine import Machine as OneMachine
from tests.benchmarks.stage import Stage, say

MANY = 512
IDLE = 65
MEMORY = 4 << 20
_SECONDS = 120
"""How long anything may take before the benchmark fails."""


def benchmark(stage: Stage) -> list[Figure]:
    """Boot, pause and destroy many demo guests; then a few that compute, and some that do nothing."""
    say(f"{MANY} demo guests")
    command = [sys.executable, "-m", "tests.benchmarks.guests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * _SECONDS, check=True)
    raw = json.loads(done.stdout)
    total = raw["booted"] + raw["paused"] + raw["destroyed"]
    each = (raw["full"] - raw["empty"]) / MANY
    linux_share = raw["idle_linux"]
    note = "Above what the process had before, when all of them were at their prompt."
    return [
        Figure(f"{MANY} demo guests booted to their prompt", f"{raw['booted']:.1f} s"),
        Figure(f"{MANY} demo guests paused", ms(raw["paused"])),
        Figure(f"{MANY} demo guests destroyed", f"{raw['destroyed']:.1f} s"),
        Figure(f"{MANY} demo guests booted, paused and destroyed", f"{total:.1f} s", goal="<= 30 s", judged=total),
        Figure("memory of the process with all of them", f"{raw['full']:,.0f} MB", goal="<= 4096 MB",
               judged=raw["full"]),
        Figure("memory a demo guest", f"{each:.2f} MB", goal="<= 4 MB", judged=each, note=note),
        Figure(f"CPU of {IDLE} idle demo guests", f"{raw['idle'] * 100:.3f} % of a core", goal="<= 1 %",
               judged=raw["idle"] * 100),
        Figure("CPU of an idle Debian Linux", f"{linux_share * 100:.2f} % of a core", goal="<= 1 %",
               judged=linux_share * 100)
        if linux_share is not None else Figure("CPU of an idle Debian Linux: not measured, there is none", ""),
        Figure("two busy guests on one pCPU, difference of their CPU time", percent(raw["unfair"]), goal="<= 5 %",
               judged=raw["unfair"] * 100),
        Figure("a 1 ms timer beside two busy guests on two pCPUs, late in 1 of 100 cases", ms(raw["late"]),
               goal="<= 20 ms", judged=raw["late"] * 1000),
    ]  # fmt: skip


class Machine:
    """A host with a toolstack, and guests that tell when they are at their prompt."""

    def __init__(self, pcpus: int | None = None) -> None:
        self.host = Host(8 << 30, pcpus)
        self.host.start()
        self.toolstack = Toolstack(self.host)
        self.guests: list[Guest] = []
        self._prompts = threading.Semaphore(0)

    def boot(self, count: int) -> None:
        """Build and start guests; return when all of them are at their prompt."""
        for _ in range(count):
            boot = DirectBoot(str(DEMO_KERNEL))
            guest = self.toolstack.build(DomainConfig(str(uuid.uuid4()), "demo", MEMORY, MEMORY, 1, boot))
            self._listen(guest)
            self.guests.append(guest)
            self.toolstack.unpause(guest.config.uuid)
        for _ in range(count):
            if not self._prompts.acquire(timeout=_SECONDS):
                raise TimeoutError("a guest has not come to its prompt")

    def _listen(self, guest: Guest) -> None:
        seen = bytearray()

        def heard(data: bytes) -> None:
            seen.extend(data)
            if seen.endswith(DEMO_PROMPT):
                self._prompts.release()

        guest.console.listen(heard)

    def spin(self) -> None:
        """Let all guests compute."""
        for guest in self.guests:
            guest.console.write(b"spin 600\r")

    def used(self) -> list[float]:
        """Return seconds of CPU that each guest has used."""
        return [self.host.scheduler.entities[guest.domain.domid].used for guest in self.guests]

    def end(self) -> None:
        """Destroy all guests and stop."""
        for guest in self.guests:
            self.toolstack.destroy(guest.config.uuid)
        self.host.stop()


def resident() -> float:
    """Return MB of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def many() -> dict[str, float]:
    """Time the life of many guests."""
    machine = Machine()
    empty, begun = resident(), time.perf_counter()
    machine.boot(MANY)
    booted, full = time.perf_counter(), resident()
    for guest in machine.guests:
        machine.toolstack.pause(guest.config.uuid)
    paused = time.perf_counter()
    machine.end()
    destroyed = time.perf_counter()
    return {
        "booted": booted - begun,
        "paused": paused - booted,
        "destroyed": destroyed - paused,
        "empty": empty,
        "full": full,
    }


def idle() -> float:
    """Return the share of a core that idle guests take."""
    machine = Machine()
    machine.boot(IDLE)
    cpu, begun = time.process_time(), time.monotonic()
    time.sleep(3)
    share = (time.process_time() - cpu) / (time.monotonic() - begun)
    machine.end()
    return share


def idle_linux() -> float | None:
    """Return the share of a core that an idle Linux takes, the least of some seconds; None where there is none."""
    try:
        found = linux.files()
    except linux.NotHere:
        return None
    with tempfile.TemporaryDirectory() as directory, OneMachine(1) as running:
        ramdisk = linux.write(Path(directory), "initrd", linux.small_initrd(found))
        Linux(running, found.kernel, ramdisk).boot()
        time.sleep(1)
        shares = []
        for _ in range(5):
            cpu, begun = time.process_time(), time.monotonic()
            time.sleep(1)
            shares.append((time.process_time() - cpu) / (time.monotonic() - begun))
    return min(shares)


def unfair() -> float:
    """Return by how much of the lesser the CPU times of two busy guests differ."""
    machine = Machine(1)
    machine.boot(2)
    machine.spin()
    time.sleep(0.5)
    before = machine.used()
    time.sleep(5)
    less, more = sorted(now - then for now, then in zip(machine.used(), before))
    machine.end()
    return (more - less) / less


def late() -> float:
    """Return by how many seconds a timer of the caller's is late beside busy guests, in the worst case of 100."""
    machine = Machine(2)
    machine.boot(2)
    machine.spin()
    seen = []
    for _ in range(2000):
        begun = time.monotonic()
        time.sleep(0.001)
        seen.append(time.monotonic() - begun - 0.001)
    machine.end()
    return quantile(seen, 0.99)


if __name__ == "__main__":
    print(json.dumps(many() | {"idle": idle(), "idle_linux": idle_linux(), "unfair": unfair(), "late": late()}))
