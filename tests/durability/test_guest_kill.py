"""kill -9 of the real daemon while VMs start, sleep, are copied, go back and go: afterwards it knows the truth.

Clients in threads note what they were told; the daemon is killed at a random moment and started again on the same
state, which is then compared. As many rounds as ``XAPI_KILLS`` says.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon
from tests.property.follower import references
from xapi import datamodel

KILLS = int(os.environ.get("XAPI_KILLS", "3"))
CLIENTS = 2
LONGEST = 1.2
"""Seconds of load before a kill; the moment is random."""
MIB = 1 << 20
NULL = "OpaqueRef:NULL"
LOOSE = frozenset({"VM.snapshot_of", "VDI.snapshot_of", "VM.affinity"})
CLASSES = (
    "VM",
    "VBD",
    "VIF",
    "VDI",
    "SR",
    "PBD",
    "console",
    "VM_metrics",
    "VM_guest_metrics",
    "host",
    "network",
    "pool",
)


class Load:
    """One client that makes and removes VMs until its daemon is gone, and remembers what it was told."""

    def __init__(self, api: Any, number: int, source: str, names: itertools.count[int], seed: int) -> None:
        self.api = api
        self.number = number
        self.source = source
        self.names = names
        self.rng = random.Random(seed)
        self.there: dict[str, str] = {}
        """VMs that were acknowledged, and their names."""
        self.disks: set[str] = set()
        """Disks that must be there."""
        self.ever: set[str] = set()
        """Those of before reverts, too."""
        self.gone: set[str] = set()
        self.doubtful: set[str] = set()
        """VMs whose destruction was asked for."""
        self.error: BaseException | None = None
        self.calls = 0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._step()
                self.calls += 1
        except XenAPI.Failure as failure:
            self.error = failure
        except Exception:  # the connection broke: the daemon is gone, in whatever way
            return

    def _step(self) -> None:
        if not self.there or self.rng.random() < 0.3:
            self._make("clone", self.source)
        vm = self.rng.choice(list(self.there))
        state, snapshot = self.api.VM.get_power_state(vm), self.api.VM.get_is_a_snapshot(vm)
        if len(self.there) > 4 or self.rng.random() < 0.2:
            if state != "Halted" and not snapshot:
                self.api.VM.hard_shutdown(vm)
            self._destroy(vm)
        elif snapshot:
            if self.api.VM.get_snapshot_of(vm) in self.there and self.rng.random() < 0.5:
                self._go_back(vm)
            else:
                self._make("clone", vm)
        elif self.api.VM.get_is_a_template(vm):  # made of a snapshot
            self.api.VM.set_is_a_template(vm, False)
        elif state == "Running":
            self._disturb(vm)
        elif state == "Suspended":
            self.api.VM.resume(vm, False, False)
        elif self.rng.random() < 0.3:
            self._make("copy", vm, NULL)
        else:
            self.api.VM.start(vm, False, False)

    def _disturb(self, vm: str) -> None:
        how = self.rng.choice(["hard_shutdown", "suspend", "snapshot", "checkpoint"])
        if how in ("snapshot", "checkpoint"):
            self._make(how, vm)
        elif how == "suspend" and "suspend" not in self.api.VM.get_allowed_operations(vm):
            return  # its guest has not said yet that it can
        else:
            getattr(self.api.VM, how)(vm)

    def _go_back(self, snapshot: str) -> None:
        vm = self.api.VM.get_snapshot_of(snapshot)
        self.disks -= self._disks(vm)
        self.api.VM.revert(snapshot)
        self.disks |= self._disks(vm)
        self.ever |= self.disks

    def _disks(self, vm: str) -> set[str]:
        return {self.api.VBD.get_VDI(vbd) for vbd in self.api.VM.get_VBDs(vm)} - {NULL}

    def _make(self, how: str, vm: str, *arguments: str) -> None:
        name = f"load {self.number} {next(self.names)}"
        made = getattr(self.api.VM, how)(vm, name, *arguments)
        self.there[made] = name
        self.disks |= self._disks(made)
        self.ever |= self.disks

    def _destroy(self, vm: str) -> None:
        name = self.there.pop(vm)
        self.doubtful.add(vm)
        self.ever.add(self.api.VM.get_suspend_VDI(vm))  # which stays, as the disks do
        self.api.VM.destroy(vm)
        self.gone.add(vm)
        self.doubtful.discard(vm)
        assert name


class Truth:
    """What a daemon says and what lies on its disk."""

    def __init__(self, daemon: Daemon, api: Any) -> None:
        self.daemon = daemon
        self.api = api
        self.records: dict[str, dict[str, Any]] = {name: getattr(api, name).get_all_records() for name in CLASSES}

    def check(self) -> None:
        """Assert that nothing contradicts anything."""
        assert self.dangling() == []
        for name in ("VM", "VBD", "VIF", "VDI", "SR", "host"):
            held = [record["current_operations"] for record in self.records[name].values()]
            assert not any(held), name
        vms = self.records["VM"]
        for vm in vms.values():
            if not vm["is_control_domain"]:
                state = "Halted" if vm["suspend_VDI"] == NULL else "Suspended"
                seen = (vm["power_state"], vm["domid"], vm["resident_on"], vm["consoles"])
                assert seen == (state, "-1", NULL, []), vm["name_label"]
        attached = [row for name in ("VBD", "VIF") for row in self.records[name].values() if row["currently_attached"]]
        assert [row for row in attached if vms[row["VM"]]["power_state"] != "Suspended"] == []
        assert [
            vm["name_label"] for vm in vms.values() if vm["name_label"].startswith("load ") and not vm["VBDs"]
        ] == []

    def dangling(self) -> list[str]:
        """Return the fields with a reference into a class we read that leads nowhere."""
        model = datamodel.load()
        return [
            f"{name}.{field.name}"
            for name in CLASSES
            for record in self.records[name].values()
            for field in model.classes[name].record_fields
            if f"{name}.{field.name}" not in LOOSE
            for target, found in references(field.type, record[field.name])
            if target in self.records and found not in (NULL, "") and found not in self.records[target]
        ]

    def scan(self) -> None:
        """Assert that a scan of the local storage is of one mind with the rows."""
        (sr,) = self.api.SR.get_by_name_label("Local storage")
        known = set(self.api.SR.get_VDIs(sr))
        self.api.SR.scan(sr)
        rows = {ref: row for ref, row in self.api.VDI.get_all_records().items() if row["SR"] == sr}
        assert [row["name_label"] for row in rows.values() if row["missing"]] == []
        folder = self.daemon.state / "storage" / self.api.SR.get_uuid(sr)
        files = {path.stem for path in folder.iterdir() if path.suffix in (".vhd", ".raw")}
        assert files == {row["location"] for row in rows.values()}
        lost = [row for ref, row in self.records["VDI"].items() if ref in known and ref not in rows and row["managed"]]
        assert lost == [], "a scan drops no disk that a client knows"

    def orphans(self) -> set[str]:
        """Return the disks and the memory that no VM has."""
        vdis = self.api.VDI.get_all_records()
        memories = {vm["suspend_VDI"] for vm in self.api.VM.get_all_records().values()}
        return {ref for ref, row in vdis.items() if row["managed"] and not row["VBDs"]} - memories


def source_of(api: Any) -> str:
    """Return a halted demo guest with a disk and a card."""
    vm: str = api.VM.clone(api.VM.get_by_name_label("Demo guest")[0], "source")
    api.VM.provision(vm)
    (sr,) = api.SR.get_by_name_label("Local storage")
    disk = {"SR": sr, "name_label": "disk", "virtual_size": str(4 * MIB), "type": "user", "sharable": False,
            "read_only": False, "other_config": {}}  # fmt: skip
    shared = {"VM": vm, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}
    drive = {"VDI": api.VDI.create(disk), "userdevice": "0", "bootable": False, "mode": "RW", "type": "Disk",
             "empty": False}  # fmt: skip
    api.VBD.create(shared | drive)
    (network,) = api.network.get_by_name_label("Pool-wide network associated with eth0")
    api.VIF.create(shared | {"network": network, "device": "0", "MAC": "", "MTU": "1500"})
    return vm


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """No VM runs without a domain, nothing points nowhere, all that was acknowledged is there, and every VM starts."""
    rng = random.Random(int(os.environ.get("XAPI_SEED", "1")))
    clients, names = Clients(), itertools.count()
    daemon = Daemon(tmp_path / "state").ready()
    source, calls = "", 0
    try:
        for round_number in range(KILLS):
            api = clients.root(daemon).xenapi
            source = source or source_of(api)
            untouched = Truth(daemon, api).orphans()
            loads = [
                Load(clients.root(daemon).xenapi, number, source, names, rng.randrange(1 << 30))
                for number in range(CLIENTS)
            ]
            time.sleep(rng.uniform(0.05, LONGEST))  # the moment of the kill, which nothing may depend on
            daemon.kill()
            for load in loads:
                load.thread.join(30)
                assert load.error is None, load.error
                calls += load.calls
            daemon = Daemon(tmp_path / "state").ready()
            api = clients.root(daemon).xenapi
            truth = Truth(daemon, api)
            truth.check()
            truth.scan()
            compare(truth, loads)
            left = truth.orphans() - untouched
            assert left <= set().union(*(load.ever for load in loads)), "nothing is left but what clients left"
            use_and_remove(api, source)
            for vdi in left:
                api.VDI.destroy(vdi)
            Truth(daemon, api).check()
            assert round_number < KILLS
        assert calls, "no load was ever there"
        log = daemon.stop()
        assert not [line for line in log if "#critical]" in line or "Traceback" in line]
    finally:
        daemon.kill()
        clients.close()


def compare(truth: Truth, loads: list[Load]) -> None:
    """Assert that what clients were told is so."""
    vms, disks = truth.records["VM"], truth.records["VDI"]
    for load in loads:
        assert {ref: vms[ref]["name_label"] for ref in load.there} == load.there
        assert not load.gone & vms.keys()
        assert load.disks <= disks.keys()


def use_and_remove(api: Any, source: str) -> None:
    """Assert that every VM of the load starts, and can be destroyed with its disks."""
    for vm, record in api.VM.get_all_records().items():
        if not record["name_label"].startswith("load "):
            continue
        if not record["is_a_snapshot"]:
            api.VM.set_is_a_template(vm, False)
            begin = api.VM.start if record["power_state"] == "Halted" else api.VM.resume
            begin(vm, False, False)
            api.VM.hard_shutdown(vm)
        disks = [api.VBD.get_VDI(vbd) for vbd in record["VBDs"]]
        disks += {api.VM.get_suspend_VDI(vm)} - {NULL}
        api.VM.destroy(vm)
        for disk in disks:
            api.VDI.destroy(disk)
    api.VM.start(source, False, False)
    api.VM.hard_shutdown(source)
