"""The face that a host shows to a toolstack: plain frozen values, and what can be asked.

A toolstack describes a domain by `DomainConfig` and reads what is true by `DomainState`; it imports nothing
else of this package, so that another backend, in another process or on another machine, can stand in its
place. This module imports nothing of it either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class HostError(Exception):
    """A request could not be carried out; what was begun is undone. `code` names the kind, for programs."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Power(Enum):
    """Whether a domain runs."""

    PAUSED = "paused"
    RUNNING = "running"
    SHUTDOWN = "shutdown"


class Shutdown(Enum):
    """Why a domain is down, or how it is asked to go down."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SUSPEND = "suspend"
    CRASH = "crash"
    WATCHDOG = "watchdog"


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """A kernel started by its own entry point: `kind` is ``pvh`` or ``pv``; paths are the host's."""

    kernel: str
    ramdisk: str = ""
    command_line: str = ""
    kind: str = "pvh"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk drive. `number` is as in XenAPI's userdevice (0 is xvda); an empty `path` is an empty drive.

    `format` is ``raw``, ``vhd`` or ``anonymous``.
    """

    number: int
    path: str
    format: str = "raw"
    read_only: bool = False
    is_cdrom: bool = False
    bootable: bool = False


@dataclass(frozen=True, slots=True)
class NIC:
    """A network card on the host's network of a name. `rate` is in kbps, 0 for no limit."""

    number: int
    mac: str
    network: str
    mtu: int = 1500
    rate: int = 0
    locking: str = "unlocked"
    allowed_ipv4: tuple[str, ...] = ()
    allowed_ipv6: tuple[str, ...] = ()


Device = Disk | NIC


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """A domain to be built. Memory is in bytes: `memory_max` is set aside, `memory_target` the guest keeps."""

    uuid: str
    name: str
    memory_max: int
    memory_target: int
    vcpus: int
    boot: DirectBoot
    disks: tuple[Disk, ...] = ()
    nics: tuple[NIC, ...] = ()
    weight: int = 256
    cap: int = 0
    affinity: tuple[int, ...] = ()
    xenstore: Mapping[str, str] = field(default_factory=dict)
    """Keys below the domain's own path that the guest may read and write."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Whether a device is connected, and its counters since it was."""

    device: Device
    connected: bool
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DomainState:
    """What is true of a domain now. Times are in seconds, memory in bytes."""

    uuid: str
    domid: int
    power: Power
    shutdown: Shutdown | None
    crash: str
    memory_actual: int
    memory_target: int
    vcpus: int
    cpu_time: tuple[float, ...]
    start_time: float
    devices: tuple[DeviceState, ...]
    guest: Mapping[str, str]
    """What the guest says of itself in xenstore, below attr/, data/, control/feature-* and drivers/."""


class ByteStream(Protocol):
    """A console, from any thread or none: writing types, reading follows."""

    def write(self, data: bytes) -> int:
        """Type; return how many bytes were taken."""

    def history(self) -> bytes:
        """Return what was written lately."""

    def follow(self) -> AsyncIterator[bytes]:
        """Yield output as it comes."""


class Backend(Protocol):
    """What a toolstack asks of one host. Idempotent; state is read with `stat`. Raises HostError."""

    async def stat(self, uuid: str) -> DomainState | None:
        """Return a domain's state, or None when there is none."""

    async def domains(self) -> list[str]:
        """Return the uuids of all domains."""

    async def build(self, config: DomainConfig) -> None:
        """Make a domain, paused, with its devices."""

    async def restore(self, config: DomainConfig, image: str) -> None:
        """Make a domain, paused, from a saved image: a file that the host can reach."""

    async def save(self, uuid: str, image: str) -> None:
        """Suspend a domain into a file; it is gone then."""

    async def unpause(self, uuid: str) -> None:
        """Let a domain run."""

    async def pause(self, uuid: str) -> None:
        """Hold a domain where it is."""

    async def destroy(self, uuid: str) -> None:
        """End a domain, whatever it does."""

    async def shutdown(self, uuid: str, how: Shutdown) -> None:
        """Ask the guest to go down; returns when it has acknowledged."""

    async def plug(self, uuid: str, device: Device) -> None:
        """Connect a device to a domain that runs."""

    async def unplug(self, uuid: str, device: Device, force: bool) -> None:
        """Take a device away; with force, whether the guest agrees or not."""

    async def console(self, uuid: str) -> ByteStream:
        """Return a domain's console."""

    def listen(self, attention: Callable[[str], None]) -> None:
        """Call `attention` with a uuid when something about that domain has changed; calls may coalesce."""
