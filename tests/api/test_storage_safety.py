"""Suspend images; what crashes and cancels leave; who waits for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.api.storage_pool import MIB, Disks, make_sr
from xapi.calls.claim import claim
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.storage.unfinished import making

# Suspend images


def suspended(disks: Disks, **fields: Any) -> tuple[Any, Any, Path]:
    with disks.db.atomic():
        vm = disks.db.VM.create(memory_static_max=64 * MIB, **fields)
    host = next(iter(disks.db.host))
    vdi, image = disks.run(disks.daemon.storage.make_suspend_image(disks.call(), vm, host))
    return vm, vdi, disks.storage.repositories.file(image)


def test_a_suspend_image_is_a_file_that_the_host_writes(disks: Disks) -> None:
    """Its row is there before it, and true when it is written."""
    vm, vdi, path = suspended(disks)
    assert not path.exists()
    assert (vdi.type, vdi.SR, vdi.virtual_size) == ("suspend", disks.sr._ref, 164 * MIB)
    path.write_bytes(b"memory" * 1000)
    disks.run(disks.daemon.storage.suspend_image_written(disks.call(), vdi))
    assert (vdi.virtual_size, vdi.managed, vdi.missing) == (5632, True, False)
    assert vdi.physical_utilisation >= 6000
    vm.suspend_VDI = vdi._ref
    host = next(iter(disks.db.host))
    image = disks.run(disks.daemon.storage.suspend_image(disks.call(), vdi, host))
    assert image == disks.volume(vdi) and disks.storage.repositories.file(image) == path
    disks("SR.scan", disks.sr._ref)
    assert vdi.type == "suspend"
    disks.run(disks.daemon.storage.destroy(disks.call(), vdi))
    assert vm.suspend_VDI == NULL
    assert not path.exists()


def test_a_suspend_image_that_was_never_written_goes(disks: Disks) -> None:
    """At once, or by a scan after a crash."""
    _, vdi, _ = suspended(disks)
    disks.run(disks.daemon.storage.destroy(disks.call(), vdi))
    assert vdi._ref not in disks.db.VDI
    _, vdi, _ = suspended(disks)
    disks("SR.scan", disks.sr._ref)
    assert vdi._ref not in disks.db.VDI


def test_a_suspended_vm_s_memory_is_copied(disks: Disks) -> None:
    """For its clone."""
    from xapi.storage.vdis import copy_suspend_image

    _, vdi, path = suspended(disks)
    path.write_bytes(b"memory" * 1024)
    disks.run(disks.daemon.storage.suspend_image_written(disks.call(), vdi))
    new = disks.run(copy_suspend_image(disks.call(), vdi))
    copied = disks.run(disks.daemon.storage.suspend_image(disks.call(), new, next(iter(disks.db.host))))
    assert (new.type, disks.storage.repositories.file(copied).read_bytes()) == ("suspend", path.read_bytes())


def test_where_memory_goes(disks: Disks) -> None:
    """The VM's SR, else the pool's, else the host's, if the host has it."""
    own = make_sr(disks, "ext", {"device": "/dev/sdb"})
    pool, host = next(iter(disks.db.pool)), next(iter(disks.db.host))
    assert own._ref == suspended(disks, suspend_SR=own._ref)[1].SR
    pool.suspend_image_SR = NULL
    assert host.suspend_image_sr == suspended(disks)[1].SR
    host.suspend_image_sr = NULL
    with pytest.raises(Fault) as caught:
        suspended(disks)
    assert caught.value.code == "VM_NO_SUSPEND_SR"


# Crashes and cancels


def test_a_file_without_a_row_is_found(disks: Disks) -> None:
    """The daemon died between the two."""
    vdi = disks.create(name_label="made just before")
    uuid = vdi.uuid
    disks.db.VDI.delete(vdi._ref)
    disks("SR.scan", disks.sr._ref)
    assert disks.db.VDI.by_uuid(uuid).name_label == "made just before"


def test_a_file_goes_when_its_row_cannot_be(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database refuses, so the disk is not there."""
    disks.create()
    files = disks.files()

    def refuse(*arguments: Any) -> None:
        raise Fault("INTERNAL_ERROR", "by the test")

    monkeypatch.setattr("xapi.storage.volumes.apply", refuse)
    record = {"SR": disks.sr._ref, "virtual_size": "1", "type": "user", "sharable": False, "read_only": False,
              "other_config": {}}  # fmt: skip
    assert disks.fails("VDI.create", record) == ["INTERNAL_ERROR", "by the test"]
    assert disks.files() == files


def test_a_cancel_does_not_stop_half_way(disks: Disks) -> None:
    """A request that the storage is at work on is carried out; file and row agree."""
    disks.create()
    disks.threads.held = []
    record = {"name_label": "late", "SR": disks.sr._ref, "virtual_size": "1", "type": "user", "sharable": False,
              "read_only": False, "other_config": {}}  # fmt: skip
    ref = disks("Async.VDI.create", record)
    disks.turn()
    disks("task.cancel", ref)
    disks.turn()
    disks.threads.release()
    disks.turn()
    (row,) = disks.db.VDI.by_name_label("late")
    assert f"{row.uuid}.vhd" in disks.files()
    assert disks.db.task[ref].status == "success"
    assert not disks.sr.current_operations


def test_two_first_uses_at_once(disks: Disks) -> None:
    """One makes the repository, the other waits for it."""
    disks.threads.held = []
    one, two = (
        disks.start("SR.update", disks.session, disks.sr._ref),
        disks.start("SR.update", disks.session, disks.sr._ref),
    )
    results: list[Any] = []
    one.addBoth(results.append)
    two.addBoth(results.append)
    disks.turn()
    disks.threads.release()
    disks.turn()
    assert results == [None, None]


def test_a_scan_leaves_the_image_of_a_guest_that_is_about_to_be_suspended(disks: Disks) -> None:
    """The guest takes its time, and its file is not there before it has suspended itself."""
    with disks.db.atomic():
        vm = disks.db.VM.create(memory_static_max=64 * MIB)
    call = disks.call()
    with making(call):
        vdi, _ = disks.run(disks.daemon.storage.make_suspend_image(call, vm, next(iter(disks.db.host))))
        disks("SR.scan", disks.sr._ref)
        assert (vdi._ref in disks.db.VDI, vdi.missing) == (True, False)
    disks("SR.scan", disks.sr._ref)
    assert vdi._ref not in disks.db.VDI


# Waiting


def test_who_waits_for_a_disk_goes_on_when_its_drive_is_free(disks: Disks) -> None:
    """An operation of a drive keeps its disk busy."""
    vdi = disks.create()
    vbd = disks.db.VBD.create(VDI=vdi._ref, current_operations={"OpaqueRef:other": "attach"})
    waiting = disks.start("VDI.clone", disks.session, vdi._ref, {})
    disks.turn()
    assert not waiting.called
    vbd.current_operations = {}
    assert disks.outcome(waiting) in disks.db.VDI


def test_who_waits_for_a_drive_goes_on_when_its_disk_is_free(disks: Disks) -> None:
    """An operation of a disk keeps its drives from being plugged."""
    vdi = disks.create()
    vm = disks.db.VM.create(power_state="Running", VCPUs_at_startup=1)
    vbd = disks.db.VBD.create(VM=vm._ref, VDI=vdi._ref, type="Disk", mode="RW", userdevice="0")
    vdi.current_operations = {"OpaqueRef:other": "clone"}
    held: list[str] = []

    async def hold(call: Any) -> None:
        async with claim(call, "attach", vbd):
            held.append("attach")

    call = disks.call()
    call.message = disks.daemon.dispatcher.methods["VBD.plug"].message
    waiting = Deferred.fromCoroutine(hold(call))
    disks.turn()
    assert (held, waiting.called) == ([], False)
    vdi.current_operations = {}
    disks.outcome(waiting)
    assert held == ["attach"]
