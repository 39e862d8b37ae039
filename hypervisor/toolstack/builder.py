"""The two ways to build a domain: PVH, and 64-bit PV. Each makes a domain, fills its memory and enters its kernel.

The toolstack calls them in this order, and joins console and xenstore to the frames that a build names between
`attach` and `enter`. Raises HostError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from hypervisor.api import Code, DomainConfig, HostError
from hypervisor.arch.x86_64 import entry as entries
from hypervisor.arch.x86_64.kinds import PV
from hypervisor.bootloader.boot import Boot
from hypervisor.domains.domain import Domain
from hypervisor.host import Host, NoMemory
from hypervisor.hypercalls.hvm_op import CONSOLE_EVTCHN, CONSOLE_PFN, STORE_EVTCHN, STORE_PFN
from hypervisor.loader import acpi, pv, pvh
from hypervisor.loader.elf import LoadError
from hypervisor.migration import resume

LARGE_CODE_CACHE, SMALL_CODE_CACHE = 64 << 20, 1 << 20
SMALL_GUEST = 32 << 20
"""Up to this much memory a guest has little code; its engine's cache is small too."""


def code_cache(memory: int) -> int:
    """Return bytes for the translated code of a domain with so much memory."""
    return SMALL_CODE_CACHE if memory <= SMALL_GUEST else LARGE_CODE_CACHE


class Build(Protocol):
    """A domain that is being built."""

    domain: Domain

    def load(self, boot: Boot) -> tuple[int, int]:
        """Load a kernel; return the frames of xenstore's ring and of the console's."""

    def attach(self, store_port: int, console_port: int) -> None:
        """Tell the guest by which event channels it reaches xenstore and console. Under the host's lock."""

    def enter(self) -> None:
        """Put the first vCPU at the kernel's entry. Under the host's lock."""


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except NoMemory as error:
        raise HostError(Code.NO_MEMORY, str(error)) from error
    except (OSError, ValueError, LoadError) as error:
        raise HostError(Code.FAILED, str(error)) from error


class PVHBuild:
    """A PVH domain (docs/misc/pvh.pandoc)."""

    def __init__(self, host: Host, config: DomainConfig) -> None:
        vcpus = max(config.vcpus, config.vcpus_max)
        if vcpus > acpi.VCPUS:
            raise HostError(Code.FAILED, f"{vcpus} vCPUs asked for, a domain can have {acpi.VCPUS}")
        with _told():
            self.domain = host.create(
                pvh.ranges(pvh.address_space(config.memory_max)),
                vcpus=vcpus,
                uuid_text=config.uuid,
                code_cache=code_cache(config.memory_max),
            )
        self._image: pvh.PVHImage | None = None

    def load(self, boot: Boot) -> tuple[int, int]:
        """Load a kernel, which starts all vCPUs but the first by itself.

        It stops those again that xenstore says are to be offline. In its tables they are enabled: Linux gives others
        no number of an APIC, and could not start them later.
        """
        vcpus = len(self.domain.vcpus)
        try:
            image = pvh.build(self.domain.memory, boot.kernel, boot.ramdisk, boot.command_line, vcpus=vcpus)
        except LoadError as error:
            raise HostError(Code.BAD_KERNEL, str(error)) from error
        self.domain.memory_map = [(entry.start, entry.size, entry.kind) for entry in image.memory_map]
        self.domain.params |= {STORE_PFN: image.xenstore, CONSOLE_PFN: image.console}
        self._image = image
        return image.xenstore, image.console

    def attach(self, store_port: int, console_port: int) -> None:
        """A PVH guest asks for its ports by HVMOP_get_param."""
        self.domain.params |= {STORE_EVTCHN: store_port, CONSOLE_EVTCHN: console_port}

    def enter(self) -> None:
        """Put the first vCPU at the kernel's entry."""
        assert self._image is not None
        for vcpu in self.domain.vcpus:
            entries.local_apic(vcpu.cpu)
        pvh.enter(self.domain.vcpus[0].cpu, self._image)
        self.domain.vcpus[0].up = True


class PVBuild:
    """A 64-bit PV domain; it has one vCPU, whatever is asked for."""

    def __init__(self, host: Host, config: DomainConfig) -> None:
        with _told():
            self.domain = host.create(
                pv.ranges(config.memory_max),
                uuid_text=config.uuid,
                code_cache=code_cache(config.memory_max),
                kind=PV,
            )
        self._ram = config.memory_max
        self._image: pv.PVImage | None = None

    def load(self, boot: Boot) -> tuple[int, int]:
        """Load a kernel."""
        try:
            self._image = pv.build(self.domain.memory, boot.kernel, boot.ramdisk, boot.command_line, ram=self._ram)
        except LoadError as error:
            raise HostError(Code.BAD_KERNEL, str(error)) from error
        return self._image.xenstore, self._image.console

    def attach(self, store_port: int, console_port: int) -> None:
        """Write the ports into start_info."""
        assert self._image is not None
        pv.attach(self.domain, self._image, store_port, console_port)

    def enter(self) -> None:
        """Put the first vCPU at the kernel's entry."""
        assert self._image is not None
        pv.enter(self.domain.vcpus[0].cpu, self._image)
        self.domain.vcpus[0].up = True


class RestoredBuild:
    """A domain made from an image or a template: its guest is in its memory already."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def frames(self) -> tuple[int, int]:
        """Return the frames that xenstore's ring and the console's had."""
        return self.domain.params[STORE_PFN], self.domain.params[CONSOLE_PFN]

    def attach(self, store_port: int, console_port: int) -> None:
        """Tell the guest of its new ports."""
        resume.connect(self.domain, store_port, console_port)


def create(host: Host, config: DomainConfig, entry: str) -> Build:
    """Make an empty domain whose kernel will be started by an entry, ``pvh`` or ``pv``."""
    return PVBuild(host, config) if entry == "pv" else PVHBuild(host, config)
