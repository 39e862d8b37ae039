"""Domains: how a toolstack describes one, and what is true of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from hypervisor.api.device import NIC, Disk, Display


class Power(Enum):
    """Whether a domain runs; one that has shut down can be paused as well, to be kept for whoever looks at it."""

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
    SOFT_RESET = "soft_reset"


DEMO = "demo"
"""The guest that comes with the hypervisor, in place of a kernel's path."""


class DirectBoot(Struct, frozen=True, tag=True):
    """A kernel started by its own entry point: `kind` is ``pvh``, ``pv_in_pvh`` or ``pv``; paths are the host's."""

    kernel: str
    ramdisk: str = ""
    command_line: str = ""
    kind: str = "pvh"


class BootLoader(Struct, frozen=True, tag=True):
    """A kernel found on the domain's own first disk, as pygrub finds it; `append` is added to its command line."""

    arguments: str = ""
    append: str = ""
    kind: str = "pvh"


class Firmware(Struct, frozen=True, tag=True):
    """What HVM domains boot by, in `order`: c (disk), d (CD) and n (network). The host's boot loader stands in for it.

    `network` is what the network offers, None for nothing. A domain that finds nothing runs and says so on its
    console.
    """

    order: str = "cdn"
    network: DirectBoot | None = None


Boot = DirectBoot | BootLoader | Firmware


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """A domain to be built. Memory is in bytes: `memory_max` is set aside, `memory_target` the guest keeps."""

    uuid: str
    name: str
    memory_max: int
    memory_target: int
    vcpus: int
    boot: Boot
    disks: tuple[Disk, ...] = ()
    nics: tuple[NIC, ...] = ()
    display: Display | None = None
    vcpus_max: int = 0
    """How many vCPUs it can have while it runs; the first `vcpus` are online at its start. 0 for no more than those."""
    weight: int = 256
    cap: int = 0
    affinity: tuple[int, ...] = ()
    xenstore: Mapping[str, str] = field(default_factory=dict)
    """Keys below the domain's own path that the guest may read and write."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be another of a domain that runs; None leaves it. Devices are named by their numbers."""

    memory_target: int | None = None
    vcpus: int | None = None
    """How many vCPUs the guest is asked to have online; when it has them, and whether, is its own affair."""
    weight: int | None = None
    cap: int | None = None
    affinity: tuple[int, ...] | None = None
    medium: Disk | None = None
    """What is in a CD drive now; nothing ejects."""
    nic: NIC | None = None
    """Network, rate, locking and carrier of a card."""
    xenstore: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Whether a disk or card is connected to its driver, and its counters since it was plugged."""

    device: Disk | NIC
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
    kind: str
    """What it is: ``pv``, ``pvh``, ``pv_in_pvh``, or ``hvm`` where firmware has booted it."""
    memory_actual: int
    memory_target: int
    memory_max: int
    vcpus: int
    """How many are online."""
    cpu_time: tuple[float, ...]
    """Of each vCPU that it can have."""
    run_times: Mapping[str, float]
    """How long vCPUs were ``running``, ``runnable``, ``blocked`` and ``offline``, on the average."""
    start_time: float
    """Since 1970."""
    devices: tuple[DeviceState, ...]
    guest: Mapping[str, str]
    """What the guest says of itself in xenstore, below attr/, data/, control/feature-* and drivers/."""
    asked: bool = False
    """Whether the guest was asked to suspend itself, and has not gone on after that; it may do so late."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a host says of a uuid: the state of its domain, None when there is none.

    Of two that a host has said of a uuid that with the higher `sequence` is the newer one, in whatever order they come.
    """

    sequence: int
    state: DomainState | None
