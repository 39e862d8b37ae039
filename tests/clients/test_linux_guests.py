"""The main ways of a VM's life on Debian's unmodified kernel, with the real XenAPI client, through CONNECT /console.

One daemon and one VM for all tests: each begins with the guest that the one before has left running.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon
from tests.clients.guest_console import LinuxConsole
from tests.clients.lab import MIB, Lab
from tests.guests.conftest import build_guest

MAC = "02:00:00:00:00:31"
MEMORY = 320 * MIB
SIGN = "dd if=/dev/urandom of=/mnt/file bs=64k count=32 && sync && md5sum </mnt/file"
READ = "echo 3 >/proc/sys/vm/drop_caches; md5sum </mnt/file"
"""Read it from the disk, not from the guest's memory."""
COUNT = "(i=0; while :; do i=$((i+1)); echo $i >/tmp/m; mv /tmp/m /tmp/n; usleep 5000; done) &"
STARTED = "until [ -e /tmp/n ]; do usleep 5000; done"
GOES_ON = f"{STARTED}; n=$(cat /tmp/n); while [ $(cat /tmp/n) = $n ]; do usleep 5000; done; cat /tmp/n"
PING = "ping -c 1 -w 10 $(udhcpc -i eth0 -s /bin/true -n -q 2>&1 | sed -n 's/.*obtained from \\([0-9.]*\\).*/\\1/p')"
"""Ask who gave the address."""


class Debian:
    """A VM of the template with a disk and a card, its shell, and what events tell of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.xapi = lab, lab.xapi
        self.vm = lab.vm("debian", "Debian Linux (direct kernel)")
        self.vdi, _ = lab.disk(self.vm, 64 * MIB)
        self.vif = lab.card(self.vm, mac=MAC)
        self.xapi.VM.set_memory_limits(self.vm, str(128 * MIB), str(MEMORY), str(MEMORY), str(MEMORY))
        self.xapi.VM.set_VCPUs_max(self.vm, "2")
        self.xapi.VM.set_VCPUs_at_startup(self.vm, "2")
        self.shell: LinuxConsole | None = None
        self.token = self.xapi.event_from(["VM"], "", 0.0)["token"]

    def run(self, command: str) -> str:
        """Run a command in the guest."""
        if self.shell is None:
            self.shell = LinuxConsole(self.lab.client, self.lab.daemon.http, self.vm)
        return self.shell.run(command)

    def wait_for(self, command: str) -> str:
        """Repeat a command in the guest until it succeeds; return what it says then."""
        return self.run(
            f"n=0; until {command}; do n=$((n+1)); [ $n -lt 500 ] || break; usleep 20000; done; [ $n -lt 500 ]"
        )

    def leave(self) -> None:
        """Close the console: it ends with the domain."""
        if self.shell is not None:
            self.shell.close()
            self.shell = None

    def do(self, operation: str, *arguments: Any) -> str:
        """Call a message of VM; return the power state that events tell of."""
        self.leave()
        getattr(self.xapi.VM, operation)(self.vm, *arguments)
        batch = self.xapi.event_from(["VM"], self.token, 10.0)
        self.token = batch["token"]
        told = [event["snapshot"]["power_state"] for event in batch["events"] if event["ref"] == self.vm]
        return str(told[-1])

    def until_told(self, field: str, *keys: str) -> dict[str, str]:
        """Wait until a map of the guest's metrics has some keys; return it."""

        def found() -> dict[str, str]:
            metrics = self.xapi.VM_guest_metrics.get_all_records().get(self.xapi.VM.get_guest_metrics(self.vm), {})
            told: dict[str, str] = metrics.get(field, {})
            return told if set(keys) <= told.keys() else {}

        told: dict[str, str] = self.lab.until(found)
        return told

    def plug_vcpus(self, number: str) -> None:
        """Ask the guest to have so many vCPUs, and see that it does."""
        self.xapi.VM.set_VCPUs_number_live(self.vm, number)
        self.wait_for(f"[ $(nproc) = {number} ]")
        metrics = self.xapi.VM.get_metrics(self.vm)
        self.lab.until(lambda: self.xapi.VM_metrics.get_VCPUs_number(metrics) == number)
        assert self.xapi.VM.get_VCPUs_at_startup(self.vm) == number

    def memory(self) -> int:
        """Return the bytes that the guest has."""
        return int(self.run("sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo")) << 10


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A daemon beside whose state Debian has been built, as the README says."""
    state = tmp_path_factory.mktemp("linux")
    guests = state / "guests"
    guests.mkdir()
    build_guest(guests)
    daemon, clients = Daemon(state), Clients()
    try:
        yield Lab(daemon.ready(), clients.root(daemon))
        assert not [line for line in daemon.stop() if "#critical]" in line or "Traceback" in line]
    finally:
        clients.close()
        daemon.kill()


@pytest.fixture(scope="module")
def debian(lab: Lab) -> Iterator[Debian]:
    made = Debian(lab)
    assert made.do("start", False, False) == "Running"
    yield made
    made.leave()


def test_debian_is_what_its_record_says(debian: Debian) -> None:
    """Kernel, memory, vCPUs, MAC, address, disk; and its metrics are what it says itself."""
    assert debian.run("nproc") == "2"
    assert MEMORY - 64 * MIB < debian.memory() < MEMORY
    assert debian.run("cat /sys/class/net/eth0/address") == MAC
    assert debian.run("cat /sys/block/xvda/size") == str(64 * MIB // 512)
    address = debian.until_told("networks", "0/ip")["0/ip"]
    assert f"inet {address}/" in debian.run("ip -4 addr show eth0")
    assert "1 packets received" in debian.run(PING)
    system = debian.until_told("os_version", "uname", "distro")
    assert (system["uname"], system["distro"]) == (debian.run("uname -r"), "debian")
    memory = debian.until_told("memory", "total", "free")
    assert memory["total"] == str(debian.memory() >> 10)
    assert 0 < int(memory["free"]) < int(memory["total"])
    assert debian.until_told("PV_drivers_version", "major", "build")["major"] == "8"
    metrics = debian.xapi.VM_metrics.get_record(debian.xapi.VM.get_metrics(debian.vm))
    assert (metrics["VCPUs_number"], metrics["memory_actual"]) == ("2", str(MEMORY))


def test_the_agent_of_debian_reads_whole_answers(debian: Debian) -> None:
    """What one request left in the ring's buffer would be taken for the head of the next answer."""
    functions = "sed -n '/^word()/p; /^xs()/,/^}/p' /init"
    asked = "; ".join(f"xs 2 '{key}\\000' {len(key) + 1}; echo" for key in ("name", "domid", "name"))
    domid = debian.xapi.VM.get_domid(debian.vm)
    said = debian.run(f'eval "$({functions})"; exec 3<>/dev/xen/xenbus; {asked}')
    assert said.split() == ["debian", domid, "debian"]


def test_debian_gives_memory_back(debian: Debian) -> None:
    """And gets it again."""
    full = debian.memory()
    for target in (MEMORY - 96 * MIB, MEMORY):
        debian.xapi.VM.set_memory_dynamic_range(debian.vm, str(target), str(target))
        debian.xapi.VM.wait_memory_target_live(debian.vm)
        assert debian.memory() == full - (MEMORY - target)
        metrics = debian.xapi.VM.get_metrics(debian.vm)
        assert debian.xapi.VM_metrics.get_memory_actual(metrics) == str(target)


def test_debian_has_vcpus_that_come_and_go(debian: Debian) -> None:
    """As many as it is asked to have, and VM_metrics tells when it has them."""
    for number in ("1", "2", "1"):
        debian.plug_vcpus(number)


def test_debian_has_devices_that_come_and_go(debian: Debian) -> None:
    """A disk that is written to, and a card that gets an address."""
    vdi, vbd = debian.lab.disk(debian.vm, 8 * MIB, "3")
    vif = debian.lab.card(debian.vm, device="1")
    debian.xapi.VBD.plug(vbd)
    debian.xapi.VIF.plug(vif)
    debian.wait_for("[ -b /dev/xvdd ]")
    assert debian.run("cat /sys/block/xvdd/size") == str(8 * MIB // 512)
    debian.run("echo signature | dd of=/dev/xvdd conv=fsync")
    assert debian.run("cat /sys/class/net/eth1/address") == debian.xapi.VIF.get_MAC(vif)
    debian.xapi.VBD.unplug(vbd)
    debian.xapi.VIF.unplug(vif)
    debian.wait_for("! [ -e /sys/block/xvdd ] && ! [ -e /sys/class/net/eth1 ]")
    debian.xapi.VBD.plug(vbd)
    assert debian.wait_for("head -n 1 /dev/xvdd 2>/tmp/wrong") == "signature"
    debian.xapi.VBD.unplug(vbd)
    debian.xapi.VDI.destroy(vdi)
    debian.xapi.VIF.destroy(vif)


def test_debian_goes_on_after_a_suspend(debian: Debian) -> None:
    """A counter in its memory, its file system, its address; the vCPU that was offline still is, and comes back."""
    debian.run("mke2fs /dev/xvda && mount -t ext4 /dev/xvda /mnt")
    signature = debian.run(SIGN).splitlines()[-1]
    debian.run(COUNT)
    before = int(debian.run(GOES_ON))
    assert debian.do("suspend") == "Suspended"
    assert debian.do("resume", False, False) == "Running"
    assert int(debian.run(GOES_ON)) > before
    assert debian.run(READ) == signature
    assert debian.run("nproc") == "1"
    debian.plug_vcpus("2")
    assert "1 packets received" in debian.run(PING)


def test_debian_finds_the_disk_of_its_snapshot(debian: Debian) -> None:
    """Snapshotted while it runs. Also: a reboot and a shutdown that the guest does itself; nothing is left of it."""
    signature = debian.run(SIGN).splitlines()[-1]
    snapshot, domid = debian.xapi.VM.snapshot(debian.vm, "before"), debian.xapi.VM.get_domid(debian.vm)
    assert debian.run(SIGN).splitlines()[-1] != signature
    assert debian.do("clean_reboot") == "Running"
    assert debian.xapi.VM.get_domid(debian.vm) != domid
    debian.xapi.VM.revert(snapshot)
    assert debian.xapi.VM.get_power_state(debian.vm) == "Halted"
    debian.xapi.VM.set_VCPUs_at_startup(debian.vm, "1")
    assert debian.do("start", False, False) == "Running"
    assert debian.run("nproc") == "1"
    assert debian.run(READ) == signature
    debian.until_told("other", "feature-poweroff")
    assert debian.do("clean_shutdown") == "Halted"
    vdis = [debian.xapi.VBD.get_VDI(vbd) for each in (debian.vm, snapshot) for vbd in debian.xapi.VM.get_VBDs(each)]
    for each in (snapshot, debian.vm):
        debian.xapi.VM.destroy(each)
    for vdi in vdis:
        debian.xapi.VDI.destroy(vdi)
    with pytest.raises(XenAPI.Failure, match="HANDLE_INVALID"):
        debian.xapi.VM.get_record(debian.vm)
