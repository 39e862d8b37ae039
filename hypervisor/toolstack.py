"""Building and ending domains in ordered steps, each with its undoing: what libxl does on a real host.

The xenstore layout is libxl's (docs/misc/xenstore-paths.pandoc): the domain reads its own path, and writes
below ``data``, ``attr``, ``control``, ``device``, ``drivers``, ``error`` and ``feature``. Everything here
blocks only for the work itself and runs on a thread of the caller's.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hypervisor.api import DomainConfig, HostError, Shutdown
from hypervisor.domain import Domain, Reason, State
from hypervisor.host import Host, NoMemory
from hypervisor.hypercalls.hvm_op import CONSOLE_EVTCHN, CONSOLE_PFN, STORE_EVTCHN, STORE_PFN
from hypervisor.loader import pvh
from hypervisor.loader.elf import LoadError
from hypervisor.pv.console import Console
from hypervisor.pv.store_ring import StoreRing
from hypervisor.xenstore.permissions import NONE, READ, Permissions

_FEATURES = ("suspend", "shutdown", "poweroff", "reboot", "balloon", "static-ip-setting")
_GUEST_WRITES = ("data", "attr", "device", "drivers", "error", "feature", "memory/meminfo")
_LARGE_CODE_CACHE, _SMALL_CODE_CACHE = 64 << 20, 1 << 20
_SMALL_GUEST = 32 << 20
"""Up to this much memory a guest has little code; its engine's cache is small too."""


@dataclass(slots=True)
class Guest:
    """A domain with what the toolstack joined to it."""

    domain: Domain
    config: DomainConfig
    console: Console
    store: StoreRing

    @property
    def path(self) -> str:
        """Its home in xenstore."""
        return f"/local/domain/{self.domain.domid}"


class Toolstack:
    """The domains of one host, by uuid."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.guests: dict[str, Guest] = {}

    def build(self, config: DomainConfig) -> Guest:
        """Make a domain, paused, with everything connected. Raises HostError, with nothing left behind."""
        if config.uuid in self.guests:
            raise HostError("exists", f"domain {config.uuid} exists already")
        if config.boot.kind != "pvh":
            raise HostError("unsupported", f"guests of kind {config.boot.kind} cannot be built")
        with ExitStack() as undo:
            domain = self._create(config)
            undo.callback(self.host.destroy, domain)
            image = self._load(config, domain)
            with self.host.lock:
                self._introduce(config, domain)
                undo.callback(self._forget, domain)
                guest = self._connect(config, domain, image)
            self.guests[config.uuid] = guest
            undo.pop_all()
        return guest

    def _create(self, config: DomainConfig) -> Domain:
        cache = _SMALL_CODE_CACHE if config.memory_max <= _SMALL_GUEST else _LARGE_CODE_CACHE
        try:
            ranges = pvh.ranges(pvh.address_space(config.memory_max))
            return self.host.create(ranges, vcpus=config.vcpus, uuid_text=config.uuid, code_cache=cache)
        except NoMemory as error:
            raise HostError("no_memory", str(error)) from error
        except (OSError, ValueError, LoadError) as error:
            raise HostError("failed", str(error)) from error

    def _load(self, config: DomainConfig, domain: Domain) -> pvh.PVHImage:
        boot = config.boot
        try:
            return pvh.build(
                domain.memory,
                Path(boot.kernel),
                Path(boot.ramdisk) if boot.ramdisk else None,
                boot.command_line,
                vcpus=config.vcpus,
                online=1,  # Linux starts others by the local APIC, which is not emulated
            )
        except LoadError as error:
            raise HostError("bad_kernel", str(error)) from error

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

    def _connect(self, config: DomainConfig, domain: Domain, image: pvh.PVHImage) -> Guest:
        """Join console and xenstore to the domain, and put its first vCPU at the kernel's entry."""
        store_port, console_port = domain.events.alloc_unbound(0), domain.events.alloc_unbound(0)
        domain.params |= {
            STORE_PFN: image.xenstore,
            STORE_EVTCHN: store_port,
            CONSOLE_PFN: image.console,
            CONSOLE_EVTCHN: console_port,
        }
        domain.memory_map = [(entry.start, entry.size, entry.kind) for entry in image.memory_map]
        console = Console(domain, image.console, console_port)
        connection = self.host.xenstore.introduce(domain.domid)
        store = StoreRing(domain, connection, image.xenstore, store_port)
        for vcpu in domain.vcpus:
            pvh.map_hardware(vcpu.cpu)
        pvh.enter(domain.vcpus[0].cpu, image)
        domain.vcpus[0].up = True
        return Guest(domain, config, console, store)

    def unpause(self, uuid: str) -> None:
        """Let a domain run."""
        self.host.unpause(self._guest(uuid).domain)

    def pause(self, uuid: str) -> None:
        """Hold a domain where it is."""
        self.host.pause(self._guest(uuid).domain)

    def request(self, uuid: str, how: Shutdown) -> None:
        """Ask the guest to go down, by control/shutdown; it acknowledges by emptying the key."""
        guest = self._guest(uuid)
        with self.host.lock:
            if guest.domain.state is State.RUNNING:
                self.host.xenstore.write(f"{guest.path}/control/shutdown", how.value.encode())

    def destroy(self, uuid: str) -> None:
        """End a domain, whatever it does, and free all that it had. Harmless when there is none."""
        guest = self.guests.pop(uuid, None)
        if guest is not None:
            self.host.pause(guest.domain)
            with self.host.lock:
                self._forget(guest.domain)
            self.host.destroy(guest.domain)

    def _forget(self, domain: Domain) -> None:
        store = self.host.xenstore
        if store.is_introduced(domain.domid):
            store.release(domain.domid)
        store.rm(f"/local/domain/{domain.domid}")

    def _guest(self, uuid: str) -> Guest:
        guest = self.guests.get(uuid)
        if guest is None:
            raise HostError("no_domain", f"there is no domain {uuid}")
        return guest


REASONS = {
    Reason.POWEROFF: Shutdown.POWEROFF,
    Reason.REBOOT: Shutdown.REBOOT,
    Reason.SUSPEND: Shutdown.SUSPEND,
    Reason.CRASH: Shutdown.CRASH,
    Reason.WATCHDOG: Shutdown.WATCHDOG,
    Reason.SOFT_RESET: Shutdown.REBOOT,
}
