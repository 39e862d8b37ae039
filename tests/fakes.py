"""A host backend without guests: it does what `hypervisor.api.Backend` says, at once, and fails where a test wants."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from twisted.internet.defer import Deferred, maybeDeferred

from hypervisor.api import (
    NIC,
    Boot,
    Change,
    Code,
    Device,
    DeviceState,
    Disk,
    Display,
    DomainConfig,
    DomainState,
    Firmware,
    HostError,
    Listener,
    Network,
    Power,
    Shutdown,
    Truth,
    VolumeHandle,
)
from xapi.calls.call import Call
from xapi.calls.claim import claim
from xapi.calls.dispatch import Method
from xapi.datamodel.errors import Fault
from xapi.host.driver import Repository
from xapi.host.storage import LocalStorage
from xapi.process.daemon import Daemon
from xapi.storage import vdis

GUEST = {f"control/feature-{name}": "1" for name in ("suspend", "shutdown", "poweroff", "reboot", "balloon")}
GUEST |= {"attr/PVAddons/MajorVersion": "1", "attr/PVAddons/MinorVersion": "0", "data/os_name": "fake"}


@dataclass
class FakeDomain:
    """A domain that a test may change behind the toolstack's back; then call `FakeBackend.attention`."""

    config: DomainConfig
    domid: int
    state: Power = Power.PAUSED
    shutdown: Shutdown | None = None
    guest: dict[str, str] = field(default_factory=lambda: dict(GUEST))
    devices: dict[tuple[type[Device], int], Device] = field(default_factory=dict)
    target: int = 0
    actual: int | None = None
    """What the guest holds, where its balloon is not at its target."""
    cpu_time: float = 1.0
    """Of each vCPU, in seconds."""
    vcpus: int | None = None
    """Those that are up, where they are not as many as configured."""
    counters: dict[tuple[type[Device], int], dict[str, int]] = field(default_factory=dict)
    asked: bool = False
    """Whether it was asked to suspend itself, and has not gone on since."""


class FakeBackend:
    """A host with `memory` bytes. `calls` lists what was asked for; `fail` names calls that fail, with their error."""

    def __init__(self, memory: int = 16 << 30, directory: Path = Path("/nowhere")) -> None:
        self.memory = memory
        self.storage = storage_at_once(directory)
        self.doms: dict[str, FakeDomain] = {}
        self.calls: list[str] = []
        self.fail: dict[str, HostError] = {}
        self.held: dict[str, Deferred[None]] = {}
        """Calls that a test lets wait: they go on when the Deferred fires."""
        self.up: dict[str, Network] = {}
        """The networks that were asked for, by name."""
        self.typed = b""
        self.room = 1 << 20
        """How much more can be typed."""
        self.followers = 0
        """Who follows a console."""
        self._news: list[Deferred[None]] = []
        self.deaf = False
        """True for guests that take no request."""
        self.listener: Listener | None = None
        self.ended = self.is_lost = False
        self._next = 1
        self.sequence = 0
        self.start_time = 1_769_850_000.0
        """When all domains began, in seconds since 1970."""
        self.kind = ""
        """What all domains are said to be, where it is not what they were asked to be."""

    async def _asked(self, name: str) -> None:
        self._reach()
        self.calls.append(name)
        if name in self.held:
            await self.held[name]
            self._reach()
        if name in self.fail:
            raise self.fail[name]

    def _domain(self, uuid: str) -> FakeDomain:
        if uuid not in self.doms:
            raise HostError(Code.NO_DOMAIN, uuid)
        return self.doms[uuid]

    def attention(self, uuid: str) -> None:
        if self.listener is not None:
            self.listener.attention(uuid)

    async def start(self, listener: Listener) -> None:
        self.listener = listener
        listener.lost() if self.is_lost else listener.up(restarted=False)

    def lose(self, *, told: bool = True) -> None:
        """Be out of reach; its domains go on. What is asked may fail before anybody is `told`: call it again then."""
        self.is_lost = True
        if told:
            if self.listener is not None:
                self.listener.lost()
            self.tell_consoles()

    def come_back(self, *, restarted: bool = False) -> None:
        """Be in reach again, with the domains that there were or with none."""
        self.is_lost = False
        if restarted:
            self.doms.clear()
            self.up.clear()
            self.sequence = 0
        if self.listener is not None:
            self.listener.up(restarted=restarted)

    def _reach(self) -> None:
        if self.is_lost:
            raise HostError(Code.LOST, "lost by the test")

    async def leave(self) -> None:
        self.listener = None

    async def stop(self) -> None:
        await self.leave()
        self.ended = True
        self.doms.clear()

    def goes_down(self, uuid: str, why: Shutdown) -> None:
        """Let a guest go down by itself."""
        domain = self.doms[uuid]
        domain.state, domain.shutdown = Power.SHUTDOWN, why
        self.attention(uuid)

    async def stat(self, uuid: str) -> Truth:
        self._reach()
        truth = self.truth(uuid)
        if "stat" in self.held:  # it is on its way while the domain goes on
            await self.held["stat"]
        return truth

    async def truths(self) -> Mapping[str, Truth]:
        await self._asked("truths")
        return {uuid: self.truth(uuid) for uuid in self.doms}

    def truth(self, uuid: str) -> Truth:
        self.sequence += 1
        domain = self.doms.get(uuid)
        return Truth(self.sequence, None if domain is None else self._state(uuid, domain))

    def _state(self, uuid: str, domain: FakeDomain) -> DomainState:
        vcpus = domain.config.vcpus if domain.vcpus is None else domain.vcpus
        return DomainState(
            uuid, domain.domid, domain.state, domain.shutdown, "", self.kind or kind(domain.config.boot),
            domain.target if domain.actual is None else domain.actual, domain.target,
            domain.config.memory_max, vcpus, (domain.cpu_time,) * max(domain.config.vcpus, domain.config.vcpus_max),
            {"running": domain.cpu_time, "runnable": 0.0, "blocked": 9.0, "offline": 0.0}, self.start_time,
            tuple(
                DeviceState(each, True, domain.counters.get(at, {}))
                for at, each in domain.devices.items()
                if not isinstance(each, Display)
            ),
            dict(domain.guest), domain.asked,
        )  # fmt: skip

    async def domains(self) -> tuple[str, ...]:
        self._reach()
        return tuple(self.doms)

    async def free_memory(self) -> int:
        return self.memory - sum(domain.config.memory_max for domain in self.doms.values())

    async def log(self) -> str:
        await self._asked("log")
        return "(XEN) fake\n"

    async def networks(self, plan: tuple[Network, ...]) -> None:
        await self._asked("networks")
        self.up |= {network.name: network for network in plan}

    async def build(self, config: DomainConfig, *, paused: bool = False) -> Truth:
        await self._asked("build")
        return await self._make(config, paused)

    async def restore(self, config: DomainConfig, image: VolumeHandle) -> Truth:
        await self._asked("restore")
        if not self.storage.repositories.file(image).exists():
            raise HostError(Code.BAD_IMAGE, f"{image}: No such file or directory")
        return await self._make(config, True)

    async def _make(self, config: DomainConfig, paused: bool) -> Truth:
        if self.ended:
            raise HostError(Code.STOPPED, "ended by the test")
        if config.uuid in self.doms:
            raise HostError(Code.EXISTS, config.uuid)
        if config.memory_max > await self.free_memory():
            raise HostError(Code.NO_MEMORY, f"{config.memory_max} bytes asked for")
        domain = FakeDomain(config, self._next, target=config.memory_target)
        self._next += 1
        for device in config.disks:
            domain.devices[Disk, device.number] = device
        for nic in config.nics:
            domain.devices[NIC, nic.number] = nic
        self.doms[config.uuid] = domain
        if not paused:
            await self.unpause(config.uuid)
        return self.truth(config.uuid)

    async def unpause(self, uuid: str) -> Truth:
        await self._asked("unpause")
        domain = self._domain(uuid)
        domain.state = Power.RUNNING if domain.shutdown is None else Power.SHUTDOWN
        return self.truth(uuid)

    async def pause(self, uuid: str) -> Truth:
        await self._asked("pause")
        self._domain(uuid).state = Power.PAUSED
        return self.truth(uuid)

    async def destroy(self, uuid: str) -> None:
        await self._asked("destroy")
        self.doms.pop(uuid, None)
        self.tell_consoles()

    def tell_consoles(self) -> None:
        """Wake who waits for room, or for the end."""
        news, self._news = self._news, []
        for each in news:
            each.callback(None)

    async def shutdown(self, uuid: str, how: Shutdown) -> None:
        await self._asked("shutdown")
        if self.deaf:
            raise HostError(Code.NOT_ACKNOWLEDGED, "deaf")
        domain = self._domain(uuid)
        if domain.state is Power.SHUTDOWN:
            raise HostError(Code.NOT_RUNNING, uuid)
        domain.state, domain.shutdown, domain.asked = Power.SHUTDOWN, how, how is Shutdown.SUSPEND

    async def suspend(self, uuid: str, image: VolumeHandle) -> None:
        await self.shutdown(uuid, Shutdown.SUSPEND)
        await self._asked("save")
        self.storage.repositories.file(image).write_bytes(b"image of " + uuid.encode())

    async def resume(self, uuid: str) -> None:
        await self._asked("resume")
        domain = self._domain(uuid)
        domain.state, domain.shutdown, domain.asked = Power.RUNNING, None, False

    async def plug(self, uuid: str, device: Device) -> Truth:
        await self._asked("plug")
        devices = self._domain(uuid).devices
        if (type(device), device.number) in devices:
            raise HostError(Code.DEVICE_EXISTS, str(device.number))
        devices[type(device), device.number] = device
        return self.truth(uuid)

    async def unplug(self, uuid: str, device: Device, force: bool) -> None:
        await self._asked("unplug")
        if self.deaf and not force:
            raise HostError(Code.DETACH_TIMEOUT, "deaf")
        if self._domain(uuid).devices.pop((type(device), device.number), None) is None:
            raise HostError(Code.NO_DEVICE, str(device.number))

    async def adjust(self, uuid: str, change: Change) -> None:
        await self._asked("adjust")
        domain = self._domain(uuid)
        if change.memory_target is not None:
            domain.target = change.memory_target
        if change.vcpus is not None and not self.deaf:
            domain.vcpus = change.vcpus
        for device in (change.medium, change.nic):
            if device is not None:
                domain.devices[type(device), device.number] = device
        domain.config = replace(
            domain.config,
            weight=domain.config.weight if change.weight is None else change.weight,
            cap=domain.config.cap if change.cap is None else change.cap,
            affinity=domain.config.affinity if change.affinity is None else change.affinity,
            xenstore={**domain.config.xenstore, **(change.xenstore or {})},
        )

    async def console(self, uuid: str) -> FakeConsole:
        self._reach()
        return FakeConsole(self, self._domain(uuid))

    async def screen(self, uuid: str) -> NoReturn:
        """Refuse: none of these domains has a screen."""
        self._domain(uuid)
        raise HostError(Code.NO_DEVICE, "0")


def storage_at_once(directory: Path = Path("/nowhere")) -> LocalStorage:
    """Return a host's storage with nothing attached, which needs no thread."""
    return LocalStorage(directory, maybeDeferred, lambda function, *arguments: function(*arguments), time.time_ns)


class SavedDomains(Repository):
    """Files of a directory that domains are saved in."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def file(self, location: str) -> Path:
        return self._directory / location


def kind(boot: Boot) -> str:
    """Return what a domain is that boots so."""
    return "hvm" if isinstance(boot, Firmware) else boot.kind


class FakeConsole:
    """A terminal that says the same to everybody; what was typed is kept by the backend, as far as it has room."""

    def __init__(self, backend: FakeBackend, domain: FakeDomain) -> None:
        self._backend = backend
        self._domain = domain

    @property
    def _ended(self) -> bool:
        return self._domain not in self._backend.doms.values()

    async def _come(self) -> None:
        news: Deferred[None] = Deferred(self._backend._news.remove)
        self._backend._news.append(news)
        await news

    async def write(self, data: bytes) -> int:
        while not self._backend.room and not self._ended:
            await self._come()
        taken = b"" if self._ended else data[: self._backend.room]
        self._backend.room -= len(taken)
        self._backend.typed += taken
        return len(taken)

    async def follow(self) -> AsyncIterator[bytes]:
        self._backend.followers += 1
        try:
            yield b"earlier demo> "
            while not self._ended:
                await self._come()
                self._backend._reach()
        finally:
            self._backend.followers -= 1


class FakeDisks:
    """VDI's own messages, over rows alone. `calls` lists them by disk; a test makes them fail, or wait, by disk."""

    def __init__(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fail: dict[tuple[str, str], Fault] = {}
        """By message and name_label."""
        self.held: dict[tuple[str, str], Deferred[None]] = {}
        self.most = self._now = 0
        """How many ran side by side at most."""
        model, methods = daemon.model, daemon.dispatcher.methods
        for name, function in (
            ("VDI.create", self.create), ("VDI.clone", self.clone), ("VDI.snapshot", self.snapshot),
            ("VDI.copy", self.copy), ("VDI.destroy", self.destroy), ("VDI.set_name_label", self.set_name_label),
        ):  # fmt: skip
            declared = next(message for message in model.messages if message.full_name == name)
            methods[name] = Method(declared, function, False, daemon.model)
        monkeypatch.setattr(vdis, "copy_suspend_image", self.copy_suspend_image)

    async def _asked(self, name: str, label: str) -> None:
        self.calls.append((name, label))
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            if (name, label) in self.held:
                await self.held[name, label]
            if (name, label) in self.fail:
                raise self.fail[name, label]
        finally:
            self._now -= 1

    async def create(self, call: Call, args: Mapping[str, Any]) -> Any:
        await self._asked("create", args["name_label"])
        return call.db.VDI.create(**args)._ref

    async def clone(self, call: Call, vdi: Any, driver_params: Any) -> Any:
        return await self._copy(call, "clone", vdi)

    async def snapshot(self, call: Call, vdi: Any, driver_params: Any) -> Any:
        return await self._copy(call, "snapshot", vdi, is_a_snapshot=True, snapshot_of=vdi, snapshot_time=call.now)

    async def copy(self, call: Call, vdi: Any, sr: Any, base_vdi: Any, into_vdi: Any) -> Any:
        return await self._copy(call, "copy", vdi, SR=sr)

    async def copy_suspend_image(self, call: Call, vdi: Any) -> Any:
        return call.db.VDI[await self._copy(call, "copy", vdi._ref)]

    async def _copy(self, call: Call, name: str, vdi: Any, **fields: Any) -> Any:
        row: Any = call.db.VDI[vdi]
        async with claim(call, name, row):
            await self._asked(name, row.name_label)
        kept = {key: getattr(row, key) for key in ("name_label", "SR", "type", "virtual_size", "sm_config")}
        return call.db.VDI.create(**(kept | fields))._ref

    async def destroy(self, call: Call, self_: Any) -> None:
        row: Any = call.db.VDI[self_]
        async with claim(call, "destroy", row):
            await self._asked("destroy", row.name_label)
            for vbd in list(row.VBDs):
                call.db.VBD.delete(vbd)
            call.db.VDI.delete(self_)

    async def set_name_label(self, call: Call, self_: Any, value: str) -> None:
        call.db.VDI[self_].name_label = value
