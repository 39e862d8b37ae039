"""An Ethernet frame with what one end asks the other to do for it, as netfront and netback exchange it.

Xen's netif.h lets a sender leave a checksum to be filled in (`XEN_NETTXF_csum_blank`) and a TCP
segment to be cut to size (`XEN_NETIF_EXTRA_TYPE_GSO`). Between two ends that both understand this
nothing is computed at all; the switch does the work (`offload.py`) where the receiver does not.
"""

from __future__ import annotations

from typing import NamedTuple

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 2
"""Kinds of segmentation, by the numbers of netif.h (`XEN_NETIF_GSO_TYPE_*`)."""

ETHERNET_HEADER = 14
VLAN_HEADER = 4
MAX_PACKET = 65535
"""Bytes of the largest packet, without its Ethernet header: what an IPv4 length can say."""
MAX_FRAME = MAX_PACKET + ETHERNET_HEADER + VLAN_HEADER


class Frame(NamedTuple):
    """One Ethernet frame without its check sequence. Immutable: several ports may hold the same one."""

    data: bytes
    csum_start: int = 0
    """Offset of the first byte that the missing checksum covers; 0: no checksum is missing."""
    csum_offset: int = 0
    """Where the checksum goes, from `csum_start`; that place holds the sum of the pseudo header."""
    gso_size: int = 0
    """Payload bytes of each segment to cut; 0 where nothing is to be cut."""
    gso_type: int = GSO_NONE
    validated: bool = False
    """The sender says that the checksum was verified (`XEN_NETTXF_data_validated`)."""
    hops: int = 0
    """Cables between switches passed so far; a frame that loops dies of it."""


class Offloads(NamedTuple):
    """What a receiver can take: frames with partial checksums, and TCP segments of up to 64 kB."""

    csum_v4: bool = False
    csum_v6: bool = False
    gso_v4: bool = False
    gso_v6: bool = False
    tagged: bool = False
    """The same for frames with a VLAN tag. Linux's netfront cannot: it looks for IP behind the first type."""


PLAIN = Offloads()
EVERY_OFFLOAD = Offloads(True, True, True, True, True)
