"""A host is lost at each step of what is done to VMs: when it is back rows and domains agree, and all works again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api.test_vm_faults import CASES, Case, World, at_each_step, outcome
from xapi.datamodel.errors import Fault


def is_done(world: World) -> bool:
    """Tell whether a call has come to what was asked after it has failed: memory is saved, a checkpoint is made."""
    if world.case.message == "VM.suspend":
        return bool(world.vm.power_state == "Suspended")
    return world.case.message == "VM.checkpoint" and len(world.vm.snapshots) > 0


@pytest.mark.parametrize("late", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_host_is_lost_at_each_step(tmp_path: Path, case: Case, late: bool) -> None:
    """Before it has done the step, or after it has, which nobody hears; nothing else can be asked of it then.

    What storage has done by then is not undone: images may stay until somebody destroys them.
    """

    def loses(world: World, number: int) -> Any:
        world.keeps_all_images = True
        world.steps.arm(lose_at=number, late=late)
        result = outcome(world.pool, world.begin())
        if world.pool.backend.is_lost and isinstance(result, Fault):
            assert result.code in ("HOST_OFFLINE", "VM_REVERT_FAILED")
        world.pool.turn()
        if world.pool.backend.is_lost:
            world.pool.backend.come_back()
            world.pool.turn()
        return None if is_done(world) else result

    at_each_step(tmp_path, case, loses)


@pytest.mark.parametrize("cls", ["VBD", "VIF"])
def test_what_is_unplugged_before_it_is_told_that_the_host_is_lost_says_so(tmp_path: Path, cls: str) -> None:
    """What it looks at afterwards fails, too, for the same reason."""
    world = World(tmp_path, Case("VM.pause", "Running"))
    (device,) = getattr(world.vm, f"{cls}s")
    world.pool.backend.lose(told=False)
    with pytest.raises(Fault, match="HOST_OFFLINE"):
        world.pool(f"{cls}.unplug", device)
    world.pool.backend.lose()
    world.pool.backend.come_back()
    world.pool.turn()
    world.check()
    world.pool(f"{cls}.unplug", device)
