"""Whatever is asked of VMs, in whatever order, rows, domains, lists of operations and events agree."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hypervisor.api import Code, HostError, Power, Shutdown
from tests.api.storage_pool import MIB, Threads, fit
from tests.conftest import Pool
from tests.property.follower import Follower, references
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.operations import vdi
from xapi.operations.refusal import RULES, refusal

NUMBERS = st.integers(0, 11)
"""Which of several: the remainder counts."""
MOST = 7
"""VMs, snapshots included."""
CLASSES = (
    "VM", "VBD", "VIF", "VDI", "SR", "console", "VM_metrics", "VM_guest_metrics", "VBD_metrics", "VIF_metrics",
    "host", "network", "pool", "message",
)  # fmt: skip
POWER: dict[str, tuple[str, tuple[Any, ...]]] = {
    "VM.start": ("start", (False, False)),
    "VM.pause": ("pause", ()),
    "VM.unpause": ("unpause", ()),
    "VM.clean_shutdown": ("clean_shutdown", ()),
    "VM.hard_shutdown": ("hard_shutdown", ()),
    "VM.shutdown": ("shutdown", ()),
    "VM.clean_reboot": ("clean_reboot", ()),
    "VM.hard_reboot": ("hard_reboot", ()),
    "VM.suspend": ("suspend", ()),
    "VM.resume": ("resume", (False, False)),
}
"""Messages, the operations that they claim, and their further parameters."""
STEPS = ("network", "build", "unpause", "pause", "destroy", "shutdown", "save", "restore", "resume", "plug", "unplug")
"""Calls of the backend that may fail."""
FAILS = st.none() | st.sampled_from(STEPS)
REFUSALS = frozenset(
    {"VM_BAD_POWER_STATE", "OPERATION_NOT_ALLOWED", "OTHER_OPERATION_IN_PROGRESS", "VM_IS_TEMPLATE", "VM_IS_SNAPSHOT",
     "OPERATION_BLOCKED", "VM_LACKS_FEATURE", "VM_MISSING_PV_DRIVERS", "NOT_IMPLEMENTED"}
)  # fmt: skip
"""Errors that say that an operation is not allowed now."""
LOOSE = frozenset({"VM.snapshot_of", "VDI.snapshot_of", "VM.affinity", "task.result"})
"""References that outlive what they lead to, as the API says."""


class Once(dict[str, HostError]):
    """Errors that each happen one time."""

    def __getitem__(self, name: str) -> HostError:
        return self.pop(name)


def dangling(db: Any) -> list[str]:
    """Return the fields with a reference that leads nowhere."""
    found = []
    for name, table in db.tables.items():
        fields = [field for field in table.cls.fields.values() if "OpaqueRef" not in field.name]
        for row in table:
            for field in fields:
                for target, ref in references(field.type, getattr(row, field.name)):
                    lost = ref not in (NULL, "") and (target not in db.tables or ref not in db.tables[target])
                    if lost and f"{name}.{field.name}" not in LOOSE:
                        found.append(f"{name}.{field.name}")
    return found


def advertised(row: Any) -> Iterable[str]:
    """Return the operations that a list may have."""
    if row._table.name == "VM":
        return [each.name for each in row._table.cls.operations.values() if each.advertised]
    if row._table.name == "VDI":
        return vdi.ADVERTISED
    values = row._table.cls.fields["allowed_operations"].type.item.values
    return [each for each in values if each not in RULES[row._table.name].unlisted]


class Lifecycle(RuleBasedStateMachine):
    """A pool of one host with a few demo guests."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.pool = fit(Pool(self.directory), Threads())
        self.db: Any = self.pool.db
        self.given = set(self.db.VM.rows)
        self.template = self.db.VM.by_name_label("Demo guest")[0]._ref
        self.disks: list[str] = [self.pool.create(MIB)._ref for _ in range(2)]
        self.left: set[str] = set()
        """Images of VMs that were destroyed: like disks, they stay."""
        self.follower = Follower(self.pool, CLASSES)
        self.clone(0, None)

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)

    # Calling

    def own(self, *, templates: bool = True) -> list[Any]:
        return [vm for vm in self.db.VM if vm._ref not in self.given and (templates or not vm.is_a_template)]

    def pick(self, number: int, rows: list[Any]) -> Any:
        return rows[number % len(rows)] if rows else None

    def ask(self, row: Any, operation: str, name: str, *params: Any, fail: str | None = None) -> Any:
        """Call a message that claims an operation of a row; its outcome must be what the list promises.

        Return the result, None when it was refused or a step failed.
        """
        listed = operation in row.allowed_operations
        refused = refusal(self.db, row, operation)
        of_class = row._table.cls.operations.get(operation)
        if of_class is None or of_class.advertised:  # `shutdown` is accepted and never listed
            assert listed == (refused is None), (operation, list(row.allowed_operations), refused)
        errors = Once() if fail is None else Once({fail: HostError(Code.FAILED, "by the test")})
        self.pool.backend.fail = errors
        try:
            result = self.pool(name, *params)
        except Fault as fault:
            if refused is not None:
                assert fault.description == refused.description
            else:
                assert fault.code not in REFUSALS, (name, fault)
                assert fail is not None and not errors, (name, fault)
            return None
        finally:
            self.pool.backend.fail = {}
        assert refused is None, (name, refused)
        return result

    # Rules

    @rule(number=NUMBERS, message=st.sampled_from(sorted(POWER)), fail=FAILS)
    def power(self, number: int, message: str, fail: str | None) -> None:
        vm = self.pick(number, self.own())
        if vm is not None:
            operation, more = POWER[message]
            self.ask(vm, operation, message, vm._ref, *more, fail=fail)

    @rule(number=NUMBERS, choice=NUMBERS, fail=FAILS)
    def power_as_listed(self, number: int, choice: int, fail: str | None) -> None:
        """Walk on where the lists lead: states are reached that mere chance does not."""
        vm = self.pick(number, self.own(templates=False))
        if vm is None:
            return
        open_ = [name for name, (operation, _) in POWER.items() if operation in vm.allowed_operations]
        if open_:
            message = open_[choice % len(open_)]
            self.ask(vm, POWER[message][0], message, vm._ref, *POWER[message][1], fail=fail)

    @rule(number=NUMBERS)
    def start_paused(self, number: int) -> None:
        vm = self.pick(number, self.own(templates=False))
        if vm is not None:
            self.ask(vm, "start", "VM.start", vm._ref, True, False)

    @rule(number=NUMBERS, fail=FAILS)
    def clone(self, number: int, fail: str | None) -> None:
        rows = self.own()
        if len(rows) >= MOST:
            return
        source = self.pick(number, rows) if number % 3 else None
        row = source or self.db.VM[self.template]
        made = self.ask(row, "clone", "VM.clone", row._ref, "clone", fail=fail)
        if made is not None and self.db.VM[made].is_a_template and source is None:
            self.pool("VM.set_is_a_template", made, False)

    @rule(number=NUMBERS, memory=st.booleans(), fail=FAILS)
    def snapshot(self, number: int, memory: bool, fail: str | None) -> None:
        vm = self.pick(number, self.own(templates=False))
        if vm is not None and len(self.own()) < MOST:
            name = "checkpoint" if memory else "snapshot"
            more: tuple[list[str], ...] = () if memory else ([],)
            self.ask(vm, name, f"VM.{name}", vm._ref, "snapshot", *more, fail=fail)

    @rule(number=NUMBERS, fail=FAILS)
    def revert(self, number: int, fail: str | None) -> None:
        snapshot = self.pick(number, [vm for vm in self.own() if vm.is_a_snapshot])
        if snapshot is None:
            return
        vm = self.db.VM.get(snapshot.snapshot_of)
        refused = None if vm is None else refusal(self.db, vm, "reverting")
        if refused is not None and refusal(self.db, snapshot, "revert") is None:
            assert self.pool.fails("VM.revert", snapshot._ref) == refused.description
        else:
            self.ask(snapshot, "revert", "VM.revert", snapshot._ref, fail=fail)

    @rule(number=NUMBERS)
    def destroy(self, number: int) -> None:
        vm = self.pick(number, self.own())
        if vm is not None:
            memory = vm.suspend_VDI
            self.ask(vm, "destroy", "VM.destroy", vm._ref)
            if memory != NULL and vm._ref not in self.db.VM:
                self.left.add(memory)

    @rule(number=NUMBERS, value=st.booleans())
    def template_or_not(self, number: int, value: bool) -> None:
        vm = self.pick(number, [vm for vm in self.own() if not vm.is_a_snapshot])
        if vm is None:
            return
        if value:
            self.ask(vm, "make_into_template", "VM.set_is_a_template", vm._ref, True)
        else:
            self.pool("VM.set_is_a_template", vm._ref, False)

    @rule(number=NUMBERS, disk=NUMBERS)
    def add_drive(self, number: int, disk: int) -> None:
        vm = self.pick(number, self.own(templates=False))
        free = [ref for ref in self.disks if ref in self.db.VDI and not self.db.VDI[ref].VBDs]
        if vm is None or not free:
            return
        record = {
            "VM": vm._ref, "VDI": free[disk % len(free)], "userdevice": "autodetect", "bootable": False, "mode": "RW",
            "type": "Disk", "unpluggable": True, "empty": False, "other_config": {}, "qos_algorithm_type": "",
            "qos_algorithm_params": {},
        }  # fmt: skip
        self.pool("VBD.create", record)

    @rule(number=NUMBERS)
    def add_card(self, number: int) -> None:
        vm = self.pick(number, self.own(templates=False))
        if vm is None or len(vm.VIFs) > 2:
            return
        free = self.pool("VM.get_allowed_VIF_devices", vm._ref)
        record = {
            "VM": vm._ref, "network": next(iter(self.db.network))._ref, "device": free[0], "MAC": "", "MTU": "1500",
            "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        }  # fmt: skip
        self.pool("VIF.create", record)

    @rule(
        number=NUMBERS, name=st.sampled_from(["VBD", "VIF"]), fail=FAILS,
        operation=st.sampled_from(["plug", "unplug", "unplug_force"]),
    )  # fmt: skip
    def plug(self, number: int, name: str, operation: str, fail: str | None) -> None:
        row = self.pick(number, [row for vm in self.own() for row in self.devices(vm) if row._table.name == name])
        if row is not None:
            # VIF.unplug_force is claimed and listed as unplug.
            claimed = "unplug" if name == "VIF" and operation == "unplug_force" else operation
            self.ask(row, claimed, f"{name}.{operation}", row._ref, fail=fail)

    @rule(number=NUMBERS, name=st.sampled_from(["VBD", "VIF"]))
    def remove_device(self, number: int, name: str) -> None:
        row = self.pick(number, [row for vm in self.own() for row in self.devices(vm) if row._table.name == name])
        if row is None:
            return
        # A suspended VM keeps its attached drives; its cards can go, as in xapi.
        if row.currently_attached and (name == "VBD" or self.db.VM[row.VM].power_state != "Suspended"):
            assert self.pool.fails(f"{name}.destroy", row._ref)[0] == "OPERATION_NOT_ALLOWED"
        else:
            self.pool(f"{name}.destroy", row._ref)

    @rule(number=NUMBERS, why=st.sampled_from([why for why in Shutdown if why is not Shutdown.SUSPEND]))
    def goes_down(self, number: int, why: Shutdown) -> None:
        """A guest goes down by itself."""
        domains = self.pool.backend.doms
        if not domains:
            return
        uuid = list(domains)[number % len(domains)]
        self.pool.backend.goes_down(uuid, why)
        self.pool.turn()

    @rule(number=NUMBERS)
    def vanishes(self, number: int) -> None:
        """A domain is gone, and the host says so."""
        domains = self.pool.backend.doms
        if domains:
            uuid = list(domains)[number % len(domains)]
            del domains[uuid]
            self.pool.backend.attention(uuid)
            self.pool.turn()

    # What must be so

    def devices(self, vm: Any) -> list[Any]:
        return [self.db.VBD[ref] for ref in vm.VBDs] + [self.db.VIF[ref] for ref in vm.VIFs]

    @invariant()
    def rows_are_as_the_domains(self) -> None:
        domains = self.pool.backend.doms
        for vm in self.own():
            domain = domains.get(vm.uuid)
            assert vm.scheduled_to_be_resident_on == NULL
            if domain is None:
                assert vm.power_state in ("Halted", "Suspended")
                assert (vm.domid, vm.resident_on, len(vm.consoles)) == (-1, NULL, 0)
            else:
                running = {"Running": Power.RUNNING, "Paused": Power.PAUSED}
                assert running.get(vm.power_state) is domain.state, (vm.power_state, domain)
                assert (vm.domid, len(vm.consoles)) == (domain.domid, 2)
                assert vm.resident_on in self.db.host
                plugged = {(kind.__name__, number) for kind, number in domain.devices}
                kinds = {"VBD": "Disk", "VIF": "NIC"}
                rows = [(kinds[row._table.name], row.device) for row in self.devices(vm) if row.currently_attached]
                assert len(rows) == len(plugged), (rows, plugged)
            if vm.power_state == "Halted":
                assert not any(row.currently_attached for row in self.devices(vm))
            assert (vm.power_state == "Suspended") == (vm.suspend_VDI != NULL), (vm.power_state, vm.suspend_VDI)
        assert set(domains) <= {vm.uuid for vm in self.own()}

    @invariant()
    def no_reference_leads_nowhere(self) -> None:
        assert dangling(self.db) == []

    @invariant()
    def memory_belongs_to_a_vm(self) -> None:
        """Suspend images are nobody's but a suspended VM's."""
        images = {vdi._ref for vdi in self.db.VDI if vdi.type == "suspend"}
        assert images - self.left == {vm.suspend_VDI for vm in self.db.VM if vm.suspend_VDI != NULL}

    @invariant()
    def files_are_as_the_rows(self) -> None:
        stems = {Path(name).stem for name in self.pool.files()}
        assert stems == {self.db.VDI[ref].location for ref in self.pool.sr.VDIs}

    @invariant()
    def lists_are_what_is_accepted(self) -> None:
        for name in RULES:
            for row in self.db.tables[name]:
                if name == "VM" and row._ref in self.given:
                    continue
                asked = set(advertised(row))
                open_ = {each for each in asked if refusal(self.db, row, each, called=False) is None}
                assert set(row.allowed_operations) == open_, (name, set(row.allowed_operations) ^ open_)

    @invariant()
    def nothing_is_under_way(self) -> None:
        held = [
            (name, dict(row.current_operations))
            for name in RULES
            for row in self.db.tables[name]
            if row.current_operations
        ]
        assert held == []
        assert len(self.db.task) == 0

    @invariant()
    def events_lead_to_the_records(self) -> None:
        self.follower.follow()
        assert self.follower.view == self.follower.truth()


# Shrinking a failure would take minutes; the steps that led to it are printed as they are.
Lifecycle.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
TestVMLifecycle = Lifecycle.TestCase
