"""Which kernel a domain boots: a file of the host's, or what the boot loader finds on its disks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from hypervisor.api import Boot, BootLoader, Code, DirectBoot, DomainConfig, Firmware, HostError
from hypervisor.bootloader import boot as bootloader
from hypervisor.bootloader.errors import BootError
from hypervisor.disks.disk import Disk
from hypervisor.storage.repositories import Volumes
from hypervisor.toolstack.devices.drive import open_disk

_ENTRIES = {"pv": "pv", "pvh": "pvh", "pv_in_pvh": "pvh"}
"""Kinds of guests whose kernel is given, and the entry of each."""


def kernel(config: DomainConfig, volumes: Volumes) -> tuple[bootloader.Boot, str]:
    """Return the kernel to load, and by which entry: ``pvh`` or ``pv``. Raises HostError."""
    boot = config.boot
    if isinstance(boot, DirectBoot):
        return _offered(boot), entry(boot)
    return _found(config, volumes), entry(boot)


def entry(boot: Boot) -> str:
    """Return by which of its entries a kernel is started: ``pv`` or ``pvh``. Raises HostError for an unknown kind."""
    if isinstance(boot, Firmware):
        return "pvh"
    entered = _ENTRIES.get(boot.kind)
    if entered is None:
        raise HostError(Code.UNSUPPORTED, f"guests of kind {boot.kind} cannot be built")
    return entered


def kind(boot: Boot, entered: str) -> str:
    """Return what a domain is whose kernel was started by an entry, maybe before it was saved."""
    if entered == "pv":
        return "pv"
    if isinstance(boot, Firmware):
        return "hvm"
    return "pv_in_pvh" if boot.kind == "pv_in_pvh" else "pvh"


def _found(config: DomainConfig, volumes: Volumes) -> bootloader.Boot:
    """Look for a kernel on the disks that are described, before there is a domain. Raises HostError."""
    boot = config.boot
    with ExitStack() as opened:
        found: dict[bool, list[Disk]] = {False: [], True: []}
        for described in sorted(config.disks, key=lambda each: each.number):
            disk = open_disk(described, volumes, read_only=True)
            if disk is not None:
                opened.callback(disk.close)
                found[described.is_cdrom].append(disk)
        try:
            if isinstance(boot, BootLoader):
                if not found[False]:
                    raise BootError("there is no disk")
                return bootloader.pygrub(
                    found[False][0], boot.arguments, boot.append, kind=entry(boot), memory=config.memory_max
                )
            assert isinstance(boot, Firmware)
            network = None if boot.network is None else _offered(boot.network)
            return bootloader.find(boot.order, found[False], found[True], network, memory=config.memory_max)
        except BootError as error:
            if isinstance(boot, BootLoader):
                raise HostError(Code.BOOTLOADER_FAILED, str(error)) from error
            return bootloader.message(error)


def _offered(boot: DirectBoot) -> bootloader.Boot:
    """Return a kernel of the host's as the boot loader returns those it finds."""
    return bootloader.Boot(
        Path(boot.kernel), Path(boot.ramdisk) if boot.ramdisk else None, boot.command_line, "the host"
    )
