"""Disks through the API of the real daemon, read by another program: qemu-img."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon
from tests.clients.guest_console import GuestConsole
from tests.guests.demo_guest import pattern

MIB = 1 << 20
NULL = "OpaqueRef:NULL"
QEMU_IMG = shutil.which("qemu-img") or ""

pytestmark = pytest.mark.skipif(not QEMU_IMG, reason="qemu-img is not installed")


class Host:
    """One daemon with a client, and its local storage."""

    def __init__(self, daemon: Daemon, client: Any) -> None:
        self.daemon = daemon
        self.client = client
        self.xapi = client.xenapi
        self.shells: list[GuestConsole] = []
        (self.sr,) = self.xapi.SR.get_by_name_label("Local storage")
        self.folder = daemon.state / "storage" / self.xapi.SR.get_uuid(self.sr)

    def create(self, size: int = 8 * MIB, **more: Any) -> str:
        record = {"SR": self.sr, "name_label": "disk", "virtual_size": str(size), "type": "user", "sharable": False,
                  "read_only": False, "other_config": {}, **more}  # fmt: skip
        vdi: str = self.xapi.VDI.create(record)
        return vdi

    def path(self, vdi: str) -> Path:
        return Path(self.folder, f"{self.xapi.VDI.get_location(vdi)}.vhd")

    def guest(self, vdi: str) -> tuple[str, GuestConsole]:
        """Start a demo guest with a disk; return the VM and its shell."""
        vm = self.xapi.VM.clone(self.xapi.VM.get_by_name_label("Demo guest")[0], "guest")
        self.xapi.VM.provision(vm)
        record = {"VM": vm, "VDI": vdi, "userdevice": "0", "bootable": False, "mode": "RW", "type": "Disk",
                  "empty": False, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}  # fmt: skip
        self.xapi.VBD.create(record)
        self.xapi.VM.start(vm, False, False)
        return vm, self.shell(vm)

    def shell(self, vm: str) -> GuestConsole:
        self.shells.append(GuestConsole(self.client, self.daemon.http, vm))
        return self.shells[-1].prompt()

    def close(self) -> None:
        for shell in self.shells:
            shell.close()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    daemon, clients = Daemon(tmp_path_factory.mktemp("disks")).ready(), Clients()
    made = Host(daemon, clients.root(daemon))
    yield made
    made.close()
    clients.close()
    log = daemon.stop()
    assert not [line for line in log if "#error]" in line or "#critical]" in line or "Traceback" in line]


def info(path: Path) -> Any:
    # The daemon has a lock on images in use; --force-share reads all the same.
    command = [QEMU_IMG, "info", "--force-share", "--output=json", "-f", "vpc", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def content(host: Host, vdi: str, tmp_path: Path) -> bytes:
    """Return a disk's bytes as qemu-img reads its image, which has no parent: those it does not read."""
    assert "vhd-parent" not in host.xapi.VDI.get_sm_config(vdi)
    target = tmp_path / "raw"
    subprocess.run([QEMU_IMG, "convert", "-f", "vpc", "-O", "raw", str(host.path(vdi)), str(target)], check=True)
    return target.read_bytes()


def test_a_new_disk_is_a_vhd(host: Host) -> None:
    """As large as its record says, and sparse."""
    vdi = host.create(1 << 30)
    found = info(host.path(vdi))
    assert (found["format"], found["virtual-size"]) == ("vpc", 1 << 30)
    assert found["actual-size"] < MIB
    assert int(host.xapi.VDI.get_physical_utilisation(vdi)) == found["actual-size"]
    host.xapi.VDI.resize(vdi, str(3 << 30))
    assert info(host.path(vdi))["virtual-size"] == 3 << 30
    path = host.path(vdi)
    host.xapi.VDI.destroy(vdi)
    assert not path.exists()


def test_what_a_guest_wrote_is_in_the_file(host: Host, tmp_path: Path) -> None:
    """Through a snapshot taken while it runs, and copies of both."""
    vdi = host.create()
    vm, shell = host.guest(vdi)
    shell.run("write xvda 0 65536 5")
    taken = host.xapi.VDI.snapshot(vdi, {})
    shell.run("write xvda 0 65536 6")
    record = host.xapi.VDI.get_record(taken)
    assert (record["is_a_snapshot"], record["snapshot_of"]) == (True, vdi)
    with pytest.raises(XenAPI.Failure) as caught:
        host.xapi.VDI.destroy(vdi)
    assert caught.value.details[0] == "VDI_IN_USE"
    host.xapi.VM.hard_shutdown(vm)
    for disk, seed in ((taken, 5), (vdi, 6)):
        whole = host.xapi.VDI.copy(disk, host.sr, NULL, NULL)
        assert content(host, whole, tmp_path) == pattern(seed, 0, 65536) + bytes(8 * MIB - 65536)
        assert host.xapi.VDI.get_snapshot_of(whole) == NULL


def test_disks_and_their_names_outlive_a_crash(host: Host, start: Callable[..., Daemon], clients: Clients) -> None:
    """What was answered is there, and so is what a guest has flushed; the scan after it changes nothing."""
    daemon = start().ready()
    first = Host(daemon, clients.root(daemon))
    vdi = first.create(name_label="precious")
    _, shell = first.guest(vdi)
    shell.run("write xvda 0 65536 7")
    shell.run("flush xvda")
    taken = first.xapi.VDI.snapshot(vdi, {})
    first.close()
    daemon.kill()
    again = start().ready()
    second = Host(again, clients.root(again))
    before = second.xapi.VDI.get_all_records()
    assert before[vdi]["name_label"] == before[taken]["name_label"] == "precious"
    second.xapi.SR.scan(second.sr)
    after = second.xapi.VDI.get_all_records()
    sizes = {ref: record.pop("physical_utilisation") for ref, record in before.items()}
    assert {ref: record.pop("physical_utilisation") for ref, record in after.items()}.keys() == sizes.keys()
    assert after == before
    _, shell = second.guest(second.xapi.VDI.clone(taken, {}))
    assert "mismatches: 0" in shell.run("verify xvda 0 65536 7")
    second.close()
    again.stop()


def test_a_declared_disk_of_an_inventory(start: Callable[..., Daemon], clients: Clients) -> None:
    """It takes no space until its VM starts."""
    daemon = start("--vms", "3").ready()
    api = clients.root(daemon).xenapi
    assert not (daemon.state / "storage").exists()
    (vm,) = api.VM.get_by_name_label("vm-000001")
    api.VM.start(vm, False, False)
    (vbd,) = api.VM.get_VBDs(vm)
    vdi = api.VDI.get_record(api.VBD.get_VDI(vbd))
    images = list((daemon.state / "storage" / api.SR.get_uuid(vdi["SR"])).glob("*.vhd"))
    assert [path.stem for path in images] == [vdi["uuid"]]
    assert info(images[0])["virtual-size"] == int(vdi["virtual_size"])
    api.SR.scan(vdi["SR"])
    assert len([row for row in api.VDI.get_all_records().values() if row["SR"] == vdi["SR"]]) == 3
    daemon.stop()


def test_an_sr_s_whole_life(host: Host, tmp_path: Path) -> None:
    """Made, filled, unplugged, forgotten, introduced, destroyed."""
    api = host.xapi
    (where,) = api.host.get_all()
    place = tmp_path / "sr"
    config = {"location": str(place)}
    sr = api.SR.create(where, config, "0", "mine", "", "file", "user", False, {})
    vdi = host.create(SR=sr, name_label="inside")
    uuids = api.SR.get_uuid(sr), api.VDI.get_uuid(vdi)
    assert (place / f"{uuids[1]}.vhd").is_file()
    (pbd,) = api.SR.get_PBDs(sr)
    api.PBD.unplug(pbd)
    api.SR.forget(sr)
    again = api.SR.introduce(uuids[0], "mine", "", "file", "user", False, {})
    pbd = api.PBD.create({"SR": again, "host": where, "device_config": config})
    api.PBD.plug(pbd)
    found = api.VDI.get_by_uuid(uuids[1])
    assert api.VDI.get_name_label(found) == "inside"
    api.VDI.destroy(found)
    api.PBD.unplug(pbd)
    api.SR.destroy(again)
    assert not place.exists()


def test_a_suspended_vm_has_a_disk_with_its_memory(host: Host) -> None:
    """Which goes when it is resumed; the guest goes on."""
    vm, shell = host.guest(host.create())
    shell.run("xenstore write data/before suspend")
    host.xapi.VM.suspend(vm)
    saved = host.xapi.VM.get_suspend_VDI(vm)
    record = host.xapi.VDI.get_record(saved)
    path = host.folder / f"{record['location']}.raw"
    assert (record["type"], record["sm_config"]) == ("suspend", {"type": "raw"})
    assert 0 <= path.stat().st_size - int(record["virtual_size"]) < 512
    host.xapi.SR.scan(host.sr)
    assert host.xapi.VDI.get_type(saved) == "suspend"
    host.xapi.VM.resume(vm, False, False)
    assert host.xapi.VM.get_suspend_VDI(vm) == NULL
    assert not path.exists()
    host.shell(vm)
    host.xapi.VM.hard_shutdown(vm)
