"""The toolstack with the demo guest: what a description becomes, what is left when it cannot be, and the ends."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from hypervisor.api import (
    NIC,
    Addresses,
    BootLoader,
    Change,
    Code,
    DirectBoot,
    Disk,
    Display,
    DomainConfig,
    Firmware,
    HostError,
    Network,
    Power,
    Shutdown,
    VolumeHandle,
)
from hypervisor.disks import vhd
from hypervisor.guests import DEMO_KERNEL, DEMO_PROMPT
from hypervisor.host import Host
from hypervisor.migration.save import save
from hypervisor.storage.repositories import Repositories
from hypervisor.storage.repository import FileRepository
from hypervisor.toolstack.devices.screen import Screen
from hypervisor.toolstack.toolstack import Toolstack

MIB = 1 << 20
LAN = Addresses("192.0.2.0/24", "192.0.2.1", "192.0.2.10", "192.0.2.200")
DEMO = DirectBoot(str(DEMO_KERNEL))
SECONDS = 30


@pytest.fixture
def toolstack() -> Iterator[Toolstack]:
    made = Toolstack(Host(1 << 30, 2))
    made.start()
    yield made
    made.stop()


def config(**fields: object) -> DomainConfig:
    plain = DomainConfig(str(uuid.uuid4()), "guest", 16 * MIB, 16 * MIB, 1, DEMO)
    return replace(plain, **fields)  # type: ignore[arg-type]


class Running:
    """A domain that runs, and what its console says."""

    def __init__(self, toolstack: Toolstack, described: DomainConfig, image: Path | None = None) -> None:
        self.toolstack, self.uuid = toolstack, described.uuid
        self._heard, self._news = bytearray(), threading.Condition()
        guest = toolstack.build(described) if image is None else toolstack.restore(described, image)
        self.console = guest.console
        self.console.listen(self._hear)
        toolstack.unpause(described.uuid)
        if image is None:
            self.until(lambda: self._heard.endswith(DEMO_PROMPT))

    def _hear(self, data: bytes) -> None:
        with self._news:
            self._heard += data
            self._news.notify_all()

    def until(self, happened: Callable[[], bool]) -> None:
        for _ in range(SECONDS * 100):
            if happened():
                return
            with self._news:
                self._news.wait(0.01)
        pytest.fail(f"it did not happen: {bytes(self._heard)!r}")

    def run(self, command: str) -> str:
        self._heard.clear()
        self.console.write(command.encode() + b"\r")
        self.until(lambda: self._heard.endswith(DEMO_PROMPT))
        return self._heard.decode().replace("\r", "")

    def asked(self, how: Shutdown) -> None:
        self.toolstack.request(self.uuid, how)
        self.until(lambda: self.state.power is Power.SHUTDOWN)
        assert self.state.shutdown is how

    @property
    def state(self):  # type: ignore[no-untyped-def]
        return self.toolstack.state(self.uuid).state


def nothing_is_left(toolstack: Toolstack, memory: int) -> None:
    host = toolstack.host
    assert (toolstack.guests, host.domains, host.free_memory()) == ({}, {}, memory)
    with host.lock:
        homes = host.xenstore.ls("/local/domain") if host.xenstore.exists("/local/domain") else ()
    assert set(homes) <= {"0"}


def test_a_description_becomes_true_in_the_guest(toolstack: Toolstack, tmp_path: Path) -> None:
    """Disks by their names and sizes, cards with their addresses."""
    toolstack.networks.bring_up([Network("lan", addresses=LAN)])
    (tmp_path / "raw").write_bytes(bytes(3 * MIB))
    vhd.create(tmp_path / "vhd", 64 * MIB, clock=lambda: 0)
    disks = (
        Disk(0, str(tmp_path / "raw")), Disk(1, str(tmp_path / "vhd"), "vhd", read_only=True),
        Disk(2, "", "anonymous", size=5 * MIB), Disk(3, "", is_cdrom=True),
    )  # fmt: skip
    nics = (NIC(0, "02:00:00:00:00:01", "lan", mtu=1400),)
    guest = Running(toolstack, config(disks=disks, nics=nics))
    said = guest.run("disks")
    assert f"xvda: number=51712 state=connected bytes={3 * MIB} sector=512 mode=w" in said
    assert f"xvdb: number=51728 state=connected bytes={64 * MIB} sector=512 mode=r" in said
    assert f"xvdc: number=51744 state=connected bytes={5 * MIB} sector=512 mode=w" in said
    assert "xvdd: number=51760 state=connected bytes=0 sector=512 mode=r cdrom=1" in said
    guest.run("dhcp")
    assert "mac=02:00:00:00:00:01 state=connected mtu=1400 address=192.0.2." in guest.run("net")
    state = guest.state
    assert all(each.connected for each in state.devices)
    assert (state.power, state.memory_actual, state.vcpus, state.kind) == (Power.RUNNING, 16 * MIB, 1, "pvh")
    assert state.guest["attr/vif/0/ipv4/0"].startswith("192.0.2.")
    # Time is charged when a slice is over, at the latest when the guest waits at its prompt.
    guest.until(lambda: guest.state.cpu_time[0] > 0 and guest.state.run_times["blocked"] > 0)


def availability(toolstack: Toolstack, guest: Running) -> list[str | None]:
    """Return what a guest finds of its vCPUs, and of one behind them."""
    with toolstack.host.lock:
        store, home = toolstack.host.xenstore, f"/local/domain/{guest.state.domid}"
        return [store.read_text(f"{home}/cpu/{number}/availability") for number in range(4)]


def test_a_guest_is_asked_to_have_other_vcpus_online(toolstack: Toolstack) -> None:
    """By what it watches, and written only where it changes; as many as it may have. This one does nothing of it."""
    guest = Running(toolstack, config(vcpus=2, vcpus_max=3))
    assert availability(toolstack, guest) == ["online", "online", "offline", None]
    assert (guest.state.vcpus, len(guest.state.cpu_time)) == (1, 3)
    heard: list[str] = []
    with toolstack.host.lock:
        toolstack.host.xenstore.watch(f"/local/domain/{guest.state.domid}/cpu", heard.append)
        heard.clear()
    toolstack.adjust(guest.uuid, Change(vcpus=3), lambda: None)
    assert availability(toolstack, guest) == ["online", "online", "online", None]
    assert [path[-14:] for path in heard] == ["2/availability"]
    toolstack.adjust(guest.uuid, Change(vcpus=1), lambda: None)
    assert availability(toolstack, guest) == ["online", "offline", "offline", None]
    for number in (0, 4):
        with pytest.raises(HostError, match=f"{number} vCPUs") as refused:
            toolstack.adjust(guest.uuid, Change(vcpus=number), lambda: None)
        assert refused.value.code is Code.NO_VCPU
    assert guest.state.vcpus == 1
    with pytest.raises(HostError, match="a domain can have 128"):
        toolstack.build(config(vcpus_max=1 << 40))


def test_a_pv_guest_has_one_vcpu(toolstack: Toolstack) -> None:
    """Whatever is asked for."""
    guest = Running(toolstack, config(vcpus=2, vcpus_max=4, boot=structs.replace(DEMO, kind="pv")))
    assert (guest.state.vcpus, len(guest.state.cpu_time)) == (1, 1)
    toolstack.adjust(guest.uuid, Change(vcpus=1), lambda: None)
    with pytest.raises(HostError, match="the domain can have 1") as refused:
        toolstack.adjust(guest.uuid, Change(vcpus=2), lambda: None)
    assert refused.value.code is Code.NO_VCPU


def test_a_guest_that_starts_and_stops_vcpus_is_told_of_once(toolstack: Toolstack) -> None:
    """Until somebody looks: it cannot keep others busy by it."""
    guest = Running(toolstack, config(vcpus_max=2))
    heard: list[str] = []
    toolstack.attention = heard.append
    with toolstack.host.lock:
        domain = toolstack.guest(guest.uuid).domain
        for _ in range(2):
            assert guest.state.vcpus == 1
            heard.clear()
            for _ in range(3):
                domain.host.changed(domain)
            assert heard == [guest.uuid]


def test_a_pv_guest_is_one_like_the_others(toolstack: Toolstack, tmp_path: Path) -> None:
    """Disk, card, balloon, a suspend and an end."""
    toolstack.networks.bring_up([Network("lan", addresses=LAN)])
    described = config(
        boot=structs.replace(DEMO, kind="pv"),
        disks=(Disk(0, "", "anonymous", size=MIB),),
        nics=(NIC(0, "02:00:00:00:00:01", "lan"),),
    )
    guest = Running(toolstack, described)
    assert "boot: pv\n" in guest.run("info")
    assert "xvda: number=51712 state=connected" in guest.run("disks")
    guest.run("dhcp")
    assert "address=192.0.2." in guest.run("net")
    before = guest.state
    assert before.kind == "pv"
    guest.asked(Shutdown.SUSPEND)
    toolstack.save(guest.uuid, tmp_path / "image")
    toolstack.destroy(guest.uuid)
    guest = Running(toolstack, described, tmp_path / "image")
    assert "resumes: 1\n" in guest.run("info")
    assert (guest.state.kind, guest.state.memory_actual) == ("pv", before.memory_actual)
    guest.asked(Shutdown.POWEROFF)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"boot": DirectBoot("/nowhere")}, Code.BAD_KERNEL),
        ({"boot": DirectBoot(__file__)}, Code.BAD_KERNEL),
        ({"boot": DirectBoot(__file__, kind="pv")}, Code.BAD_KERNEL),
        ({"boot": DirectBoot(str(DEMO_KERNEL), kind="hvm")}, Code.UNSUPPORTED),
        ({"boot": BootLoader()}, Code.BOOTLOADER_FAILED),
        ({"memory_max": 2 << 30}, Code.NO_MEMORY),
        ({"disks": (Disk(0, "/nowhere"),)}, Code.BAD_DISK),
        ({"disks": (Disk(0, __file__, "vhd"),)}, Code.BAD_DISK),
        ({"disks": (Disk(0, "", "anonymous", size=MIB), Disk(0, "", "anonymous", size=MIB))}, Code.DEVICE_EXISTS),
        ({"nics": (NIC(0, "no address", "lan"),)}, Code.FAILED),
        ({"nics": (NIC(0, "02:00:00:00:00:01", "lan"), NIC(1, "02:00:00:00:00:02", "lan", mtu=1))}, Code.FAILED),
        ({"display": Display(memory=MIB + 1)}, Code.FAILED),
        ({"weight": 0}, Code.FAILED),
        ({"xenstore": {"vm-data/no key": "1"}}, Code.FAILED),
    ],
)
def test_a_domain_that_cannot_be_built_leaves_nothing(
    toolstack: Toolstack, fields: dict[str, object], code: Code
) -> None:
    """One clear error, and all steps undone."""
    memory = toolstack.host.free_memory()
    with pytest.raises(HostError) as caught:
        toolstack.build(config(**fields))
    assert caught.value.code is code
    assert "\n" not in str(caught.value)
    nothing_is_left(toolstack, memory)


def test_a_uuid_is_built_once(toolstack: Toolstack) -> None:
    """And can be again when it is gone."""
    described = config()
    toolstack.build(described)
    with pytest.raises(HostError, match="exists already"):
        toolstack.build(described)
    toolstack.destroy(described.uuid)
    toolstack.destroy(described.uuid)
    toolstack.build(described)


def test_a_guest_goes_on_from_an_image_with_its_devices(toolstack: Toolstack, tmp_path: Path) -> None:
    """Its counter and its disk, another domid; what it said of itself is still there."""
    toolstack.networks.bring_up([Network("lan", addresses=LAN)])
    (tmp_path / "disk").write_bytes(bytes(MIB))
    described = config(disks=(Disk(0, str(tmp_path / "disk")),), nics=(NIC(0, "02:00:00:00:00:01", "lan"),))
    guest = Running(toolstack, described)
    guest.run("fill xvda 7")
    before = guest.state
    guest.asked(Shutdown.SUSPEND)
    toolstack.save(described.uuid, tmp_path / "image")
    toolstack.destroy(described.uuid)
    again = Running(toolstack, described, tmp_path / "image")
    again.until(lambda: all(each.connected for each in again.state.devices))
    assert "resumes: 1" in again.run("info")
    assert "verify: ok" in again.run("check xvda 7")
    assert again.state.domid != before.domid
    features = {key for key in before.guest if key.startswith("control/feature-")}
    assert features <= again.state.guest.keys()
    assert "received: 1" in again.run("ping 192.0.2.1 1")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-600], lambda data: data[:200] + b"!" + data[201:], lambda _: b""]
)
def test_a_damaged_image_leaves_nothing(toolstack: Toolstack, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """It is refused, and the sound one can be restored afterwards."""
    described, image = config(), tmp_path / "image"
    guest = Running(toolstack, described)
    guest.asked(Shutdown.SUSPEND)
    toolstack.save(described.uuid, image)
    toolstack.destroy(described.uuid)
    memory, sound = toolstack.host.free_memory(), image.read_bytes()
    image.write_bytes(damage(sound))
    with pytest.raises(HostError) as caught:
        toolstack.restore(described, image)
    assert caught.value.code is Code.BAD_IMAGE
    nothing_is_left(toolstack, memory)
    image.write_bytes(sound)
    assert "resumes: 1" in Running(toolstack, described, image).run("info")


@pytest.mark.parametrize(
    "said",
    [b'{"name": "x"}', b'{"attr/no key": "1"}', b'{"data/a": 1}', b"[]", b"no", b'{"data/a": "%s"}' % (b"x" * 70000)],
)
def test_what_an_image_says_of_its_guest_is_what_a_guest_may_say(
    toolstack: Toolstack, tmp_path: Path, said: bytes
) -> None:
    """It goes into xenstore, beside what the toolstack itself says there."""
    described = config()
    guest = Running(toolstack, described)
    guest.asked(Shutdown.SUSPEND)
    with (tmp_path / "image").open("wb") as file:
        save(toolstack.host, toolstack.guest(described.uuid).domain, file, said)
    toolstack.destroy(described.uuid)
    memory = toolstack.host.free_memory()
    with pytest.raises(HostError) as caught:
        toolstack.restore(described, tmp_path / "image")
    assert caught.value.code is Code.BAD_IMAGE
    nothing_is_left(toolstack, memory)


def test_only_a_suspended_domain_is_saved(toolstack: Toolstack, tmp_path: Path) -> None:
    """And there is no file afterwards."""
    guest = Running(toolstack, config())
    with pytest.raises(HostError) as caught:
        toolstack.save(guest.uuid, tmp_path / "image")
    assert caught.value.code is Code.NOT_SUSPENDED
    assert list(tmp_path.iterdir()) == []


def test_devices_come_and_go_while_it_runs(toolstack: Toolstack, tmp_path: Path) -> None:
    """A disk and a card; the disk's file is closed when it is gone."""
    repository = FileRepository(tmp_path / "sr", clock=lambda: 0)
    repository.create()
    repository.attach()
    assert isinstance(toolstack.volumes, Repositories)
    toolstack.volumes.attach("sr", repository)
    volume = repository.create_volume(8 * MIB)
    guest = Running(toolstack, config())
    disk, card = Disk(4, volume=VolumeHandle("sr", volume.uuid)), NIC(2, "02:00:00:00:00:05", "lan")
    for device in (disk, card):
        toolstack.plug(guest.uuid, device)
    guest.until(lambda: all(each.connected for each in guest.state.devices))
    assert "xvde" in guest.run("disks")
    assert repository.users(volume.uuid).writers == 1
    with pytest.raises(HostError, match="plugged already"):
        toolstack.plug(guest.uuid, disk)
    for device in (disk, card):
        gone = threading.Event()
        toolstack.unplug(guest.uuid, device, gone.set)
        assert gone.wait(SECONDS)
    assert guest.state.devices == ()
    assert repository.users(volume.uuid).writers == 0
    with pytest.raises(HostError, match="no device 4"):
        toolstack.unplug(guest.uuid, disk, lambda: None)


def test_a_display_is_a_screen_and_a_keyboard(toolstack: Toolstack) -> None:
    """One of each, taken away together; a domain has none unless it is asked for."""
    store, described = toolstack.host.xenstore, config(display=Display(width=1024, height=768, memory=4 * MIB))
    guest = toolstack.build(described)
    for kind, keys in (("vfb", {"width": "1024", "height": "768", "videoram": "4"}), ("vkbd", {"width": "1024"})):
        back = store.read_text(f"{guest.path}/device/{kind}/0/backend")
        assert back == f"/local/domain/0/backend/{kind}/{guest.domain.domid}/0"
        assert {key: store.read_text(f"{back}/{key}") for key in keys} == keys
    assert guest.devices.find(Screen).framebuffer.shape is None
    gone = threading.Event()
    toolstack.unplug(described.uuid, Display(), gone.set)
    assert gone.wait(SECONDS)
    for kind in ("vfb", "vkbd"):
        assert not store.exists(f"{guest.path}/device/{kind}/0")
        assert not store.exists(f"/local/domain/0/backend/{kind}/{guest.domain.domid}")
    for uuid_text in (described.uuid, toolstack.build(config()).config.uuid):
        with pytest.raises(HostError, match="no device 0"):
            toolstack.guest(uuid_text).devices.find(Screen)


def test_a_display_that_cannot_be_plugged_whole_is_not_plugged(toolstack: Toolstack) -> None:
    """Its screen goes when there is no place for its keyboard."""
    guest = toolstack.build(config())
    store, taken = toolstack.host.xenstore, f"/local/domain/0/backend/vkbd/{guest.domain.domid}/0"
    store.mkdir(taken)
    with pytest.raises(HostError):
        toolstack.plug(guest.config.uuid, Display())
    assert not store.exists(f"{guest.path}/device/vfb/0")
    assert not store.exists(f"/local/domain/0/backend/vfb/{guest.domain.domid}")
    store.rm(taken)
    toolstack.plug(guest.config.uuid, Display())


def test_a_cd_is_inserted_and_ejected(toolstack: Toolstack, tmp_path: Path) -> None:
    """The guest sees its size."""
    (tmp_path / "cd.iso").write_bytes(bytes(2 * MIB))
    drive = Disk(3, "", is_cdrom=True)
    guest = Running(toolstack, config(disks=(drive,)))
    for path, size in ((str(tmp_path / "cd.iso"), 2 * MIB), ("", 0)):
        changed = threading.Event()
        toolstack.adjust(guest.uuid, Change(medium=structs.replace(drive, path=path)), changed.set)
        assert changed.wait(SECONDS)
        guest.until(lambda size=size: f"bytes={size} " in guest.run("disks"))  # type: ignore[misc]


def test_a_balloon_follows_its_target(toolstack: Toolstack) -> None:
    """What the guest gives back is the host's."""
    guest = Running(toolstack, config())
    toolstack.adjust(guest.uuid, Change(memory_target=12 * MIB), lambda: None)
    guest.until(lambda: guest.state.memory_actual <= 12 * MIB)
    toolstack.adjust(guest.uuid, Change(memory_target=16 * MIB), lambda: None)
    guest.until(lambda: guest.state.memory_actual == 16 * MIB)


def test_what_a_balloon_gave_back_another_domain_can_have(toolstack: Toolstack) -> None:
    """And the first cannot take it again then."""
    guest = Running(toolstack, config(memory_max=600 * MIB, memory_target=600 * MIB))
    with pytest.raises(HostError, match="are free"):
        toolstack.build(config(memory_max=600 * MIB, memory_target=600 * MIB))
    toolstack.adjust(guest.uuid, Change(memory_target=300 * MIB), lambda: None)
    guest.until(lambda: guest.state.memory_actual <= 300 * MIB)
    other = config(memory_max=600 * MIB, memory_target=600 * MIB)
    toolstack.build(other)
    with pytest.raises(HostError, match="are free"):
        toolstack.adjust(guest.uuid, Change(memory_target=600 * MIB), lambda: None)
    toolstack.destroy(other.uuid)
    toolstack.adjust(guest.uuid, Change(memory_target=600 * MIB), lambda: None)
    guest.until(lambda: guest.state.memory_actual == 600 * MIB)


def test_a_card_moves_to_another_network(toolstack: Toolstack) -> None:
    """And is then where the other addresses are."""
    other = Addresses("198.51.100.0/24", "198.51.100.1", "198.51.100.9", "198.51.100.99")
    toolstack.networks.bring_up([Network("lan", addresses=LAN), Network("other", addresses=other)])
    card = NIC(0, "02:00:00:00:00:01", "lan")
    guest = Running(toolstack, config(nics=(card,)))
    guest.run("dhcp")
    assert "address=192.0.2." in guest.run("net")
    toolstack.adjust(guest.uuid, Change(nic=structs.replace(card, network="other")), lambda: None)
    guest.run("dhcp")
    assert "address=198.51.100." in guest.run("net")


@pytest.mark.parametrize("order", ["c", "d", "cd", ""])
def test_a_domain_with_nothing_to_boot_runs_and_says_so(toolstack: Toolstack, order: str) -> None:
    """As a real machine would."""
    described = config(boot=Firmware(order, DEMO), memory_max=16 * MIB)
    guest = toolstack.build(described)
    heard = threading.Event()
    guest.console.listen(lambda _: heard.set())
    toolstack.unpause(described.uuid)
    assert heard.wait(SECONDS)
    assert b"No bootable device" in bytes(guest.console.history)
    state = toolstack.state(described.uuid).state
    assert state is not None
    assert state.power is Power.RUNNING


def test_the_boot_loader_boots_what_the_network_offers(toolstack: Toolstack) -> None:
    """After the disks, in the order that is asked for."""
    guest = Running(toolstack, config(boot=Firmware("cn", DEMO), disks=(Disk(0, "", "anonymous", size=MIB),)))
    assert "boot: pvh" in guest.run("info")
