"""ARP (RFC 826): the addresses of neighbours, asked for when needed, remembered for a while."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from hypervisor.network.packets import BROADCAST_MAC, ETHERTYPE_ARP, is_host_mac

REQUEST = 1
REPLY = 2

VALID_NS = 300 * 1_000_000_000
RETRY_NS = 1_000_000_000
TRIES = 3
MAX_NEIGHBOURS = 4096
MAX_UNRESOLVED = 256
MAX_WAITING = 16
"""Packets kept for one neighbour while it is asked for; the oldest goes first."""

_HEADER = b"\x00\x01\x08\x00\x06\x04"  # Ethernet, IPv4, lengths of both addresses
_ARP = struct.Struct("!6sH6s4s6s4s")


class Arp(NamedTuple):
    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes


def parse(data: bytes) -> Arp | None:
    """Return the ARP message that follows the Ethernet header; None if it is none for IPv4 over Ethernet."""
    if len(data) < 14 + _ARP.size:
        return None
    header, *fields = _ARP.unpack_from(data, 14)
    return Arp(*fields) if header == _HEADER else None


def build(destination: bytes, message: Arp) -> bytes:
    """Return the whole Ethernet frame of an ARP message, from its sender."""
    return destination + message.sender_mac + ETHERTYPE_ARP + _ARP.pack(_HEADER, *message)


class _Unresolved:
    def __init__(self, now: int, found: Callable[[bytes], None]) -> None:
        self.asked_at = now
        self.tries = 1
        self.waiting = [found]


class Neighbours:
    """The link addresses of one station's neighbours, bounded in number: old ones make room."""

    def __init__(self, mac: bytes, address: bytes, transmit: Callable[[bytes], None]) -> None:
        """Keep neighbours of the station with this MAC and IPv4 address; `transmit` sends an Ethernet frame."""
        self._mac = mac
        self._address = address
        self._transmit = transmit
        self._known: dict[bytes, tuple[bytes, int]] = {}  # address → MAC, when it was heard; oldest first
        self._unresolved: dict[bytes, _Unresolved] = {}

    def resolve(self, address: bytes, now: int, found: Callable[[bytes], None]) -> None:
        """Call `found` with the neighbour's MAC: at once, or when it answers; never if it does not."""
        known = self._known.get(address)
        if known is not None and now - known[1] <= VALID_NS:
            found(known[0])
            return
        pending = self._unresolved.get(address)
        if pending is None:
            if len(self._unresolved) >= MAX_UNRESOLVED:
                return
            self._unresolved[address] = _Unresolved(now, found)
            self._ask(address)  # last: the answer may come before this returns
            return
        if len(pending.waiting) >= MAX_WAITING:
            del pending.waiting[0]
        pending.waiting.append(found)

    def receive(self, data: bytes, now: int) -> None:
        """Take an ARP frame: answer a request for our address, learn what was asked for or spoken to us."""
        message = parse(data)
        if message is None or not is_host_mac(message.sender_mac) or message.sender == self._address:
            return
        for_us = message.target == self._address
        if any(message.sender) and (
            message.sender in self._known
            or message.sender in self._unresolved
            or (for_us and message.operation == REQUEST)
        ):
            self._learn(message.sender, message.sender_mac, now)
        if for_us and message.operation == REQUEST:
            reply = Arp(REPLY, self._mac, self._address, message.sender_mac, message.sender)
            self._transmit(build(message.sender_mac, reply))

    def announce(self) -> None:
        """Tell all neighbours our address unasked (RFC 5227 announcement): ours may have moved."""
        self._transmit(build(BROADCAST_MAC, Arp(REQUEST, self._mac, self._address, bytes(6), self._address)))

    def tick(self, now: int) -> None:
        """Ask again for those who did not answer, and give up after `TRIES`."""
        for address, pending in list(self._unresolved.items()):
            if now - pending.asked_at < RETRY_NS:
                continue
            if pending.tries >= TRIES:
                del self._unresolved[address]
                continue
            pending.tries += 1
            pending.asked_at = now
            self._ask(address)

    def next_deadline(self) -> int | None:
        return min((pending.asked_at + RETRY_NS for pending in self._unresolved.values()), default=None)

    def _ask(self, address: bytes) -> None:
        self._transmit(build(BROADCAST_MAC, Arp(REQUEST, self._mac, self._address, bytes(6), address)))

    def _learn(self, address: bytes, mac: bytes, now: int) -> None:
        self._known.pop(address, None)
        if len(self._known) >= MAX_NEIGHBOURS:
            del self._known[next(iter(self._known))]
        self._known[address] = (mac, now)
        pending = self._unresolved.pop(address, None)
        if pending is not None:
            for found in pending.waiting:
                found(mac)
