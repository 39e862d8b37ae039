"""Each step of what is done to VMs fails once, or is cancelled: rows, files and domains agree, and all works again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from twisted.internet.defer import Deferred, fail

from hypervisor.api import Code, HostError, Power, StorageFailure
from tests.api.storage_pool import MIB, Disks, Threads, fit
from tests.conftest import Pool
from tests.property.test_vm_lifecycle import dangling
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.operations.refusal import RULES

MOST = 60
"""More than any operation has steps."""
BACKEND = (
    "networks", "build", "unpause", "pause", "destroy", "shutdown", "suspend", "resume", "restore", "plug", "unplug",
    "adjust",
)  # fmt: skip
NO_SPACE = 44


class Steps:
    """All calls of a host's backend, and all work of its storage, counted once `armed`.

    The one of number `fail_at` fails without doing anything; the one of number `hold_at` waits, before or after it
    was done, until it is cancelled, and so do all that follow where a test says `on`. A host goes on with what is
    cancelled, or withdraws it: both happen.
    """

    def __init__(self, pool: Disks) -> None:
        self.pool = pool
        self.names: list[str] = []
        self.fail_at = self.hold_at = self.lose_at = -1
        self.late = self.armed = self.on = False
        self.held: list[Deferred[Any]] = []
        backend: Any = pool.backend
        for name in BACKEND:
            setattr(backend, name, self._call(name, getattr(backend, name)))
        storage: Any = pool.storage
        self._work: Callable[..., Deferred[Any]] = storage._run
        storage._run = self._run

    def arm(
        self, *, fail_at: int = -1, hold_at: int = -1, lose_at: int = -1, late: bool = False, on: bool = False
    ) -> None:
        self.fail_at, self.hold_at, self.lose_at = fail_at, hold_at, lose_at
        self.late, self.on, self.armed = late, on, True

    def _holds(self, number: int) -> bool:
        return number == self.hold_at or (self.on and 0 <= self.hold_at < number)

    def _counted(self, name: str) -> int:
        if not self.armed:
            return -2
        self.names.append(name)
        return len(self.names) - 1

    def _call(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        async def step(uuid: Any, *arguments: Any, **named: Any) -> Any:
            number = self._counted(name)
            if number == self.fail_at:
                raise HostError(Code.FAILED, f"{name} by the test")
            if number == self.lose_at and not self.late:
                self.pool.backend.lose()
            if self._holds(number) and not self.late:
                await self._hold()
            result = await function(uuid, *arguments, **named)
            if name in ("destroy", "shutdown"):  # what a guest does is news
                self.pool.backend.attention(uuid)
            if self._holds(number) and self.late:
                await self._hold()
            if number == self.lose_at and self.late:
                self.pool.backend.lose()
                raise HostError(Code.LOST, f"{name} by the test")
            return result

        return step

    def _hold(self) -> Deferred[Any]:
        self.held.append(Deferred())
        return self.held[-1]

    def release(self) -> None:
        """Let what is held go on."""
        while self.held:
            if not self.held[0].called:
                self.held[0].callback(None)
            del self.held[0]

    def _run(self, told: Any, work: Any, *arguments: Any) -> Deferred[Any]:
        """Work of the storage goes on to its end when it is cancelled."""
        number = self._counted(f"storage {getattr(work, '__name__', '')}")
        if number == self.fail_at:
            return fail(StorageFailure(NO_SPACE, f"{self.names[-1]} by the test"))
        if self.lose_at == number or self.pool.backend.is_lost:
            return self._lose(told, work, *arguments)
        if not self._holds(number):
            return self._work(told, work, *arguments)
        done: Deferred[Any] | None = self._work(told, work, *arguments) if self.late else None
        return self._hold().addBoth(lambda _: done or self._work(told, work, *arguments))

    def _lose(self, told: Any, work: Any, *arguments: Any) -> Deferred[Any]:
        if not self.pool.backend.is_lost:
            self.pool.backend.lose()
            if self.late:
                return self._work(told, work, *arguments).addBoth(lambda _: fail(HostError(Code.LOST, "by the test")))
        return fail(HostError(Code.LOST, "by the test"))


class Case(NamedTuple):
    """A message, and the state that the VM is in."""

    message: str
    state: str
    parameters: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.message}-{self.state}"


CASES = (
    Case("VM.start", "Halted", (False, False)),
    Case("VM.snapshot", "Running", ("new", [])),
    Case("VM.clone", "Halted", ("new",)),
    Case("VM.destroy", "Halted"),
    Case("VM.hard_shutdown", "Running"),
    Case("VM.hard_shutdown", "Suspended"),
    Case("VM.suspend", "Running"),
    Case("VM.resume", "Suspended", (False, False)),
    Case("VM.checkpoint", "Running", ("new",)),
    Case("VM.checkpoint", "Suspended", ("new",)),
    Case("VM.revert", "Running"),
    Case("VM.revert", "Suspended"),
    Case("VM.hard_reboot", "Running"),
    Case("VM.clean_reboot", "Running"),
)
MAY_HALT = frozenset({"VM.revert", "VM.hard_reboot", "VM.clean_reboot", "VM.hard_shutdown"})
"""Whose failure may leave the VM halted."""


class World:
    """A pool with one VM that has a disk and a card, in the state that a case wants."""

    def __init__(self, directory: Path, case: Case) -> None:
        self.case = case
        self.pool = fit(Pool(directory), Threads())
        self.db: Any = self.pool.db
        self.steps = Steps(self.pool)
        template = self.db.VM.by_name_label("Demo guest")[0]
        self.vm = self.db.VM[self.pool("VM.clone", template._ref, "guest")]
        self.pool("VM.provision", self.vm._ref)
        self.disk = self.pool.create(MIB)
        shared = {"VM": self.vm._ref, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}
        drive = {"VDI": self.disk._ref, "userdevice": "0", "bootable": False, "mode": "RW", "type": "Disk",
                 "unpluggable": True, "empty": False}  # fmt: skip
        self.pool("VBD.create", shared | drive)
        network = next(iter(self.db.network))._ref
        self.pool("VIF.create", shared | {"network": network, "device": "0", "MAC": "", "MTU": "1500"})
        self.target = self.vm
        self.uuid = self.vm.uuid
        self.keeps_image = False
        """A VM that lives again lets its image be, when that cannot be destroyed."""
        if case.message == "VM.revert":
            self.target = self.db.VM[self.pool("VM.snapshot", self.vm._ref, "snapshot", [])]
        self.keeps_all_images = False
        """Where storage was lost with its host nobody knows what it has done."""
        self.prepare()

    def prepare(self) -> None:
        """Bring the VM into the state of the case."""
        state = self.vm.power_state
        if state == self.case.state:
            return
        if state == "Halted":
            self.pool("VM.start", self.vm._ref, False, False)
        elif state == "Suspended":
            self.pool("VM.resume", self.vm._ref, False, False)
        if self.case.state == "Suspended":
            self.pool("VM.suspend", self.vm._ref)

    def begin(self) -> Deferred[Any]:
        return self.pool.start(self.case.message, self.pool.session, self.target._ref, *self.case.parameters)

    def cancel(self) -> None:
        """Cancel all calls that are under way, then let what is held go on: work of the storage comes to its end."""
        for task in [row for row in self.db.task if row.subtask_of == NULL]:
            self.pool("task.cancel", task._ref)
        self.pool.turn()
        self.steps.release()
        self.pool.turn()

    def count(self) -> tuple[int, int]:
        """Return how many VMs and disks there are."""
        return len(self.db.VM), len([vdi for vdi in self.db.VDI if vdi.managed and vdi.type != "suspend"])

    def check(self) -> None:
        """Assert that rows, files and domains agree, and that nobody waits for anything."""
        domains = self.pool.backend.doms
        for vm in (vm for vm in self.db.VM if not vm.is_control_domain):
            domain = domains.get(vm.uuid)
            state = {None: vm.power_state if vm.power_state != "Running" else "", Power.RUNNING: "Running"}
            assert vm.power_state == state[None if domain is None else domain.state], domain
            assert (vm.domid, vm.resident_on == NULL) == ((domain.domid, False) if domain else (-1, True))
            assert vm.scheduled_to_be_resident_on == NULL
            assert (vm.power_state == "Suspended") == (vm.suspend_VDI != NULL)
            devices = [self.db.VBD[ref] for ref in vm.VBDs] + [self.db.VIF[ref] for ref in vm.VIFs]
            if vm.power_state in ("Running", "Halted"):
                assert all(row.currently_attached == (domain is not None) for row in devices)
        assert set(domains) <= {vm.uuid for vm in self.db.VM}
        assert dangling(self.db) == []
        held = [row for name in RULES for row in self.db.tables[name] if row.current_operations]
        assert held == []
        assert len(self.db.task) == 0
        images = {vdi._ref for vdi in self.db.VDI if vdi.type == "suspend"}
        if self.keeps_all_images:
            return
        if not self.keeps_image:
            assert images == {vm.suspend_VDI for vm in self.db.VM if vm.suspend_VDI != NULL}
        stems = {Path(name).stem for name in self.pool.files()}
        assert stems == {self.db.VDI[ref].location for ref in self.pool.sr.VDIs}

    def check_undone(self, before: tuple[int, int]) -> None:
        """Assert that a call that failed has left nothing, and works now."""
        assert self.count()[: 1 if self.keeps_all_images else 2] == before[: 1 if self.keeps_all_images else 2]
        assert self.uuid in {vm.uuid for vm in self.db.VM}
        states = {self.case.state} | ({"Halted"} if self.case.message in MAY_HALT else set())
        assert self.vm.power_state in states
        self.steps.armed = False
        self.prepare()
        self.pool.outcome(self.begin())
        self.check()


def outcome(pool: Disks, deferred: Deferred[Any]) -> Any:
    """Return the result of a call, or the Fault."""
    try:
        return pool.outcome(deferred)
    except Fault as fault:
        return fault


def at_each_step(
    directory: Path, case: Case, trouble: Callable[[World, int], Any], *, image_may_stay: bool = True
) -> None:
    """Let a case run into trouble at each of its steps, in a world of its own; `trouble` returns what came of it.

    What was done is undone, and the call works next time. Fails with all steps of which that is not so. Of a VM that
    lives again the image may stay where its destruction is what fails.
    """
    failed = []
    for number in range(MOST):
        (directory / str(number)).mkdir()
        world = World(directory / str(number), case)
        before = world.count()
        result: Any = None
        try:
            result = trouble(world, number)
            if len(world.steps.names) <= number:
                break
            told = isinstance(result, Fault)
            world.keeps_image = image_may_stay and case.message == "VM.resume" and not told
            world.check()
            if told and result.code != "VM_CHECKPOINT_RESUME_FAILED":  # then the snapshot stays, its VM is halted
                world.check_undone(before)
        except (AssertionError, Fault) as error:
            failed.append(f"step {number}: {world.steps.names[number:]} -> {result!r}: {error!s:.200}")
    else:
        pytest.fail("there are more steps than this test looks at")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_step_fails_once(tmp_path: Path, case: Case) -> None:
    """Whichever it is."""

    def fails(world: World, number: int) -> Any:
        world.steps.arm(fail_at=number)
        return outcome(world.pool, world.begin())

    at_each_step(tmp_path, case, fails)


@pytest.mark.parametrize("late", [False, True], ids=["withdrawn", "done"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_step_is_cancelled(tmp_path: Path, case: Case, late: bool) -> None:
    """Whichever it is: the call has succeeded, or says that it was cancelled."""

    def cancelled(world: World, number: int) -> Any:
        world.steps.arm(hold_at=number, late=late)
        running = world.begin()
        world.pool.turn()
        assert world.steps.held or len(world.steps.names) <= number, "nothing was held"
        world.cancel()
        result = outcome(world.pool, running)
        assert not isinstance(result, Fault) or result.code == "TASK_CANCELLED"
        return result

    at_each_step(tmp_path, case, cancelled, image_may_stay=False)


@pytest.mark.parametrize(
    ("fails", "late"), [(False, False), (False, True), (True, False)], ids=["withdrawn", "done", "failed"]
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_step_and_all_that_undo_it_are_cancelled(tmp_path: Path, case: Case, late: bool, fails: bool) -> None:
    """Whichever it is that is cancelled or fails first: a cancel disturbs no undoing, however often it comes."""

    def cancelled(world: World, number: int) -> Any:
        world.steps.arm(fail_at=number if fails else -1, hold_at=number + fails, late=late, on=True)
        running = world.begin()
        world.pool.turn()
        while world.steps.held:
            world.cancel()
        return outcome(world.pool, running)

    at_each_step(tmp_path, case, cancelled)
