"""Whatever is asked of SRs and VDIs, rows, files, contents and events agree with a model of a few dicts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.api.storage_pool import NULL_REF, Disks, Threads, fit, make_sr
from tests.conftest import Pool
from tests.property.follower import Follower

MIB = 1 << 20
UNIT = 2 * MIB
UNITS = 3
"""Blocks of the largest disk; each begins with a mark of four bytes."""
NUMBERS = st.integers(0, 9)
"""Which disk: the remainder counts."""
CLASSES = ("SR", "PBD", "VDI", "VBD")


@dataclass
class Model:
    """What a disk must be."""

    label: str
    marks: list[bytes]
    snapshot_of: str = ""
    """The uuid of the disk, which may have gone."""


@cache
def world() -> Disks:
    """Return the one pool of all examples: each has an SR of its own in it."""
    return fit(Pool(Path(tempfile.mkdtemp())), Threads())


class StorageMachine(RuleBasedStateMachine):
    """One SR of type file, plugged or not."""

    @initialize()
    def begin(self) -> None:
        self.disks = world()
        self.place = Path(tempfile.mkdtemp()) / "sr"
        self.sr = make_sr(self.disks, "file", {"location": str(self.place)})
        (self.pbd,) = self.sr.PBDs
        self.known: dict[str, Model] = {}
        self.forgotten: dict[str, Model] = {}
        """By uuid: what a scan finds again."""
        self.follower = Follower(self.disks, CLASSES)
        self.next = 0

    def teardown(self) -> None:
        if not hasattr(self, "sr"):
            return
        self.find(plug=False)
        for ref in list(self.known):
            self.disks("VDI.destroy", ref)
        assert not self.sr.VDIs, "base copies go with the last that needs them"
        self.disks("PBD.unplug", self.pbd)
        self.disks("SR.destroy", self.sr._ref)
        assert not self.place.exists()
        shutil.rmtree(self.place.parent)

    def pick(self, number: int) -> str:
        """Return a disk, made if there is none."""
        if not self.known:
            self.create(1)
        return list(self.known)[number % len(self.known)]

    def label(self) -> str:
        self.next += 1
        return f"disk {self.next}"

    # Rules

    @rule(units=st.integers(1, UNITS))
    def create(self, units: int) -> None:
        label = self.label()
        record = {"name_label": label, "SR": self.sr._ref, "virtual_size": str(units * UNIT - 1), "type": "user",
                  "sharable": False, "read_only": False, "other_config": {}}  # fmt: skip
        self.known[self.disks("VDI.create", record)] = Model(label, [bytes(4)] * units)

    @rule(number=NUMBERS, block=st.integers(0, UNITS), mark=st.binary(min_size=4, max_size=4))
    def write(self, number: int, block: int, mark: bytes) -> None:
        ref = self.pick(number)
        model = self.known[ref]
        block %= len(model.marks)
        disk = self.disks.storage.repositories.at(str(self.place)).open(
            self.disks.db.VDI[ref].location, read_only=False
        )
        disk.write(block * UNIT, mark)
        disk.close()
        model.marks[block] = mark

    @rule(number=NUMBERS)
    def snapshot(self, number: int) -> None:
        ref = self.pick(number)
        model = self.known[ref]
        uuid = self.disks.db.VDI[ref].uuid
        self.known[self.disks("VDI.snapshot", ref, {})] = Model(model.label, list(model.marks), uuid)

    @rule(number=NUMBERS, full=st.booleans())
    def clone(self, number: int, full: bool) -> None:
        ref = self.pick(number)
        name, arguments = ("VDI.copy", (self.sr._ref, NULL_REF, NULL_REF)) if full else ("VDI.clone", ({},))
        model = self.known[ref]
        self.known[self.disks(name, ref, *arguments)] = Model(model.label, list(model.marks))

    @rule(number=NUMBERS)
    def destroy(self, number: int) -> None:
        ref = self.pick(number)
        self.disks("VDI.destroy", ref)
        del self.known[ref]

    @rule(number=NUMBERS, rename=st.booleans())
    def change(self, number: int, rename: bool) -> None:
        ref = self.pick(number)
        model = self.known[ref]
        if rename:
            model.label = self.label()
            self.disks("VDI.set_name_label", ref, model.label)
        elif len(model.marks) < UNITS:
            self.disks("VDI.resize", ref, str((len(model.marks) + 1) * UNIT))
            model.marks.append(bytes(4))
        else:
            assert self.disks.fails("VDI.resize", ref, "1")[0] == "SR_BACKEND_FAILURE_79"

    @rule(number=NUMBERS, recorded=st.booleans())
    def lose(self, number: int, recorded: bool) -> None:
        """A row goes: it is forgotten, or a crash came before it was written."""
        ref = self.pick(number)
        uuid = self.disks.db.VDI[ref].uuid
        if recorded:
            self.disks("VDI.forget", ref)
        else:
            self.disks.db.VDI.delete(ref)
        self.forgotten[uuid] = self.known.pop(ref)

    @rule(plug=st.booleans())
    def find(self, plug: bool) -> None:
        """A scan, or plugging, knows all again."""
        if plug:
            self.disks("PBD.unplug", self.pbd)
            ref = next(iter(self.known), None)
            if ref is not None:
                assert self.disks.fails("VDI.clone", ref, {}) == ["SR_HAS_NO_PBDS", self.sr._ref]
            self.disks("PBD.plug", self.pbd)
        else:
            self.disks("SR.scan", self.sr._ref)
        for uuid, model in self.forgotten.items():
            self.known[self.disks.db.VDI.by_uuid(uuid)._ref] = model
        self.forgotten = {}

    @rule()
    def restart(self) -> None:
        """The daemon ends and begins: nothing is in use, no row has changed."""
        self.disks.run(self.disks.storage.detach(str(self.place)))
        self.disks.daemon.storage._used.clear()
        self.disks("SR.update", self.sr._ref)

    # What must be so

    def rows(self) -> Iterator[Any]:
        return (self.disks.db.VDI[ref] for ref in self.sr.VDIs)

    @invariant()
    def rows_are_as_the_model(self) -> None:
        if not hasattr(self, "sr"):
            return
        managed = {row._ref: row for row in self.rows() if row.managed}
        assert managed.keys() == self.known.keys()
        for ref, model in self.known.items():
            row = managed[ref]
            assert (row.name_label, row.virtual_size) == (model.label, len(model.marks) * UNIT)
            assert (row.missing, row.location, row.physical_utilisation > 0) == (False, row.uuid, True)
            assert not row.current_operations
            assert row.is_a_snapshot == bool(model.snapshot_of)
            origin = [other._ref for other in managed.values() if other.uuid == model.snapshot_of]
            assert not origin or origin == [row.snapshot_of]
        assert not self.sr.current_operations

    @invariant()
    def files_are_as_the_rows(self) -> None:
        if not hasattr(self, "sr"):
            return
        files = {path.stem for path in self.place.glob("*.vhd")}
        rows = {row.uuid: row for row in self.rows()}
        assert files == rows.keys() | self.forgotten.keys()
        if self.forgotten:
            return
        parents = {row.sm_config["vhd-parent"] for row in rows.values() if "vhd-parent" in row.sm_config}
        assert {uuid for uuid, row in rows.items() if not row.managed} == parents
        assert sum(row.virtual_size for row in rows.values() if row.managed) == self.sr.virtual_allocation

    @invariant()
    def contents_are_as_the_model(self) -> None:
        if not hasattr(self, "sr"):
            return
        used = self.disks.run(self.disks.daemon.storage.repository(self.disks.call(), self.sr))
        repository = self.disks.storage.repositories.at(used.handle)
        for ref, model in self.known.items():
            disk = repository.open(self.disks.db.VDI[ref].location, read_only=True)
            assert [disk.read(block * UNIT, 4) for block in range(len(model.marks))] == model.marks
            disk.close()

    @invariant()
    def events_lead_to_the_records(self) -> None:
        if hasattr(self, "sr"):
            self.follower.follow()
            assert self.follower.view == self.follower.truth()


StorageMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestStorageOverTheApi = StorageMachine.TestCase
