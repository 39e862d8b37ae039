"""Building and ending domains in ordered steps, each with its undoing: what libxl does on a real host.

Everything here blocks only for the work itself and runs on a thread of the caller's; what a guest takes its time
for is told by a callback, on some thread, and the caller decides how long to wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from hypervisor.api import Change, Code, Device, DomainConfig, HostError, Shutdown, Truth
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import State
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE
from hypervisor.migration import resume as resuming
from hypervisor.split.block_queue import DiskThreads
from hypervisor.split.console import Console
from hypervisor.split.store_ring import StoreRing
from hypervisor.storage.repositories import Opens, Repositories, Volumes
from hypervisor.toolstack import builder, home, images
from hypervisor.toolstack.control import Control, Request
from hypervisor.toolstack.devices.plugged import Slot
from hypervisor.toolstack.devices.table import Devices
from hypervisor.toolstack.guest import Guest
from hypervisor.toolstack.kernels import kernel, kind
from hypervisor.toolstack.networks import Networks


class Toolstack:
    """The domains of one host, by uuid. Networks and volumes may be shared with others in the process."""

    def __init__(self, host: Host, networks: Networks | None = None, volumes: Volumes | None = None) -> None:
        self.host = host
        self.networks = networks or Networks(host.lock)
        self.volumes = volumes or Repositories[Opens]()
        self.guests: dict[str, Guest] = {}
        self.attention: Callable[[str], None] = _nobody
        """Called with a uuid, on any thread and under the host's lock, when something about that domain has changed."""
        self._sequence = 0
        self._changing: set[str] = set()
        """Domains that are being made or ended."""
        self._settled = threading.Condition(host.lock)
        self._stopped = False
        self._disk_threads = DiskThreads()
        host.listen(self._changed)

    def start(self) -> None:
        """Let guests and networks run, on threads of their own."""
        self.host.start()
        self.networks.start()

    def stop(self) -> None:
        """Destroy all domains, also those that are being made, and end the threads; none can be made any more."""
        with self.host.lock:
            self._stopped = True
            self._settled.wait_for(lambda: not self._changing)
        for uuid in list(self.guests):
            self.destroy(uuid)
        self.networks.stop()
        self.host.stop()
        self._disk_threads.stop()

    # Making domains

    def build(self, config: DomainConfig) -> Guest:
        """Make a domain, paused, with everything connected. Raises HostError, with nothing left behind."""
        with self._making(config.uuid) as undo:
            boot, entry = kernel(config, self.volumes)
            build = builder.create(self.host, config, entry)
            undo.callback(self.host.destroy, build.domain)
            guest = self._join(undo, config, entry, build.domain, build.load(boot), build.attach)
            with self.host.lock:
                build.enter()
            return self._made(undo, guest)

    def restore(self, config: DomainConfig, path: Path) -> Guest:
        """Make a domain, paused, whose guest goes on from an image. Raises HostError, with nothing left behind."""
        with self._making(config.uuid) as undo:
            domain, entry, said = images.read(self.host, config, path)
            undo.callback(self.host.destroy, domain)
            build = builder.RestoredBuild(domain)
            guest = self._join(undo, config, entry, domain, build.frames(), build.attach)
            self._write(guest, said)
            return self._made(undo, guest)

    def _making(self, uuid: str) -> ExitStack:
        """Return what undoes the steps of making a domain, unless it ends well. Raises HostError."""
        with self.host.lock:
            if self._stopped:
                raise HostError(Code.STOPPED, "the host goes down")
            if uuid in self.guests or uuid in self._changing:
                raise HostError(Code.EXISTS, f"domain {uuid} exists already")
            self._changing.add(uuid)
        undo = ExitStack()
        undo.callback(self._settle, uuid)
        return undo

    def _made(self, undo: ExitStack, guest: Guest) -> Guest:
        with self.host.lock:
            self.guests[guest.config.uuid] = guest
            undo.pop_all()
            self._settle(guest.config.uuid)
        return guest

    def _settle(self, uuid: str) -> None:
        """Let a domain that was made or ended be asked for again."""
        with self.host.lock:
            self._changing.discard(uuid)
            self._settled.notify_all()

    def _join(
        self,
        undo: ExitStack,
        config: DomainConfig,
        entry: str,
        domain: Domain,
        frames: tuple[int, int],
        attach: Callable[[int, int], None],
    ) -> Guest:
        """Give a domain its home in xenstore, its console and its devices; `frames` are those of their rings."""
        with self.host.lock:
            home.write(self.host.xenstore, domain.domid, config, len(domain.vcpus))
            undo.callback(self._forget, domain)
            store_port, console_port = domain.events.alloc_unbound(0), domain.events.alloc_unbound(0)
            attach(store_port, console_port)
            console = Console(domain, frames[1], console_port)
            connection = self.host.xenstore.introduce(domain.domid)
            store = StoreRing(domain, connection, frames[0], store_port)
            control = Control(self.host.xenstore, domain.domid, lambda: self.attention(config.uuid))
            control.metrics()
        slot = Slot(
            domain,
            self.host.xenstore,
            self.networks,
            self.volumes,
            self._disk_threads.put,
            lambda: self.attention(config.uuid),
        )
        devices = Devices(slot)
        undo.callback(devices.close)
        started, what = self.host.time_of_day() / 1e9, kind(config.boot, entry)
        guest = Guest(domain, config, what, console, store, control, devices, config.memory_target, started)
        display = () if config.display is None else (config.display,)
        described: tuple[Device, ...] = (*config.disks, *config.nics, *display)
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
            raise HostError(Code.FAILED, str(error)) from error

    # What is true

    def state(self, uuid: str) -> Truth:
        """Return what is true of a domain now."""
        with self.host.lock:
            self._sequence += 1
            guest = self.guests.get(uuid)
            return Truth(self._sequence, None if guest is None else guest.state())

    def truths(self) -> dict[str, Truth]:
        """Return what is true of each domain now; some 0.2 ms a domain, the lock taken for each by itself."""
        return {uuid: self.state(uuid) for uuid in list(self.guests)}

    def _changed(self, domain: Domain) -> None:
        """Ask for attention to a domain that shut down, or whose number of vCPUs is another since somebody looked."""
        if domain.life.reason is None:
            guest = self.guests.get(domain.uuid)
            if guest is None or not guest.looked_at:
                return
            guest.looked_at = False
        self.attention(domain.uuid)

    # Changing domains

    def unpause(self, uuid: str) -> None:
        """Let a domain run."""
        self.host.unpause(self.guest(uuid).domain)

    def pause(self, uuid: str) -> None:
        """Hold a domain where it is."""
        domain = self.guest(uuid).domain
        if not domain.life.pauses:
            self.host.pause(domain)

    def request(self, uuid: str, how: Shutdown, acknowledged: Callable[[], None] = lambda: None) -> Request:
        """Ask the guest to go down; `acknowledged` is called when it has heard. Raises HostError."""
        guest = self.guest(uuid)
        with self.host.lock:
            if guest.domain.life.state is not State.RUNNING:
                raise HostError(Code.NOT_RUNNING, f"domain {uuid} does not run")
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
        if change.vcpus is not None:
            self._plug_vcpus(guest.domain, change.vcpus)
        if change.weight is not None or change.cap is not None or change.affinity is not None:
            self._schedule(guest.domain, change.weight, change.cap, change.affinity)
        if change.nic is not None:
            guest.devices.change(change.nic)
        if change.xenstore is not None:
            self._write(guest, change.xenstore)
        if change.medium is not None:
            guest.devices.change(change.medium, done)
        else:
            done()

    def _limit(self, guest: Guest, target: int) -> None:
        """Set memory aside for a target. Raises HostError when the host has not so much."""
        host, domain = self.host, guest.domain
        xens = domain.memory.size - guest.config.memory_max if guest.kind == "pv" else 0
        more = target + xens - max(guest.target + xens, domain.memory.present * PAGE)
        if more > host.free_memory():
            raise HostError(Code.NO_MEMORY, f"{more} bytes more asked for, {host.free_memory()} are free")
        host.set_limit(domain, target + xens)

    def _plug_vcpus(self, domain: Domain, online: int) -> None:
        """Ask a guest to have so many vCPUs online. Raises HostError for more than it can have."""
        most = domain.vcpus.most_up
        if not 1 <= online <= most:
            raise HostError(Code.NO_VCPU, f"{online} vCPUs asked for, the domain can have {most}")
        with self.host.lock:
            home.plug_vcpus(self.host.xenstore, domain.domid, online, most)

    def _write(self, guest: Guest, keys: Mapping[str, str]) -> None:
        with self.host.lock, self.host.xenstore.transaction() as transaction:
            home.put(transaction, guest.domain.domid, keys)

    # Suspended domains

    def save(self, uuid: str, path: Path) -> int:
        """Write a domain that has suspended itself into a new file, durably; return its length. Raises HostError."""
        guest = self.guest(uuid)
        with self.host.lock:
            said = guest.control.metrics().values
        return images.write(self.host, guest.domain, said, path)

    def resume(self, uuid: str) -> None:
        """Let a domain that has suspended itself go on where it is. Raises HostError."""
        guest = self.guest(uuid)
        try:
            resuming.cancel(self.host, guest.domain)
        except ValueError as error:
            raise HostError(Code.NOT_SUSPENDED, str(error)) from error
        guest.control.suspends = False

    # Ends

    def destroy(self, uuid: str) -> None:
        """End a domain, whatever it does, and free all that it had. Harmless when there is none.

        From its first moment on the domain is none of the host's any more.
        """
        with self.host.lock:
            guest = self.guests.pop(uuid, None)
            if guest is None:
                return
            self._changing.add(uuid)
        with ExitStack() as steps:  # the last first, and all of them, whatever becomes of one
            steps.callback(self.attention, uuid)
            steps.callback(self._settle, uuid)
            steps.callback(self.host.destroy, guest.domain)
            steps.callback(self._forget, guest.domain)
            steps.callback(guest.devices.close)
            steps.callback(self._hang_up, guest)
            self.host.pause(guest.domain)

    def _hang_up(self, guest: Guest) -> None:
        with self.host.lock:
            guest.control.close()

    def _forget(self, domain: Domain) -> None:
        with self.host.lock:
            home.remove(self.host.xenstore, domain.domid)

    def guest(self, uuid: str) -> Guest:
        """Return a domain by its uuid. Raises HostError."""
        guest = self.guests.get(uuid)
        if guest is None:
            raise HostError(Code.NO_DOMAIN, f"there is no domain {uuid}")
        return guest


def _nobody(uuid: str) -> None:
    """Stand for a listener where there is none."""
