"""From a VM's record to the domain that a host backend is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hypervisor.api import (
    DEMO,
    NIC,
    Boot,
    BootLoader,
    DirectBoot,
    Disk,
    Display,
    DomainConfig,
    Firmware,
    VolumeHandle,
)
from xapi.datamodel import errors
from xapi.datamodel.lexical import parse_number
from xapi.datamodel.types import NULL
from xapi.vms.devices import card_number, disk_number

if TYPE_CHECKING:
    from xapi.datamodel.records import VBD, VIF, VM, enum_domain_type
    from xapi.store.memory import Store

D = TypeVar("D")
BOOT_ORDER = "cd"
"""What an HVM guest boots from when its HVM_boot_params name no order."""
GUEST_KERNELS = Path("/boot/guest")
"""Where XCP hosts keep kernels for guests; here it stands for the guest directory."""
_XENSTORE_PREFIXES = ("vm-data", "FIST")
"""What of VM.xenstore_data the guest sees, as in xapi."""
PAGE = 4096
VIDEO_RAM, MOST_VIDEO_RAM = 4, 128
"""MiB for a guest's picture if platform:videoram does not say, as in xapi, and at most."""


class Kernels:
    """Where kernels lie that VMs name; no VM gets at anything else of the host's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory


def describe(db: Store, vm: VM, volumes: Mapping[str, VolumeHandle], guest_directory: Path) -> DomainConfig:
    """Return the domain of a VM; `volumes` has those of its VDIs. Raises Fault for a boot that cannot be."""
    drives = [vbd for ref in vm.VBDs if (vbd := db.VBD[ref]).type != "Floppy"]
    weight, cap, mask = (vm.VCPUs_params.get(key, "") for key in ("weight", "cap", "mask"))
    return DomainConfig(
        uuid=vm.uuid,
        name=vm.name_label,
        memory_max=vm.memory_static_max // PAGE * PAGE,
        memory_target=vm.memory_dynamic_max // PAGE * PAGE,
        vcpus=vm.VCPUs_at_startup,
        vcpus_max=vm.VCPUs_max,
        boot=boot(vm, guest_directory),
        disks=tuple(disk(vbd, volumes) for vbd in _in_order(drives, _drive) if not _lost(vbd)),
        nics=tuple(nic(db, vif) for vif in _in_order((db.VIF[ref] for ref in vm.VIFs), _card)),
        display=display(vm),
        weight=_number(weight, 256, 1, 65535),
        cap=_number(cap, 0, 0, 100 * max(1, vm.VCPUs_max)),
        affinity=tuple(pcpu for part in mask.split(",") if (pcpu := parse_number(part)) is not None),
        xenstore=xenstore(vm),
    )


def _in_order(given: Iterable[D], number: Callable[[D], int]) -> list[D]:
    """Return drives or cards in the order of their numbers. Raises Fault for one without, and for two of one number."""
    rows = sorted(given, key=number)
    for row, following in pairwise(rows):
        if number(row) == number(following):
            raise errors.DEVICE_ALREADY_EXISTS(str(number(row)))
    return rows


def _lost(vbd: VBD) -> bool:
    """A disk without an image is left out, an empty CD drive is not."""
    return vbd.empty and vbd.type != "CD"


def _number(text: str, otherwise: int, least: int, most: int) -> int:
    number = parse_number(text)
    return otherwise if number is None else min(max(number, least), most)


def boot(vm: VM, guest_directory: Path) -> Boot:
    """Return how a VM boots. Raises Fault."""
    kind = domain_kind(vm)
    if kind == "hvm":
        return Firmware(vm.HVM_boot_params.get("order", BOOT_ORDER).lower() or BOOT_ORDER)
    if vm.PV_bootloader:
        if vm.PV_bootloader.rpartition("/")[2] != "pygrub":
            raise errors.UNKNOWN_BOOTLOADER(vm._ref, vm.PV_bootloader)
        return BootLoader(vm.PV_bootloader_args, vm.PV_args, kind)
    if not vm.PV_kernel:
        raise errors.BOOTLOADER_FAILED(vm._ref, "neither PV_bootloader nor PV_kernel is set")
    ramdisk = str(_kernel(vm, vm.PV_ramdisk, guest_directory)) if vm.PV_ramdisk else ""
    kernel = DEMO if vm.PV_kernel == DEMO else str(_kernel(vm, vm.PV_kernel, guest_directory))
    return DirectBoot(kernel, ramdisk, vm.PV_args, kind)


def domain_kind(vm: VM) -> enum_domain_type:
    """Return hvm, pv, pvh or pv_in_pvh; what is not said follows from HVM_boot_policy, as in xapi."""
    if vm.domain_type == "unspecified":
        return "hvm" if vm.HVM_boot_policy else "pv"
    return vm.domain_type


def _kernel(vm: VM, name: str, guest_directory: Path) -> Path:
    """Return a file of the guest directory; a path that leads elsewhere is refused."""
    path = Path(name)
    if path.is_relative_to(GUEST_KERNELS):
        path = path.relative_to(GUEST_KERNELS)
    directory = Path(os.path.realpath(guest_directory))
    found = Path(os.path.realpath(directory / path))
    if not found.is_relative_to(directory) or not found.is_file():
        raise errors.BOOTLOADER_FAILED(vm._ref, f"the guest directory {guest_directory} has no file {name!r}")
    return found


def position(vbd: VBD) -> int | None:
    """Return the number that a drive has in its VM's domain, or will have; None without one.

    It stays where it was plugged, whatever its userdevice says meanwhile.
    """
    return disk_number(vbd.device if vbd.currently_attached and vbd.device else vbd.userdevice)


def _drive(vbd: VBD) -> int:
    number = position(vbd)
    if number is None:
        raise errors.INVALID_DEVICE(vbd.userdevice)
    return number


def _card(vif: VIF) -> int:
    number = card_number(vif.device)
    if number is None:
        raise errors.INVALID_DEVICE(vif.device)
    return number


def disk(vbd: VBD, volumes: Mapping[str, VolumeHandle]) -> Disk:
    """Return the drive that a VBD stands for."""
    return Disk(
        number=_drive(vbd),
        read_only=vbd.mode == "RO",
        is_cdrom=vbd.type == "CD",
        bootable=vbd.bootable,
        volume=volumes.get(vbd.VDI) if not vbd.empty and vbd.VDI != NULL else None,
    )


def nic(db: Store, vif: VIF) -> NIC:
    """Return the card that a VIF stands for."""
    network = db.network[vif.network]
    mode: str = vif.locking_mode
    if mode == "network_default":
        mode = network.default_locking_mode
    rate = vif.qos_algorithm_params.get("kbps", "") if vif.qos_algorithm_type == "ratelimit" else ""
    return NIC(
        number=_card(vif),
        mac=vif.MAC,
        network=network.bridge,
        mtu=_number(vif.other_config.get("mtu", ""), network.MTU, 1, 1 << 31),
        rate=_number(rate, 0, 0, 1 << 31),
        locking=mode,
        allowed_ipv4=tuple(vif.ipv4_allowed) if mode == "locked" else (),
        allowed_ipv6=tuple(vif.ipv6_allowed) if mode == "locked" else (),
        carrier=mode != "disabled",
        address=network.assigned_ips.get(vif._ref, ""),
        static_ip=static_ip(vif),
        trunks=tuple(vif.trunks),
    )


def display(vm: VM) -> Display | None:
    """Return the screen of a VM: an HVM guest has one, others if pvfb says so, as in xapi; here all are of the PV kind.

    What `vga` names stands for it: there is no emulated card.
    """
    if domain_kind(vm) != "hvm" and vm.platform.get("pvfb", "").lower() not in ("true", "1"):
        return None
    return Display(memory=_number(vm.platform.get("videoram", ""), VIDEO_RAM, 1, MOST_VIDEO_RAM) << 20)


def static_ip(vif: VIF) -> dict[str, str]:
    """Return what a guest's agent is told of addresses to configure: keys below static-ip-setting, as xenopsd's."""
    settings = {}
    for version, suffix in (("ipv4", ""), ("ipv6", "6")):
        mode = getattr(vif, f"{version}_configuration_mode")
        settings[f"enabled{suffix}"] = {"None": "0", "Static": "1"}.get(mode, "2")
        if mode == "Static":
            settings[f"address{suffix}"] = next(iter(getattr(vif, f"{version}_addresses")), "")
            if gateway := getattr(vif, f"{version}_gateway"):
                settings[f"gateway{suffix}"] = gateway
    return settings


def xenstore(vm: VM) -> dict[str, str]:
    """Return the keys below the domain's home that the guest finds."""
    keys = {key: value for key, value in vm.xenstore_data.items() if key.split("/")[0] in _XENSTORE_PREFIXES}
    return keys | {f"platform/{key}": value for key, value in vm.platform.items()}
