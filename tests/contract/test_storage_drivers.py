"""What every driver of storage keeps to, over real files; its features say what of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hypervisor.api import (
    SR,
    Contents,
    Description,
    Effect,
    NewVolume,
    StorageType,
    Surroundings,
    VolumeHandle,
)
from hypervisor.storage.errors import Code
from tests.contract.storage_world import NO_VOLUME, SIZE, UNIMPLEMENTED, World, uuid
from xapi.host.driver import types

KINDS = list(types())
OFTEN = 1 << 20


@pytest.fixture(params=[*KINDS, "ext of a host elsewhere", "iso of a host elsewhere"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    kind, _, elsewhere = request.param.partition(" ")
    return World(tmp_path, kind, remote=bool(elsewhere))


def needs(world: World, *features: str) -> None:
    """Leave a test to the types that can do what it is about."""
    missing = [feature for feature in features if not world.can(feature)]
    if missing:
        pytest.skip(f"{world.about.type} has no {missing[0]}")


ASKED: Mapping[str, Callable[[World, VolumeHandle], Coroutine[Any, Any, Any]]] = {
    "SR_SCAN": lambda world, _: world.storage.scan(world.handle),
    "VDI_CREATE": lambda world, _: world.storage.make(world.handle, world.new()),
    "VDI_DELETE": lambda world, volume: world.storage.delete(volume),
    "VDI_RESIZE": lambda world, volume: world.storage.resize(volume, SIZE),
    "VDI_UPDATE": lambda world, volume: world.storage.describe(volume, Description("new")),
    "VDI_SNAPSHOT": lambda world, volume: world.storage.snapshot(volume, uuid(OFTEN), Description()),
    "VDI_CLONE": lambda world, volume: world.storage.clone(volume, uuid(OFTEN + 1), Description()),
    "VDI_RESET_ON_BOOT": lambda world, volume: world.storage.freeze(volume),
}


@pytest.mark.parametrize("feature", ASKED)
def test_what_a_type_has_no_feature_for_is_refused_and_all_else_is_done(world: World, feature: str) -> None:
    location = world.make().location if world.can("VDI_CREATE") else uuid(OFTEN)
    assert world.refused(ASKED[feature](world, world.at(location))) == (0 if world.can(feature) else UNIMPLEMENTED)


def test_what_crosses_is_values_that_can_be_written_down(world: World) -> None:
    """And read again, for another process."""
    kept: list[tuple[Any, Any]] = [
        (StorageType, world.about), (SR, world.sr), (NewVolume, world.new("name")), (VolumeHandle, world.at("x")),
    ]  # fmt: skip
    if world.can("VDI_CREATE"):
        kept.append((Effect, world.now(world.storage.make(world.handle, world.new("name")))))
    if world.can("SR_SCAN"):
        kept.append((Contents, world.now(world.storage.scan(world.handle))))
    for kind, value in kept:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind) == value


def test_an_sr_is_attached_once_and_found_again_by_another_process(world: World) -> None:
    """With the handle that it had, as long as it lies where it did."""
    made = world.make("kept").location if world.can("VDI_CREATE") else ""
    assert world.now(world.storage.attach(world.sr, make=False)) == world.handle
    world.now(world.storage.detach(world.handle))
    world.now(world.storage.detach(world.handle))
    world.begin()
    assert world.now(world.storage.attach(world.sr, make=False)) == world.handle
    if made:
        assert world.now(world.storage.volume(world.at(made))).location == made


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "SR_SCAN" in types()[kind].features])
def test_an_sr_that_is_not_there_is_made_only_on_request(kind: str, tmp_path: Path) -> None:
    world = World(tmp_path, kind)
    lost = SR(kind, uuid(7), {"location": str(tmp_path / "nowhere"), "device": "/dev/sdb"})
    before = sorted(tmp_path.rglob("*"))
    assert world.refused(world.storage.attach(lost, make=False)) in (47, 222, 226)
    assert sorted(tmp_path.rglob("*")) == before
    assert world.now(world.storage.scan(world.now(world.storage.attach(lost, make=True)))).volumes == ()


def test_an_sr_in_which_something_is_open_stays_attached(world: World) -> None:
    needs(world, "VDI_CREATE")
    disk = world.open(world.make().location)
    assert world.refused(world.storage.detach(world.handle)) == 16
    disk.close()
    world.now(world.storage.detach(world.handle))


def test_an_sr_is_erased_without_what_is_a_user_s(world: World) -> None:
    """One that is not there is no mistake; one with disks is refused."""
    if world.can("VDI_ACTIVATE"):
        made = world.make().location
        world.now(world.storage.detach(world.handle))
        assert world.refused(world.storage.destroy(world.sr)) == 39
        world.now(world.storage.attach(world.sr, make=False))
        world.now(world.storage.delete(world.at(made)))
    (world.home / "mine").write_text("mine")
    world.now(world.storage.detach(world.handle))
    world.now(world.storage.destroy(world.sr))
    world.now(world.storage.destroy(world.sr))
    assert (world.home / "mine").read_text() == "mine"


def test_a_scan_tells_what_the_requests_have_told(world: World) -> None:
    """The wanted volume comes first in what a request returns; what went is named."""
    needs(world, "SR_SCAN", "VDI_CREATE", "VDI_DELETE")
    effects = [world.now(world.storage.make(world.handle, world.new(name))) for name in ("a", "b")]
    made = [effect.volumes[0] for effect in effects]
    assert all(volume.virtual_size >= SIZE for volume in made)
    contents = world.now(world.storage.scan(world.handle))
    assert {volume.location: volume for volume in contents.volumes} == {volume.location: volume for volume in made}
    assert (contents.damaged, contents.space is not None) == ({}, True)
    assert world.now(world.storage.delete(world.at(made[0].location))).gone == (made[0].location,)
    assert [volume.location for volume in world.now(world.storage.scan(world.handle)).volumes] == [made[1].location]
    assert world.refused(world.storage.delete(world.at(made[0].location))) == NO_VOLUME
    assert world.refused(world.storage.volume(world.at(made[0].location))) == NO_VOLUME


@pytest.mark.parametrize("location", ["../named/x.iso", "..", "", "a/b.iso", "x\0.iso", "/etc/passwd"])
def test_no_location_leads_out_of_its_sr(world: World, location: str) -> None:
    needs(world, "SR_SCAN")
    (world.home / "x.iso").write_bytes(bytes(4096))
    for ask in (world.storage.volume, world.storage.delete, world.storage.checksum):
        assert world.refused(ask(world.at(location))) == NO_VOLUME, ask


def test_a_declared_volume_is_made_once(world: World) -> None:
    """Where the type keeps volumes at all; elsewhere it is lost."""
    declared = replace(world.new("declared"), location=uuid(1))
    if not world.can("VDI_ACTIVATE"):
        assert world.refused(world.storage.provide(world.handle, declared)) == NO_VOLUME
        return
    first = world.now(world.storage.provide(world.handle, declared)).volumes
    assert first == world.now(world.storage.provide(world.handle, declared)).volumes
    assert (first[0].uuid, first[0].description.name_label) == (declared.uuid, "declared")
    lost = NewVolume(uuid(99), SIZE, Description(type="suspend"), {}, uuid(99))
    assert world.refused(world.storage.provide(world.handle, lost)) == NO_VOLUME


@pytest.mark.parametrize("name", ["x.txt", "", ".iso", "a/b.iso", "../x.iso", "x\0.iso", "\ud800.iso"])
def test_a_cd_has_a_name_that_is_shown(tmp_path: Path, name: str) -> None:
    """Nothing is left of another."""
    world = World(tmp_path, "iso")
    new = NewVolume(uuid(3), SIZE, sm_config={"path": name})
    assert world.refused(world.storage.make(world.handle, new)) == Code.VDICreate
    assert list(world.named.iterdir()) == []


def test_two_who_need_a_declared_cd_at_once_both_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One makes it, whole; the other finds it."""
    world = World(tmp_path, "iso")
    tools = SR("iso", uuid(2), {"location": "/nowhere", "legacy_mode": "true"})
    handle, link = world.now(world.storage.attach(tools, make=True)), os.link
    declared = NewVolume(uuid(3), SIZE, location="tools.iso", files={"README.TXT": b"text"})

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        world.now(world.storage.provide(handle, declared))
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    made = world.now(world.storage.provide(handle, declared)).volumes
    assert [(each.location, each.virtual_size) for each in made] == [("tools.iso", SIZE)]
    assert [path.name for path in (tmp_path / "own" / uuid(2)).iterdir()] == ["tools.iso"]


def test_a_description_is_kept_beside_the_volume(world: World) -> None:
    needs(world, "VDI_UPDATE", "SR_SCAN")
    made = world.make("before").location
    said = Description("after", "text", "system", sharable=True)
    world.now(world.storage.describe(world.at(made), said))
    world.now(world.storage.detach(world.handle))
    world.begin()
    world.now(world.storage.attach(world.sr, make=False))
    assert [volume.description for volume in world.now(world.storage.scan(world.handle)).volumes] == [said]


def test_a_saved_domain_is_a_volume_when_it_is_written(world: World) -> None:
    """Where guests write at all."""
    if not world.can("VDI_ACTIVATE"):
        pytest.skip(f"nobody writes to {world.about.type}")
    image = world.at(uuid(5))
    path = world.repositories.file(image)
    assert world.refused(world.storage.volume(image)) == NO_VOLUME
    path.write_bytes(b"saved".ljust(4096))
    assert (world.now(world.storage.volume(image)).virtual_size, world.read(uuid(5), 5)) == (4096, b"saved")


@pytest.mark.parametrize("raw", [False, True])
def test_a_copy_holds_what_its_source_did(world: World, raw: bool) -> None:
    """From any type into those that are written to, and over a volume that is there."""
    needs(world, "VDI_CREATE")
    source = world.make().location
    if world.can("VDI_ACTIVATE"):
        world.write(source, b"data", SIZE // 2)
    target = SR("ext", uuid(8), {"device": "/dev/sdc"})
    handle, told = world.now(world.storage.attach(target, make=True)), list[float]()
    new = NewVolume(uuid(6), 1, Description("copy"), {"type": "raw"} if raw else {})
    made = world.now(world.storage.copy(world.at(source), handle, new, told.append)).volumes[0]
    copied = VolumeHandle(handle, made.location)
    assert world.now(world.storage.checksum(copied)) == world.now(world.storage.checksum(world.at(source)))
    assert (made.description, made.format, told[-1:]) == (new.description, "raw" if raw else "vhd", [1.0])
    into = made_in(world, handle)
    world.now(world.storage.copy_into(world.at(source), into, told.append))
    assert world.now(world.storage.checksum(into)) == world.now(world.storage.checksum(copied))


def made_in(world: World, handle: str) -> VolumeHandle:
    """Return a volume of another SR with something in it."""
    made = world.now(world.storage.make(handle, world.new())).volumes[0].location
    disk = world.repositories.open(VolumeHandle(handle, made), read_only=False)
    disk.write(0, b"other")
    disk.close()
    return VolumeHandle(handle, made)


def test_a_copy_that_is_ended_leaves_nothing(world: World) -> None:
    """Whoever hears how far it is ends it."""
    needs(world, "VDI_CREATE", "VDI_ACTIVATE")
    source = world.make().location
    world.write(source, b"data")
    handle = world.now(world.storage.attach(SR("ext", uuid(8), {}), make=True))
    at = world.repositories.at

    class Ended(Exception):
        pass

    def hear(done: int, total: int) -> None:
        raise Ended

    with pytest.raises(Ended):
        at(handle).copy(at(world.handle), source, world.new(), hear)
    assert world.now(world.storage.scan(handle)).volumes == ()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not types()[kind].creatable])
def test_a_type_that_reaches_nothing_makes_no_sr(kind: str, tmp_path: Path) -> None:
    world = World(tmp_path, kind)
    config = dict.fromkeys(world.about.device_config, "x")
    assert world.refused(world.storage.create(SR(kind, uuid(9), config), Surroundings())) in (73, 107, 111, 141)


def test_a_type_without_a_driver_is_refused(world: World) -> None:
    assert world.refused(world.storage.attach(SR("zfs", uuid(9), {}), make=True)) == 48
