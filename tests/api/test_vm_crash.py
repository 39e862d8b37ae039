"""The process ends at each step of what is done to VMs: what begins then has the operation whole, or nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from hypervisor.api import Power, Shutdown
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
    """What a new process finds in a copy of what the old one has on disk, and of its host if that `lives` on."""

    def __init__(self, before: Before, directory: Path, *, lives: bool) -> None:
        self.before = before
        self.pool: Disks = fit(before.pool.crashed(directory), Threads())
        if lives:
            self.pool.backend.doms = deepcopy(before.pool.backend.doms)
            for domain in self.pool.backend.doms.values():
                domain.asked = domain.shutdown is Shutdown.SUSPEND
        self.pool.begin()
        self.db: Any = self.pool.db
        self.controls = {vm.uuid for vm in self.db.VM if vm.is_control_domain}
        self.pool.run(self.pool.daemon.survey.adopt())
        self.pool.run(lifecycle.undo_unfinished(self.pool.daemon.subsystems))
        self.pool.turn()

    def check(self) -> None:
        """Assert that each image is of a user's or of a whole VM, also after a scan, and that nothing is noted.

        And that those VMs live which have a domain.
        """
        assert {vm.uuid for vm in self.db.VM if vm.power_state == "Running"} - self.controls == {
            *self.pool.backend.doms
        }
        assert all(domain.state is Power.RUNNING for domain in self.pool.backend.doms.values())
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
            if vm.power_state == "Running":
                self.pool("VM.hard_shutdown", vm._ref)
            resumes = vm.power_state == "Suspended"
            self.pool("VM.resume" if resumes else "VM.start", vm._ref, False, False)


@pytest.mark.parametrize("lives", [False, True], ids=["host ends", "host lives"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_process_ends_at_each_step(tmp_path: Path, case: Case, lives: bool) -> None:
    """No disk that nobody knows, no VM without its disks, nothing that points nowhere, and all VMs start.

    Whether their host ends with the process, or lives on with its domains.
    """
    failed = []
    before = Before(tmp_path / "before", case)
    for number, step in enumerate(before.stops()):
        after = After(before, tmp_path / str(number), lives=lives)
        try:
            after.check()
            after.check_usable()
        except (AssertionError, Fault) as error:
            failed.append(f"step {number}: {step}: {error!s:.300}")
    assert before.steps.names
    assert not failed, "\n".join(failed)
