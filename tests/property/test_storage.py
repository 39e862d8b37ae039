"""Repositories of files against dictionaries of sectors: any order of requests, with volumes open or not."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hypervisor.api import Description
from hypervisor.disks.disk import SECTOR
from hypervisor.storage.attachment import OpenVolume
from hypervisor.storage.errors import Code, StorageError
from hypervisor.storage.layout import Found, useless
from hypervisor.storage.repository import FileRepository
from hypervisor.storage.volume import Format, decode, encode

MIB = 1 << 20
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""A file system in memory, where syncing costs nothing."""
# Beside the edges of blocks and of a bitmap's bytes.
PLACES = [sector * SECTOR for sector in (0, 1, 7, 8, 4095, 4096, 4097, 8191)]
picks = st.integers(0, 1000)
places = st.sampled_from(PLACES)


def clock() -> int:
    return 1_800_000_000 * 10**9


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


class Repositories(RuleBasedStateMachine):
    """Requests of all kinds on one repository."""

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.mkdtemp(dir=MEMORY)
        self.repository = FileRepository(Path(self.home) / "sr", clock=clock)
        self.repository.create()
        self.repository.attach()
        self.models: dict[str, Model] = {}
        self.handles: dict[str, OpenVolume] = {}
        self.numbers = count()

    def uuid(self) -> str:
        """Return the next uuid: the same in each run, for `pick` sorts by it."""
        return f"{next(self.numbers):08x}-0000-4000-8000-000000000000"

    def teardown(self) -> None:
        for uuid in list(self.models):
            self.check(uuid)
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()
        for uuid in self.models:
            self.repository.delete(uuid)
        self.repository.destroy()
        assert not (Path(self.home) / "sr").exists()
        shutil.rmtree(self.home)

    def pick(self, number: int) -> str:
        return sorted(self.models)[number % len(self.models)]

    def check(self, uuid: str) -> None:
        """Compare a volume with its model, by its own opening or by whoever has it open."""
        disk = self.handles.get(uuid) or self.repository.open(uuid, read_only=True)
        model = self.models[uuid]
        assert disk.size == model.size
        for place in PLACES:
            assert disk.read(place, SECTOR) == bytes([model.sectors.get(place, 0)]) * SECTOR, place
        if uuid not in self.handles:
            disk.close()

    @rule(raw=st.booleans(), name=st.text(max_size=3))
    def create(self, raw: bool, name: str) -> None:
        format = Format.RAW if raw else Format.VHD
        volume = self.repository.create_volume(4 * MIB, Description(name), format=format, uuid=self.uuid())
        self.models[volume.uuid] = Model(4 * MIB, raw, name)

    @precondition(lambda self: self.models)
    @rule(number=picks, place=places, value=st.integers(0, 255))
    def write(self, number: int, place: int, value: int) -> None:
        uuid = self.pick(number)
        disk = self.handles.get(uuid) or self.repository.open(uuid)
        disk.write(place, bytes([value]) * SECTOR)
        if uuid not in self.handles:
            disk.close()
        self.models[uuid].sectors[place] = value

    @precondition(lambda self: self.models)
    @rule(number=picks)
    def open_or_close(self, number: int) -> None:
        uuid = self.pick(number)
        if uuid in self.handles:
            self.handles.pop(uuid).close()
        else:
            self.handles[uuid] = self.repository.open(uuid)

    @precondition(lambda self: self.models)
    @rule(number=picks, snapshot=st.booleans(), name=st.text(max_size=3))
    def branch(self, number: int, snapshot: bool, name: str) -> None:
        uuid = self.pick(number)
        request = self.repository.snapshot if snapshot else self.repository.clone
        try:
            volume = request(uuid, Description(name), new=self.uuid())
        except StorageError as error:
            assert error.code is (Code.Unimplemented if self.models[uuid].raw else Code.SnapshotChainTooLong)
            return
        assert not self.models[uuid].raw
        self.models[volume.uuid] = self.models[uuid].branched(name)
        self.note_split(uuid)

    def note_split(self, uuid: str) -> None:
        """What is now in the base is what a reset goes back to; a leaf that was empty has its old base."""
        model = self.models[uuid]
        model.frozen = dict(model.sectors)

    @precondition(lambda self: self.models)
    @rule(number=picks, freeze=st.booleans())
    def freeze_or_reset(self, number: int, freeze: bool) -> None:
        uuid = self.pick(number)
        model = self.models[uuid]
        try:
            if freeze:
                self.repository.freeze(uuid)
                self.note_split(uuid)
            else:
                self.repository.reset(uuid)
                assert model.frozen is not None
                model.sectors = dict(model.frozen)
        except StorageError as error:
            if error.code is Code.Unimplemented:
                assert model.raw or (model.frozen is None and not freeze)
            elif error.code is Code.VDIInUse:
                assert uuid in self.handles
            else:
                assert error.code is Code.SnapshotChainTooLong

    @precondition(lambda self: self.models)
    @rule(number=picks, more=st.integers(0, 2))
    def resize(self, number: int, more: int) -> None:
        uuid = self.pick(number)
        self.models[uuid].size += more * 2 * MIB
        assert self.repository.resize(uuid, self.models[uuid].size).virtual_size == self.models[uuid].size

    @precondition(lambda self: self.models)
    @rule(number=picks, raw=st.booleans())
    def copy(self, number: int, raw: bool) -> None:
        uuid = self.pick(number)
        if uuid in self.handles:
            return
        format = Format.RAW if raw else Format.VHD
        made = self.repository.copy(uuid, self.repository, Description("c"), format=format, new=self.uuid())
        self.models[made.uuid] = Model(self.models[uuid].size, raw, "c", dict(self.models[uuid].sectors))

    @precondition(lambda self: self.models)
    @rule(number=picks)
    def delete(self, number: int) -> None:
        uuid = self.pick(number)
        try:
            self.repository.delete(uuid)
        except StorageError as error:
            assert error.code is Code.VDIInUse
            assert uuid in self.handles
        else:
            assert uuid not in self.handles
            del self.models[uuid]

    @rule()
    def reattach(self) -> None:
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()
        self.repository.detach()
        self.repository = FileRepository(self.repository.path, clock=clock)
        self.repository.attach()

    @precondition(lambda self: self.models)
    @rule(number=picks)
    def look(self, number: int) -> None:
        self.check(self.pick(number))

    @invariant()
    def the_volumes_are_those_of_the_model(self) -> None:
        volumes = {volume.uuid: volume for volume in self.repository.scan()}
        seen = {uuid: (one.virtual_size, one.description.name_label) for uuid, one in volumes.items() if not one.hidden}
        assert seen == {uuid: (model.size, model.name) for uuid, model in self.models.items()}
        needed = {volume.parent for volume in volumes.values()}
        assert {uuid for uuid, volume in volumes.items() if volume.hidden} <= needed
        assert not self.repository.damaged()


TestRepositories = Repositories.TestCase
TestRepositories.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@given(st.lists(st.tuples(st.none() | st.integers(0, 11), st.booleans()), max_size=12))
def test_what_is_useless_is_needed_by_no_visible_volume(nodes: list[tuple[int | None, bool]]) -> None:
    """For any graph of parents, rings included; children come before their parents."""
    found = {
        str(number): Found(str(number), Format.VHD, 1, None if parent is None else str(parent), hidden)
        for number, (parent, hidden) in enumerate(nodes)
    }
    needed = set[str]()
    for one in found.values():
        step: str | None = one.uuid
        while not one.hidden and step in found and step not in needed:
            needed.add(step)
            step = found[step].parent
    gone = useless(found)
    assert set(gone) == set(found) - needed


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_as_a_description(data: bytes) -> None:
    """Never an exception; and what was written is read."""
    decode(data)
    described = Description(data.decode("utf-8", "replace"), read_only=True)
    assert decode(encode(described)) == described
