"""Building and ending domains in ordered steps, each with its undoing: what libxl does on a real host.

The xenstore layout is libxl's (docs/misc/xenstore-paths.pandoc): the domain reads its own path, and writes
below ``data``, ``attr``, ``control``, ``device``, ``drivers``, ``error`` and ``feature``. Everything here
blocks only for the work itself and runs on a thread of the caller's; what a guest takes its time for is told
by a callback, on some thread, and the caller decides how long to wait.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from hypervisor import builder
from hypervisor.api import (
    BootLoader,
    Change,
    Device,
    DirectBoot,
    DomainConfig,
    DomainState,
    Firmware,
    HostError,
    Power,
    Shutdown,
)
from hypervisor.control import Control, Request
from hypervisor.devices import Devices, open_disk
from hypervisor.disks.disk import SECTOR, Disk
from hypervisor.domain import Domain, Reason, State
from hypervisor.firmware import boot as firmware
from hypervisor.firmware.errors import BootError
from hypervisor.host import Host, NoMemory
from hypervisor.memory import PAGE
from hypervisor.networks import Networks
from hypervisor.pv.block_queue import DiskThreads
from hypervisor.pv.console import Console
from hypervisor.pv.store_ring import StoreRing
from hypervisor.snapshot import resume as resuming
from hypervisor.snapshot.records import ImageError
from hypervisor.snapshot.restore import Image
from hypervisor.snapshot.save import NotSuspended, save
from hypervisor.storage.repositories import Repositories
from hypervisor.xenstore.permissions import NONE, READ, Permissions

_FEATURES = ("suspend", "shutdown", "poweroff", "reboot", "balloon", "static-ip-setting")
_GUEST_WRITES = ("data", "attr", "device", "drivers", "error", "feature", "memory/meminfo")
REASONS = {
    Reason.POWEROFF: Shutdown.POWEROFF,
    Reason.REBOOT: Shutdown.REBOOT,
    Reason.SUSPEND: Shutdown.SUSPEND,
    Reason.CRASH: Shutdown.CRASH,
    Reason.WATCHDOG: Shutdown.WATCHDOG,
    Reason.SOFT_RESET: Shutdown.REBOOT,
}
_RUN_STATES = ("running", "runnable", "blocked", "offline")


@dataclass(slots=True)
class Guest:
    """A domain with what the toolstack joined to it."""

    domain: Domain
    config: DomainConfig
    kind: str
    """``pvh`` or ``pv``."""
    console: Console
    store: StoreRing
    control: Control
    devices: Devices
    target: int
    """Bytes that the balloon was last told to keep."""
    start_time: float = 0.0

    @property
    def path(self) -> str:
        """Its home in xenstore."""
        return f"/local/domain/{self.domain.domid}"


class Toolstack:
    """The domains of one host, by uuid. Networks and repositories may be shared with others in the process."""

    def __init__(self, host: Host, networks: Networks | None = None, repositories: Repositories | None = None) -> None:
        self.host = host
        self.networks = networks or Networks(host.lock)
        self.repositories = repositories or Repositories()
        self.guests: dict[str, Guest] = {}
        self.attention: Callable[[str], None] = _nobody
        """Called with a uuid, on any thread and under the host's lock, when something about that domain has changed."""
        self._building: set[str] = set()
        self._disk_threads = DiskThreads()
        host.listen(lambda domain: self.attention(domain.uuid))

    def start(self) -> None:
        """Let guests and networks run, on threads of their own."""
        self.host.start()
        self.networks.start()

    def stop(self) -> None:
        """Destroy all domains and end the threads."""
        for uuid in list(self.guests):
            self.destroy(uuid)
        self.networks.stop()
        self.host.stop()
        self._disk_threads.stop()

    # Making domains

    def build(self, config: DomainConfig) -> Guest:
        """Make a domain, paused, with everything connected. Raises HostError, with nothing left behind."""
        with self._making(config.uuid) as undo:
            boot, kind = self._boot(config)
            build = builder.begin(self.host, config, kind)
            undo.callback(self.host.destroy, build.domain)
            guest = self._join(undo, config, kind, build.domain, build.load(boot), build.attach)
            with self.host.lock:
                build.enter()
            return self._made(undo, guest)

    def restore(self, config: DomainConfig, path: Path) -> Guest:
        """Make a domain, paused, whose guest goes on from an image. Raises HostError, with nothing left behind."""
        with self._making(config.uuid) as undo:
            try:
                with path.open("rb") as file:
                    image = Image(file)
                    said = _keys(image.config)
                    domain = image.build(self.host, config.uuid, builder.code_cache(config.memory_max))
            except ImageError as error:
                raise HostError("bad_image", f"{path}: {error}") from error
            except NoMemory as error:
                raise HostError("no_memory", str(error)) from error
            except OSError as error:
                raise HostError("bad_image", f"{path}: {error.strerror}") from error
            undo.callback(self.host.destroy, domain)
            build = builder.RestoredBuild(domain)
            guest = self._join(undo, config, "pvh", domain, build.frames(), build.attach)
            self._write(guest, said)
            return self._made(undo, guest)

    def _making(self, uuid: str) -> ExitStack:
        """Return what undoes the steps of making a domain, unless it ends well. Raises HostError."""
        with self.host.lock:
            if uuid in self.guests or uuid in self._building:
                raise HostError("exists", f"domain {uuid} exists already")
            self._building.add(uuid)
        undo = ExitStack()
        undo.callback(self._building.discard, uuid)
        return undo

    def _made(self, undo: ExitStack, guest: Guest) -> Guest:
        self.guests[guest.config.uuid] = guest
        undo.pop_all()
        self._building.discard(guest.config.uuid)
        return guest

    def _boot(self, config: DomainConfig) -> tuple[firmware.Boot, str]:
        """Return the kernel to load, and by which entry. Raises HostError."""
        boot = config.boot
        if isinstance(boot, DirectBoot):
            return _offered(boot), boot.kind
        return self._firmware(config), boot.kind if isinstance(boot, BootLoader) else "pvh"

    def _firmware(self, config: DomainConfig) -> firmware.Boot:
        """Look for a kernel on the disks that are described, before there is a domain. Raises HostError."""
        boot = config.boot
        with ExitStack() as opened:
            found: dict[bool, list[Disk]] = {False: [], True: []}
            for described in sorted(config.disks, key=lambda each: each.number):
                disk = open_disk(described, self.repositories, read_only=True)
                if disk is not None:
                    opened.callback(disk.close)
                    found[described.is_cdrom].append(disk)
            try:
                if isinstance(boot, BootLoader):
                    if not found[False]:
                        raise BootError("there is no disk")
                    return firmware.pygrub(
                        found[False][0], boot.arguments, boot.append, kind=boot.kind, memory=config.memory_max
                    )
                assert isinstance(boot, Firmware)
                network = None if boot.network is None else _offered(boot.network)
                return firmware.find(boot.order, found[False], found[True], network, memory=config.memory_max)
            except BootError as error:
                if isinstance(boot, BootLoader):
                    raise HostError("bootloader_failed", str(error)) from error
                return firmware.message(error)

    def _join(
        self,
        undo: ExitStack,
        config: DomainConfig,
        kind: str,
        domain: Domain,
        frames: tuple[int, int],
        attach: Callable[[int, int], None],
    ) -> Guest:
        """Give a domain its home in xenstore, its console and its devices; `frames` are those of their rings."""
        with self.host.lock:
            self._introduce(config, domain)
            undo.callback(self._forget, domain)
            store_port, console_port = domain.events.alloc_unbound(0), domain.events.alloc_unbound(0)
            attach(store_port, console_port)
            console = Console(domain, frames[1], console_port)
            connection = self.host.xenstore.introduce(domain.domid)
            store = StoreRing(domain, connection, frames[0], store_port)
            control = Control(self.host.xenstore, domain.domid, lambda: self.attention(config.uuid))
            control.metrics()
        devices = Devices(
            domain,
            self.host.xenstore,
            self.networks,
            self.repositories,
            self._disk_threads.put,
            lambda: self.attention(config.uuid),
        )
        undo.callback(devices.close)
        started = self.host.time_of_day() / 1e9
        guest = Guest(domain, config, kind, console, store, control, devices, config.memory_target, started)
        described: tuple[Device, ...] = (*config.disks, *config.nics)
        for each in described:
            devices.plug(each)
        self._schedule(domain, config.weight, config.cap, config.affinity)
        with self.host.lock:
            self._limit(guest, config.memory_target)
        return guest

    def _schedule(self, domain: Domain, weight: int | None, cap: int | None, affinity: tuple[int, ...] | None) -> None:
        """Set what is given; pCPUs that there are not are left out. Raises HostError."""
        scheduler = self.host.scheduler
        if domain.domid not in scheduler.entities:
            scheduler.add(domain)
        pcpus = None if affinity is None else [number for number in affinity if number < scheduler.pcpus]
        try:
            scheduler.adjust(domain.domid, weight=weight, cap=cap, pcpus=pcpus)
        except ValueError as error:
            raise HostError("failed", str(error)) from error

    def _introduce(self, config: DomainConfig, domain: Domain) -> None:
        """Write the domain's home in xenstore."""
        store, domid = self.host.xenstore, domain.domid
        home = f"/local/domain/{domid}"
        own, readable = Permissions(domid, NONE), Permissions(0, NONE, ((domid, READ),))
        keys = {
            "": "",
            "vm": f"/vm/{config.uuid}",
            "name": config.name,
            "domid": str(domid),
            "memory/static-max": str(config.memory_max >> 10),
            "memory/target": str(config.memory_target >> 10),
            "control": "",
            "control/platform-feature-multiprocessor-suspend": "1",
            "control/platform-feature-xs_reset_watches": "1",
        }
        keys |= {f"cpu/{number}/availability": "online" for number in range(config.vcpus)}
        with store.transaction() as transaction:
            for key, value in keys.items():
                transaction.write(f"{home}/{key}".rstrip("/"), value.encode())
                transaction.set_perms(f"{home}/{key}".rstrip("/"), readable)
            features = (f"control/feature-{name}" for name in _FEATURES)
            for key in ("control/shutdown", "control/sysrq", *features, *_GUEST_WRITES):
                transaction.write(f"{home}/{key}", b"")
                transaction.set_perms(f"{home}/{key}", own)
            for key, value in config.xenstore.items():
                transaction.write(f"{home}/{key}", value.encode())
                transaction.set_perms(f"{home}/{key}", own)

    # What is true

    def state(self, uuid: str) -> DomainState | None:
        """Return what is true of a domain now, or None when there is none."""
        guest = self.guests.get(uuid)
        if guest is None:
            return None
        domain, config = guest.domain, guest.config
        with self.host.lock:
            shutdown = REASONS[domain.reason] if domain.reason is not None else None
            power = Power.SHUTDOWN if shutdown else Power.PAUSED if domain.state is State.PAUSED else Power.RUNNING
            times = [domain.runstate_times(number) for number in range(len(domain.vcpus))]
            return DomainState(
                uuid=uuid,
                domid=domain.domid,
                power=power,
                shutdown=shutdown,
                crash=domain.crash,
                kind=guest.kind,
                memory_actual=domain.memory.present * PAGE,
                memory_target=guest.target,
                memory_max=config.memory_max,
                vcpus=sum(vcpu.up for vcpu in domain.vcpus),
                cpu_time=tuple(vcpu.cpu_time for vcpu in domain.vcpus),
                run_times={
                    name: sum(each[at] for each in times) / len(times) / 1e9 for at, name in enumerate(_RUN_STATES)
                },
                start_time=guest.start_time,
                devices=tuple(guest.devices.states()),
                guest=guest.control.metrics().values,
            )

    # Changing domains

    def unpause(self, uuid: str) -> None:
        """Let a domain run."""
        self.host.unpause(self.guest(uuid).domain)

    def pause(self, uuid: str) -> None:
        """Hold a domain where it is."""
        domain = self.guest(uuid).domain
        if domain.state is not State.PAUSED:
            self.host.pause(domain)

    def request(self, uuid: str, how: Shutdown, acknowledged: Callable[[], None] = lambda: None) -> Request:
        """Ask the guest to go down; `acknowledged` is called when it has heard. Raises HostError."""
        guest = self.guest(uuid)
        if how is Shutdown.SUSPEND and guest.kind == "pv":
            raise HostError("not_suspendable", "a PV guest cannot be saved yet")
        with self.host.lock:
            if guest.domain.state is not State.RUNNING:
                raise HostError("not_running", f"domain {uuid} does not run")
            return guest.control.request(how, acknowledged)

    def plug(self, uuid: str, described: Device) -> None:
        """Offer a device to the guest. Raises HostError."""
        self.guest(uuid).devices.plug(described)

    def unplug(self, uuid: str, described: Device, done: Callable[[], None], *, force: bool = False) -> None:
        """Take a device away; see `Devices.unplug`."""
        self.guest(uuid).devices.unplug(type(described), described.number, done, force=force)

    def adjust(self, uuid: str, change: Change, done: Callable[[], None]) -> None:
        """Change a domain; `done` is called when a CD that was ejected is not used any more. Raises HostError."""
        guest = self.guest(uuid)
        if change.memory_target is not None:
            with self.host.lock:
                # First the limit, or the guest could be told of memory that another has taken meanwhile.
                self._limit(guest, change.memory_target)
                guest.control.set_memory_target(change.memory_target >> 10)
                guest.target = change.memory_target
        if change.weight is not None or change.cap is not None or change.affinity is not None:
            self._schedule(guest.domain, change.weight, change.cap, change.affinity)
        if change.nic is not None:
            guest.devices.change_nic(change.nic)
        if change.xenstore is not None:
            self._write(guest, change.xenstore)
        if change.medium is not None:
            guest.devices.change_medium(change.medium, done)
        else:
            done()

    def _limit(self, guest: Guest, target: int) -> None:
        """Set memory aside for a target. Raises HostError when the host has not so much."""
        host, domain = self.host, guest.domain
        xens = domain.memory.size - guest.config.memory_max if guest.kind == "pv" else 0
        more = target + xens - max(guest.target + xens, domain.memory.present * PAGE)
        if more > host.free_memory():
            raise HostError("no_memory", f"{more} bytes more asked for, {host.free_memory()} are free")
        host.set_limit(domain, target + xens)

    def _write(self, guest: Guest, keys: Mapping[str, str]) -> None:
        with self.host.lock, self.host.xenstore.transaction() as transaction:
            for key, value in keys.items():
                transaction.write(f"{guest.path}/{key}", value.encode())
                transaction.set_perms(f"{guest.path}/{key}", Permissions(guest.domain.domid, NONE))

    # Suspended domains

    def save(self, uuid: str, path: Path) -> int:
        """Write a domain that has suspended itself into a new file, durably; return its length. Raises HostError."""
        guest = self.guest(uuid)
        unfinished = path.with_name(f".new-{path.name}")
        try:
            with unfinished.open("xb") as file:
                length = save(self.host, guest.domain, file, json.dumps(self._said(guest)).encode())
                length += -length % SECTOR  # it is copied as a disk is
                file.truncate(length)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
        except NotSuspended as error:
            unfinished.unlink(missing_ok=True)
            raise HostError("not_suspended", str(error)) from error
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise HostError("no_space" if error.errno == 28 else "failed", f"{path}: {error.strerror}") from error
        return length

    def _said(self, guest: Guest) -> dict[str, str]:
        """Return what the guest has told of itself: it does so when it boots, and not again when it is restored."""
        with self.host.lock:
            return dict(guest.control.metrics().values)

    def resume(self, uuid: str) -> None:
        """Let a domain that has suspended itself go on where it is. Raises HostError."""
        try:
            resuming.cancel(self.host, self.guest(uuid).domain)
        except ValueError as error:
            raise HostError("not_suspended", str(error)) from error

    # Ends

    def destroy(self, uuid: str) -> None:
        """End a domain, whatever it does, and free all that it had. Harmless when there is none."""
        guest = self.guests.pop(uuid, None)
        if guest is not None:
            self.host.pause(guest.domain)
            with self.host.lock:
                guest.control.close()
                self._forget(guest.domain)
            self.host.destroy(guest.domain)
            guest.devices.close()
            self.attention(uuid)

    def _forget(self, domain: Domain) -> None:
        store = self.host.xenstore
        with self.host.lock:
            if store.is_introduced(domain.domid):
                store.release(domain.domid)
            store.rm(f"/local/domain/{domain.domid}")

    def guest(self, uuid: str) -> Guest:
        """Return a domain by its uuid. Raises HostError."""
        guest = self.guests.get(uuid)
        if guest is None:
            raise HostError("no_domain", f"there is no domain {uuid}")
        return guest


def _keys(config: bytes) -> dict[str, str]:
    """Read what `Toolstack.save` put beside a domain. Raises ImageError."""
    try:
        found = json.loads(config)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ImageError("the toolstack's part is none of ours")
    return found


def _offered(boot: DirectBoot) -> firmware.Boot:
    """Return a kernel of the host's as the firmware returns those it finds."""
    return firmware.Boot(Path(boot.kernel), Path(boot.ramdisk) if boot.ramdisk else None, boot.command_line, "the host")


def _nobody(uuid: str) -> None:
    """Stand for a listener where there is none."""
