"""The types of SR: which can be made, and what their device_config must name, as XCP's storage manager asks for it.

An emulated host has the disks that its other_config:local-disks names, paths with commas between them, and /dev/sda,
on which it is installed; they are nothing but names, for an SR on one is a directory of ours. It reaches no other
machine: the types that need one can be declared by an inventory, and are not made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xapi.storage.faults import IN_USE, NO_DEVICE, NO_LOCATION, NO_SUCH_DEVICE, SYSTEM_DEVICE, backend_failure

if TYPE_CHECKING:
    from xapi.store.memory import Store

CREATABLE = ("ext", "file", "iso", "lvm", "udev")
"""The types that SR.create makes."""
ON_DEVICES = frozenset({"ext", "lvm"})
LOCAL_DISKS = "local-disks"
"""Key of a host's other_config: the disks that it has besides its own, such as "/dev/sdb,/dev/nvme0n1"."""
_SYSTEM_DISK = "/dev/sda"
_SYSTEM = frozenset({_SYSTEM_DISK, f"{_SYSTEM_DISK}1", f"{_SYSTEM_DISK}2"})
_REMOTE: Mapping[str, tuple[tuple[tuple[str, int], ...], int]] = {
    "lvmohba": ((), 107),
    "lvmoiscsi": ((("target", 95), ("targetIQN", 96), ("SCSIid", 107)), 141),
    "nfs": ((("server", 102), ("serverpath", 101)), 73),
    "smb": ((("server", 102),), 111),
}
"""What a driver misses in a device_config, by key, and how it says that nothing is there."""


def refuse_remote(kind: str, config: Mapping[str, str]) -> None:
    """Raise what a driver says that finds no server or no disk of a storage network; other types pass."""
    if kind not in _REMOTE:
        return
    needed, unreachable = _REMOTE[kind]
    missing = next((number for key, number in needed if not config.get(key)), unreachable)
    raise backend_failure(missing)


def assert_location(config: Mapping[str, str], *, absolute: bool) -> None:
    """Raise the storage's error for a device_config without a location, or with one that is no absolute path."""
    location = config.get("location", "")
    if not location:
        raise backend_failure(NO_LOCATION)
    if absolute and not location.startswith("/"):
        raise backend_failure(NO_LOCATION, f"{location!r} is no absolute path")


def assert_device_free(db: Store, pbd: Any) -> None:
    """Raise the storage's errors for a PBD without a device, or with one that is in use, the system's or not there."""
    devices = list(filter(None, pbd.device_config.get("device", "").split(",")))
    if not devices:
        raise backend_failure(NO_DEVICE)
    host = db.host[pbd.host]
    for ref in host.PBDs:
        other = db.PBD[ref]
        if ref != pbd._ref and not set(devices).isdisjoint(other.device_config.get("device", "").split(",")):
            raise backend_failure(IN_USE, pbd.device_config["device"])
    disks = [_SYSTEM_DISK, *filter(None, host.other_config.get(LOCAL_DISKS, "").split(","))]
    for device in devices:
        if device in _SYSTEM:
            text = f"Device {device} contains core system files, please use another device"
            raise backend_failure(SYSTEM_DEVICE, text)
        if not any(_is_part(device, disk) for disk in disks):
            raise backend_failure(NO_SUCH_DEVICE, f"Device {device} does not exist")


def _is_part(device: str, disk: str) -> bool:
    """Tell whether a path is that of a disk or of one of its partitions."""
    partition = "p[0-9]+" if disk[-1].isdigit() else "[0-9]+"
    return re.fullmatch(f"{re.escape(disk)}({partition})?", device) is not None
