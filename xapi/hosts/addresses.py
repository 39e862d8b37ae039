"""Where a daemon is reached: what its endpoints say, and the addresses of this machine.

An endpoint at one address is reached there. One at every address is reached at the address that this machine shows to
others: that of the interface on the way out, found in the routing table without a packet. Behind a NAT, or in a
container, nothing here knows what others call it: `--host-address` says it.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

_GET_ADDRESS, _GET_NETMASK = 0x8915, 0x891B
"""SIOCGIFADDR and SIOCGIFNETMASK of Linux's <linux/sockios.h>."""
_OUTSIDE = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))
"""Addresses that nobody has (RFC 5737, RFC 3849): the way to them is the way out."""
_ROUTES, _ADDRESSES6, _ROUTES6 = Path("/proc/net/route"), Path("/proc/net/if_inet6"), Path("/proc/net/ipv6_route")
EVERY = frozenset({"", "0.0.0.0", "::"})
"""What stands for every address of the machine in an endpoint."""


class Interface(NamedTuple):
    """An address of this machine, with the length of its subnet's prefix."""

    name: str
    address: str
    prefix: int


class Endpoint(NamedTuple):
    """Where something is served; `address` may stand for every address."""

    scheme: str
    address: str
    port: int


def interfaces() -> list[Interface]:
    """Return the addresses that others could use, but for those of one link only; loopback's come last."""
    found = [*_interfaces4(), *_interfaces6()]
    return sorted(found, key=lambda each: ip_address(each.address).is_loopback)


def _interfaces4() -> Iterator[Interface]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):  # an interface without an address, or a system that is not Linux
                address, mask = (
                    IPv4Address(fcntl.ioctl(sock.fileno(), what, request)[20:24])
                    for what in (_GET_ADDRESS, _GET_NETMASK)
                )
                yield Interface(name, str(address), int(mask).bit_count())


def _interfaces6() -> Iterator[Interface]:
    for line in _lines(_ADDRESSES6):
        text, _, prefix, _, _, name = line.split()
        address = IPv6Address(bytes.fromhex(text))
        if not address.is_link_local:
            yield Interface(name, str(address), int(prefix, 16))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def outward() -> str:
    """Return the address of this machine that others see; loopback's when there is no way out."""
    for target, family in _OUTSIDE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((target, 9))
            found = str(sock.getsockname()[0])
            if found not in EVERY:
                return found
    return next((each.address for each in interfaces()), "127.0.0.1")


def interface(address: str) -> Interface | None:
    """Return the interface that has an address; loopback's has every address of its subnet."""
    for each in interfaces():
        if each.address == address:
            return each
    if ip_address(address).is_loopback:
        return Interface("lo", address, 8 if ":" not in address else 128)
    return None


def gateway(of: Interface) -> str:
    """Return the router on the way out of an interface, "" for none."""
    if ":" in of.address:
        for line in _lines(_ROUTES6):
            target, prefix, _, _, router, *_, name = line.split()
            if name == of.name and not int(target, 16) and prefix == "00" and int(router, 16):
                return str(IPv6Address(bytes.fromhex(router)))
        return ""
    for line in _lines(_ROUTES)[1:]:
        name, target, router, *_ = line.split()
        if name == of.name and not int(target, 16) and int(router, 16):
            return str(IPv4Address(bytes.fromhex(router)[::-1]))
    return ""


def listened(endpoint: str, own: tuple[str, int] | None) -> str:
    """Return the address that an endpoint's text names; `own` is what ours says, see `xapi.process.config.address_of`.

    Of Twisted's notation only ``interface=`` is looked at: without it, or handed down by systemd, it may be any.
    """
    if own is not None:
        return own[0]
    named = re.search(r":interface=((?:\\.|[^:\\])*)", endpoint)
    return re.sub(r"\\(.)", r"\1", named[1]) if named else ""


def names(addresses: Iterable[str], advertised: str) -> list[str]:
    """Return what clients may call a daemon that listens at some addresses, and that is to be known by another."""
    found = [advertised] if advertised else []
    for address in addresses:
        found += [each.address for each in interfaces()] if address in EVERY else [address]
    return list(dict.fromkeys(found))


def door(served: Sequence[Endpoint], advertised: str) -> Endpoint | None:
    """Return the best of what is served, at an address that clients can use: not loopback, if possible, and by TLS."""
    if not served:
        return None
    shown = [each._replace(address=outward()) if each.address in EVERY else each for each in served]
    best = min(shown, key=lambda each: (ip_address(each.address).is_loopback, each.scheme != "https"))
    return best._replace(address=advertised) if advertised else best
