"""The networks of a host, and what joins them to the outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import Struct


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
