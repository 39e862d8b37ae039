"""Whatever is asked of VMs that really run, in turn and at once, rows and domains agree, and nothing stays."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.defer import Deferred

from hypervisor.api import Power
from tests.property.test_vm_lifecycle import POWER, REFUSALS, dangling
from tests.real_pool import RealPool
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL

VMS = 3
MESSAGES = st.sampled_from(sorted(POWER))
NUMBERS = st.integers(0, VMS - 1)
EXPECTED = REFUSALS | {"TASK_CANCELLED", "VM_FAILED_SUSPEND_ACKNOWLEDGMENT", "VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT"}
"""What may be answered to calls that meet each other."""


class RealLifecycle(RuleBasedStateMachine):
    """A pool of one host with a few demo guests, whose vCPUs run."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.pool = RealPool(self.directory)
        self.db: Any = self.pool.db
        template = self.db.VM.by_name_label("Demo guest")[0]._ref
        self.vms = [self.db.VM[self.pool("VM.clone", template, f"guest {number}")] for number in range(VMS)]
        for vm in self.vms:
            self.pool("VM.set_is_a_template", vm._ref, False)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            (backend,) = self.pool.real.values() or [None]
            self.pool.close()
            if backend is not None:
                host = backend.toolstack.host
                assert (backend.toolstack.guests, host.domains, host.scheduler.entities) == ({}, {}, {})
                assert host.free_memory() == host.memory
            shutil.rmtree(self.directory)

    def start(self, number: int, message: str) -> Deferred[Any]:
        return self.pool.start(message, self.pool.session, self.vms[number]._ref, *POWER[message][1])

    def result(self, call: Deferred[Any]) -> str:
        """Return the code of the error of a call, "" for none."""
        try:
            self.pool.outcome(call)
        except Fault as fault:
            return fault.code
        return ""

    def settle(self) -> None:
        """Wait until nobody does anything with a VM, and all that guests have done by themselves is known."""
        reconciler = self.pool.daemon.reconciler

        def quiet() -> bool:
            busy = any(vm.current_operations for vm in self.vms)
            return not (busy or reconciler._following or reconciler._waiting) and self.pool._calls.empty()

        for _ in range(3):
            self.pool.turn()
            self.pool.until(quiet)

    @rule(number=NUMBERS, choice=st.integers(0, 11))
    def as_listed(self, number: int, choice: int) -> None:
        """Do what the list offers: it must work."""
        open_ = [name for name, (operation, _) in POWER.items() if operation in self.vms[number].allowed_operations]
        assert self.result(self.start(number, open_[choice % len(open_)])) == ""
        self.settle()

    @rule(asked=st.lists(st.tuples(NUMBERS, MESSAGES, st.booleans()), min_size=2, max_size=6), turns=st.integers(0, 20))
    def at_once(self, asked: list[tuple[int, str, bool]], turns: int) -> None:
        """Call several at once, while others look; some are cancelled."""
        calls = []
        for number, message, cancelled in asked:
            calls.append(call := self.start(number, message))
            self.pool.daemon.reconciler.attend(self.vms[number].uuid)
            if cancelled:
                for _ in range(turns):
                    self.pool.turn()
                call.cancel()
        self.pool.daemon.metrics.tick()
        self.pool.daemon.sweep()
        codes = [self.result(call) for call in calls]
        assert set(codes) <= EXPECTED | {""}, codes
        self.settle()

    @rule(number=NUMBERS, command=st.sampled_from(["poweroff", "crash", "suspend"]))
    def by_itself(self, number: int, command: str) -> None:
        """A guest goes down by itself."""
        vm = self.vms[number]
        if vm.power_state == "Running":
            (backend,) = self.pool.real.values()
            stream: Any = self.pool.outcome(Deferred.fromCoroutine(backend.console(vm.uuid)))
            self.pool.outcome(Deferred.fromCoroutine(stream.write(command.encode() + b"\r")))
            self.pool.until(lambda: vm.power_state == "Halted")
            self.settle()

    @rule(number=NUMBERS)
    def vanishes(self, number: int) -> None:
        """A domain is gone."""
        for backend in self.pool.real.values():
            backend.toolstack.destroy(self.vms[number].uuid)
            self.settle()

    @invariant()
    def rows_are_as_the_domains(self) -> None:
        states = {"Running": Power.RUNNING, "Paused": Power.PAUSED}
        guests = {uuid: each for backend in self.pool.real.values() for uuid, each in backend.toolstack.guests.items()}
        truths = {
            uuid: backend.toolstack.state(uuid).state for backend in self.pool.real.values() for uuid in list(guests)
        }
        for vm in self.vms:
            state = truths.get(vm.uuid)
            if state is None:
                assert (vm.domid, vm.resident_on, len(vm.consoles)) == (-1, NULL, 0)
                assert vm.power_state == ("Halted" if vm.suspend_VDI == NULL else "Suspended")
            else:
                assert (states.get(vm.power_state), vm.domid) == (state.power, state.domid)
                assert self.db.VM_metrics[vm.metrics].current_domain_type == state.kind
            assert vm.scheduled_to_be_resident_on == NULL
        assert guests.keys() <= {vm.uuid for vm in self.vms}

    @invariant()
    def nothing_is_under_way(self) -> None:
        assert not any(vm.current_operations for vm in self.vms)
        assert not any(host.current_operations for host in self.db.host)
        assert len(self.db.task) == 0
        assert dangling(self.db) == []


RealLifecycle.TestCase.settings = settings(
    max_examples=4, stateful_step_count=15, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
TestRealVMLifecycle = RealLifecycle.TestCase
