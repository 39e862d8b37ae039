"""VDIs: snapshots, clones and copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api.storage_pool import MIB, NULL_REF, Disks, make_sr
from tests.conftest import NOW
from xapi.datamodel.lexical import EPOCH
from xapi.datamodel.types import NULL

# Copies


def test_a_snapshot_keeps_what_was(disks: Disks) -> None:
    """Names and keys are the disk's, the shared part a base copy that clients leave alone."""
    vdi = disks.create(tags=["t"], other_config={"k": "v"}, xenstore_data={"x": "y"})
    disks.put(vdi, b"then")
    taken = disks.db.VDI[disks("VDI.snapshot", vdi._ref, {})]
    disks.put(vdi, b"now!")
    assert (disks.head(taken), disks.head(vdi)) == (b"then", b"now!")
    assert (taken.is_a_snapshot, taken.snapshot_of, taken.snapshot_time) == (True, vdi._ref, NOW)
    assert (taken.name_label, taken.tags, dict(taken.other_config)) == ("disk", ("t",), {"k": "v"})
    assert (dict(taken.xenstore_data), taken.virtual_size, taken.managed) == ({"x": "y"}, 6 * MIB, True)
    assert list(vdi.snapshots) == [taken._ref]
    (base,) = (row for row in disks.db.VDI if not row.managed)
    assert (base.name_label, base.read_only, base.SR) == ("base copy", True, disks.sr._ref)
    assert vdi.sm_config["vhd-parent"] == taken.sm_config["vhd-parent"] == base.uuid
    assert "vhd-parent" not in base.sm_config
    assert base.allowed_operations is not None


def test_the_base_copy_goes_with_the_last_that_needs_it(disks: Disks) -> None:
    """Row and file."""
    vdi = disks.create()
    disks.put(vdi, b"data")
    taken = disks("VDI.snapshot", vdi._ref, {})
    disks("VDI.destroy", vdi._ref)
    assert sum(not row.managed for row in disks.db.VDI) == 1
    disks("VDI.destroy", taken)
    assert not [row for row in disks.db.VDI if disks.sr._ref == row.SR]
    assert disks.files() == set()


def test_a_base_copy_is_left_alone(disks: Disks) -> None:
    """By every message that changes disks."""
    vdi = disks.create()
    disks.put(vdi, b"data")
    disks("VDI.snapshot", vdi._ref, {})
    (base,) = (row for row in disks.db.VDI if not row.managed)
    for name, *more in (("destroy",), ("snapshot", {}), ("clone", {}), ("resize", str(99 * MIB))):
        assert disks.fails(f"VDI.{name}", base._ref, *more) == ["VDI_NOT_MANAGED", base._ref], name
    assert disks.fails("VDI.copy", base._ref, disks.sr._ref, NULL_REF, NULL_REF) == ["VDI_NOT_MANAGED", base._ref]


def test_a_clone_is_a_disk_of_its_own(disks: Disks) -> None:
    """No snapshot, though it may come from one."""
    vdi = disks.create(sharable=False)
    disks.put(vdi, b"data")
    taken = disks("VDI.snapshot", vdi._ref, {})
    clone = disks.db.VDI[disks("VDI.clone", taken, {})]
    assert (clone.is_a_snapshot, clone.snapshot_of, clone.snapshot_time) == (False, NULL, EPOCH)
    disks.put(clone, b"mine")
    assert (disks.head(clone), disks.head(disks.db.VDI[taken]), disks.head(vdi)) == (b"mine", b"data", b"data")


def test_raw_disks_are_not_snapshotted_but_copied(disks: Disks) -> None:
    """The storage cannot share their blocks; clone falls back to a copy, as xapi does."""
    vdi = disks.create(2 * MIB, sm_config={"type": "raw"})
    disks.put(vdi, b"data")
    assert disks.fails("VDI.snapshot", vdi._ref, {}) == ["UNIMPLEMENTED_IN_SM_BACKEND", disks.sr._ref]
    clone = disks.db.VDI[disks("VDI.clone", vdi._ref, {})]
    assert (disks.head(clone), dict(clone.sm_config)) == (b"data", {})


def test_a_copy_to_another_sr(disks: Disks, tmp_path: Path) -> None:
    """Contents, names and keys; the source stays."""
    other = make_sr(disks, "file", {"location": str(tmp_path / "other")})
    vdi = disks.create(other_config={"k": "v"}, tags=["t"])
    disks.put(vdi, b"data")
    new = disks.db.VDI[disks("VDI.copy", vdi._ref, other._ref, NULL_REF, NULL_REF)]
    assert (new.SR, new.virtual_size, new.name_label, dict(new.other_config), new.tags) == (
        other._ref, 6 * MIB, "disk", {"k": "v"}, ("t",)
    )  # fmt: skip
    disk = disks.storage.repositories.at(str(tmp_path / "other")).open(new.uuid, read_only=True)
    assert disk.read(0, 4) == b"data"
    disk.close()
    assert not vdi.current_operations


def test_a_copy_over_another_disk(disks: Disks) -> None:
    """Which must be large enough and writable."""
    vdi, small, large = disks.create(4 * MIB), disks.create(2 * MIB), disks.create(8 * MIB)
    locked = disks.create(8 * MIB, read_only=True)
    disks.put(vdi, b"data")
    disks.put(large, b"old!" * 1024 * 1024)
    sr = disks.sr._ref
    assert disks.fails("VDI.copy", vdi._ref, sr, NULL_REF, small._ref) == ["VDI_TOO_SMALL", small._ref, str(4 * MIB)]
    assert disks.fails("VDI.copy", vdi._ref, sr, NULL_REF, locked._ref) == ["VDI_READONLY", locked._ref]
    assert disks("VDI.copy", vdi._ref, sr, NULL_REF, large._ref) == large._ref
    assert disks.head(large, 8) == b"data" + bytes(4)
    assert not large.current_operations


def test_a_copy_tells_how_far_it_is_and_can_be_cancelled(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of one that was: no file, no row, no operation."""
    vdi = disks.create(8 * MIB)
    for number in range(4):
        disks.put(vdi, b"x", number * 2 * MIB)
    files, rows, seen = disks.files(), len(disks.db.VDI), list[float]()
    progress = disks.daemon.tasks.progress

    def note(task: Any, fraction: float) -> None:
        progress(task, fraction)
        seen.append(task.progress)
        if len(seen) == 2:
            disks("task.cancel", task._ref)
            disks.turn()

    monkeypatch.setattr(disks.daemon.tasks, "progress", note)
    disks.threads.held = []
    ref = disks("Async.VDI.copy", vdi._ref, disks.sr._ref, NULL_REF, NULL_REF)
    assert dict(vdi.current_operations) == {ref: "copy"}
    disks.threads.release()
    disks.turn()
    task = disks.db.task[ref]
    assert seen == sorted(seen)
    assert len(seen) == 2
    assert (task.status, task.error_info) == ("cancelled", ("TASK_CANCELLED", ref))
    assert (disks.files(), len(disks.db.VDI), dict(vdi.current_operations)) == (files, rows, {})


def test_revert_is_left_to_clones(disks: Disks) -> None:
    """No driver says that it can."""
    vdi = disks.create()
    taken = disks("VDI.snapshot", vdi._ref, {})
    assert disks.fails("VDI.revert", taken) == ["SR_OPERATION_NOT_SUPPORTED", disks.sr._ref]
