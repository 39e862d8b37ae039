"""SRs and PBDs, scans, and what comes and goes below the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from tests.api.storage_pool import MIB, NULL_REF, Disks, make_sr
from xapi import datamodel
from xapi.calls import registry
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.host.storage import LocalStorage
from xapi.inventory.storage import renew_drivers

# SR


def test_a_new_sr_is_plugged_and_measured(disks: Disks) -> None:
    """Of type ext: below the storage directory; the device is only a name."""
    sr = make_sr(disks, "EXT", {"device": "/dev/sdb"})
    assert (sr.type, sr.name_label, sr.name_description, dict(sr.sm_config)) == ("ext", "new", "text", {"k": "v"})
    (pbd,) = (disks.db.PBD[ref] for ref in sr.PBDs)
    assert (pbd.currently_attached, dict(pbd.device_config)) == (True, {"device": "/dev/sdb"})
    assert sr.physical_size > 0
    assert sr.virtual_allocation == 0
    assert (disks.folder(sr) / "repository.json").is_file()
    assert sr._ref == disks.create(sr=sr).SR


@pytest.mark.parametrize(("kind", "config", "expected"), [
    ("nfs", {}, ["SR_UNKNOWN_DRIVER", "nfs"]),
    ("Quantum", {}, ["SR_UNKNOWN_DRIVER", "quantum"]),
    ("ext", {}, ["SR_BACKEND_FAILURE_90", "", "The request is missing the device parameter", ""]),
    ("ext", {"device": "/dev/sda3"}, ["SR_BACKEND_FAILURE_16"]),
    ("ext", {"device": "/dev/sdc"},
     ["SR_BACKEND_FAILURE_19", "", "No such device [opterr=Device /dev/sdc does not exist]", ""]),
    ("ext", {"device": "/dev/sdb,/dev/sdbx"}, ["SR_BACKEND_FAILURE_19"]),
    ("ext", {"device": "/dev/nvme0n11"}, ["SR_BACKEND_FAILURE_19"]),
    ("ext", {"device": "/dev/sda"}, ["SR_BACKEND_FAILURE_105"]),
    ("lvm", {"device": "/dev/sdc"}, ["SR_BACKEND_FAILURE_19"]),
    ("udev", {}, ["SR_BACKEND_FAILURE_94"]),
    ("file", {}, ["SR_BACKEND_FAILURE_94"]),
    ("file", {"location": "relative"}, ["SR_BACKEND_FAILURE_94"]),
    ("file", {"location": "/etc"}, ["SR_BACKEND_FAILURE_42"]),
    ("iso", {"location": "/nowhere", "legacy_mode": "true"}, ["SR_BACKEND_FAILURE_226"]),
    ("iso", {"location": "server:/path"}, ["SR_BACKEND_FAILURE_222"]),
    ("ext", {"device": "x", "SRmaster": "true"},
     ["VALUE_NOT_SUPPORTED", "SRmaster", "true", "This key is for internal use only"]),
])  # fmt: skip
def test_an_sr_that_cannot_be_leaves_nothing(
    disks: Disks, kind: str, config: dict[str, str], expected: list[str]
) -> None:
    """Neither rows nor secrets nor directories."""
    before = {name: set(disks.db.tables[name].rows) for name in ("SR", "PBD", "secret")}
    host = next(iter(disks.db.host))._ref
    given = {**config, "chappassword": "geheim"}
    assert disks.fails("SR.create", host, given, "0", "n", "", kind, "", False, {})[: len(expected)] == expected
    assert {name: set(disks.db.tables[name].rows) for name in before} == before
    assert not disks.directory.exists() or not list(disks.directory.iterdir())


@pytest.mark.parametrize("device", ["/dev/sdb", "/dev/sdb2", "/dev/nvme0n1p3", "/dev/sdb,/dev/nvme0n1"])
def test_a_device_that_the_host_has_takes_an_sr(disks: Disks, device: str) -> None:
    """Disks that its other_config names, and their partitions."""
    (pbd,) = make_sr(disks, "ext", {"device": device}).PBDs
    assert disks.db.PBD[pbd].currently_attached


@pytest.mark.parametrize(("kind", "config", "number"), [
    ("nfs", {}, 102), ("nfs", {"server": "s"}, 101), ("nfs", {"server": "s", "serverpath": "/p"}, 73),
    ("lvmoiscsi", {"target": "t"}, 96), ("lvmoiscsi", {"target": "t", "targetIQN": "i", "SCSIid": "1"}, 141),
    ("lvmohba", {"SCSIid": "1"}, 107), ("smb", {"server": "//s/x"}, 111),
])  # fmt: skip
def test_a_type_that_was_declared_is_known_but_reaches_no_server(
    disks: Disks, kind: str, config: dict[str, str], number: int
) -> None:
    """An inventory's SRs of it can be plugged, so there is a driver; it finds nothing on any network."""
    disks.db.SM.create(type=kind)
    host = next(iter(disks.db.host))._ref
    assert (
        disks.fails("SR.create", host, config, "0", "n", "", kind, "", False, {})[0] == f"SR_BACKEND_FAILURE_{number}"
    )


def test_each_driver_that_sm_lists_is_known_to_sr_create_and_probe(disks: Disks) -> None:
    """Without any configuration each refuses in its own words."""
    host = next(iter(disks.db.host))._ref
    kinds = [sm.type for sm in disks.db.SM]
    made = {kind: disks.fails("SR.create", host, {}, "0", "n", "", kind, "", False, {})[0] for kind in kinds}
    probed = {kind: disks.fails("SR.probe", host, {}, kind, {})[0] for kind in kinds}
    assert sorted(kinds) == ["ext", "file", "iso", "lvm", "udev"] == list(disks("SR.get_supported_types"))
    assert "SR_UNKNOWN_DRIVER" not in {*made.values(), *probed.values()}


_MESSAGES = {
    "SR_SCAN": "SR.scan", "SR_UPDATE": "SR.update", "VDI_CREATE": "VDI.create", "VDI_DELETE": "VDI.destroy",
    "VDI_ATTACH": "VBD.plug", "VDI_DETACH": "VBD.unplug", "VDI_ACTIVATE": "VBD.plug", "VDI_DEACTIVATE": "VBD.unplug",
    "VDI_UPDATE": "VDI.update", "VDI_INTRODUCE": "VDI.introduce", "VDI_RESIZE": "VDI.resize", "VDI_CLONE": "VDI.clone",
    "VDI_SNAPSHOT": "VDI.snapshot", "VDI_RESET_ON_BOOT": "VDI.set_on_boot", "THIN_PROVISIONING": "VDI.create",
}  # fmt: skip


def test_each_feature_of_a_driver_has_a_message_that_does_something(disks: Disks) -> None:
    """None promises changed blocks, mirrors or caches that there are not."""
    functions = registry.functions(datamodel.load())
    promised = {feature for sm in disks.db.SM for feature in sm.features}
    assert promised == set(_MESSAGES) and {_MESSAGES[feature] for feature in promised} <= functions.keys()


def test_drivers_of_an_older_state_say_what_they_do_now(disks: Disks) -> None:
    """Those that nothing uses go; those of SRs that there are stay."""
    (ext,) = (sm for sm in disks.db.SM if sm.type == "ext")
    ext.features = {**ext.features, "VDI_CONFIG_CBT": 1}
    unused, used = disks.db.SM.create(type="smb"), disks.db.SM.create(type="nfs")
    disks.db.SR.create(type="nfs")
    renew_drivers(disks.db)
    assert "VDI_CONFIG_CBT" not in ext.features and ext.capabilities == tuple(ext.features)
    assert (unused._ref in disks.db.SM, used._ref in disks.db.SM) == (False, True)
    assert "VDI_CLONE" in used.features


def test_passwords_become_secrets(disks: Disks) -> None:
    """Which go with the PBD."""
    sr = make_sr(disks, "ext", {"device": "/dev/sdb", "chappassword": "geheim"})
    (pbd,) = (disks.db.PBD[ref] for ref in sr.PBDs)
    assert set(pbd.device_config) == {"device", "chappassword_secret"}
    assert disks.db.secret.by_uuid(pbd.device_config["chappassword_secret"]).value == "geheim"
    disks("PBD.unplug", pbd._ref)
    disks("SR.destroy", sr._ref)
    assert not list(disks.db.secret)


def test_a_destroyed_sr_leaves_nothing(disks: Disks, tmp_path: Path) -> None:
    """It must be unplugged and empty; nobody refers to it afterwards."""
    sr = make_sr(disks, "file", {"location": str(tmp_path / "sr")})
    (pbd,) = sr.PBDs
    pool = next(iter(disks.db.pool))
    pool.default_SR = sr._ref
    record = {"SR": sr._ref, "virtual_size": "1", "type": "user", "sharable": False, "read_only": False,
              "other_config": {}}  # fmt: skip
    vdi = disks("VDI.create", record)
    assert disks.fails("SR.destroy", sr._ref) == ["SR_HAS_PBD", sr._ref]
    disks("PBD.unplug", pbd)
    assert disks.fails("SR.destroy", sr._ref) == ["SR_NOT_EMPTY"]
    disks("PBD.plug", pbd)
    disks("VDI.destroy", vdi)
    disks("PBD.unplug", pbd)
    sr.other_config = {"indestructible": "true"}
    assert disks.fails("SR.destroy", sr._ref) == ["SR_INDESTRUCTIBLE", sr._ref]
    sr.other_config = {}
    disks("SR.destroy", sr._ref)
    assert sr._ref not in disks.db.SR
    assert pbd not in disks.db.PBD
    assert pool.default_SR == NULL
    assert not (tmp_path / "sr").exists()


def test_a_forgotten_sr_is_introduced_again(disks: Disks) -> None:
    """With the disks that it holds."""
    sr = make_sr(disks, "ext", {"device": "/dev/sdb"})
    uuid, host = sr.uuid, next(iter(disks.db.host))._ref
    vdi = disks.create(sr=sr, name_label="kept")
    disks.drive(vdi)
    name = vdi.uuid
    (pbd,) = sr.PBDs
    assert disks.fails("SR.forget", sr._ref) == ["SR_HAS_PBD", sr._ref]
    disks("PBD.unplug", pbd)
    disks("SR.forget", sr._ref)
    assert not [row for row in disks.db.VDI if row.uuid == name]
    back = disks("SR.introduce", uuid, "back", "", "Ext", "user", False, {})
    assert (disks.db.SR[back].physical_size, disks.db.SR[back].type) == (-1, "ext")
    assert disks.fails("SR.introduce", uuid, "twice", "", "ext", "user", False, {}) == ["SR_UUID_EXISTS", uuid]
    made = disks("PBD.create", {"SR": back, "host": host, "device_config": {"device": "/dev/sdb"}})
    disks("PBD.plug", made)
    assert disks.db.VDI.by_uuid(name).name_label == "kept"
    assert disks.db.SR[back].physical_size > 0


@pytest.mark.parametrize("uuid", ["x", "../../etc", "6BA7B810-9DAD-11D1-80B4-00C04FD430C8"])
def test_an_sr_s_uuid_is_one(disks: Disks, uuid: str) -> None:
    """It names a directory."""
    assert disks.fails("SR.introduce", uuid, "", "", "ext", "", False, {}) == ["UUID_INVALID", "SR", uuid]


def test_cds_of_a_directory(disks: Disks, tmp_path: Path) -> None:
    """Files that come and go are found by scans; a CD in a drive that is gone is missing."""
    (tmp_path / "cds").mkdir()
    (tmp_path / "cds/a.iso").write_bytes(b"a" * 4096)
    sr = make_sr(disks, "iso", {"location": str(tmp_path / "cds"), "legacy_mode": "true"})
    (row,) = (disks.db.VDI[ref] for ref in sr.VDIs)
    assert (row.location, row.name_label, row.read_only, row.virtual_size) == ("a.iso", "a.iso", True, 4096)
    assert (row.type, row.managed, row.missing, dict(row.sm_config)) == ("user", True, False, {})
    image = disks.run(disks.daemon.storage.volume(disks.call(), next(iter(disks.db.host)), row))
    assert image.location == "a.iso"
    (tmp_path / "cds/b.iso").write_bytes(b"b" * 4096)
    (tmp_path / "cds/a.iso").unlink()
    disks("SR.scan", sr._ref)
    assert {disks.db.VDI[ref].location for ref in sr.VDIs} == {"b.iso"}
    new = disks.create(4096, sr=sr)
    assert (new.location, (tmp_path / "cds" / new.location).stat().st_size) == (f"{new.location}", 4096)
    disks("VDI.destroy", new._ref)
    assert sorted(path.name for path in (tmp_path / "cds").iterdir()) == ["b.iso"]
    assert disks.fails("VDI.snapshot", next(iter(sr.VDIs)), {}) == ["SR_OPERATION_NOT_SUPPORTED", sr._ref]


def test_a_cd_is_copied_to_a_disk(disks: Disks, tmp_path: Path) -> None:
    """Through the same message."""
    (tmp_path / "cds").mkdir()
    (tmp_path / "cds/a.iso").write_bytes(b"a" * 4096)
    sr = make_sr(disks, "iso", {"location": str(tmp_path / "cds"), "legacy_mode": "true"})
    new = disks.db.VDI[disks("VDI.copy", next(iter(sr.VDIs)), disks.sr._ref, NULL_REF, NULL_REF)]
    assert (disks.head(new), new.virtual_size, new.read_only) == (b"aaaa", 2 * MIB, False)


def test_a_udev_sr_is_empty(disks: Disks) -> None:
    """It scans, and takes no disks."""
    sr = next(row for row in disks.db.SR if row.type == "udev")
    disks("SR.scan", sr._ref)
    assert not sr.VDIs
    (pbd,) = sr.PBDs
    disks("PBD.unplug", pbd)
    disks("PBD.plug", pbd)


def test_supported_types_are_those_that_can_be_made(disks: Disks) -> None:
    """And probing is what the drivers say."""
    host = next(iter(disks.db.host))._ref
    assert list(disks("SR.get_supported_types")) == ["ext", "file", "iso", "lvm", "udev"]
    assert disks.fails("SR.probe", host, {}, "nfs", {}) == ["SR_UNKNOWN_DRIVER", "nfs"]
    assert disks.fails("SR.probe", host, {}, "ext", {})[0] == "SR_BACKEND_FAILURE_38"
    assert disks.fails("SR.probe_ext", host, {}, "ext", {}) == ["SR_OPERATION_NOT_SUPPORTED"]
    assert disks.fails("SR.make", host, {}, "0", "", "", "ext", "", {}) == ["MESSAGE_DEPRECATED"]


def test_what_an_sr_can_be_for(disks: Disks) -> None:
    """Checked in xapi's order."""
    sr, udev = disks.sr, next(row for row in disks.db.SR if row.type == "udev")
    disks("SR.update", sr._ref)
    assert disks.fails("SR.assert_can_host_ha_statefile", sr._ref) == ["SR_OPERATION_NOT_SUPPORTED", sr._ref]
    (ext,) = (sm for sm in disks.db.SM if sm.type == sr.type)
    ext.features = {**ext.features, "VDI_GENERATE_CONFIG": 1}
    disks("SR.assert_can_host_ha_statefile", sr._ref)
    assert disks.fails("SR.assert_can_host_ha_statefile", udev._ref) == ["SR_OPERATION_NOT_SUPPORTED", udev._ref]
    expected = ["SR_OPERATION_NOT_SUPPORTED", sr._ref]
    assert disks.fails("SR.assert_supports_database_replication", sr._ref) == expected
    assert list(disks("SR.get_live_hosts", sr._ref)) == [next(iter(disks.db.host))._ref]
    disks("PBD.unplug", next(iter(sr.PBDs)))
    assert disks.fails("SR.assert_can_host_ha_statefile", sr._ref) == ["SR_HAS_NO_PBDS", sr._ref]
    assert list(disks("SR.get_live_hosts", sr._ref)) == []


# PBD


def test_unplugging_waits_for_nobody_who_uses_a_disk(disks: Disks) -> None:
    """VDI_IN_USE names all disks that are; an unplugged PBD can go."""
    vdi = disks.create()
    drive = disks.drive(vdi, currently_attached=True)
    vm, (pbd,) = disks.db.VM[drive.VM], disks.sr.PBDs
    vm.resident_on = next(iter(disks.db.host))._ref
    assert disks.fails("PBD.unplug", pbd) == ["VDI_IN_USE", vdi._ref]
    expected = ["OPERATION_NOT_ALLOWED", "PBD is currently attached"]
    assert disks.fails("PBD.destroy", pbd) == expected
    drive.currently_attached = False
    disks("PBD.unplug", pbd)
    disks("PBD.unplug", pbd)
    assert not disks.db.PBD[pbd].currently_attached
    assert disks.sr.current_operations == {}
    disks("PBD.destroy", pbd)
    assert not disks.sr.PBDs


def test_a_host_has_one_pbd_of_an_sr(disks: Disks) -> None:
    """PBD_EXISTS names it."""
    host, (pbd,) = next(iter(disks.db.host))._ref, disks.sr.PBDs
    record = {"SR": disks.sr._ref, "host": host, "device_config": {}}
    assert disks.fails("PBD.create", record) == ["PBD_EXISTS", disks.sr._ref, host, pbd]


def test_a_directory_of_another_daemon_is_left_alone(disks: Disks) -> None:
    """SR_BACKEND_FAILURE_16: it is in use."""
    disks.create()
    other = LocalStorage(disks.directory, disks.threads.run, lambda work, *more: work(*more), lambda: 0)
    disks.daemon.storage._used.clear()
    disks.backend.storage = other
    assert disks.fails("SR.scan", disks.sr._ref)[0] == "SR_BACKEND_FAILURE_16"


# Forgetting, introducing, scanning


def test_a_forgotten_disk_comes_back(disks: Disks) -> None:
    """By a scan, or by name."""
    vdi = disks.create(name_label="lost and found")
    uuid = vdi.uuid
    disks("VDI.forget", vdi._ref)
    assert disks.files() == {f"{uuid}.vhd"}
    disks("SR.scan", disks.sr._ref)
    row = disks.db.VDI.by_uuid(uuid)
    assert row.name_label == "lost and found"
    disks("VDI.forget", row._ref)
    ref = introduce(disks, uuid, name_label="introduced")
    assert (disks.db.VDI[ref].uuid, disks.db.VDI[ref].name_label) == (uuid, "introduced")


def introduce(disks: Disks, location: str, **fields: Any) -> Any:
    given: dict[str, Any] = {
        "uuid": location, "name_label": "", "name_description": "", "SR": disks.sr._ref, "type": "user",
        "sharable": False, "read_only": False, "other_config": {}, "location": location, "xenstore_data": {},
        "sm_config": {}, "managed": True, "virtual_size": "0", "physical_utilisation": "0",
        "metadata_of_pool": NULL_REF, "is_a_snapshot": False, "snapshot_time": "19700101T00:00:00Z",
        "snapshot_of": NULL_REF,
    }  # fmt: skip
    return disks("VDI.introduce", *(given | fields).values())


def test_what_cannot_be_introduced(disks: Disks) -> None:
    """What is not there, or has a row of another uuid."""
    with pytest.raises(Fault) as caught:
        introduce(disks, str(uuid4()))
    assert caught.value.code == "SR_BACKEND_FAILURE_46"
    vdi = disks.create()
    with pytest.raises(Fault) as caught:
        introduce(disks, vdi.location, uuid=str(uuid4()))
    assert caught.value.description == ["LOCATION_NOT_UNIQUE", disks.sr._ref, vdi.location]
    assert introduce(disks, vdi.location) == vdi._ref


def test_a_scan_drops_what_is_gone(disks: Disks) -> None:
    """But not what somebody refers to: that is missing until it is back."""
    unused, used = disks.create(), disks.create()
    drive = disks.drive(used)
    path = disks.folder(disks.sr) / f"{used.uuid}.vhd"
    (disks.folder(disks.sr) / f"{unused.uuid}.vhd").unlink()
    path.rename(disks.directory / "elsewhere")
    disks("SR.scan", disks.sr._ref)
    assert unused._ref not in disks.db.VDI
    assert used.missing
    host = next(iter(disks.db.host))
    with pytest.raises(Fault) as caught:
        disks.run(disks.daemon.storage.attach(disks.call(), host, disks.db.VM[drive.VM], reset=False))
    assert caught.value.description == ["VDI_MISSING", disks.sr._ref, used._ref]
    (disks.directory / "elsewhere").rename(path)
    disks("SR.scan", disks.sr._ref)
    assert not used.missing


def test_a_scan_sums_up(disks: Disks) -> None:
    """Managed disks only; it forgets that the SR was dirty."""
    vdi = disks.create(4 * MIB)
    disks.put(vdi, b"data")
    disks("VDI.snapshot", vdi._ref, {})
    disks.sr.virtual_allocation = 0
    disks.sr.other_config = {"dirty": "", "k": "v"}
    disks("SR.scan", disks.sr._ref)
    assert disks.sr.virtual_allocation == 8 * MIB
    assert dict(disks.sr.other_config) == {"k": "v"}


def test_a_scan_tells_of_an_image_that_was_spoilt(disks: Disks) -> None:
    """The others are as before; why is logged, once; a repaired one is back."""
    told: list[str] = []
    good, vdi = disks.create(), disks.create()
    path = disks.folder(disks.sr) / f"{vdi.uuid}.vhd"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))

    @implementer(ILogObserver)
    def hear(event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.warn:
            told.append(formatEvent(event))

    globalLogPublisher.addObserver(hear)
    try:
        for _ in range(2):
            disks("SR.scan", disks.sr._ref)
            assert vdi.missing and not good.missing
    finally:
        globalLogPublisher.removeObserver(hear)
    (line,) = told
    assert line.startswith(f'SR "{disks.sr.name_label}" ({disks.sr.uuid}): {vdi.uuid} cannot be used: ')
    path.write_bytes(whole)
    disks("SR.scan", disks.sr._ref)
    assert not vdi.missing


def test_a_damaged_image_is_missing(disks: Disks) -> None:
    """Its row stays for whoever can repair it, and can be destroyed."""
    vdi = disks.create()
    path = disks.folder(disks.sr) / f"{vdi.uuid}.vhd"
    (pbd,) = disks.sr.PBDs
    disks("PBD.unplug", pbd)
    path.write_bytes(b"no disk" * 1000)
    disks("PBD.plug", pbd)
    assert vdi.missing
    disks("VDI.destroy", vdi._ref)
    assert not path.exists()
