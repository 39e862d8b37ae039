"""DHCP for IPv4: the messages (RFC 2131, 2132) and who has which address."""

from __future__ import annotations

import struct
from typing import NamedTuple

from hypervisor.network.packets import is_host_mac

SERVER_PORT = 67
CLIENT_PORT = 68
BOOT_REQUEST = 1
BOOT_REPLY = 2

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)

OPTION_SUBNET = 1
OPTION_ROUTER = 3
OPTION_DNS = 6
OPTION_HOSTNAME = 12
OPTION_DOMAIN = 15
OPTION_MTU = 26
OPTION_BROADCAST = 28
OPTION_REQUESTED = 50
OPTION_LEASE = 51
OPTION_TYPE = 53
OPTION_SERVER = 54
OPTION_RENEWAL = 58
OPTION_REBINDING = 59
_PAD, _END = 0, 255

BROADCAST_FLAG = 0x8000
_COOKIE = b"\x63\x82\x53\x63"
_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64x128x4s")
_LEAST = 300
"""Bytes of a BOOTP message, which some clients insist on."""
_ANY = bytes(4)


class Message(NamedTuple):
    """A DHCP message; addresses are bytes, options still encoded."""

    operation: int
    transaction: int
    flags: int
    client: bytes
    yours: bytes
    relay: bytes
    mac: bytes
    options: dict[int, bytes]

    @property
    def kind(self) -> int:
        return self.options.get(OPTION_TYPE, b"\0")[0]

    def address_option(self, number: int) -> bytes | None:
        """Return an option that is one address; None if it is missing or of another length."""
        value = self.options.get(number)
        return value if value is not None and len(value) == 4 else None


def parse(data: bytes) -> Message | None:
    """Return the message in a datagram; None unless it is DHCP for an Ethernet station, and whole."""
    if len(data) < _FIXED.size:
        return None
    fields = _FIXED.unpack_from(data)
    operation, hardware, length, _hops, transaction, _secs, flags, client, yours, _next, relay, mac, cookie = fields
    if hardware != 1 or length != 6 or cookie != _COOKIE:
        return None
    options = _parse_options(data[_FIXED.size :])
    if options is None or len(options.get(OPTION_TYPE, b"")) != 1:
        return None
    return Message(operation, transaction, flags, client, yours, relay, mac[:6], options)


def _parse_options(data: bytes) -> dict[int, bytes] | None:
    """Return options by number, the parts of a split one joined (RFC 3396); None if one is cut off."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            return None
        end = at + 2 + data[at + 1]
        found[data[at]] = found.get(data[at], b"") + data[at + 2 : end]
        at = end
    return found


def build(message: Message) -> bytes:
    """Return the bytes of a message. Raises ValueError for an option longer than 255 bytes."""
    fixed = _FIXED.pack(
        message.operation,
        1,
        6,
        0,
        message.transaction,
        0,
        message.flags,
        message.client,
        message.yours,
        _ANY,
        message.relay,
        message.mac + bytes(10),
        _COOKIE,
    )
    options = b"".join(bytes((number, len(value))) + value for number, value in message.options.items())
    return (fixed + options + bytes((_END,))).ljust(_LEAST, b"\0")


def is_station(message: Message, sender: bytes) -> bool:
    """Tell whether a client speaks for itself: no relay, and its own MAC inside and outside."""
    return message.relay == _ANY and message.mac == sender and is_host_mac(sender)
