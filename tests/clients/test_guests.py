"""From template to running guest with the real XenAPI client; each fact is read back from inside the guest."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon
from tests.clients.lab import MIB, Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    daemon = Daemon(tmp_path_factory.mktemp("guests"), "--listen", "127.0.0.1:0", "--tls", "").ready()
    clients = Clients()
    made = Lab(daemon, clients.root(daemon))
    yield made
    made.close()
    clients.close()
    daemon.stop()


def test_a_vm_of_a_template_runs_and_is_what_its_record_says(lab: Lab) -> None:
    """Name, uuid, domid, memory, vCPUs, disk and card."""
    vm = lab.vm("named")
    vdi, vbd = lab.disk(vm, 24 * MIB, "1")
    vif = lab.card(vm, mac="02:00:00:00:00:21")
    lab.xapi.VM.set_memory_limits(vm, str(8 * MIB), str(48 * MIB), str(48 * MIB), str(48 * MIB))
    lab.xapi.VM.start(vm, False, False)
    shell, record = lab.shell(vm), lab.xapi.VM.get_record(vm)
    info = shell.values("info")
    assert (info["name"], info["uuid"], info["domid"]) == ("named", record["uuid"], record["domid"])
    assert info["vcpus"] == record["VCPUs_at_startup"]
    assert shell.values("mem")["held-kib"] == str(48 * 1024)
    assert f"xvdb: number=51728 state=connected bytes={24 * MIB} " in shell.until("disks", lambda s: "connected" in s)
    assert "eth0: mac=02:00:00:00:00:21 state=connected mtu=1500" in shell.until("net", lambda s: "connected" in s)
    assert lab.xapi.VBD.get_currently_attached(vbd)
    assert lab.xapi.VBD.get_device(vbd) == "xvdb"
    assert lab.xapi.VIF.get_currently_attached(vif)
    address = lab.address(vm)
    assert f"address={address} " in shell.run("net")
    metrics = lab.xapi.VM_metrics.get_record(record["metrics"])
    assert (metrics["memory_actual"], metrics["current_domain_type"]) == (str(48 * MIB), "pvh")
    lab.xapi.VM.clean_shutdown(vm)
    assert lab.xapi.VM.get_power_state(vm) == "Halted"
    assert lab.xapi.VDI.get_VBDs(vdi) == [vbd]


def test_a_disk_keeps_what_a_guest_wrote(lab: Lab) -> None:
    """Over a reboot, and a new start."""
    vm = lab.vm()
    vdi, _ = lab.disk(vm)
    lab.xapi.VM.start(vm, False, False)
    assert "error" not in lab.shell(vm).run("fill xvda 5")
    lab.xapi.VM.clean_reboot(vm)
    assert lab.shell(vm).values("check xvda 5")["verify"] == "ok"
    lab.xapi.VM.hard_shutdown(vm)
    lab.xapi.VM.start(vm, False, False)
    assert lab.shell(vm).values("check xvda 5")["verify"] == "ok"
    lab.xapi.VM.hard_shutdown(vm)
    lab.xapi.SR.scan(lab.storage)
    assert int(lab.xapi.VDI.get_physical_utilisation(vdi)) >= 16 * MIB


def test_a_terminal_is_where_its_record_says(lab: Lab) -> None:
    """XenCenter connects to nothing else."""
    vm = lab.vm()
    lab.xapi.VM.start(vm, False, False)
    consoles = [lab.xapi.console.get_record(ref) for ref in lab.xapi.VM.get_consoles(vm)]
    location = urlsplit(next(each["location"] for each in consoles if each["protocol"] == "vt100"))
    assert f"{location.scheme}://{location.netloc}/" == lab.daemon.http
    with socket.create_connection((location.hostname, location.port), timeout=10) as wire:
        query = f"{location.path}?{location.query}&session_id={lab.client._session}"
        wire.sendall(f"CONNECT {query} HTTP/1.0\r\n\r\n".encode())
        assert wire.recv(12) == b"HTTP/1.1 200"
    lab.xapi.VM.hard_shutdown(vm)


@pytest.mark.parametrize("domain_type", ("pvh", "pv"))
def test_a_suspended_guest_goes_on(lab: Lab, domain_type: str) -> None:
    """With its memory, disk and card; the suspend image is gone then."""
    vm = lab.vm()
    lab.xapi.VM.set_domain_type(vm, domain_type)
    lab.disk(vm)
    lab.card(vm)
    lab.xapi.VM.start(vm, False, False)
    shell = lab.shell(vm)
    shell.run("touch 2")
    shell.run("fill xvda 9")
    address = lab.address(vm)
    assert lab.xapi.VM_metrics.get_current_domain_type(lab.xapi.VM.get_metrics(vm)) == domain_type
    lab.xapi.VM.suspend(vm)
    image = lab.xapi.VM.get_suspend_VDI(vm)
    assert lab.xapi.VM.get_power_state(vm) == "Suspended"
    assert lab.xapi.VDI.get_type(image) == "suspend"
    lab.xapi.VM.resume(vm, False, False)
    shell = lab.shell(vm)
    assert shell.values("info")["resumes"] == "1"
    assert shell.values("touched") == {"touched-kib": "2048", "bad-frames": "0"}
    assert shell.values("check xvda 9")["verify"] == "ok"
    assert f"address={address} " in shell.run("net")
    with pytest.raises(XenAPI.Failure, match="HANDLE_INVALID"):
        lab.xapi.VDI.get_type(image)
    lab.xapi.VM.hard_shutdown(vm)


def test_a_guest_that_is_migrated_to_its_own_host_goes_on(lab: Lab) -> None:
    """In a new domain, with its memory and disk; the hypervisor's log tells of both domains."""
    vm = lab.vm()
    lab.disk(vm)
    lab.xapi.VM.start(vm, False, False)
    lab.shell(vm).run("touch 2")
    lab.shell(vm).run("fill xvda 9")
    host, before = lab.xapi.VM.get_resident_on(vm), lab.xapi.VM.get_domid(vm)
    lab.xapi.VM.pool_migrate(vm, host, {"live": "true"})
    after = lab.xapi.VM.get_domid(vm)
    assert (lab.xapi.VM.get_power_state(vm), lab.xapi.VM.get_resident_on(vm)) == ("Running", host) and after != before
    shell = lab.shell(vm)
    assert shell.values("touched") == {"touched-kib": "2048", "bad-frames": "0"}
    assert shell.values("check xvda 9")["verify"] == "ok"
    log = lab.xapi.host.dmesg(host)
    assert f"d{before}: destroyed" in log and f"d{after}: PVH domain {lab.xapi.VM.get_uuid(vm)}" in log
    lab.xapi.VM.hard_shutdown(vm)


def test_a_snapshot_is_gone_back_to(lab: Lab) -> None:
    """The disk is what it was."""
    vm = lab.vm()
    lab.disk(vm)
    lab.xapi.VM.start(vm, False, False)
    lab.shell(vm).run("fill xvda 1")
    snapshot = lab.xapi.VM.snapshot(vm, "before")
    assert lab.shell(vm).values("check xvda 1")["verify"] == "ok"
    lab.shell(vm).run("fill xvda 2")
    lab.xapi.VM.hard_shutdown(vm)
    lab.xapi.VM.revert(snapshot)
    assert lab.xapi.VM.get_parent(vm) == snapshot
    lab.xapi.VM.start(vm, False, False)
    assert lab.shell(vm).values("check xvda 1")["verify"] == "ok"
    lab.xapi.VM.hard_shutdown(vm)


@pytest.mark.parametrize("domain_type", ("pvh", "pv"))
def test_a_checkpoint_has_the_memory_too(lab: Lab, domain_type: str) -> None:
    """The guest goes on at once, and once more from the checkpoint."""
    vm = lab.vm()
    lab.xapi.VM.set_domain_type(vm, domain_type)
    lab.disk(vm)
    lab.xapi.VM.start(vm, False, False)
    lab.shell(vm).run("touch 3")
    checkpoint = lab.xapi.VM.checkpoint(vm, "with memory")
    assert lab.xapi.VM.get_power_state(vm) == "Running"
    assert lab.xapi.VM.get_power_state(checkpoint) == "Suspended"
    assert lab.shell(vm).values("touched")["bad-frames"] == "0"
    lab.xapi.VM.hard_shutdown(vm)
    lab.xapi.VM.revert(checkpoint)
    assert lab.xapi.VM.get_power_state(vm) == "Suspended"
    lab.xapi.VM.resume(vm, False, False)
    assert lab.shell(vm).values("touched") == {"touched-kib": "3072", "bad-frames": "0"}
    lab.xapi.VM.hard_shutdown(vm)


def test_guests_of_one_network_reach_each_other_and_others_do_not(lab: Lab) -> None:
    """A private network is its guests' alone."""
    private = lab.xapi.network.create({"name_label": "private", "name_description": "", "other_config": {}})
    vms = [lab.vm(name) for name in ("one", "two", "three")]
    for vm, network in zip(vms, (lab.network, lab.network, private), strict=True):
        lab.card(vm, network)
        lab.xapi.VM.start(vm, False, False)
    addresses = [lab.address(vm) for vm in vms[:2]]
    assert "received: 1" in lab.shell(vms[0]).run(f"ping {addresses[1]} 1")
    assert "received: 1" not in lab.shell(vms[2]).run(f"ping {addresses[1]} 1")
    for vm in vms:
        lab.xapi.VM.hard_shutdown(vm)


def test_devices_come_and_go_while_a_guest_runs(lab: Lab) -> None:
    """A disk and a card."""
    vm = lab.vm()
    lab.xapi.VM.start(vm, False, False)
    shell = lab.shell(vm)
    lab.until(lambda: "clean_shutdown" in lab.xapi.VM.get_allowed_operations(vm))
    vdi, vbd = lab.disk(vm, userdevice="3")
    vif = lab.card(vm, device="2")
    lab.xapi.VBD.plug(vbd)
    lab.xapi.VIF.plug(vif)
    assert "connected" in shell.until("disks", lambda text: "xvdd" in text and "connected" in text)
    shell.until("net", lambda text: "eth2" in text and "connected" in text)
    lab.xapi.VBD.unplug(vbd)
    lab.xapi.VIF.unplug(vif)
    assert not lab.xapi.VBD.get_currently_attached(vbd)
    shell.until("disks", lambda text: "xvdd" not in text)
    lab.xapi.VM.hard_shutdown(vm)
    lab.xapi.VBD.destroy(vbd)
    lab.xapi.VDI.destroy(vdi)


def test_a_guest_that_powers_off_by_itself_is_halted(lab: Lab) -> None:
    """And one that reboots runs again, as another domain."""
    vm = lab.vm()
    lab.xapi.VM.start(vm, False, False)
    domid = lab.xapi.VM.get_domid(vm)
    shell = lab.shell(vm)
    shell.type("reboot")
    lab.until(lambda: lab.xapi.VM.get_domid(vm) not in (domid, "-1"))
    shell = lab.shell(vm)
    shell.type("poweroff")
    lab.ends(vm)


def test_any_template_makes_a_guest_that_gets_an_address(lab: Lab) -> None:
    """HVM: nothing is on its disk, so it boots from the network."""
    template = lab.xapi.VM.get_by_name_label("Debian Bookworm 12")[0]
    vm = lab.xapi.VM.clone(template, "from any template")
    config = lab.xapi.VM.get_other_config(vm)
    uuid = lab.xapi.SR.get_uuid(lab.storage)
    lab.xapi.VM.remove_from_other_config(vm, "disks")
    lab.xapi.VM.add_to_other_config(vm, "disks", config["disks"].replace('sr=""', f'sr="{uuid}"'))
    lab.xapi.VM.provision(vm)
    lab.card(vm)
    lab.xapi.VM.start(vm, False, False)
    assert lab.address(vm)
    assert lab.xapi.VM_guest_metrics.get_os_version(lab.xapi.VM.get_guest_metrics(vm))["distro"] == "kronos-demo"
    lab.xapi.VM.clean_shutdown(vm)
    lab.xapi.VM.destroy(vm)


def test_a_killed_daemon_knows_the_truth_when_it_starts_again(tmp_path: Any, clients: Clients) -> None:
    """Guests lived in it: they are halted, a suspended one resumes, disks have what was flushed."""
    options = ("--listen", "127.0.0.1:0", "--tls", "")
    daemon = Daemon(tmp_path / "state", *options).ready()
    lab = Lab(daemon, clients.root(daemon))
    ran, slept = lab.vm("ran"), lab.vm("slept")
    lab.disk(ran)
    for vm in (ran, slept):
        lab.xapi.VM.start(vm, False, False)
    lab.shell(ran).run("fill xvda 3")
    lab.shell(ran).run("flush xvda")
    lab.shell(slept).run("touch 1")
    lab.xapi.VM.suspend(slept)
    lab.close()
    daemon.kill()
    daemon = Daemon(tmp_path / "state", *options).ready()
    lab = Lab(daemon, clients.root(daemon))
    assert [lab.xapi.VM.get_power_state(vm) for vm in (ran, slept)] == ["Halted", "Suspended"]
    assert lab.xapi.VM.get_consoles(ran) == []
    lab.xapi.VM.resume(slept, False, False)
    assert lab.shell(slept).values("touched")["bad-frames"] == "0"
    lab.xapi.VM.start(ran, False, False)
    assert lab.shell(ran).values("check xvda 3")["verify"] == "ok"
    lab.close()
    daemon.stop()
