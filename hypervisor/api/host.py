"""A host: what can be asked of it, and what it tells by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hypervisor.api.device import Device
from hypervisor.api.domain import Change, DomainConfig, Shutdown, Truth
from hypervisor.api.network import Network
from hypervisor.api.screen import ByteStream, Screen
from hypervisor.api.storage import Storage, VolumeHandle


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
