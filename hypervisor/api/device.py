"""The devices of domains."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from hypervisor.api.storage import VolumeHandle


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
