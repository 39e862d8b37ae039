"""Drivers of storage against dictionaries of sectors: any order of requests, with volumes open or not."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hypervisor.api import Description, StorageFailure
from hypervisor.disks.copying import Source
from hypervisor.disks.disk import SECTOR
from hypervisor.storage.errors import Code
from tests.contract.storage_world import MIB, World

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""A file system in memory, where syncing costs nothing."""
# Beside the edges of blocks and of a bitmap's bytes.
PLACES = [sector * SECTOR for sector in (0, 1, 7, 8, 4095, 4096, 4097, 8191)]
F = TypeVar("F", bound=Callable[..., Any])
picks = st.integers(0, 1000)
places = st.sampled_from(PLACES)


@dataclass
class Model:
    """What a volume holds: a byte for each of the places, those that are not named zero."""

    size: int
    raw: bool
    name: str = ""
    sectors: dict[int, int] = field(default_factory=dict)
    frozen: dict[int, int] | None = None
    """What a reset goes back to, if there is anything."""

    def branched(self, name: str) -> Model:
        return Model(self.size, False, name, dict(self.sectors), dict(self.sectors))


def can(*features: str) -> Callable[[F], F]:
    """Let a rule be for the types with these features, when there are volumes."""
    return precondition(lambda self: self.models and all(map(self.world.can, features)))


class Volumes(RuleBasedStateMachine):
    """Requests of all kinds on one SR."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir=MEMORY))
        self.world = World(self.home, self.kind)
        self.models: dict[str, Model] = {}
        self.handles: dict[str, Source] = {}

    def teardown(self) -> None:
        for location in list(self.models):
            self.check(location)
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()
        for location in self.models:
            self.world.now(self.world.storage.delete(self.world.at(location)))
        self.world.now(self.world.storage.detach(self.world.handle))
        self.world.now(self.world.storage.destroy(self.world.sr))
        assert not [path for path in self.home.rglob("*") if path.is_file()]
        shutil.rmtree(self.home)

    def pick(self, number: int) -> str:
        return sorted(self.models)[number % len(self.models)]

    def check(self, location: str) -> None:
        """Compare a volume with its model, by its own opening or by whoever has it open."""
        disk = self.handles.get(location) or self.world.open(location)
        model = self.models[location]
        assert disk.size == model.size
        for place in PLACES:
            assert disk.read(place, SECTOR) == bytes([model.sectors.get(place, 0)]) * SECTOR, place
        if location not in self.handles:
            disk.close()

    @rule(raw=st.booleans(), name=st.text(max_size=3))
    def create(self, raw: bool, name: str) -> None:
        raw = raw or "vhd" not in self.world.about.image_formats
        made = self.world.make(name, raw)
        self.models[made.location] = Model(4 * MIB, raw, name if self.world.can("VDI_UPDATE") else made.location)

    @can("VDI_ACTIVATE")
    @rule(number=picks, place=places, value=st.integers(0, 255))
    def write(self, number: int, place: int, value: int) -> None:
        location = self.pick(number)
        disk = self.handles.get(location) or self.world.open(location, read_only=False)
        disk.write(place, bytes([value]) * SECTOR)
        if location not in self.handles:
            disk.close()
        self.models[location].sectors[place] = value

    @can("VDI_ATTACH")
    @rule(number=picks)
    def open_or_close(self, number: int) -> None:
        location = self.pick(number)
        if location in self.handles:
            self.handles.pop(location).close()
        else:
            self.handles[location] = self.world.open(location, read_only=not self.world.can("VDI_ACTIVATE"))

    @can("VDI_SNAPSHOT", "VDI_CLONE")
    @rule(number=picks, snapshot=st.booleans(), name=st.text(max_size=3))
    def branch(self, number: int, snapshot: bool, name: str) -> None:
        location, storage, new = self.pick(number), self.world.storage, self.world.new().uuid
        request = storage.snapshot if snapshot else storage.clone
        model = self.models[location]
        try:
            made = self.world.now(request(self.world.at(location), new, Description(name))).volumes[0]
        except StorageFailure as failure:
            assert failure.number == (Code.Unimplemented if model.raw else Code.SnapshotChainTooLong)
            return
        assert not model.raw
        self.models[made.location] = model.branched(name)
        model.frozen = dict(model.sectors)

    @can("VDI_RESET_ON_BOOT")
    @rule(number=picks, freeze=st.booleans())
    def freeze_or_reset(self, number: int, freeze: bool) -> None:
        """What is now in the base is what a reset goes back to; a leaf that was empty has its old base."""
        location = self.pick(number)
        model, volume = self.models[location], self.world.at(location)
        try:
            if freeze:
                self.world.now(self.world.storage.freeze(volume))
                model.frozen = dict(model.sectors)
            else:
                self.world.now(self.world.storage.reset(volume))
                assert model.frozen is not None
                model.sectors = dict(model.frozen)
        except StorageFailure as failure:
            if failure.number == Code.Unimplemented:
                assert model.raw or (model.frozen is None and not freeze)
            elif failure.number == Code.VDIInUse:
                assert location in self.handles
            else:
                assert failure.number == Code.SnapshotChainTooLong

    @can("VDI_RESIZE")
    @rule(number=picks, more=st.integers(0, 2))
    def resize(self, number: int, more: int) -> None:
        location = self.pick(number)
        model = self.models[location]
        model.size += more * 2 * MIB
        effect = self.world.now(self.world.storage.resize(self.world.at(location), model.size))
        assert effect.volumes[0].virtual_size == model.size

    @can("VDI_ACTIVATE")
    @rule(number=picks, raw=st.booleans())
    def copy(self, number: int, raw: bool) -> None:
        location = self.pick(number)
        if location in self.handles:
            return
        model, new = self.models[location], self.world.new("c", raw, size=1)
        effect = self.world.now(
            self.world.storage.copy(self.world.at(location), self.world.handle, new, lambda _: None)
        )
        self.models[effect.volumes[0].location] = Model(model.size, raw, "c", dict(model.sectors))

    @can("VDI_DELETE")
    @rule(number=picks)
    def delete(self, number: int) -> None:
        location = self.pick(number)
        try:
            effect = self.world.now(self.world.storage.delete(self.world.at(location)))
        except StorageFailure as failure:
            assert failure.number == Code.VDIInUse
            assert location in self.handles
        else:
            assert location not in self.handles and location in (*effect.gone, *hidden(effect.volumes))
            del self.models[location]

    @rule()
    def reattach(self) -> None:
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()
        self.world.now(self.world.storage.detach(self.world.handle))
        self.world.begin()
        assert self.world.now(self.world.storage.attach(self.world.sr, make=False)) == self.world.handle

    @precondition(lambda self: self.models)
    @rule(number=picks)
    def look(self, number: int) -> None:
        self.check(self.pick(number))

    @invariant()
    def the_volumes_are_those_of_the_model(self) -> None:
        contents = self.world.now(self.world.storage.scan(self.world.handle))
        volumes = {volume.location: volume for volume in contents.volumes}
        seen = {name: (one.virtual_size, one.description.name_label) for name, one in volumes.items() if not one.hidden}
        assert seen == {name: (model.size, model.name) for name, model in self.models.items()}
        needed = {volume.parent for volume in volumes.values()}
        assert set(hidden(contents.volumes)) <= needed
        assert not contents.damaged


def hidden(volumes: Any) -> list[str]:
    """Return those that are there for their children."""
    return [volume.location for volume in volumes if volume.hidden]


class ExtVolumes(Volumes):
    kind = "ext"


class IsoVolumes(Volumes):
    kind = "iso"


TestExt, TestIso = ExtVolumes.TestCase, IsoVolumes.TestCase
TestExt.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestIso.settings = settings(TestExt.settings, max_examples=10)
