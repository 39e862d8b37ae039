"""VDIs: making, changing and removing them, and what an inventory declares."""

from __future__ import annotations

import os
import shutil
from typing import Any
from uuid import uuid4

import pytest

from tests.api.storage_pool import MIB, Disks
from tests.conftest import NOW
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL

# VDI.create and destroy


def test_a_new_disk_has_a_file(disks: Disks) -> None:
    """Its size is rounded to 2 MiB, its location is its uuid, and its SR's accounts follow."""
    before = disks.sr.virtual_allocation
    vdi = disks.create(5 * MIB, name_description="text", tags=["a"], other_config={"k": "v"}, xenstore_data={"x": "y"})
    assert (vdi.virtual_size, vdi.location, vdi.managed, vdi.missing) == (6 * MIB, vdi.uuid, True, False)
    assert (vdi.name_label, vdi.name_description, vdi.type, vdi.read_only) == ("disk", "text", "user", False)
    assert (vdi.tags, dict(vdi.other_config), dict(vdi.xenstore_data)) == (("a",), {"k": "v"}, {"x": "y"})
    assert 0 < vdi.physical_utilisation < MIB
    assert disks.files() == {f"{vdi.uuid}.vhd"}
    assert disks.sr.virtual_allocation == before + 6 * MIB
    assert disks.sr.physical_size == os.statvfs(disks.folder(disks.sr)).f_blocks * os.statvfs(disks.directory).f_frsize
    assert not disks.sr.current_operations


def test_a_new_disk_is_told_once(disks: Disks) -> None:
    """The row is whole when clients first see it."""
    disks.create()
    token = str(disks("event.from", ["VDI"], "", 0.0).token)
    vdi = disks.create(tags=["b"])
    events = disks("event.from", ["VDI"], token, 0.0).events
    assert [(each.operation, each.ref) for each in events] == [("add", vdi._ref)]


def test_a_raw_disk(disks: Disks) -> None:
    """By sm_config, as on XCP; what is no format is refused."""
    vdi = disks.create(1000, sm_config={"type": "raw"})
    assert disks.files() == {f"{vdi.uuid}.raw"}
    assert (vdi.virtual_size, dict(vdi.sm_config)) == (1024, {"type": "raw"})
    record = {"SR": disks.sr._ref, "virtual_size": "1", "type": "user", "sharable": False, "read_only": False,
              "other_config": {}, "sm_config": {"type": "qcow2"}}  # fmt: skip
    assert disks.fails("VDI.create", record)[:3] == [
        "SR_BACKEND_FAILURE_66", "", "Invalid VDI type [opterr=Invalid VDI type qcow2]"
    ]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), [
    ({"type": "cbt_metadata"}, ["VDI_INCOMPATIBLE_TYPE", "", "cbt_metadata"]),
    ({"virtual_size": "0"}, None),
    ({"virtual_size": str(1 << 50)}, ["SR_BACKEND_FAILURE_79"]),
    ({"SR": "OpaqueRef:x"}, ["HANDLE_INVALID", "SR", "OpaqueRef:x"]),
])  # fmt: skip
def test_what_no_disk_can_be(disks: Disks, fields: dict[str, Any], expected: list[str] | None) -> None:
    """Nothing is left of it."""
    record = {"SR": disks.sr._ref, "virtual_size": "1", "type": "user", "sharable": False, "read_only": False,
              "other_config": {}, **fields}  # fmt: skip
    if expected is None:
        assert disks.db.VDI[disks("VDI.create", record)].virtual_size == 2 * MIB
        return
    rows = len(disks.db.VDI)
    assert disks.fails("VDI.create", record)[: len(expected)] == expected
    assert len(disks.db.VDI) == rows


def test_a_destroyed_disk_leaves_nothing(disks: Disks) -> None:
    """Neither file nor row, nor drives, nor a suspended VM's pointer; its CD drives are empty."""
    vdi = disks.create(type="suspend")
    drive, cd = disks.drive(vdi), disks.drive(vdi, type="CD", mode="RO")
    vm = disks.db.VM[drive.VM]
    vm.suspend_VDI = vdi._ref
    before = disks.sr.virtual_allocation
    disks("VDI.destroy", vdi._ref)
    assert vdi._ref not in disks.db.VDI
    assert drive._ref not in disks.db.VBD
    assert drive.metrics not in disks.db.VBD_metrics
    assert (cd.VDI, cd.empty, vm.suspend_VDI) == (NULL, True, NULL)
    assert disks.files() == set()
    assert disks.sr.virtual_allocation == before - 6 * MIB


def test_a_disk_in_use_is_not_destroyed(disks: Disks) -> None:
    """By a drive, or one that opens it."""
    vdi = disks.create()
    drive = disks.drive(vdi, currently_attached=True)
    assert disks.fails("VDI.destroy", vdi._ref) == ["VDI_IN_USE", vdi._ref, "destroy"]
    drive.currently_attached = False
    disk = disks.open(vdi, read_only=False)
    assert disks.fails("VDI.destroy", vdi._ref)[0] == "SR_BACKEND_FAILURE_24"
    disk.close()
    disks("VDI.destroy", vdi._ref)


def test_a_disk_whose_file_is_gone_can_be_destroyed(disks: Disks) -> None:
    """There is nothing left to do but the row."""
    vdi = disks.create()
    (disks.folder(disks.sr) / f"{vdi.uuid}.vhd").unlink()
    disks("SR.scan", disks.sr._ref)
    if vdi._ref in disks.db.VDI:
        disks("VDI.destroy", vdi._ref)
    assert vdi._ref not in disks.db.VDI


def test_without_a_plugged_pbd_nothing_is_made(disks: Disks) -> None:
    """SR_HAS_NO_PBDS, whatever is asked."""
    vdi = disks.create()
    (pbd,) = disks.sr.PBDs
    disks("PBD.unplug", pbd)
    record = {"SR": disks.sr._ref, "virtual_size": "1", "type": "user", "sharable": False, "read_only": False,
              "other_config": {}}  # fmt: skip
    expected = ["SR_HAS_NO_PBDS", disks.sr._ref]
    assert disks.fails("VDI.create", record) == expected
    for name, *more in (
        ("snapshot", {}),
        ("clone", {}),
        ("resize", "9"),
        ("destroy",),
        ("set_name_label", "x"),
        ("update",),
    ):
        assert disks.fails(f"VDI.{name}", vdi._ref, *more) == expected, name
    assert disks.fails("SR.scan", disks.sr._ref) == expected
    assert disks.fails("SR.update", disks.sr._ref) == expected


# What an inventory declares


def declare(disks: Disks, sr: Any = None, **fields: Any) -> Any:
    uuid = str(uuid4())
    given: dict[str, Any] = {"uuid": uuid, "location": uuid, "type": "user", "managed": True, "virtual_size": 10 * MIB}
    with disks.db.atomic():
        return disks.db.VDI.create(SR=(sr or disks.sr)._ref, **(given | fields))


def test_a_declared_disk_is_made_when_it_is_used(disks: Disks) -> None:
    """Empty, with its uuid and size; until then nothing is on the host's disk."""
    vdi = declare(disks, name_label="declared")
    assert not disks.directory.exists()
    host = next(iter(disks.db.host))
    image = disks.run(disks.daemon.storage.volume(disks.call(), host, vdi))
    assert image == disks.volume(vdi) and disks.files() == {f"{vdi.uuid}.vhd"}
    assert vdi.physical_utilisation > 0
    assert disks.head(vdi) == bytes(4)
    again = disks.run(disks.daemon.storage.volume(disks.call(), host, vdi))
    assert again == image


def test_a_scan_keeps_declared_disks(disks: Disks) -> None:
    """They have never had a file, so none is missing."""
    vdi = declare(disks)
    disks("SR.scan", disks.sr._ref)
    assert vdi._ref in disks.db.VDI
    assert not vdi.missing
    disks("VDI.destroy", vdi._ref)
    assert vdi._ref not in disks.db.VDI


def test_a_declared_disk_is_not_made_again(disks: Disks) -> None:
    """Once it had a file, a lost directory is lost: no empty disk takes its place."""
    vdi = declare(disks)
    host = next(iter(disks.db.host))
    disks.run(disks.daemon.storage.volume(disks.call(), host, vdi))
    (pbd,) = disks.sr.PBDs
    disks("PBD.unplug", pbd)
    shutil.rmtree(disks.folder(disks.sr))
    assert disks.fails("PBD.plug", pbd)[0] == "SR_BACKEND_FAILURE_47"
    disks.db.PBD[pbd].currently_attached = True
    assert disks.fails("SR.scan", disks.sr._ref)[0] == "SR_BACKEND_FAILURE_47"
    assert not disks.folder(disks.sr).exists()


def test_a_daemon_that_begins_touches_no_storage(disks: Disks) -> None:
    """100,000 declared disks behind a plugged PBD cost nothing."""
    assert disks.db.PBD[next(iter(disks.sr.PBDs))].currently_attached
    assert not disks.directory.exists()


def test_the_tools_cd_is_real(disks: Disks) -> None:
    """An ISO 9660 image with a file to read, made when it is first used."""
    (vdi,) = (row for row in disks.db.VDI if row.is_tools_iso)
    size = vdi.virtual_size
    image = disks.run(disks.daemon.storage.volume(disks.call(), next(iter(disks.db.host)), vdi))
    assert image == disks.volume(vdi)
    content = (disks.folder(disks.db.SR[vdi.SR]) / vdi.location).read_bytes()
    assert (len(content), vdi.virtual_size) == (size, size)
    assert content[16 * 2048 : 16 * 2048 + 6] == b"\x01CD001"
    assert b"README.TXT" in content
    disks("SR.scan", vdi.SR)
    assert [row.location for row in disks.db.VDI if row.SR == vdi.SR] == ["guest-tools.iso"]
    assert (vdi.is_tools_iso, vdi.missing, vdi.read_only) == (True, False, True)


def test_attach_finds_all_images_of_a_vm(disks: Disks) -> None:
    """Empty drives have none."""
    first, second = disks.create(), declare(disks)
    drive = disks.drive(first)
    with disks.db.atomic():
        disks.db.VBD.create(VM=drive.VM, VDI=second._ref, userdevice="1", type="Disk", mode="RO")
        disks.db.VBD.create(VM=drive.VM, userdevice="3", type="CD", mode="RO", empty=True)
    vm, host = disks.db.VM[drive.VM], next(iter(disks.db.host))
    images = disks.run(disks.daemon.storage.attach(disks.call(), host, vm, reset=True))
    assert images == {each._ref: disks.volume(each) for each in (first, second)}


@pytest.mark.parametrize("location", ["../secret", "", "a/b"])
def test_a_row_cannot_lead_out_of_its_sr(disks: Disks, location: str) -> None:
    """Whoever wrote it."""
    vdi = disks.create()
    vdi.location = location
    with pytest.raises(Fault) as caught:
        disks.run(disks.daemon.storage.volume(disks.call(), next(iter(disks.db.host)), vdi))
    assert caught.value.description == ["VDI_MISSING", disks.sr._ref, vdi._ref]


# Size, names, on_boot


def test_resize_grows(disks: Disks) -> None:
    """Rounded like a new disk's size; a smaller one is refused."""
    vdi = disks.create(2 * MIB)
    before = disks.sr.virtual_allocation
    disks("VDI.resize", vdi._ref, str(5 * MIB))
    assert vdi.virtual_size == 6 * MIB
    assert disks.sr.virtual_allocation == before + 4 * MIB
    assert disks.fails("VDI.resize", vdi._ref, str(MIB))[0] == "SR_BACKEND_FAILURE_79"
    assert disks.fails("VDI.resize_online", vdi._ref, str(9 * MIB)) == ["SR_OPERATION_NOT_SUPPORTED", disks.sr._ref]


def test_names_outlive_the_rows(disks: Disks) -> None:
    """They are kept beside the image, with all that a scan needs to make the row anew."""
    vdi = disks.create(sharable=False, type="system")
    disks.put(vdi, b"data")
    disks("VDI.set_name_label", vdi._ref, "renamed")
    disks("VDI.set_name_description", vdi._ref, "described")
    taken = disks.db.VDI[disks("VDI.snapshot", vdi._ref, {})]
    uuids = vdi.uuid, taken.uuid
    for row in [row for row in disks.db.VDI if disks.sr._ref == row.SR]:
        disks.db.VDI.delete(row._ref)
    disks("SR.scan", disks.sr._ref)
    found, snapshot = (disks.db.VDI.by_uuid(uuid) for uuid in uuids)
    assert (found.name_label, found.name_description, found.type) == ("renamed", "described", "system")
    assert (snapshot.is_a_snapshot, snapshot.snapshot_of, snapshot.snapshot_time) == (True, found._ref, NOW)
    assert found.sm_config["vhd-parent"] == snapshot.sm_config["vhd-parent"]
    assert [row.name_label for row in disks.db.VDI if not row.managed] == ["base copy"]


def test_update_looks_at_one_disk(disks: Disks) -> None:
    """How much it takes now."""
    vdi = disks.create(8 * MIB)
    disks.put(vdi, bytes(range(256)) * 4096 * 4)
    before = vdi.physical_utilisation
    disks("VDI.update", vdi._ref)
    assert vdi.physical_utilisation > before + 2 * MIB


def test_on_boot_reset(disks: Disks) -> None:
    """What a disk held when the mode was set is what each start finds."""
    vdi = disks.create()
    disks.put(vdi, b"kept")
    disks("VDI.set_on_boot", vdi._ref, "reset")
    disks.put(vdi, b"lost")
    drive = disks.drive(vdi)
    vm, host = disks.db.VM[drive.VM], next(iter(disks.db.host))
    disks.run(disks.daemon.storage.attach(disks.call(), host, vm, reset=False))
    assert disks.head(vdi) == b"lost"
    disks.run(disks.daemon.storage.attach(disks.call(), host, vm, reset=True))
    assert disks.head(vdi) == b"kept"
    assert disks.fails("VDI.snapshot", vdi._ref, {}) == ["VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"]
    vm.power_state = "Running"
    expected = ["VM_BAD_POWER_STATE", vm._ref, "halted", "running"]
    assert disks.fails("VDI.set_on_boot", vdi._ref, "persist") == expected
    vm.power_state = "Halted"
    disks("VDI.set_on_boot", vdi._ref, "persist")
    assert vdi.on_boot == "persist"


# What only drivers may write


def test_only_the_driver_of_an_sr_writes_what_it_measures(disks: Disks) -> None:
    """Its session says so; another's may not, whoever it is."""
    vdi = disks.create()
    session = disks.db.session[disks.session]
    calls: list[tuple[Any, ...]] = [
        ("VDI.set_read_only", vdi._ref, True), ("VDI.set_sharable", vdi._ref, True),
        ("VDI.set_virtual_size", vdi._ref, "7"), ("SR.set_physical_size", disks.sr._ref, "8"),
        ("VDI.set_missing", vdi._ref, True), ("VDI.db_forget", vdi._ref),
    ]  # fmt: skip
    for name, *arguments in calls:
        assert disks.fails(name, *arguments) == ["PERMISSION_DENIED", ""], name
    session.other_config = {"_sm_session": disks.sr._ref}
    for name, *arguments in calls[:-1]:
        disks(name, *arguments)
    assert (vdi.read_only, vdi.sharable, vdi.virtual_size, vdi.missing) == (True, True, 7, True)
    assert disks.sr.physical_size == 8
    disks(*calls[-1])
    assert vdi._ref not in disks.db.VDI


def test_force_unlock_is_deprecated(disks: Disks) -> None:
    """As in xapi."""
    assert disks.fails("VDI.force_unlock", disks.create()._ref) == ["MESSAGE_DEPRECATED"]


def test_checksum(disks: Disks) -> None:
    """MD5 of all bytes."""
    assert disks("VDI.checksum", disks.create(2 * MIB)._ref) == "b2d1236c286a3c0704224fe4105eca49"
