"""Copies of VMs as their guests see them: demo guests of a real daemon, asked through their consoles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon
from tests.clients.guest_console import GuestConsole

MIB = 1 << 20
GUEST = {
    "name_label": "guest", "name_description": "", "user_version": "1", "is_a_template": False, "affinity": "",
    "memory_static_max": str(32 * MIB), "memory_dynamic_max": str(32 * MIB), "memory_dynamic_min": str(32 * MIB),
    "memory_static_min": str(16 * MIB), "VCPUs_params": {}, "VCPUs_max": "1", "VCPUs_at_startup": "1",
    "actions_after_shutdown": "destroy", "actions_after_reboot": "restart", "actions_after_crash": "restart",
    "PV_bootloader": "", "PV_kernel": "demo", "PV_ramdisk": "", "PV_args": "", "PV_bootloader_args": "",
    "PV_legacy_args": "", "HVM_boot_policy": "", "HVM_boot_params": {}, "platform": {}, "PCI_bus": "",
    "other_config": {}, "recommendations": "", "domain_type": "pvh",
}  # fmt: skip

Run = Callable[[str], GuestConsole]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of this file."""
    running = Daemon(tmp_path_factory.mktemp("copies")).ready()
    yield running
    running.stop()


@pytest.fixture
def client(host: Daemon, clients: Clients) -> Any:
    return clients.root(host)


@pytest.fixture
def api(client: Any) -> Iterator[Any]:
    """Root's API; VMs that a test leaves behind go."""
    yield client.xenapi
    for ref, record in client.xenapi.VM.get_all_records().items():
        if not record["is_control_domain"] and not record["is_default_template"]:
            if record["power_state"] in ("Running", "Paused"):
                client.xenapi.VM.hard_shutdown(ref)
            client.xenapi.VM.destroy(ref)


@pytest.fixture
def shell(host: Daemon, client: Any) -> Iterator[Run]:
    """Return the shell of a VM that runs."""
    opened = []

    def run(vm: str) -> GuestConsole:
        opened.append(GuestConsole(client, host.http, vm))
        return opened[-1].prompt()

    yield run
    for each in opened:
        each.close()


def local_sr(api: Any) -> str:
    found: str = next(ref for ref, sr in api.SR.get_all_records().items() if sr["type"] == "ext")
    return found


def add_disk(api: Any, vm: str, number: int = 0) -> str:
    """Give a VM a disk and return the VDI."""
    vdi: str = api.VDI.create({
        "name_label": f"disk {number}", "name_description": "", "SR": local_sr(api), "virtual_size": str(2 * MIB),
        "type": "user", "sharable": False, "read_only": False, "other_config": {}, "xenstore_data": {},
        "sm_config": {}, "tags": [],
    })  # fmt: skip
    api.VBD.create({
        "VM": vm, "VDI": vdi, "userdevice": str(number), "bootable": False, "mode": "RW", "type": "Disk",
        "unpluggable": True, "empty": False, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
    })  # fmt: skip
    return vdi


def add_card(api: Any, vm: str) -> None:
    network = next(ref for ref, row in api.network.get_all_records().items() if row["bridge"] == "xenbr0")
    api.VIF.create({
        "VM": vm, "network": network, "device": "0", "MAC": "", "MTU": "1500", "other_config": {},
        "qos_algorithm_type": "", "qos_algorithm_params": {}, "locking_mode": "network_default",
    })  # fmt: skip


@pytest.fixture
def vm(api: Any) -> str:
    """A halted VM with a disk and a card."""
    made: str = api.VM.create(GUEST)
    add_disk(api, made)
    add_card(api, made)
    return made


def started(api: Any, vm: str) -> str:
    api.VM.start(vm, False, False)
    return vm


def sign(guest: GuestConsole, seed: int) -> None:
    """Write a signature over 64 KiB of the disk."""
    assert "bytes: 65536" in guest.run(f"write xvda 65536 65536 {seed}")
    assert "done: ok" in guest.run("flush xvda")


def signed(guest: GuestConsole, seed: int) -> bool:
    return "verify: ok" in guest.run(f"verify xvda 65536 65536 {seed}")


def vdis(api: Any, vm: str) -> list[str]:
    return [api.VBD.get_VDI(vbd) for vbd in api.VM.get_VBDs(vm)]


def macs(api: Any, vm: str) -> list[str]:
    return [api.VIF.get_MAC(vif) for vif in api.VM.get_VIFs(vm)]


def as_vm(api: Any, snapshot: str) -> str:
    """Return a VM made of a snapshot."""
    made: str = api.VM.clone(snapshot, "made of a snapshot")
    api.VM.set_is_a_template(made, False)
    return made


def test_a_snapshot_of_a_running_guest_keeps_its_disk(api: Any, vm: str, shell: Run) -> None:
    """The guest writes on; a VM made of the snapshot, and a revert, find what there was."""
    guest = shell(started(api, vm))
    sign(guest, 1)
    snapshot = api.VM.snapshot(vm, "one")
    sign(guest, 2)
    assert signed(guest, 2)
    other = shell(started(api, as_vm(api, snapshot)))
    assert signed(other, 1)
    sign(other, 3)
    assert signed(guest, 2)
    api.VM.revert(snapshot)
    assert api.VM.get_power_state(vm) == "Halted"
    assert signed(shell(started(api, vm)), 1)
    assert signed(other, 3)


def test_a_clone_has_its_own_disk_and_mac(api: Any, vm: str, shell: Run) -> None:
    """Of two guests that run side by side neither sees what the other writes."""
    guest = shell(started(api, vm))
    sign(guest, 1)
    api.VM.hard_shutdown(vm)
    for number in range(1, 6):
        add_disk(api, vm, number)
    clone = api.VM.clone(vm, "clone")
    assert len(set(vdis(api, vm)) | set(vdis(api, clone))) == 12
    copy = api.VM.copy(vm, "copy", "OpaqueRef:NULL")
    guests = [shell(started(api, each)) for each in (vm, clone, copy)]
    assert all(signed(each, 1) for each in guests)
    for seed, each in enumerate(guests, 10):
        sign(each, seed)
    assert all(signed(each, seed) for seed, each in enumerate(guests, 10))
    seen = [each.run("net") for each in guests]
    assert all(mac.lower() in text.lower() for each, text in zip((vm, clone, copy), seen, strict=True)
               for mac in macs(api, each))  # fmt: skip
    assert len({mac for each in (vm, clone, copy) for mac in macs(api, each)}) == 3


def test_a_checkpoint_keeps_what_the_guest_counts(api: Any, vm: str, shell: Run) -> None:
    """The guest goes on counting; after a revert, it goes on from where it was saved, with the disk of then."""
    guest = shell(started(api, vm))
    sign(guest, 1)
    count_to(guest, 5)
    domid = api.VM.get_domid(vm)
    checkpoint = api.VM.checkpoint(vm, "counting")
    saved = count(guest)
    assert (api.VM.get_power_state(vm), api.VM.get_domid(vm)) == ("Running", domid)
    assert api.VM.get_power_state(checkpoint) == "Suspended"
    sign(guest, 2)
    count_to(guest, saved + 30)
    for _ in range(2):
        api.VM.revert(checkpoint)
        assert api.VM.get_power_state(vm) == "Suspended"
        api.VM.resume(vm, False, False)
        again = shell(vm)
        assert 5 <= count(again) < saved + 30
        assert signed(again, 1)


def count(guest: GuestConsole) -> int:
    """Return the guest's counter of tenths of seconds; the first look starts it."""
    return int(guest.values("counter")["counter"])


def count_to(guest: GuestConsole, least: int) -> None:
    guest.until("counter", lambda text: int(text.partition("counter: ")[2].split()[0]) >= least)


def test_a_template_is_installed_as_clients_do_it(api: Any, shell: Run) -> None:
    """Clone, say where the disks go, provision, start; then destroy all of it."""
    (template,) = [ref for ref, row in api.VM.get_all_records().items()
                   if row["is_default_template"] and "disks" in row["other_config"]
                   and row["reference_label"] == "debian-12"] or [None]  # fmt: skip
    assert template is not None
    vm = api.VM.clone(template, "installed")
    sr = api.SR.get_uuid(local_sr(api))
    wish = api.VM.get_other_config(vm)["disks"].replace('sr=""', f'sr="{sr}"')
    api.VM.remove_from_other_config(vm, "disks")
    api.VM.add_to_other_config(vm, "disks", wish)
    api.VM.provision(vm)
    record = api.VM.get_record(vm)
    assert "disks" not in record["other_config"]
    assert record["other_config"]["base_template_name"] == api.VM.get_name_label(template)
    (vdi,) = vdis(api, vm)
    assert api.VDI.get_name_label(vdi) == "0"
    assert int(api.VDI.get_virtual_size(vdi)) > 1 << 30
    api.VM.set_memory_limits(vm, str(32 * MIB), str(64 * MIB), str(64 * MIB), str(64 * MIB))
    add_card(api, vm)
    assert "xvda: number=51712 state=connected bytes=10737418240" in shell(started(api, vm)).until(
        "disks", lambda text: "connected" in text
    )
    api.VM.hard_shutdown(vm)
    api.VM.destroy(vm)
    api.VDI.destroy(vdi)
    with pytest.raises(XenAPI.Failure) as caught:
        api.VM.get_record(vm)
    assert caught.value.details == ["HANDLE_INVALID", "VM", vm]


def test_a_restart_keeps_checkpoints(tmp_path: Path, clients: Clients) -> None:
    """A daemon that is killed knows its snapshots, their disks and their memory."""
    first = Daemon(tmp_path / "state").ready()
    try:
        client = clients.root(first)
        api = client.xenapi
        vm = api.VM.create(GUEST)
        add_disk(api, vm)
        guest = GuestConsole(client, first.http, started(api, vm)).prompt()
        sign(guest, 1)
        count_to(guest, 5)
        checkpoint = api.VM.checkpoint(vm, "kept")
        sign(guest, 2)
        guest.close()
    finally:
        first.kill()
    second = Daemon(tmp_path / "state").ready()
    try:
        client = clients.root(second)
        api = client.xenapi
        assert api.VM.get_power_state(vm) == "Halted"
        api.VM.revert(checkpoint)
        api.VM.resume(vm, False, False)
        guest = GuestConsole(client, second.http, vm).prompt()
        assert count(guest) >= 5
        assert signed(guest, 1)
        guest.close()
        second.stop()
    finally:
        second.kill()
