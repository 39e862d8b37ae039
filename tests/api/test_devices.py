"""Drives and network cards of VMs: rows, rules, and what the host is asked for; the backend is a fake."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from hypervisor.api import NIC, Code, Disk, HostError, VolumeHandle
from tests.api.test_power import make_vm, running
from tests.conftest import Pool
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL

MAC = "02:00:00:00:00:01"


@pytest.fixture(autouse=True)
def images(pool: Pool) -> None:
    """Every VDI has an image, whose name is the VDI's."""

    async def volume(work: Any, host: Any, vdi: Any) -> VolumeHandle:
        return VolumeHandle("sr", vdi.uuid)

    pool.daemon.storage.volume = volume  # type: ignore[method-assign]


def make_vdi(pool: Pool, **fields: Any) -> Any:
    with pool.db.atomic():
        sr = pool.db.SR.create(type="ext")
        for host in pool.db.host:
            pool.db.PBD.create(SR=sr._ref, host=host._ref, currently_attached=True)
        given: dict[str, Any] = {
            "type": "user",
            "managed": True,
            "sharable": False,
            "virtual_size": 1 << 20,
            "SR": sr._ref,
        }
        row = pool.db.VDI.create(**(given | fields))
    pool.turn()
    return row


def record(vm: Any, vdi: Any = None, **fields: Any) -> dict[str, Any]:
    """Return what VBD.create takes: a disk, or an empty CD drive without a VDI."""
    kind = {"type": "Disk", "mode": "RW", "VDI": vdi._ref} if vdi is not None else {"type": "CD", "mode": "RO"}
    given = {"VM": vm._ref, "VDI": NULL, "userdevice": "autodetect", "empty": vdi is None, "bootable": False}
    given |= {"other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}
    return given | kind | fields


def drive(pool: Pool, vm: Any, vdi: Any = None, **fields: Any) -> Any:
    """Return the row of a new VBD."""
    return pool.db.VBD[pool("VBD.create", record(vm, vdi, **fields))]


def card_record(pool: Pool, vm: Any, **fields: Any) -> dict[str, Any]:
    given = {"VM": vm._ref, "network": plain_network(pool)._ref, "device": "0", "MAC": MAC, "MTU": 1500}
    return given | {"other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}} | fields


def card(pool: Pool, vm: Any, **fields: Any) -> Any:
    """Return the row of a new VIF."""
    return pool.db.VIF[pool("VIF.create", card_record(pool, vm, **fields))]


def plain_network(pool: Pool) -> Any:
    return next(network for network in pool.db.network if network.PIFs)


def plugged(pool: Pool, vm: Any, kind: type[Any]) -> dict[int, Any]:
    """Return the devices of a VM's domain."""
    devices = pool.backend.doms[vm.uuid].devices
    return {number: device for (type_, number), device in devices.items() if type_ is kind}


def devices_of(row: Any) -> tuple[bool, dict[str, str]]:
    return row.currently_attached, dict(row.current_operations)


# Records of drives


def test_a_new_drive_has_the_first_free_number(pool: Pool) -> None:
    """autodetect becomes a number; metrics are made; nothing is plugged."""
    vm = running(pool)
    first, second = drive(pool, vm), drive(pool, vm, make_vdi(pool))
    assert (first.userdevice, second.userdevice, second.device) == ("0", "1", "")
    assert first.metrics in pool.db.VBD_metrics
    assert (first.empty, first.VDI, first.currently_attached) == (True, NULL, False)
    assert plugged(pool, vm, Disk) == {}


def test_free_numbers_are_in_the_order_of_numbers(pool: Pool) -> None:
    """Of drives 0 to 254, of cards 0 to 15."""
    vm = make_vm(pool)
    drive(pool, vm, userdevice="1")
    card(pool, vm, device="2")
    numbers = pool("VM.get_allowed_VBD_devices", vm._ref)
    assert numbers == ["0"] + [str(number) for number in range(2, 255)]
    assert pool("VM.get_allowed_VIF_devices", vm._ref) == [str(number) for number in range(16) if number != 2]


@pytest.mark.parametrize("name", ["3", "xvdd", "hdd", "sdd", "d3"])
def test_names_stand_for_numbers(pool: Pool, name: str) -> None:
    """They are kept as they are, and clash with the number."""
    vm = make_vm(pool)
    assert drive(pool, vm, userdevice=name).userdevice == name
    assert pool.fails("VBD.create", record(vm, userdevice="3")) == ["DEVICE_ALREADY_EXISTS", "3"]
    assert pool.fails("VBD.create", record(vm, userdevice="xvdd")) == ["DEVICE_ALREADY_EXISTS", "xvdd"]


@pytest.mark.parametrize("name", ["", "-1", "xvd", "xvdaaaa", "sda1", "fda", "1x", "99999999999", "٣", "Autodetect"])
def test_what_names_no_drive_is_refused(pool: Pool, name: str) -> None:
    """With the name in the error."""
    assert pool.fails("VBD.create", record(make_vm(pool), userdevice=name)) == ["INVALID_DEVICE", name]


def test_what_a_drive_cannot_be(pool: Pool) -> None:
    """In xapi's order of checks."""
    vm, vdi = make_vm(pool), make_vdi(pool)
    bad = make_vdi(pool, type="cbt_metadata")
    locked = make_vdi(pool, read_only=True)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        (record(vm, bad), ["VDI_INCOMPATIBLE_TYPE", bad._ref, "cbt_metadata"]),
        (record(vm, vdi, type="CD"), ["VBD_CDS_MUST_BE_READONLY"]),
        (record(vm, type="Disk"), ["VBD_NOT_REMOVABLE_MEDIA", "in constructor"]),
        (record(vm, locked), ["VDI_READONLY", locked._ref]),
        (record(vm, vdi, VDI=NULL), ["HANDLE_INVALID", "VDI", NULL]),
        (record(vm, vdi, VM="OpaqueRef:no"), ["HANDLE_INVALID", "VM", "OpaqueRef:no"]),
        (record(vm, vdi, type="Floppy"), ["NOT_IMPLEMENTED", "VBD of type 'floppy' is not supported"]),
    ]
    for given, expected in cases:
        assert pool.fails("VBD.create", given) == expected
    assert not len(pool.db.VBD) and not len(pool.db.VBD_metrics)


def test_a_plugged_drive_cannot_be_destroyed(pool: Pool) -> None:
    """An unplugged one goes with its metrics."""
    vm = running(pool)
    row = drive(pool, vm, make_vdi(pool))
    pool("VBD.plug", row._ref)
    text = f"VBD '{row.uuid}' still attached to '{vm.uuid}'"
    assert pool.fails("VBD.destroy", row._ref) == ["OPERATION_NOT_ALLOWED", text]
    pool("VBD.unplug", row._ref)
    pool("VBD.destroy", row._ref)
    assert not len(pool.db.VBD) and not len(pool.db.VBD_metrics)


def test_set_mode_needs_a_halted_vm(pool: Pool) -> None:
    """The guest would not hear of it."""
    vm = running(pool)
    row = drive(pool, vm, make_vdi(pool))
    assert pool.fails("VBD.set_mode", row._ref, "RO") == ["VM_BAD_POWER_STATE", vm._ref, "halted", "running"]
    pool("VM.hard_shutdown", vm._ref)
    pool("VBD.set_mode", row._ref, "RO")
    assert row.mode == "RO"


# Plugging drives


def test_plug_and_unplug(pool: Pool) -> None:
    """The domain has the disk while the row says so."""
    vm, vdi = running(pool), make_vdi(pool)
    row = drive(pool, vm, vdi, userdevice="4")
    pool("VBD.plug", row._ref)
    assert plugged(pool, vm, Disk) == {4: Disk(4, volume=VolumeHandle("sr", vdi.uuid))}
    assert (*devices_of(row), row.device) == (True, {}, "xvde")
    assert pool.fails("VBD.plug", row._ref) == ["DEVICE_ALREADY_ATTACHED", row._ref]
    pool("VBD.unplug", row._ref)
    assert plugged(pool, vm, Disk) == {}
    assert devices_of(row) == (False, {})
    assert pool.fails("VBD.unplug", row._ref) == ["DEVICE_ALREADY_DETACHED", row._ref]


@pytest.mark.parametrize("force", ["VBD.unplug_force", "VBD.unplug_force_no_safety_check"])
def test_a_guest_that_keeps_a_drive(pool: Pool, force: str) -> None:
    """unplug says so and the drive stays; with force it goes."""
    vm = running(pool)
    row = drive(pool, vm, make_vdi(pool))
    pool("VBD.plug", row._ref)
    pool.backend.deaf = True
    assert pool.fails("VBD.unplug", row._ref) == ["DEVICE_DETACH_TIMEOUT", "VBD", row._ref]
    assert devices_of(row) == (True, {})
    pool(force, row._ref)
    assert devices_of(row) == (False, {})


def test_a_disk_that_cannot_be_opened_is_not_plugged(pool: Pool) -> None:
    """The VDI's error, and nothing is left."""
    vm, vdi = running(pool), make_vdi(pool)
    row = drive(pool, vm, vdi)
    pool.backend.fail["plug"] = HostError(Code.BAD_DISK, "no VHD")
    assert pool.fails("VBD.plug", row._ref) == ["VDI_NOT_AVAILABLE", vdi._ref]
    assert devices_of(row) == (False, {})


def test_a_cancelled_plug_leaves_nothing(pool: Pool) -> None:
    """Neither in the domain nor in the rows."""
    vm = running(pool)
    row = drive(pool, vm, make_vdi(pool))
    pool.backend.held["plug"] = Deferred()
    task = pool("Async.VBD.plug", row._ref)
    pool.turn()
    assert dict(row.current_operations) == {task: "plug"}
    assert pool.fails("VBD.destroy", row._ref)[0] == "OPERATION_NOT_ALLOWED"
    pool("task.cancel", task)
    pool.turn()
    assert pool.db.task[task].status == "cancelled"
    assert devices_of(row) == (False, {})
    assert plugged(pool, vm, Disk) == {}
    assert "unplug" in pool.backend.calls


def test_one_disk_has_one_writer(pool: Pool) -> None:
    """Readers may share it, and anybody a sharable one."""
    vdi = make_vdi(pool)
    first, second = running(pool), running(pool)
    writer = drive(pool, first, vdi)
    other = drive(pool, second, vdi)
    pool("VBD.plug", writer._ref)
    assert pool.fails("VBD.plug", other._ref) == ["VDI_IN_USE", vdi._ref]
    assert pool.fails("VBD.assert_attachable", other._ref) == ["VDI_IN_USE", vdi._ref]
    vdi.sharable = True
    pool("VBD.plug", other._ref)
    assert other.currently_attached


def test_a_disk_that_is_being_plugged_counts_as_used(pool: Pool) -> None:
    """Two plugs at the same time do not both pass."""
    vdi = make_vdi(pool)
    first, second = drive(pool, running(pool), vdi), drive(pool, running(pool), vdi)
    held: Deferred[None] = Deferred()
    pool.backend.held["plug"] = held
    waiting = pool.start("VBD.plug", pool.session, first._ref)
    pool.turn()
    assert pool.fails("VBD.plug", second._ref) == ["VDI_IN_USE", vdi._ref]
    held.callback(None)
    pool.outcome(waiting)
    assert first.currently_attached and not second.currently_attached


def test_a_read_only_disk_of_an_emulated_machine(pool: Pool) -> None:
    """DISK_VBD_MUST_BE_READWRITE_FOR_HVM, as real hosts have it."""
    vm = running(pool, domain_type="hvm")
    row = drive(pool, vm, make_vdi(pool), mode="RO")
    assert pool.fails("VBD.plug", row._ref) == ["DISK_VBD_MUST_BE_READWRITE_FOR_HVM", row._ref]


def test_a_drive_stays_where_it_was_plugged(pool: Pool) -> None:
    """set_userdevice holds from the next plug on; two drives can be exchanged."""
    vm = running(pool)
    first, second = drive(pool, vm, make_vdi(pool)), drive(pool, vm, make_vdi(pool))
    for row in (first, second):
        pool("VBD.plug", row._ref)
    pool("VBD.set_userdevice", first._ref, "1")
    pool("VBD.set_userdevice", second._ref, "0")
    pool("VM.pause", vm._ref)
    assert (first.device, second.device) == ("xvda", "xvdb")
    assert first.currently_attached and second.currently_attached
    pool("VM.unpause", vm._ref)
    pool("VBD.unplug", second._ref)
    assert set(plugged(pool, vm, Disk)) == {0}
    pool("VM.hard_reboot", vm._ref)
    assert plugged(pool, vm, Disk)[1].volume == VolumeHandle("sr", pool.db.VDI[first.VDI].uuid)
    assert pool.fails("VBD.set_userdevice", first._ref, "x") == ["INVALID_DEVICE", "x"]


def test_two_drives_of_one_number_do_not_start(pool: Pool) -> None:
    """The start says which."""
    vm = make_vm(pool)
    drive(pool, vm, make_vdi(pool))
    second = drive(pool, vm, make_vdi(pool))
    pool("VBD.set_userdevice", second._ref, "xvda")
    assert pool.fails("VM.start", vm._ref, False, False) == ["DEVICE_ALREADY_EXISTS", "0"]
    assert vm.power_state == "Halted"


def test_two_drives_of_one_disk_do_not_start(pool: Pool) -> None:
    """Within one VM either: each drive is held by the rules that those before it make."""
    vm, vdi = make_vm(pool), make_vdi(pool)
    rows = [drive(pool, vm, vdi), drive(pool, vm, vdi, mode="RO")]
    assert pool.fails("VM.start", vm._ref, False, False) == ["VDI_IN_USE", vdi._ref]
    assert [devices_of(row) for row in rows] == [(False, {}), (False, {})]


def test_a_number_belongs_to_the_drive_that_is_plugged(pool: Pool) -> None:
    """Another that wants it is not taken for it."""
    vm = running(pool)
    first, second = drive(pool, vm, make_vdi(pool)), drive(pool, vm, make_vdi(pool))
    pool("VBD.plug", first._ref)
    pool("VBD.set_userdevice", second._ref, "0")
    assert pool.fails("VBD.plug", second._ref) == ["DEVICE_ALREADY_ATTACHED", second._ref]
    pool.backend.attention(vm.uuid)
    pool.turn()
    assert (first.currently_attached, second.currently_attached) == (True, False)


def test_pause_is_for_storage_that_can(pool: Pool) -> None:
    """As every storage driver answers today."""
    vm, vdi = running(pool), make_vdi(pool)
    row = drive(pool, vm, vdi)
    assert pool.fails("VBD.pause", row._ref) == ["SR_OPERATION_NOT_SUPPORTED", vdi.SR]
    assert pool.fails("VBD.unpause", row._ref, "") == ["SR_OPERATION_NOT_SUPPORTED", vdi.SR]


# CDs


@pytest.fixture
def iso(pool: Pool) -> Any:
    return make_vdi(pool, read_only=True)


def test_insert_and_eject_of_a_running_guest(pool: Pool, iso: Any) -> None:
    """The drive stays, the medium changes."""
    vm = make_vm(pool)
    row = drive(pool, vm)
    pool("VM.start", vm._ref, False, False)
    pool("VBD.insert", row._ref, iso._ref)
    assert plugged(pool, vm, Disk)[0].volume == VolumeHandle("sr", iso.uuid)
    assert (row.VDI, row.empty, devices_of(row)) == (iso._ref, False, (True, {}))
    assert pool.fails("VBD.insert", row._ref, iso._ref) == ["VBD_NOT_EMPTY", row._ref]
    pool("VBD.eject", row._ref)
    assert plugged(pool, vm, Disk)[0].volume is None
    assert (row.VDI, row.empty, devices_of(row)) == (NULL, True, (True, {}))
    assert pool.fails("VBD.eject", row._ref) == ["VBD_IS_EMPTY", row._ref]


def test_insert_and_eject_of_a_halted_vm(pool: Pool, iso: Any) -> None:
    """Rows only."""
    row = drive(pool, make_vm(pool))
    pool("VBD.insert", row._ref, iso._ref)
    assert (row.VDI, row.empty) == (iso._ref, False)
    pool("VBD.eject", row._ref)
    assert (row.VDI, row.empty) == (NULL, True)
    assert pool.backend.calls == []


@pytest.mark.parametrize("message", ["VBD.insert", "VBD.eject"])
def test_a_change_of_medium_that_fails_changes_nothing(pool: Pool, iso: Any, message: str) -> None:
    """Row and drive agree afterwards."""
    vm = make_vm(pool)
    row = drive(pool, vm)
    pool("VM.start", vm._ref, False, False)
    arguments = [row._ref, iso._ref]
    if message == "VBD.eject":
        pool("VBD.insert", *arguments)
        arguments = [row._ref]
    before = (row.VDI, row.empty, plugged(pool, vm, Disk))
    pool.backend.fail["adjust"] = HostError(Code.FAILED, "by the test")
    assert pool.fails(message, *arguments) == ["INTERNAL_ERROR", "failed: by the test"]
    assert (row.VDI, row.empty, plugged(pool, vm, Disk)) == before
    assert devices_of(row) == (True, {})


def test_a_cd_that_cannot_be_inserted(pool: Pool, iso: Any) -> None:
    """A disk has no lid; a disk in use by a writer, or one that is being worked on, is no CD."""
    vm = running(pool)
    disk = drive(pool, vm, make_vdi(pool))
    assert pool.fails("VBD.insert", disk._ref, iso._ref) == ["VBD_NOT_REMOVABLE_MEDIA", disk._ref]
    pool("VBD.plug", disk._ref)
    row = drive(pool, vm)
    assert pool.fails("VBD.insert", row._ref, disk.VDI) == ["VDI_IN_USE", disk.VDI]
    iso.managed = False
    assert pool.fails("VBD.insert", row._ref, iso._ref) == ["VDI_NOT_MANAGED", iso._ref]
    assert pool.fails("VBD.insert", row._ref, NULL) == ["HANDLE_INVALID", "VDI", NULL]
    assert row.empty


def test_a_drive_that_is_not_plugged_yet_is_plugged_with_its_cd(pool: Pool, iso: Any) -> None:
    """As real hosts do for PV guests."""
    vm = running(pool)
    row = drive(pool, vm)
    pool("VBD.insert", row._ref, iso._ref)
    assert row.currently_attached
    assert plugged(pool, vm, Disk)[0].is_cdrom


# Cards


def test_a_new_card(pool: Pool) -> None:
    """With the address that is given."""
    vm = make_vm(pool)
    row = card(pool, vm, device="3")
    assert (row.device, row.MAC, row.MAC_autogenerated, row.currently_attached) == ("3", MAC, False, False)
    assert row.metrics in pool.db.VIF_metrics
    assert pool.fails("VIF.create", card_record(pool, vm, device="03")) == ["DEVICE_ALREADY_EXISTS", "03"]


def test_the_address_follows_from_the_seed(pool: Pool) -> None:
    """The same for the same seed and card, and a local one."""
    vm = make_vm(pool, other_config={"mac_seed": "seed"})
    row = card(pool, vm, MAC="", device="1")
    assert row.MAC_autogenerated
    twin = card(pool, make_vm(pool, other_config={"mac_seed": "seed"}), MAC="", device="1")
    assert twin.MAC == row.MAC != card(pool, vm, MAC="", device="2").MAC
    assert int(row.MAC[:2], 16) & 3 == 2


@pytest.mark.parametrize("mac", ["", "no", "02:00:00:00:00", "02:00:00:00:00:0g", "02-00-00-00-00-01"])
def test_a_bad_address_is_refused(pool: Pool, mac: str) -> None:
    """So is none at all, where there is no seed."""
    assert pool.fails("VIF.create", card_record(pool, make_vm(pool), MAC=mac)) == ["MAC_INVALID", mac]


@pytest.mark.parametrize("device", ["", "-1", "autodetect", "1.0", "4096"])
def test_a_bad_card_number_is_refused(pool: Pool, device: str) -> None:
    """A card has a decimal number."""
    assert pool.fails("VIF.create", card_record(pool, make_vm(pool), device=device)) == ["INVALID_DEVICE", device]


def test_plug_unplug_and_destroy_a_card(pool: Pool) -> None:
    """On the network's bridge, with its MTU and rate."""
    vm = running(pool)
    network = plain_network(pool)
    qos = {"qos_algorithm_type": "ratelimit", "qos_algorithm_params": {"kbps": "500"}}
    row = card(pool, vm, other_config={"mtu": "1400"}, **qos)
    pool("VIF.plug", row._ref)
    nic = plugged(pool, vm, NIC)[0]
    assert (nic.mac, nic.network, nic.mtu, nic.rate) == (MAC, network.bridge, 1400, 500)
    assert network.bridge in pool.backend.up
    assert devices_of(row) == (True, {})
    assert pool.fails("VIF.destroy", row._ref) == ["OPERATION_NOT_ALLOWED", "VIF currently attached to a running VM"]
    pool.backend.deaf = True
    assert pool.fails("VIF.unplug", row._ref) == ["DEVICE_DETACH_TIMEOUT", "VIF", row._ref]
    pool("VIF.unplug_force", row._ref)
    pool("VIF.destroy", row._ref)
    assert not len(pool.db.VIF_metrics) and row._ref not in pool.db.VIF


def test_a_card_moves_while_it_is_plugged(pool: Pool) -> None:
    """And stays where it was when it cannot."""
    vm = running(pool)
    row = card(pool, vm)
    pool("VIF.plug", row._ref)
    old, new = row.network, pool("network.create", {"name_label": "new", "other_config": {}})
    pool.backend.fail["adjust"] = HostError(Code.FAILED, "by the test")
    assert pool.fails("VIF.move", row._ref, new)[0] == "INTERNAL_ERROR"
    assert row.network == old
    del pool.backend.fail["adjust"]
    pool("VIF.move", row._ref, new)
    assert row.network == new
    assert plugged(pool, vm, NIC)[0].network == pool.db.network[new].bridge


def test_a_card_cannot_move_where_its_host_is_not(pool: Pool) -> None:
    """The network's cards are on another host."""
    vm = running(pool)
    row = card(pool, vm)
    pool("VIF.plug", row._ref)
    network = pool.db.network.create(bridge="far", MTU=1500)
    pool.db.PIF.create(network=network._ref, host=pool.db.host.create()._ref, device="eth0", VLAN=-1)
    expected = ["HOST_CANNOT_ATTACH_NETWORK", vm.resident_on, network._ref]
    assert pool.fails("VIF.move", row._ref, network._ref) == expected


def test_locking_holds_at_once(pool: Pool) -> None:
    """Mode and addresses go to the card that is plugged."""
    vm = running(pool)
    row = card(pool, vm)
    pool("VIF.plug", row._ref)
    pool("VIF.set_ipv4_allowed", row._ref, ["192.0.2.1", "192.0.2.1"])
    pool("VIF.add_ipv6_allowed", row._ref, "2001:db8::1")
    pool("VIF.set_locking_mode", row._ref, "locked")
    nic = plugged(pool, vm, NIC)[0]
    assert (nic.locking, nic.allowed_ipv4, nic.allowed_ipv6) == ("locked", ("192.0.2.1",), ("2001:db8::1",))
    pool("VIF.add_ipv4_allowed", row._ref, "192.0.2.2")
    pool("VIF.remove_ipv4_allowed", row._ref, "192.0.2.1")
    pool("VIF.remove_ipv6_allowed", row._ref, "2001:db8::1")
    nic = plugged(pool, vm, NIC)[0]
    assert (nic.allowed_ipv4, nic.allowed_ipv6) == (("192.0.2.2",), ())
    pool("VIF.set_locking_mode", row._ref, "disabled")
    nic = plugged(pool, vm, NIC)[0]
    assert (nic.locking, nic.carrier) == ("disabled", False)


@pytest.mark.parametrize("address", ["", "x", "2001:db8::1", "1.2.3", "1.2.3.4/33", "1.2.3.4/255.255.0.0"])
def test_bad_addresses_are_refused(pool: Pool, address: str) -> None:
    """The field's name is in the error."""
    row = card(pool, make_vm(pool))
    expected = ["INVALID_IP_ADDRESS_SPECIFIED", "ipv4_allowed"]
    assert pool.fails("VIF.add_ipv4_allowed", row._ref, address) == expected
    assert pool.fails("VIF.set_ipv4_allowed", row._ref, ["192.0.2.1", address]) == expected
    assert pool.fails("VIF.add_ipv6_allowed", row._ref, "fe80::1%eth0")[1] == "ipv6_allowed"
    assert row.ipv4_allowed == ()


def test_locking_needs_a_licence_where_the_pool_says_so(pool: Pool) -> None:
    """To lock; to unlock never."""
    row = card(pool, make_vm(pool))
    only = next(iter(pool.db.pool))
    only.restrictions = {**only.restrictions, "restrict_vif_locking": "true"}
    expected = ["LICENCE_RESTRICTION", "VIF_locking"]
    assert pool.fails("VIF.set_locking_mode", row._ref, "locked") == expected
    assert pool.fails("VIF.add_ipv4_allowed", row._ref, "192.0.2.1") == expected
    pool("VIF.set_locking_mode", row._ref, "unlocked")
    pool("VIF.set_ipv4_allowed", row._ref, [])


def test_addresses_for_the_guests_agent(pool: Pool) -> None:
    """Only of a guest whose agent says that it can."""
    vm = running(pool)
    row = card(pool, vm)
    pool("VIF.plug", row._ref)
    give = ("VIF.configure_ipv4", row._ref, "Static", "192.0.2.7/24", "192.0.2.1")
    assert pool.fails(*give) == ["VM_LACKS_FEATURE", vm._ref]
    pool.backend.doms[vm.uuid].guest["control/feature-static-ip-setting"] = "1"
    pool.backend.attention(vm.uuid)
    pool.turn()
    pool(*give)
    assert (row.ipv4_configuration_mode, row.ipv4_addresses, row.ipv4_gateway) == (
        "Static", ("192.0.2.7/24",), "192.0.2.1"
    )  # fmt: skip
    expected = {"enabled": "1", "address": "192.0.2.7/24", "gateway": "192.0.2.1", "enabled6": "0"}
    assert plugged(pool, vm, NIC)[0].static_ip == expected
    pool("VIF.configure_ipv6", row._ref, "Autoconf", "", "")
    pool("VIF.configure_ipv4", row._ref, "None", "", "")
    assert plugged(pool, vm, NIC)[0].static_ip == {"enabled": "0", "enabled6": "2"}
    for arguments, error in (
        (("192.0.2.7", ""), ["INVALID_CIDR_ADDRESS_SPECIFIED", "address"]),
        (("192.0.2.7/24", "x"), ["INVALID_IP_ADDRESS_SPECIFIED", "gateway"]),
    ):
        assert pool.fails("VIF.configure_ipv4", row._ref, "Static", *arguments) == error
    pool("VIF.set_locking_mode", row._ref, "locked")
    assert pool.fails(*give) == ["ADDRESS_VIOLATES_LOCKING_CONSTRAINT", "192.0.2.7/24"]
    pool("VIF.set_ipv4_allowed", row._ref, ["192.0.2.7"])
    pool(*give)


def test_trunks(pool: Pool) -> None:
    """Tags of VLANs, not on the network of one."""
    vm = running(pool)
    row = card(pool, vm)
    pool("VIF.plug", row._ref)
    pool("VIF.set_trunks", row._ref, ["5", "6"])
    pool("VIF.add_trunks", row._ref, "7")
    pool("VIF.remove_trunks", row._ref, "5")
    assert row.trunks == plugged(pool, vm, NIC)[0].trunks == (7, 6)
    assert pool.fails("VIF.add_trunks", row._ref, "4095") == ["VLAN_TAG_INVALID", "4095"]
    pool.db.PIF[next(iter(plain_network(pool).PIFs))].VLAN = 3
    assert pool.fails("VIF.add_trunks", row._ref, "8") == ["NETWORK_INCOMPATIBLE_WITH_TRUNKS", row.network]


def test_a_vm_that_ends_during_a_plug(pool: Pool) -> None:
    """The plug fails, and the rows say Halted."""
    vm = running(pool)
    row = card(pool, vm)
    held: Deferred[None] = Deferred()
    pool.backend.held["plug"] = held
    waiting = pool.start("VIF.plug", pool.session, row._ref)
    pool.turn()
    pool.backend.doms.pop(vm.uuid)
    held.callback(None)
    with pytest.raises(Fault) as caught:
        pool.outcome(waiting)
    assert caught.value.description == ["VM_BAD_POWER_STATE", vm._ref, "running", "halted"]
    assert devices_of(row) == (False, {})
