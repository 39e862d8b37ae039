"""An emulated host: the hypervisor's toolstack behind the `Backend` protocol, in whatever process it is made.

Here threads meet: what may block runs on the pool of threads, what the hypervisor tells comes back through the
reactor. What any host needs is here, not with who asks: the order of what is done with a domain, and how long a guest
may take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from msgspec import structs
from twisted.internet.defer import Deferred, DeferredLock

from hypervisor.api import (
    DEMO,
    Change,
    Code,
    Device,
    DirectBoot,
    DomainConfig,
    Firmware,
    HostError,
    Listener,
    Network,
    Power,
    Shutdown,
    Truth,
    VolumeHandle,
)
from hypervisor.guests import DEMO_KERNEL
from hypervisor.host import Host
from hypervisor.network.site import Site
from hypervisor.storage.errors import StorageError
from hypervisor.toolstack.devices.screen import Screen
from hypervisor.toolstack.networks import Networks
from hypervisor.toolstack.toolstack import Toolstack
from xapi.cancelling import to_its_end
from xapi.host.console import ConsoleStream
from xapi.host.screen import ScreenView
from xapi.host.storage import LocalStorage
from xapi.host.threads import Threads

if TYPE_CHECKING:
    from hypervisor.split.console import Console

ACKNOWLEDGE = 60.0
"""Seconds that a guest has to take a request to go down."""
DETACH = 30.0
"""Seconds that a guest has to let a device go."""


class EmulatedBackend:
    """One emulated host, in this process.

    `network_boot` is what its network offers to domains that boot from it, `cpu_name` what guests find their CPUs
    called.
    """

    def __init__(
        self,
        memory: int,
        threads: Threads,
        storage: LocalStorage,
        *,
        pcpus: int | None = None,
        network_boot: str = DEMO,
        cpu_name: str = "",
        site: Site | None = None,
    ) -> None:
        self.storage = storage
        host = Host(memory, pcpus, cpu_name=cpu_name)
        self.toolstack = Toolstack(host, Networks(host.lock, site), volumes=storage.repositories)
        self.toolstack.attention = self._heard
        self._threads = threads
        self._network_boot = _kernel(DirectBoot(network_boot)) if network_boot else None
        self._running = False
        self._listener: Listener | None = None
        self._down: dict[str, list[Deferred[None]]] = {}
        self._locks: dict[str, DeferredLock] = {}
        self._consoles: WeakValueDictionary[Console, ConsoleStream] = WeakValueDictionary()

    async def start(self, listener: Listener) -> None:
        """Let guests run, and tell `listener` of them on the reactor's thread."""
        self._listener = listener
        if not self._running:
            self._running = True
            self.toolstack.start()
        listener.up(restarted=False)

    async def leave(self) -> None:
        """End: nobody else can reach a host of this process."""
        await self.stop()

    async def stop(self) -> None:
        """End all guests, and tell nobody."""
        self._listener = None
        if self._running:
            self._running = False
            await self._threads.run(self.toolstack.stop)

    # News

    def _heard(self, uuid: str) -> None:
        self._threads.back(self._attend, uuid)

    def _attend(self, uuid: str) -> None:
        guest = self.toolstack.guests.get(uuid)
        if guest is None or guest.domain.life.reason is not None:
            for waiting in self._down.pop(uuid, ()):
                if not waiting.called:
                    waiting.callback(None)
        if self._listener is not None:
            self._listener.attention(uuid)

    # What is true

    async def stat(self, uuid: str) -> Truth:
        """Return what is true of a domain, also that there is none."""
        truth: Truth = await self._threads.run(self.toolstack.state, uuid)
        return truth

    async def truths(self) -> Mapping[str, Truth]:
        """Return what is true of each domain."""
        truths: Mapping[str, Truth] = await self._threads.run(self.toolstack.truths)
        return truths

    async def domains(self) -> tuple[str, ...]:
        """Return the uuids of all domains."""
        return tuple(self.toolstack.guests)

    async def free_memory(self) -> int:
        """Return bytes that no domain holds or may grow to."""
        return self.toolstack.host.free_memory()

    async def log(self) -> str:
        """Return the newest lines of the hypervisor's own log."""
        return self.toolstack.host.console_ring.text()

    async def _do(self, uuid: str, function: Callable[..., object], *arguments: object) -> Any:
        """Do something with a domain on a thread, after what was begun before with it.

        Who is cancelled waits no longer; the work goes on, and what undoes it comes after it.
        """
        lock = self._locks.setdefault(uuid, DeferredLock())
        await lock.acquire()
        work = self._threads.run(function, *arguments)
        shown: Deferred[Any] = Deferred(lambda _: None)

        def over(result: object) -> None:
            if not lock.waiting and uuid not in self.toolstack.guests:
                self._locks.pop(uuid, None)
            lock.release()
            if not shown.called:
                shown.callback(result)

        work.addBoth(over)
        return await shown

    # Domains

    async def networks(self, plan: tuple[Network, ...]) -> None:
        """Have all of these networks as they are described, or change none."""
        await self._threads.run(self.toolstack.networks.bring_up, plan)

    async def build(self, config: DomainConfig, *, paused: bool = False) -> Truth:
        """Make a domain with its devices, and let it run unless it is to be `paused`."""
        boot = config.boot
        if isinstance(boot, DirectBoot):
            config = replace(config, boot=_kernel(boot))
        elif isinstance(boot, Firmware):
            config = replace(config, boot=structs.replace(boot, network=self._network_boot))

        def build() -> None:
            self.toolstack.build(config)
            if not paused:
                self.toolstack.unpause(config.uuid)

        return await self._change(config.uuid, build)

    async def restore(self, config: DomainConfig, image: VolumeHandle) -> Truth:
        """Make a domain from a saved image, paused."""
        return await self._change(config.uuid, lambda: self.toolstack.restore(config, self._file(image)))

    def _file(self, image: VolumeHandle) -> Path:
        """Return where a saved image lies, or is to be written. Raises HostError."""
        try:
            return self.storage.repositories.file(image)
        except StorageError as error:
            raise HostError(Code.BAD_IMAGE, str(error)) from error

    async def _change(self, uuid: str, change: Callable[[], object]) -> Truth:
        """Change a domain and look at it, in one go: each way to a thread and back waits for others that run."""

        def changed() -> Truth:
            change()
            return self.toolstack.state(uuid)

        truth: Truth = await self._do(uuid, changed)
        return truth

    async def unpause(self, uuid: str) -> Truth:
        """Let a domain run."""
        return await self._change(uuid, lambda: self.toolstack.unpause(uuid))

    async def pause(self, uuid: str) -> Truth:
        """Hold a domain where it is."""
        return await self._change(uuid, lambda: self.toolstack.pause(uuid))

    async def destroy(self, uuid: str) -> None:
        """End a domain, whatever it does."""
        await self._do(uuid, self.toolstack.destroy, uuid)

    async def shutdown(self, uuid: str, how: Shutdown) -> None:
        """Ask the guest to go down; returns when it is down."""
        heard: Deferred[None] = Deferred()
        # Who is cancelled now must know of the request, to withdraw it.
        request = await to_its_end(self._do(uuid, self.toolstack.request, uuid, how, self._firing(heard)))
        down: Deferred[None] = Deferred()
        self._down.setdefault(uuid, []).append(down)
        if (state := (await self.stat(uuid)).state) is None or state.power is Power.SHUTDOWN:
            _fire(down)
        down.addCallback(lambda _: _fire(heard))
        try:
            await self._within(heard, ACKNOWLEDGE, Code.NOT_ACKNOWLEDGED, f"the guest has not heard of {how.value}")
            await down
        finally:
            waiting = [each for each in self._down.pop(uuid, ()) if each is not down]
            if waiting:
                self._down[uuid] = waiting
            await to_its_end(self._do(uuid, self._withdraw, request))

    def _withdraw(self, request: Any) -> None:
        with self.toolstack.host.lock:
            request.withdraw()

    def _firing(self, deferred: Deferred[None]) -> Callable[[], None]:
        """Return what fires a Deferred from any thread."""

        def fire() -> None:
            self._threads.back(_fire, deferred)

        return fire

    async def _within(self, done: Deferred[None], seconds: float, code: Code, text: str) -> None:
        """Wait for something as long as it may take. Raises HostError."""
        late = [False]

        def over() -> None:
            late[0] = True
            done.cancel()

        timer = self._threads.later(seconds, over)
        try:
            await done
        except BaseException:
            if late[0]:
                raise HostError(code, text) from None
            raise
        finally:
            if timer.active():
                timer.cancel()

    async def suspend(self, uuid: str, image: VolumeHandle) -> None:
        """Have the guest suspend itself, and save it; it stays suspended."""
        await self.shutdown(uuid, Shutdown.SUSPEND)
        state = (await self.stat(uuid)).state
        if state is None or state.shutdown is not Shutdown.SUSPEND:
            raise HostError(Code.NOT_SUSPENDED, "the guest went down instead of suspending itself")
        await self._do(uuid, lambda: self.toolstack.save(uuid, self._file(image)))

    async def resume(self, uuid: str) -> None:
        """Let a suspended domain go on where it is."""
        await self._do(uuid, self.toolstack.resume, uuid)

    # Devices and settings

    async def plug(self, uuid: str, device: Device) -> Truth:
        """Offer a device to a domain that runs."""
        return await self._change(uuid, lambda: self.toolstack.plug(uuid, device))

    async def unplug(self, uuid: str, device: Device, force: bool) -> None:
        """Take a device away."""
        gone: Deferred[None] = Deferred()

        def unplug() -> None:
            self.toolstack.unplug(uuid, device, self._firing(gone), force=force)

        await self._do(uuid, unplug)
        await self._within(gone, DETACH, Code.DETACH_TIMEOUT, f"the guest keeps device {device.number}")

    async def adjust(self, uuid: str, change: Change) -> None:
        """Change a domain that runs."""
        done: Deferred[None] = Deferred()
        await self._do(uuid, self.toolstack.adjust, uuid, change, self._firing(done))
        await done

    async def console(self, uuid: str) -> ConsoleStream:
        """Return a domain's console."""
        console = self.toolstack.guest(uuid).console
        stream = self._consoles.get(console)
        if stream is None:
            stream = self._consoles[console] = ConsoleStream(console, self._threads)
        return stream

    async def screen(self, uuid: str) -> ScreenView:
        """Return a domain's screen."""
        screen = self.toolstack.guest(uuid).devices.find(Screen)
        return ScreenView(screen.framebuffer, screen.keyboard, self._threads)


def _fire(deferred: Deferred[None]) -> None:
    if not deferred.called:
        deferred.callback(None)


def _kernel(boot: DirectBoot) -> DirectBoot:
    """Return a kernel that has a path."""
    return structs.replace(boot, kernel=str(DEMO_KERNEL)) if boot.kernel == DEMO else boot
