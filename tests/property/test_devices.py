"""Drives and cards of a few VMs under random calls: what the rules say, what is accepted, and what is true agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hypervisor.api import NIC, Code, Disk, HostError, VolumeHandle
from tests.api.test_devices import card_record, make_vdi, record
from tests.api.test_power import make_vm
from tests.conftest import Pool
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.operations.refusal import refusal
from xapi.vms.domains import position

VMS = 3
OPERATIONS = {"VBD": ("plug", "unplug", "unplug_force", "insert", "eject"), "VIF": ("plug", "unplug", "unplug_force")}
CLAIMS = {("VIF", "unplug_force"): "unplug"}
"""Messages that claim an operation of another name."""
POWER = ("start", "hard_shutdown", "pause", "unpause", "hard_reboot")


def machine(make_pool: Callable[[], Pool]) -> type[RuleBasedStateMachine]:
    """Return the state machine over pools made so."""

    class Devices(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.pool = make_pool()
            self.db = self.pool.db

            async def volume(work: Any, host: Any, vdi: Any) -> VolumeHandle:
                return VolumeHandle("sr", vdi.uuid)

            self.pool.daemon.storage.volume = volume  # type: ignore[method-assign]
            kinds = ("pvh", "hvm", "pvh")
            self.vms = [make_vm(self.pool, domain_type=kinds[number]) for number in range(VMS)]
            self.vdis = [make_vdi(self.pool, sharable=number == 1, read_only=number == 2) for number in range(3)]
            for vm in self.vms:
                self.pool("VBD.create", record(vm))
                self.pool("VBD.create", record(vm, self.vdis[0], mode="RW"))
            for vm in self.vms[:2]:
                self.ask("VM.start", vm._ref, False, False)

        def ask(self, name: str, *arguments: Any) -> str:
            """Return the error of a call, '' for none."""
            try:
                self.pool(name, *arguments)
            except Fault as fault:
                assert fault.code != "INTERNAL_ERROR", fault
                return fault.code
            return ""

        def rows(self, table: str) -> list[Any]:
            return list(self.db.tables[table])

        @rule(vm=st.integers(0, VMS - 1), operation=st.sampled_from(POWER), stop=st.integers(0, 3))
        def power(self, vm: int, operation: str, stop: int) -> None:
            """Whatever the VM allows; most of the time it runs, for then there is most to do."""
            row = self.vms[vm]
            if stop and row.power_state != "Running":
                operation = "start" if row.power_state == "Halted" else "unpause"
            elif stop:
                return
            arguments = [False, False] if operation == "start" else []
            error = self.ask(f"VM.{operation}", row._ref, *arguments)
            assert not error or error in ("VM_BAD_POWER_STATE", "VDI_IN_USE", "VDI_READONLY", "DEVICE_ALREADY_EXISTS")

        @rule(vm=st.integers(0, VMS - 1), vdi=st.integers(-1, 2), mode=st.sampled_from(["RO", "RW"]),
              userdevice=st.sampled_from(["autodetect", "0", "xvdb", "hdc"]))  # fmt: skip
        def new_drive(self, vm: int, vdi: int, mode: str, userdevice: str) -> None:
            """A disk, or an empty CD drive."""
            medium = None if vdi < 0 else self.vdis[vdi]
            given = record(self.vms[vm], medium, userdevice=userdevice, mode="RO" if medium is None else mode)
            assert self.ask("VBD.create", given) in ("", "DEVICE_ALREADY_EXISTS", "VDI_READONLY")

        @rule(vm=st.integers(0, VMS - 1), device=st.sampled_from("0123"))
        def new_card(self, vm: int, device: str) -> None:
            """With an address of its own."""
            mac = f"02:00:00:00:0{vm}:0{device}"
            given = card_record(self.pool, self.vms[vm], device=device, MAC=mac)
            assert self.ask("VIF.create", given) in ("", "DEVICE_ALREADY_EXISTS")

        @rule(table=st.sampled_from(["VBD", "VIF"]), which=st.integers(0, 30), at=st.integers(0, 4),
              vdi=st.integers(0, 2), deaf=st.booleans(), likely=st.booleans())  # fmt: skip
        def operate(self, table: str, which: int, at: int, vdi: int, deaf: bool, likely: bool) -> None:
            """What the rules refuse is refused with their error, and all else is done."""
            rows, operations = self.rows(table), OPERATIONS[table]
            if not rows:
                return
            row, operation = rows[which % len(rows)], operations[at % len(operations)]
            if likely:
                possible = [
                    (each, name)
                    for each in rows
                    for name in operations
                    if refusal(self.db, each, CLAIMS.get((table, name), name)) is None
                ]
                row, operation = possible[(which * 5 + at) % len(possible)] if possible else (row, operation)
            claimed = CLAIMS.get((table, operation), operation)
            fault = refusal(self.db, row, claimed)
            listed = claimed in row.allowed_operations
            self.pool.backend.deaf = deaf
            arguments = [self.vdis[vdi]._ref] if operation == "insert" else []
            error = self.ask(f"{table}.{operation}", row._ref, *arguments)
            self.pool.backend.deaf = False
            if fault is not None:
                assert error == fault.code
                assert not listed or fault.code in ("VDI_IN_USE", "VDI_READONLY")
            elif error:
                assert listed
                assert error in self.excuses(table, operation, deaf)

        def excuses(self, table: str, operation: str, deaf: bool) -> set[str]:
            """Return what may still go wrong with an operation that the rules allow."""
            if operation == "unplug" and deaf:
                return {"DEVICE_DETACH_TIMEOUT"}
            return {
                "plug": {"DISK_VBD_MUST_BE_READWRITE_FOR_HVM", "DEVICE_ALREADY_ATTACHED"},
                "insert": {"VDI_IN_USE", "DEVICE_ALREADY_ATTACHED"},  # it plugs a drive that is not plugged
            }.get(operation, set())

        @rule(table=st.sampled_from(["VBD", "VIF"]), which=st.integers(0, 30))
        def destroy(self, table: str, which: int) -> None:
            """Only what is not plugged."""
            if rows := self.rows(table):
                row = rows[which % len(rows)]
                attached = row.currently_attached
                error = self.ask(f"{table}.destroy", row._ref)
                assert error == ("OPERATION_NOT_ALLOWED" if attached else "")

        @rule(which=st.integers(0, 30), number=st.sampled_from(["0", "1", "xvda", "7"]))
        def renumber(self, which: int, number: str) -> None:
            """A plugged drive stays where it is."""
            if rows := self.rows("VBD"):
                assert self.ask("VBD.set_userdevice", rows[which % len(rows)]._ref, number) == ""

        @precondition(lambda self: self.pool.backend.doms)
        @rule(vm=st.integers(0, VMS - 1), name=st.sampled_from(["plug", "unplug", "adjust"]))
        def fault_of_the_host(self, vm: int, name: str) -> None:
            """A host that fails changes nothing."""
            rows = [row for row in self.rows("VBD") if self.vms[vm]._ref == row.VM]
            operation = {"plug": "plug", "unplug": "unplug_force", "adjust": "eject"}[name]
            for row in rows:
                if refusal(self.db, row, operation) is None and self.vms[vm].power_state == "Running":
                    before = (row.currently_attached, row.VDI, row.empty)
                    self.pool.backend.fail[name] = HostError(Code.FAILED, "by the test")
                    self.pool.fails(
                        f"VBD.{operation}", row._ref
                    ) if name != "adjust" or row.currently_attached else None
                    del self.pool.backend.fail[name]
                    assert (row.currently_attached, row.VDI, row.empty) == before

        @invariant()
        def rows_say_what_is_true(self) -> None:
            """A row is attached exactly when its VM's domain has the device; nothing is held; nothing dangles."""
            if not hasattr(self, "vms"):
                return
            for table, kind in (("VBD", Disk), ("VIF", NIC)):
                attached: dict[str, set[int | None]] = {}
                for row in self.rows(table):
                    assert not row.current_operations
                    assert row.VM in self.db.VM and row.metrics in self.db.tables[f"{table}_metrics"]
                    if row.currently_attached:
                        attached.setdefault(self.db.VM[row.VM].uuid, set()).add(position(row))
                true: dict[str, set[int | None]] = {}
                for uuid, domain in self.pool.backend.doms.items():
                    numbers = {number for kind_, number in domain.devices if kind_ is kind}
                    if numbers:
                        true[uuid] = set(numbers)
                assert attached == true
                assert len(self.db.tables[f"{table}_metrics"]) == len(self.db.tables[table])
            for row in self.rows("VBD"):
                assert (row.VDI == NULL) is row.empty
                assert row.empty or row.VDI in self.db.VDI
                if row.currently_attached:
                    number = position(row)
                    assert number is not None
                    device = self.pool.backend.doms[self.db.VM[row.VM].uuid].devices[Disk, number]
                    assert isinstance(device, Disk)
                    assert device.volume == (None if row.empty else VolumeHandle("sr", self.db.VDI[row.VDI].uuid))

        @invariant()
        def one_disk_has_one_writer(self) -> None:
            """But for a sharable one."""
            if not hasattr(self, "vdis"):
                return
            for vdi in self.vdis:
                users = [self.db.VBD[ref] for ref in vdi.VBDs if self.db.VBD[ref].currently_attached]
                if not vdi.sharable and any(user.mode == "RW" for user in users):
                    assert len(users) == 1

    return Devices


def test_devices_keep_to_their_rules(make_pool: Callable[[], Pool]) -> None:
    """Random VMs, drives, cards, failures: nobody sees a state that the rules forbid."""
    run_state_machine_as_test(
        machine(make_pool), settings=settings(max_examples=20, stateful_step_count=50, deadline=None)
    )
