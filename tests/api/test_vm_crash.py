"""The process ends at each step of what is done to VMs: what begins then has the operation whole, or nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.storage_pool import MIB, Disks, Threads, fit
from tests.api.test_vm_faults import Case, World
from tests.property.test_vm_lifecycle import dangling
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.vms import lifecycle

CASES = (
    Case("VM.clone", "Halted", ("new",)),
    Case("VM.checkpoint", "Running", ("new",)),
    Case("VM.revert", "Suspended"),
    Case("VM.suspend", "Running"),
    Case("VM.resume", "Suspended", (False, False)),
    Case("VM.hard_shutdown", "Suspended"),
    Case("VM.provision", "Halted"),
)
"""Messages that make images or delete them."""


class Before:
    """A world in which a case runs, and who there is at first."""

    def __init__(self, directory: Path, case: Case) -> None:
        directory.mkdir()
        self.world = World(directory, case)
        self.steps, self.pool = self.world.steps, self.world.pool
        if case.message == "VM.provision":
            disk = f'<disk device="{{}}" size="{MIB}" sr="{self.pool.sr.uuid}" bootable="false" type="user"/>'
            wish = f"<provision>{disk.format(1)}{disk.format(2)}</provision>"
            self.world.vm.other_config = {**self.world.vm.other_config, "disks": wish}
            self.world.vm.is_a_template = True
        self.images = {vdi.uuid for vdi in self.world.db.VDI}
        self.vms = {vm.uuid for vm in self.world.db.VM}

    def stops(self) -> Iterator[str]:
        """Run the case; yield the name of each step when it is done, before anybody hears of that."""
        self.steps.arm(hold_at=0, late=True)
        running = self.world.begin()
        self.pool.turn()
        while not running.called:
            assert self.steps.held, "nothing was held"
            held = self.steps.held.pop()
            assert not self.steps.held and not held.called
            yield self.steps.names[self.steps.hold_at]
            self.steps.hold_at = len(self.steps.names)
            held.callback(None)
            self.pool.turn()
        self.pool.outcome(running)


class After:
    """What a new process finds in a copy of what the old one has on disk."""

    def __init__(self, before: Before, directory: Path) -> None:
        self.before = before
        self.pool: Disks = fit(before.pool.crashed(directory), Threads())
        self.pool.begin()
        self.db: Any = self.pool.db
        self.pool.run(self.pool.daemon.reconciler.adopt())
        self.pool.run(lifecycle.undo_unfinished(self.pool.daemon.subsystems))

    def check(self) -> None:
        """Assert that each image is of a user's or of a whole VM, also after a scan, and that nothing is noted."""
        for _ in range(2):
            held = {self.db.VDI[vbd.VDI].uuid for vbd in self.db.VBD if vbd.VDI != NULL}
            memories = {self.db.VDI[vm.suspend_VDI].uuid for vm in self.db.VM if vm.suspend_VDI != NULL}
            assert {vdi.uuid for vdi in self.db.VDI if vdi.managed} <= self.before.images | held | memories
            assert {vdi.uuid for vdi in self.db.VDI if vdi.type == "suspend"} == memories
            assert not [vdi for vdi in self.db.VDI if vdi.missing]
            self.pool("SR.scan", self.pool.sr._ref)
        assert dangling(self.db) == []
        assert not self.pool.sr.unfinished
        assert all((vm.power_state == "Suspended") == (vm.suspend_VDI != NULL) for vm in self.db.VM)
        assert all(vm.is_a_template for vm in self.db.VM if "disks" in vm.other_config)
        made = [vm for vm in self.db.VM if vm.uuid not in self.before.vms]
        assert [[len(vm.VBDs), len(vm.VIFs)] for vm in made] in ([], [[1, 1]])

    def check_usable(self) -> None:
        """Assert that all VMs of the world start or resume."""
        for vm in [row for row in self.db.VM if not (row.is_a_template or row.is_control_domain)]:
            resumes = vm.power_state == "Suspended"
            self.pool("VM.resume" if resumes else "VM.start", vm._ref, False, False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_process_ends_at_each_step(tmp_path: Path, case: Case) -> None:
    """No disk that nobody knows, no VM without its disks, nothing that points nowhere, and all VMs start."""
    failed = []
    before = Before(tmp_path / "before", case)
    for number, step in enumerate(before.stops()):
        after = After(before, tmp_path / str(number))
        try:
            after.check()
            after.check_usable()
        except (AssertionError, Fault) as error:
            failed.append(f"step {number}: {step}: {error!s:.300}")
    assert before.steps.names
    assert not failed, "\n".join(failed)
