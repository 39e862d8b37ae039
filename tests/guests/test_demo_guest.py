"""The demo guest, by way of its shell: boot, commands, disks, network, balloon, suspend, and its ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason, State
from hypervisor.guests import DEMO_MEMORY
from hypervisor.host import Host
from hypervisor.network.endpoint import Endpoint
from hypervisor.network.port import access
from hypervisor.network.services import AddressService
from hypervisor.network.switch import Switch
from hypervisor.network.udp import Datagram, UdpSocket
from hypervisor.scheduling.scheduler import Entity
from hypervisor.split.block_queue import DiskThreads
from hypervisor.split.net import NetConfig, NetDevice
from tests.guests.demo_guest import FEATURES, MIB, DemoGuest, checksum, pattern


@pytest.fixture
def guest(host: Host) -> DemoGuest:
    """A demo guest that is not started yet."""
    return DemoGuest(host)


class Net:
    """A network with an address service, which may be a VLAN of another's switch."""

    def __init__(self, switch: Switch | None = None, vlan: int = 0) -> None:
        self.switch = switch or Switch(time.monotonic_ns)
        self.vlan = vlan
        self.service: AddressService | None = AddressService(self.switch, time.monotonic_ns, membership=access(vlan))

    def nic(self, mac: str = "00:16:3e:00:00:01", **options: Any) -> Callable[[Domain], NetDevice]:
        return lambda domain: NetDevice(domain, self.switch, NetConfig(mac, vlan=self.vlan, **options))


@pytest.fixture
def net() -> Net:
    return Net()


def has_address(guest: DemoGuest, number: int = 0) -> str:
    """Wait until the guest tells an address of a NIC, and return it."""
    guest.wait_for(lambda: bool(guest.read(f"attr/vif/{number}/ipv4/0")))
    return guest.read(f"attr/vif/{number}/ipv4/0") or ""


def void(_: object) -> None:
    """Forget a result."""


# Boot


def test_boots_to_its_prompt_with_a_banner(guest: DemoGuest) -> None:
    """The console shows one line and the prompt."""
    guest.boot()
    assert re.fullmatch(rf"Kronos demo guest [\d.]+, domain {guest.domain.domid}, \d+ KiB\r\ndemo> ", guest.output())


def test_boots_by_steps_on_the_callers_thread() -> None:
    """Without pCPU threads the guest runs as far as it is stepped, the same each time."""
    machine = Host(64 * MIB, 1)
    guest = DemoGuest(machine, command_line="stepped")
    guest.toolstack.unpause(guest.config.uuid)
    while machine.step(guest.domain):
        pass
    guest.type(b"info\r")
    while machine.step(guest.domain):
        pass
    assert "command-line: stepped\r\n" in guest.output()
    machine.destroy(guest.domain)


@pytest.mark.parametrize("memory", [2 * MIB, DEMO_MEMORY, 1 << 30, 5 << 30])
def test_finds_its_memory(host: Host, memory: int) -> None:
    """Small guests and ones with RAM above 4 GiB tell what they have, and can use the last of it."""
    host.memory = 8 << 30
    guest = DemoGuest(host, memory).boot()
    values = guest.run("mem")
    assert memory // 1024 - 600 < int(values["total-kib"]) < memory // 1024
    assert guest.run("touch 1")["touched-kib"] == "1024"
    assert guest.run("touched")["bad-frames"] == "0"


def test_boots_without_console_and_xenstore(host: Host) -> None:
    """A guest with no rings at all reaches its shell, and says so on the emergency console."""
    guest = DemoGuest(host)
    guest.domain.params.clear()
    guest.toolstack.unpause(guest.config.uuid)
    guest.wait_for(lambda: guest.domain.platform.console.text.endswith(b"demo> "))
    assert bytes(guest.domain.platform.console.text).startswith(b"Kronos demo guest")


def test_boots_with_a_device_whose_backend_never_comes(guest: DemoGuest) -> None:
    """The boot goes on after a while, and the disk is shown as waiting."""
    guest.write("device/vbd/51712/backend", "/local/domain/0/backend/vbd/9/51712")
    guest.write("device/vbd/51712/state", "1")
    guest.boot()
    assert "state=waiting" in guest.run("disks")["xvda"]
    assert "no disk" in guest.run("read xvdb 0 512")["error"]


def test_idles_without_using_the_cpu(guest: DemoGuest, slices: list[Entity]) -> None:
    """It waits for a second by a timer that wakes it, not by looking at a clock."""
    guest.boot()
    guest.wait_for(lambda: guest.domain.vcpus[0].blocked)
    slices.clear()
    assert 1000 <= int(guest.run("sleep 1")["slept-ms"]) < 2000
    assert 0 < len(slices) < 30


# The shell


def test_lines_can_be_edited(guest: DemoGuest) -> None:
    """Backspace, Ctrl-U, and an unknown command."""
    guest.boot()
    guest.type(b"wrong\x15inffo")
    guest.wait_for_output("inffo")
    guest.type(b"\x7f\x7fo")
    assert guest.run("")["domid"] == str(guest.domain.domid)
    assert guest.run("nonsense")["error"].startswith("there is no command nonsense")


def test_control_c_ends_a_command(guest: DemoGuest) -> None:
    """A long sleep ends at once."""
    guest.boot()
    guest.start("sleep 1000")
    guest.wait_for_output("sleep 1000")
    guest.type(b"\x03")
    assert "slept-ms: " in guest.finish()


def test_tells_who_it_is(guest: DemoGuest) -> None:
    """Version, domid, uuid and name are Xen's and the toolstack's."""
    values = guest.boot().run("info")
    assert (values["uuid"], values["name"], values["vcpus"]) == (guest.config.uuid, "demo", "1")
    assert values["xen"].startswith("4.") and abs(int(values["time-s"]) - time.time()) < 60


def test_spins_for_as_long_as_asked(guest: DemoGuest) -> None:
    """It counts, and stops by the clock."""
    values = guest.boot().run("spin 1")
    assert int(values["millions"]) > 0 and 1000 <= int(values["ms"]) < 3000


def test_xenstore_command_reads_writes_and_watches(guest: DemoGuest) -> None:
    """Values go both ways, errors have their names, and events are shown as they come."""
    guest.boot()
    assert guest.run("xenstore read name") == {"value": "demo"}
    assert guest.run("xenstore write data/text some words") == {"done": "ok"}
    assert guest.read("data/text") == "some words"
    assert guest.run("xenstore rm data/text") == {"done": "ok"}
    assert guest.run("xenstore read data/text") == {"error": "ENOENT"}
    assert guest.run("xenstore write name other") == {"error": "EACCES"}
    guest.start("xenstore watch data 100")
    guest.wait_for_output("event: data\r\n")
    guest.write("data/more", "1")
    guest.wait_for_output("event: data/more\r\n")
    guest.type(b"\x03")
    assert "events: 2\n" in guest.finish()


# What it tells the toolstack


def test_writes_metrics_as_the_linux_agent_does(guest: DemoGuest) -> None:
    """The keys of xe-guest-utilities are there."""
    guest.boot()
    assert guest.read("attr/PVAddons/Installed") == "1"
    assert all((guest.read(f"attr/PVAddons/{part}Version") or "").isdigit() for part in ("Major", "Minor", "Micro"))
    assert (guest.read("data/os_name") or "").startswith("Kronos demo guest")
    assert guest.read("data/os_distro") == "kronos-demo" and guest.read("attr/os/class") == "demo"
    assert int(guest.read("data/meminfo_total") or 0) >= int(guest.read("data/meminfo_free") or 0) > 0
    assert time.strptime(guest.read("data/updated") or "", "%a %b %d %H:%M:%S %Y").tm_year >= 2024
    assert [guest.read(f"control/feature-{name}") for name in FEATURES] == ["1"] * len(FEATURES)


# Its ends


@pytest.mark.parametrize(
    ("command", "reason"),
    [("poweroff", Reason.POWEROFF), ("reboot", Reason.REBOOT), ("crash", Reason.CRASH), ("panic", Reason.CRASH)],
)
def test_ends_as_its_commands_say(guest: DemoGuest, command: str, reason: Reason) -> None:
    """Each command has its reason; a triple fault is a crash."""
    assert guest.boot().ended(command) is reason
    assert ("triple fault" in guest.domain.life.crash) == (command == "panic")


@pytest.mark.parametrize(
    ("request_text", "reason"),
    [("poweroff", Reason.POWEROFF), ("halt", Reason.POWEROFF), ("reboot", Reason.REBOOT), ("suspend", Reason.SUSPEND)],
)
def test_follows_a_request_and_acknowledges_it(guest: DemoGuest, request_text: str, reason: Reason) -> None:
    """control/shutdown is emptied before the domain goes down."""
    guest.boot().write("control/shutdown", request_text)
    assert guest.ended() is reason
    assert guest.read("control/shutdown") == ""


def test_unknown_requests_are_taken_and_ignored(guest: DemoGuest) -> None:
    """As Linux does, it empties the key and goes on."""
    guest.boot().write("control/shutdown", "dance")
    guest.wait_for(lambda: guest.read("control/shutdown") == "")
    assert guest.run("mem") and guest.domain.life.state is State.RUNNING


def test_requests_are_followed_while_a_command_runs(guest: DemoGuest) -> None:
    """A busy shell does not keep the guest from being powered off."""
    guest.boot().start("spin 1000")
    guest.write("control/shutdown", "poweroff")
    assert guest.ended() is Reason.POWEROFF


def test_a_fault_is_reported_with_the_registers(guest: DemoGuest) -> None:
    """Exception number, address and registers stand on both consoles; the domain crashes."""
    assert guest.boot().ended("fault") is Reason.CRASH
    assert "panic: exception 14 error 2" in guest.output() and "cr2: 0000000000000008" in guest.output()
    assert b"r15: " in guest.domain.platform.console.text


# Memory


def test_balloons_to_the_toolstacks_target(guest: DemoGuest) -> None:
    """What is above memory/target goes back to the host, and comes again when the target rises."""
    guest.boot()
    for target in (6144, 5000, 8192):
        guest.write("memory/target", str(target))
        guest.wait_for(lambda: guest.run("mem")["target-kib"] == str(target))  # noqa: B023
        assert guest.run("mem")["held-kib"] == str(target)
        assert guest.domain.memory.present * 4 == target
    assert guest.run("touch 3")["touched-kib"] == "3072" and guest.run("touched")["bad-frames"] == "0"


def test_balloons_by_large_extents(host: Host) -> None:
    """Hundreds of MiB go and come in pieces of 2 MiB, and in frames at the edges."""
    guest = DemoGuest(host, 512 * MIB).boot()
    assert guest.run("balloon 101") == {"held-kib": str(101 << 10), "done": "ok"}
    assert guest.domain.hypercalls[12] < 400
    assert guest.run("balloon 509") == {"held-kib": str(509 << 10), "done": "ok"}
    assert guest.run("touch 480")["touched-kib"] == str(480 << 10)


def test_a_target_that_cannot_be_reached_is_not_waited_for(guest: DemoGuest) -> None:
    """It keeps what it needs itself, and stays alive."""
    guest.boot().write("memory/target", "400")
    guest.wait_for(lambda: guest.run("mem")["target-kib"] == "400")
    assert 400 < int(guest.run("mem")["held-kib"]) < 2048
    guest.write("memory/target", "8192")
    guest.wait_for(lambda: guest.run("mem")["held-kib"] == "8192")


# Disks


def test_writes_a_pattern_that_reads_back(guest: DemoGuest, threads: DiskThreads) -> None:
    """Every offset and length of whole sectors, with the checksum that the test computes too."""
    disk = AnonymousDisk(MIB)
    guest.plug_disk(disk, threads)
    guest.boot()
    for offset, length in ((0, 512), (512, 4096), (1024, 45056), (65536, 300032), (MIB - 512, 512)):
        data = pattern(42, offset, length)
        written = guest.run(f"write xvda {offset} {length} 42")
        assert (written["bytes"], written["checksum"]) == (str(length), checksum(data))
        assert disk.read(offset, length) == data
        assert guest.run(f"read xvda {offset} {length}")["checksum"] == checksum(data)
        assert guest.run(f"verify xvda {offset} {length} 42")["verify"] == "ok"
    disk.write(4096, b"x")
    wrong = guest.run("verify xvda 1024 45056 42")
    assert (wrong["verify"], wrong["mismatches"], wrong["first-mismatch"]) == ("failed", "1", "4096")


def test_fills_and_checks_a_whole_disk(guest: DemoGuest, threads: DiskThreads) -> None:
    """fill, check and checksum agree, and flush and discard are answered."""
    disk = AnonymousDisk(4 * MIB)
    guest.plug_disk(disk, threads)
    filled = guest.boot().run("fill xvda 7")
    assert disk.read(0, 64) == pattern(7, 0, 64)
    assert guest.run("check xvda 7")["verify"] == "ok"
    assert guest.run("checksum xvda")["checksum"] == filled["checksum"]
    assert guest.run("flush xvda") == guest.run("discard xvda 0 1M") == {"done": "ok"}
    assert disk.read(0, MIB) == bytes(MIB)


def test_refuses_what_makes_no_sense(guest: DemoGuest, threads: DiskThreads) -> None:
    """Ranges beyond the disk, parts of sectors, read-only disks, unknown disks."""
    guest.plug_disk(AnonymousDisk(MIB), threads, "xvdc", read_only=True)
    guest.boot()
    for command in ("read xvdc 0 1", "read xvdc 1M 512", "read xvdc 0", "write xvdc 0 512", "read xvda 0 512"):
        assert set(guest.run(command)) == {"error"}, command


def test_tells_a_disks_errors(guest: DemoGuest, threads: DiskThreads) -> None:
    """A disk that is full on the host gives an error with its place; the guest goes on."""
    guest.plug_disk(AnonymousDisk(MIB, limit=128 * 1024), threads)
    values = guest.boot().run("fill xvda")
    assert values["error"].startswith("i/o error at ")
    assert "errors=0" not in guest.run("disks")["xvda"]


def test_disks_come_and_go_while_it_runs(guest: DemoGuest, threads: DiskThreads) -> None:
    """Hot plug, unplug with the guest's consent, plug again into the same place, forced unplug."""
    guest.boot()
    for size in (1, 2):
        backend = guest.plug_disk(AnonymousDisk(size * MIB), threads, "xvdb")
        guest.wait_for(lambda: backend.state.name == "CONNECTED")  # noqa: B023
        assert f"bytes={size * MIB}" in guest.run("disks")["xvdb"]
        assert guest.run("write xvdb 0 4096")["bytes"] == "4096"
        backend.unplug(lambda: None)
        guest.wait_for(lambda: backend.gone)  # noqa: B023
        assert guest.run("disks") == {"disks": "0"}
    backend = guest.plug_disk(AnonymousDisk(MIB), threads, "xvdb")
    guest.wait_for(lambda: backend.state.name == "CONNECTED")
    backend.remove()
    assert guest.run("disks") == {"disks": "0"}


def test_unplug_during_a_command_waits_for_its_transfers(guest: DemoGuest, threads: DiskThreads) -> None:
    """What was begun is finished or fails, and the shell comes back."""
    backend = guest.plug_disk(AnonymousDisk(512 * MIB), threads)
    guest.boot().start("fill xvda")
    guest.wait_for(lambda: int(backend.device.counters.writes) > 20)  # type: ignore[attr-defined]
    backend.unplug(lambda: None)
    assert "error: i/o error" in guest.finish()
    guest.wait_for(lambda: backend.gone)


def test_a_resized_disk_is_seen(guest: DemoGuest, threads: DiskThreads) -> None:
    """The new size counts as soon as the backend tells it."""
    disk = AnonymousDisk(MIB)
    backend = guest.plug_disk(disk, threads)
    guest.boot()
    disk.size = 2 * MIB
    backend.device.resized()  # type: ignore[attr-defined]
    assert f"bytes={2 * MIB}" in guest.run("disks")["xvda"]


# Network


def test_gets_an_address_and_pings(guest: DemoGuest, net: Net) -> None:
    """DHCP at boot; the address is told; ping works, and fails for nobody."""
    guest.plug(0, net.nic())
    guest.boot()
    address = has_address(guest)
    assert address.startswith("169.254.") and guest.read("attr/eth0/ip") == address
    assert f"address={address} " in guest.run("net")["eth0"]
    assert guest.run("ping 169.254.0.1 3")["received"] == "3"
    assert guest.run("ping 169.254.0.77")["received"] == "0"
    assert guest.run("dhcp eth0")["address"] == address


def test_answers_pings_and_echoes_datagrams(guest: DemoGuest, net: Net) -> None:
    """An endpoint reaches it: ARP, ICMP of every size, UDP on port 7."""
    guest.plug(0, net.nic())
    guest.boot()
    address = IPv4Address(has_address(guest))
    mac = bytes.fromhex("0216 3e00 0042")
    station = Endpoint(net.switch, time.monotonic_ns, mac, IPv4Interface("169.254.9.9/16"))
    heard: list[object] = []

    def received(socket: UdpSocket, datagram: Datagram) -> None:
        heard.append(datagram.data)
        guest._changed(guest.domain)

    def replied(time_taken: int | None) -> None:
        heard.append(time_taken)
        guest._changed(guest.domain)

    with guest.host.lock:
        for size in (0, 56, 1472):
            guest.domain.events.post(lambda size=size: station.ping(address, replied, size))  # type: ignore[misc]
    guest.wait_for(lambda: len(heard) == 3)
    assert None not in heard
    with guest.host.lock:
        socket = station.udp.bind(received)
        guest.domain.events.post(lambda: void(socket.send(address.packed, 7, b"echo this")))
    guest.wait_for(lambda: heard[-1] == b"echo this")


def test_without_a_server_it_goes_on_asking(guest: DemoGuest, net: Net) -> None:
    """The boot does not wait for an address; Ctrl-C ends the command that does."""
    assert net.service is not None
    net.service.close()
    guest.plug(0, net.nic())
    guest.boot()
    assert "dhcp=discover" in guest.run("net")["eth0"]
    assert guest.run("ping 169.254.0.1")["error"] == "no route"
    guest.start("dhcp")
    guest.wait_for_output("dhcp\r\n")
    guest.type(b"\x03")
    assert guest.finish() == "error: no answer\n"


def test_two_nics_have_their_own_networks(guest: DemoGuest) -> None:
    """Each gets its address from its own side, and a NIC that goes takes its address along."""
    first, second = Net(), Net()
    guest.plug(0, first.nic())
    backend = guest.plug(1, second.nic("00:16:3e:00:00:02"))
    guest.boot()
    assert has_address(guest, 0) != has_address(guest, 1)
    backend.unplug(lambda: None)
    guest.wait_for(lambda: guest.read("attr/vif/1/ipv4/0") is None)
    assert guest.run("net")["nics"] == "1"


@pytest.mark.parametrize("apart", ["nothing", "switches", "tags"])
def test_two_guests_reach_each_other_unless_they_are_apart(host: Host, apart: str) -> None:
    """On one switch without a tag or with the same; not on two switches, nor with two tags on one."""
    net = Net(vlan=7 if apart == "tags" else 0)
    other = {"nothing": net, "switches": Net()}.get(apart) or Net(net.switch, 8)
    guests = [DemoGuest(host), DemoGuest(host)]
    for number, (guest, joined) in enumerate(zip(guests, (net, other), strict=True)):
        guest.plug(0, joined.nic(f"00:16:3e:00:00:0{number}"))
        guest.boot()
    addresses = [has_address(guest) for guest in guests]
    received = "1" if apart == "nothing" else "0"
    for guest, address in zip(guests, reversed(addresses), strict=True):
        assert guest.run(f"ping {address}")["received"] == received
        assert guest.run("ping 169.254.0.1")["received"] == "1"


def test_a_nic_moves_between_networks_while_the_guest_runs(guest: DemoGuest, net: Net) -> None:
    """It is where it was moved to, and a pulled cable cuts it off."""
    other = Net()
    backend = guest.plug(0, net.nic())
    guest.boot()
    has_address(guest)
    device = backend.device
    assert isinstance(device, NetDevice)
    sent = net.switch.ports[0].counters.received
    assert guest.run("ping 169.254.0.1")["received"] == "1"
    before = sent.packets
    device.change(replace(device.config, network="other"), other.switch)
    assert guest.run("dhcp eth0")["address"] and guest.run("ping 169.254.0.1")["received"] == "1"
    assert sent.packets == before
    device.change(replace(device.config, carrier=False))
    assert guest.run("ping 169.254.0.1")["received"] == "0"
    device.change(replace(device.config, carrier=True))
    assert guest.run("ping 169.254.0.1")["received"] == "1"


def test_a_nic_torn_out_does_not_hurt_the_guest(guest: DemoGuest, net: Net) -> None:
    """Without its consent, in the middle of traffic; another one plugged later works."""
    backend = guest.plug(0, net.nic())
    guest.boot()
    has_address(guest)
    guest.start("ping 169.254.0.1 3")
    backend.remove()
    guest.finish()
    guest.wait_for(lambda: guest.run("net")["nics"] == "0")
    guest.plug(1, net.nic("00:16:3e:00:00:02"))
    assert has_address(guest, 1)
    assert guest.run("ping 169.254.0.1")["received"] == "1"


def test_takes_an_address_from_the_toolstack(guest: DemoGuest, net: Net) -> None:
    """static-ip-setting is followed, acknowledged, and undone."""
    guest.plug(0, net.nic())
    guest.boot()
    has_address(guest)
    path = "xenserver/device/vif/0/static-ip-setting"
    guest.write(path, "")
    guest.give(path)
    for key, value in {"address": "169.254.7.7/16", "gateway": "169.254.0.1", "enabled": "1"}.items():
        guest.write(f"{path}/{key}", value)
    guest.wait_for(lambda: guest.read(f"{path}/error-code") == "0")
    assert guest.read("attr/vif/0/ipv4/0") == "169.254.7.7" and guest.read(f"{path}/enabled") is None
    assert guest.run("ping 169.254.0.1")["received"] == "1"
    guest.write(f"{path}/enabled", "0")
    guest.wait_for(lambda: guest.read("attr/vif/0/ipv4/0") not in (None, "169.254.7.7"))


# Suspend


def test_goes_on_in_another_domain(guest: DemoGuest, threads: DiskThreads, net: Net) -> None:
    """Memory, counter, clock, disks, address and console survive a move to another domid."""
    disk = AnonymousDisk(MIB)
    guest.plug_disk(disk, threads)
    guest.plug(0, net.nic())
    guest.boot()
    address = has_address(guest)
    guest.run("touch 1")
    guest.run("write xvda 0 65536 5")
    guest.run("counter")
    guest.run("sleep 1")
    uptime, count = int(guest.run("info")["uptime-ms"]), int(guest.run("counter")["counter"])
    assert count > 5
    for moves in (1, 2):
        assert guest.ended("suspend") is Reason.SUSPEND
        guest.move()
        assert "suspended: resumed" in guest.finish()
        values = guest.run("info")
        assert (values["resumes"], values["domid"]) == (str(moves), str(guest.domain.domid))
        assert uptime <= int(values["uptime-ms"]) < uptime + 20_000
        assert guest.run("touched") == {"touched-kib": "1024", "bad-frames": "0"}
        assert guest.run("verify xvda 0 65536 5")["verify"] == "ok"
        assert has_address(guest) == address
        assert guest.run("ping 169.254.0.1")["received"] == "1"
        assert guest.read("attr/PVAddons/Installed") == "1"
    guest.run("sleep 1")
    assert int(guest.run("counter")["counter"]) > count + 5
    guest.write("control/shutdown", "poweroff")
    assert guest.ended() is Reason.POWEROFF


def test_a_transfer_under_way_survives_a_suspend(guest: DemoGuest, threads: DiskThreads) -> None:
    """A disk is filled while the guest is suspended and moved: the pattern is whole."""
    disk = AnonymousDisk(32 * MIB)
    backend = guest.plug_disk(disk, threads)
    guest.boot().start("fill xvda 9")
    guest.wait_for(lambda: int(backend.device.counters.writes) > 20)  # type: ignore[attr-defined]
    guest.write("control/shutdown", "suspend")
    assert guest.ended() is Reason.SUSPEND
    assert f"bytes: {32 * MIB}" not in guest.output()
    guest.move()
    assert f"bytes: {32 * MIB}" in guest.finish()
    assert guest.run("check xvda 9")["verify"] == "ok"


def test_a_cancelled_suspend_changes_nothing(guest: DemoGuest, threads: DiskThreads) -> None:
    """When the hypercall comes back with 1 the rings are still good."""
    guest.plug_disk(AnonymousDisk(MIB), threads)
    guest.boot()
    assert guest.ended("suspend") is Reason.SUSPEND
    guest.cancel()
    assert "suspended: cancelled" in guest.finish()
    assert guest.run("write xvda 0 4096")["bytes"] == "4096"
    assert guest.run("info")["resumes"] == "0"


# Several


def test_many_guests_run_side_by_side(host: Host) -> None:
    """Each has its own domid, and all answer."""
    guests = [DemoGuest(host, DEMO_MEMORY) for _ in range(8)]
    for guest in guests:
        guest.toolstack.unpause(guest.config.uuid)
    assert len({guest.prompt().run("info")["domid"] for guest in guests}) == 8
