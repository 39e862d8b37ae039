"""The face that a host shows to a toolstack: plain frozen values, and what can be asked.

A toolstack describes a domain by `DomainConfig` and reads what is true by `DomainState`; it imports nothing
else of this package, so that another backend, in another process or on another machine, can stand in its
place. This module imports nothing of it either.

A wire may lie between, so what crosses is plain: frozen values of numbers, text, bytes, enums, tuples and mappings.
Values that are one of several kinds (`Boot`, `Device`, `Uplink`) are tagged Structs: written down, each says which it
is. Every call is awaited. What comes by itself comes at the pace of who takes it: an iterator yields when it is asked
to. A host may be lost while nobody asks anything of it, and come back; see `Listener`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import msgspec
from msgspec import Struct


class Code(Enum):
    """What went wrong, for programs."""

    FAILED = "failed"  # nothing that has a code of its own
    LOST = "lost"  # the host is not reached; what was under way may be done, or not
    LATE = "late"  # no answer in time; likewise
    STOPPED = "stopped"  # the host goes down
    BUSY = "busy"  # the host's process is short of files or threads
    NO_GUESTS = "no_guests"  # the host has no CPU for guests
    NO_MEMORY = "no_memory"
    NO_SPACE = "no_space"  # for a file
    NO_DOMAIN = "no_domain"
    EXISTS = "exists"  # such a domain
    NOT_RUNNING = "not_running"
    NOT_ACKNOWLEDGED = "not_acknowledged"  # the guest has not heard of what it was asked
    NOT_SUSPENDED = "not_suspended"
    NO_VCPU = "no_vcpu"  # more, or fewer, than the domain can have
    UNSUPPORTED = "unsupported"  # such a kind of guest
    BAD_KERNEL = "bad_kernel"
    BOOTLOADER_FAILED = "bootloader_failed"
    BAD_DISK = "bad_disk"  # what a drive names cannot be opened
    BAD_IMAGE = "bad_image"  # of a saved domain
    BAD_ADDRESSES = "bad_addresses"  # of an address service
    DEVICE_EXISTS = "device_exists"
    NO_DEVICE = "no_device"
    NO_CDROM = "no_cdrom"  # the drive takes no CDs
    DETACH_TIMEOUT = "detach_timeout"  # the guest keeps the device
    OFF_SCREEN = "off_screen"
    NO_KEY = "no_key"
    STORAGE = "storage"  # see `StorageFailure`


class HostError(Exception):
    """A request could not be carried out; what was begun is undone, unless it is LOST or LATE."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def is_unknown(self) -> bool:
        """Tell whether nobody knows if the request was carried out."""
        return self.code in (Code.LOST, Code.LATE)


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
class VolumeHandle:
    """Names a volume to the host that has said both: the handle of a repository, and a location in it."""

    repository: str
    location: str


class Disk(Struct, frozen=True, tag=True):
    """A disk drive with a volume, or with a file of the host by its path, or empty.

    `number` is as in XenAPI's userdevice (0 is xvda). `format` is a file's, ``raw`` or ``vhd``; or ``anonymous``:
    nothing but `size` bytes of memory.
    """

    number: int
    path: str = ""
    format: str = "raw"
    read_only: bool = False
    is_cdrom: bool = False
    bootable: bool = False
    size: int = 0
    volume: VolumeHandle | None = None


def disk_name(number: int) -> str:
    """Return the name that a guest knows a disk by: 0 is xvda, 26 is xvdaa."""
    letters = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return f"xvd{letters}"


class NIC(Struct, frozen=True, tag=True):
    """A network card on the host's network of a name. `rate` is in KiB a second, 0 for no limit.

    `locking` is ``unlocked``, ``locked`` to the MAC and the addresses allowed, or ``disabled``.
    """

    number: int
    mac: str
    network: str
    mtu: int = 1500
    rate: int = 0
    locking: str = "unlocked"
    allowed_ipv4: tuple[str, ...] = ()
    allowed_ipv6: tuple[str, ...] = ()
    carrier: bool = True
    address: str = ""
    """The IPv4 address that the network's address service keeps for it; empty for any."""
    static_ip: Mapping[str, str] = msgspec.field(default_factory=dict)
    """What the guest's agent is to configure, as keys of XenServer's static-ip-setting."""
    trunks: tuple[int, ...] = ()
    """The VLANs for which the guest may tag frames itself."""


class Display(Struct, frozen=True, tag=True):
    """A screen with a keyboard and a pointer; of `width` x `height` pixels, unless the guest wants another.

    The guest's picture may take `memory` bytes of the guest's own, a multiple of 1 MiB.
    """

    number: int = 0
    width: int = 800
    height: int = 600
    memory: int = 8 << 20


Device = Disk | NIC | Display


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
class Addresses:
    """The address service of a network: who asks by DHCP gets one of `first` to `last`. Dotted quads."""

    network: str
    address: str
    first: str
    last: str


class Card(Struct, frozen=True, tag=True):
    """A physical card of the host, by the system's name for it, such as eth0."""

    device: str


class VLAN(Struct, frozen=True, tag=True):
    """What bears a tag, 0 to 4095, on another network of the host."""

    network: str
    tag: int


class Bond(Struct, frozen=True, tag=True):
    """Cards that are used as one, the preferred one first. Mode and properties are those of XenAPI's class Bond."""

    devices: tuple[str, ...]
    mode: str = "balance-slb"
    properties: Mapping[str, str] = field(default_factory=dict)


class Tunnel(Struct, frozen=True, tag=True):
    """What crosses another network of the host to the same network of other hosts; by ``gre`` or ``vxlan``."""

    network: str
    protocol: str = "gre"


Uplink = Card | VLAN | Bond | Tunnel


@dataclass(frozen=True, slots=True)
class Network:
    """A network of a host, known by its bridge's name, with what joins it to the outside, None for nothing."""

    name: str
    uplink: Uplink | None = None
    addresses: Addresses | None = None
    """Who gives addresses out, None for nobody."""


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU that a host's guests find, each of them alike.

    `flags` are Linux's names. `features` are four words in hexadecimal, ECX and EDX of CPUID leaves 1 and 0x80000001;
    the other two are Xen's featuresets (public/arch-x86/cpufeatureset.h) for PV guests and for all others.
    """

    vendor: str
    name: str
    family: int
    model: int
    stepping: int
    mhz: int
    """0 where it is not known."""
    flags: str
    features: str
    features_pv: str
    features_hvm: str


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


class ByteStream(Protocol):
    """A console, until its domain ends. Raises HostError LOST when its host is lost: it must be asked for anew then."""

    async def write(self, data: bytes) -> int:
        """Type; return how many bytes were taken, after waiting for room for one. None are once the domain has ended.

        Who is cancelled while it waits has typed nothing.
        """

    def follow(self) -> AsyncIterator[bytes]:
        """Yield what was written lately, then output as it comes, until the domain ends.

        Who takes it too slowly misses the oldest: no more than is kept for all is kept for it.
        """


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle of pixels, never empty; (0, 0) is the top left of the screen."""

    x: int
    y: int
    width: int
    height: int

    def __contains__(self, other: Area) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )

    @property
    def size(self) -> int:
        """Return how many pixels it has."""
        return self.width * self.height

    def around(self, other: Area) -> Area:
        """Return the smallest area that holds both."""
        left, top = min(self.x, other.x), min(self.y, other.y)
        right = max(self.x + self.width, other.x + other.width)
        bottom = max(self.y + self.height, other.y + other.height)
        return Area(left, top, right - left, bottom - top)


@dataclass(frozen=True, slots=True)
class Damage:
    """What has changed on a screen that is `width` x `height` now, 0 x 0 while the guest has no driver for it."""

    width: int
    height: int
    areas: tuple[Area, ...]


class Screen(Protocol):
    """A domain's screen, keyboard and pointer, to be asked for anew when its host was lost (HostError LOST).

    Input is put in as it was asked for, in order, and tells whether it was taken: not without a driver in the guest.
    """

    def follow(self) -> AsyncIterator[Damage]:
        """Yield what has changed, at first the whole screen; what changes while nobody waits comes at once.

        Ends when the screen is taken away, and with its domain.

        Of a guest whose driver does not tell of changes only a new shape is heard: look at the whole at times.
        """

    async def pixels(self, area: Area) -> bytes:
        """Return a part of the screen, 4 bytes a pixel: blue, green, red and none. Raises HostError for one off it."""

    async def key(self, code: int, pressed: bool) -> bool:
        """Press or release a key or a button of the pointer, by Linux's code. Raises HostError for one of none."""

    async def point(self, x: int, y: int, wheel: int = 0) -> bool:
        """Put the pointer at a place of the screen as it is now, and turn the wheel by steps, up is positive."""


class Listener(Protocol):
    """What a host tells a toolstack by itself. It must not raise, and be quick."""

    def attention(self, uuid: str) -> None:
        """Hear that something about a domain has changed since it was looked at; what comes together is told once.

        Of what changes while the host is lost nothing is told: `up` means all of it.
        """

    def up(self, *, restarted: bool) -> None:
        """Hear that the host is reached, for the first time or again: all its domains are to be looked at.

        One that was `restarted` since it was reached last has none of the domains that it had, and begins its
        sequence of truths anew.
        """

    def lost(self) -> None:
        """Hear that the host is not reached. What was asked of it has failed, all that is asked fails at once (LOST).

        Its domains may live on. Its backend looks for it by itself, until it is `up` or nobody wants it any more.
        """


ANSWER = 30.0
"""Seconds in which a host answers what waits for no guest and moves no data; then it is LATE."""
WORK = 600.0
"""Likewise where kernels are loaded, and domains made, saved or ended."""


class Backend(Protocol):
    """What a toolstack asks of one host. Idempotent; state is read with `stat`. Raises HostError.

    A call that is cancelled withdraws what it has asked of the guest. What is asked of one domain is done in the order
    in which it was asked. A host that is not in this process may be lost at any moment, or late: then nobody knows
    whether what was asked is done, and who asked looks when the host is up again.
    """

    @property
    def storage(self) -> Storage:
        """The repositories that the host can reach."""

    async def start(self, listener: Listener) -> None:
        """Reach the host, or bring it up where it is not; from now on `listener` hears of it, and nobody else does.

        Returns when it has been told `up` or `lost`. A host that was started before goes on as it is.
        """

    async def leave(self) -> None:
        """Tell nobody anything any more. A host of this process ends; another one goes on, to be started again."""

    async def stop(self) -> None:
        """End all domains and then the host itself, wherever it is. Nothing can be asked of it afterwards."""

    async def stat(self, uuid: str) -> Truth:
        """Return what is true of a domain, also that there is none."""

    async def truths(self) -> Mapping[str, Truth]:
        """Return what is true of each domain that there is, by uuid, in one go."""

    async def domains(self) -> tuple[str, ...]:
        """Return the uuids of all domains."""

    async def free_memory(self) -> int:
        """Return bytes that no domain holds or may grow to."""

    async def log(self) -> str:
        """Return the newest lines of the hypervisor's own log."""

    async def networks(self, plan: tuple[Network, ...]) -> None:
        """Have all of these networks as they are described, or change none; others stay as they are.

        Each comes after those that it lies on. Raises HostError UNSUPPORTED for an uplink that the host cannot
        make, BAD_ADDRESSES for a range that is none.
        """

    async def build(self, config: DomainConfig, *, paused: bool = False) -> Truth:
        """Make a domain with its devices and let it run, unless it is to be `paused`; return what is true then."""

    async def suspend(self, uuid: str, image: VolumeHandle) -> None:
        """Have the guest suspend itself, and save it in a new volume; it stays suspended, to be resumed or destroyed.

        Such an image is not made before: it is there when it is whole.
        """

    async def resume(self, uuid: str) -> None:
        """Let a suspended domain go on where it is."""

    async def restore(self, config: DomainConfig, image: VolumeHandle) -> Truth:
        """Make a domain as `build` does, paused, from a saved image."""

    async def unpause(self, uuid: str) -> Truth:
        """Let a domain run; return what is true of it then."""

    async def pause(self, uuid: str) -> Truth:
        """Hold a domain where it is, also one that is down; return what is true of it then."""

    async def destroy(self, uuid: str) -> None:
        """End a domain, whatever it does."""

    async def shutdown(self, uuid: str, how: Shutdown) -> None:
        """Ask the guest to go down; returns when it is down."""

    async def plug(self, uuid: str, device: Device) -> Truth:
        """Offer a device to a domain that runs; return what is true of it then."""

    async def unplug(self, uuid: str, device: Device, force: bool) -> None:
        """Take a device away; with force, whether the guest agrees or not."""

    async def adjust(self, uuid: str, change: Change) -> None:
        """Change a domain that runs."""

    async def console(self, uuid: str) -> ByteStream:
        """Return a domain's console."""

    async def screen(self, uuid: str) -> Screen:
        """Return a domain's screen as it is plugged now. Raises HostError for a domain that has none."""


# Storage


class StorageFailure(HostError):
    """A request about storage could not be carried out; `number` is XCP's storage manager's for what went wrong."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(Code.STORAGE, text)
        self.number = number


@dataclass(frozen=True, slots=True)
class StorageType:
    """What the driver of a type of SR says of it; names of features are those of XenAPI's SM.features."""

    type: str
    name: str
    description: str
    features: Mapping[str, int]
    """What can be asked of SRs of this type, each with its version."""
    device_config: tuple[str, ...] = ()
    """The keys that the driver looks at."""
    image_formats: tuple[str, ...] = ()
    creatable: bool = True
    """Whether SRs can be made; if not, they can be declared by an inventory all the same."""
    content_type: str = "user"
    """That of an SR for which nobody says another."""
    named: bool = False
    """Whether volumes are known by names of users' making, not by uuids."""
    local: Mapping[str, str] | None = None
    """The device_config of the SR that a host is installed with, None for a type that this cannot be."""


@dataclass(frozen=True, slots=True)
class SR:
    """A storage repository as the rows of an SR and of its PBD on the host tell of it."""

    type: str
    uuid: str
    device_config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a host has besides an SR that is to be made: disks, by their paths, and other SRs' device_configs."""

    disks: tuple[str, ...] = ()
    device_configs: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """What users say of a volume, kept beside it; the fields are those of XenAPI's VDI, but for uuids."""

    name_label: str = ""
    name_description: str = ""
    type: str = "user"
    is_a_snapshot: bool = False
    snapshot_of: str = ""
    snapshot_time: str = ""
    read_only: bool = False
    sharable: bool = False


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume to be made, of at least `size` bytes; the driver rounds, and obeys what it knows of sm_config."""

    uuid: str
    size: int
    description: Description = Description()
    sm_config: Mapping[str, str] = field(default_factory=dict)
    location: str = ""
    """What it is known by in its repository; "" leaves that to the driver."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What a CD holds, by names of the form README.TXT."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it is now; sizes are in bytes.

    `location` is what its repository knows it by. `format` is ``raw`` or ``vhd``; `parent` is the location of the
    volume under it, "" for none. A hidden one is there for its children alone.
    """

    uuid: str
    location: str
    format: str
    virtual_size: int
    physical_utilisation: int
    parent: str = ""
    hidden: bool = False
    description: Description = Description()


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of what is below a repository, and those used or not to be had there."""

    physical_size: int
    physical_utilisation: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A whole repository: its volumes, and why others in it cannot be used, by location."""

    volumes: tuple[Volume, ...]
    damaged: Mapping[str, str]
    space: Space | None


@dataclass(frozen=True, slots=True)
class Effect:
    """What a request has done: volumes that are new or other than before, the wanted one first; those that are gone."""

    volumes: tuple[Volume, ...] = ()
    gone: tuple[str, ...] = ()
    space: Space | None = None


class Storage(Protocol):
    """Repositories on a host. Raises StorageFailure.

    The host hands out a handle for each that is attached; with a location that names a volume. Neither says where
    anything lies. What an SR's type cannot do is refused by the number for Unimplemented, 38. A request that is
    cancelled is carried out all the same, but for copies, which leave nothing then.
    """

    # Repositories

    async def create(self, sr: SR, surroundings: Surroundings) -> None:
        """Make an SR where its device_config says."""

    async def attach(self, sr: SR, *, make: bool) -> str:
        """Take an SR into use, harmless when it is; return its handle. With `make` it need not be there."""

    async def detach(self, repository: str) -> None:
        """Let go of a repository, in which nothing may be in use."""

    async def destroy(self, sr: SR) -> None:
        """Erase an SR without volumes, harmless when it is not there. Files that are a user's stay."""

    async def scan(self, repository: str) -> Contents:
        """Look at all that there is."""

    async def space(self, repository: str) -> Space | None:
        """Return how large a repository is, and how full; None for one that cannot tell."""

    # Volumes

    async def volume(self, volume: VolumeHandle) -> Volume:
        """Look at one volume, also one that was put there just now."""

    async def make(self, repository: str, new: NewVolume) -> Effect:
        """Make an empty volume."""

    async def provide(self, repository: str, declared: NewVolume) -> Effect:
        """Find a volume that an inventory has declared, or make it.

        Raises the number for VDIUnavailable, 46, where a volume that is not there is lost.
        """

    async def delete(self, volume: VolumeHandle) -> Effect:
        """Remove a volume, and what was hidden for its sake alone."""

    async def resize(self, volume: VolumeHandle, size: int) -> Effect:
        """Make a volume larger, also while it is in use."""

    async def describe(self, volume: VolumeHandle, description: Description) -> None:
        """Change a volume's description."""

    async def checksum(self, volume: VolumeHandle) -> str:
        """Return the MD5 of a volume's contents, in hexadecimal digits."""

    # Copies of all kinds

    async def snapshot(self, volume: VolumeHandle, new: str, description: Description) -> Effect:
        """Keep what a volume holds as a new one, in no time; the volume may be in use. `new` is its uuid."""

    async def clone(self, volume: VolumeHandle, new: str, description: Description) -> Effect:
        """Make a new volume that holds what another does, in no time. `new` is its uuid."""

    async def copy(
        self, volume: VolumeHandle, repository: str, new: NewVolume, progress: Callable[[float], None]
    ) -> Effect:
        """Write all that a volume holds into a new one, as large at least, which is there when it is whole."""

    async def copy_into(self, volume: VolumeHandle, other: VolumeHandle, progress: Callable[[float], None]) -> Effect:
        """Write all that a volume holds over another, at least as large."""

    async def freeze(self, volume: VolumeHandle) -> Effect:
        """Make what a volume holds that to which `reset` goes back."""

    async def reset(self, volume: VolumeHandle) -> Effect:
        """Drop what was written to a volume since it was frozen."""
