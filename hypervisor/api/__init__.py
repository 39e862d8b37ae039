"""The face that a host shows to a toolstack: plain frozen values, and what can be asked.

A toolstack describes a domain by `DomainConfig` and reads what is true by `DomainState`; it imports nothing
else of the hypervisor, so that another backend, in another process or on another machine, can stand in its
place. This package imports nothing of it either.

A wire may lie between, so what crosses is plain: frozen values of numbers, text, bytes, enums, tuples and mappings.
Values that are one of several kinds (`Boot`, `Device`, `Uplink`) are tagged Structs: written down, each says which it
is. Every call is awaited. What comes by itself comes at the pace of who takes it: an iterator yields when it is asked
to. A host may be lost while nobody asks anything of it, and come back; see `Listener`.
"""

from __future__ import annotations

from hypervisor.api.device import NIC, Device, Disk, Display, disk_name
from hypervisor.api.domain import (
    DEMO,
    Boot,
    BootLoader,
    Change,
    DeviceState,
    DirectBoot,
    DomainConfig,
    DomainState,
    Firmware,
    Power,
    Shutdown,
    Truth,
)
from hypervisor.api.errors import Code, HostError, StorageFailure
from hypervisor.api.host import ANSWER, WORK, Backend, Listener, Processor
from hypervisor.api.network import VLAN, Addresses, Bond, Card, Network, Tunnel, Uplink
from hypervisor.api.screen import Area, ByteStream, Damage, Screen
from hypervisor.api.storage import (
    SR,
    Contents,
    Description,
    Effect,
    NewVolume,
    Space,
    Storage,
    StorageType,
    Surroundings,
    Volume,
    VolumeHandle,
)

__all__ = [
    "ANSWER",
    "DEMO",
    "NIC",
    "SR",
    "VLAN",
    "WORK",
    "Addresses",
    "Area",
    "Backend",
    "Bond",
    "Boot",
    "BootLoader",
    "ByteStream",
    "Card",
    "Change",
    "Code",
    "Contents",
    "Damage",
    "Description",
    "Device",
    "DeviceState",
    "DirectBoot",
    "Disk",
    "Display",
    "DomainConfig",
    "DomainState",
    "Effect",
    "Firmware",
    "HostError",
    "Listener",
    "Network",
    "NewVolume",
    "Power",
    "Processor",
    "Screen",
    "Shutdown",
    "Space",
    "Storage",
    "StorageFailure",
    "StorageType",
    "Surroundings",
    "Truth",
    "Tunnel",
    "Uplink",
    "Volume",
    "VolumeHandle",
    "disk_name",
]
