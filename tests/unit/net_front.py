"""A network front played by the test: rings, grants and xenstore keys as a guest's driver writes them."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from hypervisor.memory.guest_memory import PAGE
from hypervisor.network.checksum import checksum, pseudo_sum
from hypervisor.network.frame import EVERY_OFFLOAD, Frame, Offloads
from hypervisor.network.packets import ETHERTYPE_IPV4, PROTOCOL_TCP, ipv4_header
from hypervisor.network.port import Port
from hypervisor.network.switch import Switch
from hypervisor.split.net import NetConfig, NetDevice
from hypervisor.split.xenbus import Backend
from tests.unit.block_front import GRANT_FRAME, a_domain

TX_FRAME, RX_FRAME, TX_DATA, RX_DATA = 20, 21, 300, 600
TX_REF, RX_REF, FIRST_TX, FIRST_RX = 8, 9, 16, 128
"""Frames and grant references: rings, then 64 frames to send from, and 256 to receive into."""
SLOTS = 256
MAC, PEER_MAC = "00:16:3e:00:00:01", b"\x02\0\0\0\0\x02"
OWN_MAC = bytes.fromhex(MAC.replace(":", ""))
FEATURES = {
    "request-rx-copy": 1,
    "feature-rx-notify": 1,
    "feature-sg": 1,
    "feature-gso-tcpv4": 1,
    "feature-gso-tcpv6": 1,
    "feature-ipv6-csum-offload": 1,
}
"""What Linux's front writes."""


class Peer:
    """Something else on the switch, which keeps what it gets."""

    def __init__(self, switch: Switch, offloads: Offloads = EVERY_OFFLOAD, **options: Any) -> None:
        self.frames: list[Frame] = []
        self.port = switch.attach(Port(self._receive, offloads=offloads, **options))

    def _receive(self, frame: Frame) -> bool:
        self.frames.append(frame)
        return True


class NetFront:
    """A front of a domain of its own, on a switch with one peer. `now` is the switch's clock."""

    def __init__(
        self, peer_offloads: Offloads = EVERY_OFFLOAD, switch: Switch | None = None, mac: str = MAC, **options: Any
    ) -> None:
        self.host, self.domain = a_domain()
        self.memory = self.domain.memory
        self.store = self.host.xenstore
        self.now = 1_000_000_000
        self.switch = switch or Switch(lambda: self.now)
        self.peer = Peer(self.switch, peer_offloads)
        self.device = NetDevice(self.domain, self.switch, NetConfig(mac, **options))
        self.states: list[int] = []
        self.backend = Backend(self.domain, self.store, self.device, self.device.config.number, self.states.append)
        self.tx, self.rx = self.memory.frame(TX_FRAME), self.memory.frame(RX_FRAME)
        self.sent = self.heard = self.posted = self.received = 0
        self.ports: list[int] = []

    # Grants and xenstore

    def grant(self, ref: int, frame: int, flags: int = 1, domid: int = 0) -> int:
        struct.pack_into("<HHI", self.memory.bytes, GRANT_FRAME * PAGE + ref * 8, flags, domid, frame)
        return ref

    def granted(self, ref: int) -> int:
        return int(struct.unpack_from("<H", self.memory.bytes, GRANT_FRAME * PAGE + ref * 8)[0])

    def change(self, switch: Switch | None = None, **settings: Any) -> None:
        """Give the device other settings, and another switch."""
        self.device.change(replace(self.device.config, **settings), switch)

    def write(self, key: str, value: object) -> None:
        self.store.write(f"{self.backend.front}/{key}", str(value))

    def back(self, key: str) -> str | None:
        return self.store.read_text(f"{self.backend.back}/{key}")

    def connect(self, split: bool = False, **keys: object) -> NetFront:
        """Plug the device if it is not, offer fresh rings, and say Connected. A key that is None is left out."""
        if not self.backend.online:
            self.backend.plug()
        for ring, ref, frame in ((self.tx, TX_REF, TX_FRAME), (self.rx, RX_REF, RX_FRAME)):
            ring[:] = bytes(PAGE)
            struct.pack_into("<4I", ring, 0, 0, 1, 0, 1)
            self.grant(ref, frame)
        for number in range(64):
            self.grant(FIRST_TX + number, TX_DATA + number, 5)
        for number in range(SLOTS):
            self.grant(FIRST_RX + number, RX_DATA + number)
        self.sent = self.heard = self.posted = self.received = 0
        self.ports = [self.domain.events.alloc_unbound(0) for _ in range(1 + split)]
        names = ["event-channel-tx", "event-channel-rx"] if split else ["event-channel"]
        values: dict[str, object] = {**FEATURES, "tx-ring-ref": TX_REF, "rx-ring-ref": RX_REF}
        values |= dict(zip(names, self.ports, strict=True))
        values |= {key.replace("_", "-"): value for key, value in keys.items()}
        for key, value in values.items():
            if value is not None:
                self.write(key, value)
        self.write("state", 4)
        self.domain.events.drain()
        return self

    def kick(self, port: int = 0) -> None:
        """Send an event, and let the domain's thread come by."""
        channel = self.domain.events.channels.get(self.ports[port])
        if channel is not None and channel.notify is not None:
            channel.notify()
        self.domain.events.drain()

    # Sending

    def push(self, *slots: bytes) -> None:
        """Put slots into the transmit ring and send an event."""
        for slot in slots:
            at = 64 + self.sent % SLOTS * 12
            self.tx[at : at + len(slot)] = slot
            self.sent += 1
        struct.pack_into("<I", self.tx, 0, self.sent)
        self.kick()

    def answers(self) -> list[tuple[int, int]]:
        """Return id and status of the new answers to what was sent."""
        made = []
        while self.heard != struct.unpack_from("<I", self.tx, 8)[0]:
            made.append(struct.unpack_from("<Hh", self.tx, 64 + self.heard % SLOTS * 12))
            self.heard += 1
        return made

    def slots_for(self, data: bytes, flags: int = 0, extra: bytes = b"", first: int = 0) -> list[bytes]:
        """Put a packet into the frames from number `first` on and return the slots that send it; ids are numbers."""
        made = []
        for number, at in enumerate(range(0, len(data), PAGE), first):
            piece = data[at : at + PAGE]
            self.memory.frame(TX_DATA + number)[: len(piece)] = piece
            more = 4 if at + PAGE < len(data) else 0
            if at:
                made.append(request(FIRST_TX + number, 0, more, number, len(piece)))
            else:
                made.append(request(FIRST_TX + number, 0, flags | more | 8 * bool(extra), number, len(data)))
                made += [extra] if extra else []
        return made

    def send(self, data: bytes, flags: int = 0, extra: bytes = b"") -> list[int]:
        """Send a packet and return the statuses of its slots."""
        self.push(*self.slots_for(data, flags, extra))
        return [status for _, status in self.answers()]

    # Receiving

    def post(self, count: int = SLOTS, notify: bool = True) -> None:
        """Give slots to receive into, in the order of their frames."""
        for _ in range(count):
            number = self.posted % SLOTS
            struct.pack_into("<HxxI", self.rx, 64 + number * 8, number, FIRST_RX + number)
            self.posted += 1
        struct.pack_into("<I", self.rx, 0, self.posted)
        if notify:
            self.kick(-1)

    def taken(self) -> list[tuple[int, ...]]:
        """Return the new answers in the receive ring: (id, offset, flags, status), or (type, flags, size, kind)."""
        made, extra = [], False
        while self.received != struct.unpack_from("<I", self.rx, 8)[0]:
            at = 64 + self.received % SLOTS * 8
            made.append(struct.unpack_from("<BBHBxH" if extra else "<HHHh", self.rx, at))
            extra = not extra and bool(made[-1][2] & 8)
            self.received += 1
        return made

    def frames(self) -> list[tuple[bytes, int, tuple[int, ...] | None]]:
        """Return what was received: bytes, flags of the first slot, and the extra slot if there is one."""
        made: list[tuple[bytes, int, tuple[int, ...] | None]] = []
        slots = iter(self.taken())
        for number, offset, flags, status in slots:
            extra = next(slots) if flags & 8 else None
            data, more = bytes(self.memory.frame(RX_DATA + number)[offset : offset + status]), flags & 4
            while more:
                number, offset, again, status = next(slots)
                data, more = data + bytes(self.memory.frame(RX_DATA + number)[offset : offset + status]), again & 4
            made.append((data, flags, extra))
        return made

    def deliver(self, *frames: Frame) -> None:
        """Let the peer send frames, and the domain's thread come by once."""
        for frame in frames:
            self.peer.port.send(frame)
        self.domain.events.drain()


def request(ref: int, offset: int, flags: int, number: int, size: int) -> bytes:
    return struct.pack("<IHHHH", ref, offset, flags, number, size)


def gso(size: int = 1448, kind: int = 1, more: int = 0, extra: int = 1) -> bytes:
    return struct.pack("<BBHBxH4x", extra, more, size, kind, 0)


def ethernet(payload: bytes, to: bytes = PEER_MAC, source: bytes = OWN_MAC, kind: bytes = b"\x88\xb5") -> bytes:
    return to + source + kind + payload


def transport(
    payload: bytes, protocol: int = PROTOCOL_TCP, blank: bool = True, to: bytes = PEER_MAC, source: bytes = OWN_MAC
) -> bytes:
    """A TCP or UDP frame from 10.0.0.1 to 10.0.0.2, its checksum begun or made."""
    length = len(payload) + (20 if protocol == PROTOCOL_TCP else 8)
    addresses = b"\x0a\0\0\x01\x0a\0\0\x02"
    start = pseudo_sum(addresses, b"", protocol, length)
    if protocol == PROTOCOL_TCP:
        header = struct.pack("!HHIIBBHHH", 1000, 2000, 7, 9, 0x50, 0x18, 512, start if blank else 0, 0)
    else:
        header = struct.pack("!HHHH", 1000, 2000, length, start if blank else 0)
    packet = header + payload
    if not blank:
        place = 16 if protocol == PROTOCOL_TCP else 6
        packet = packet[:place] + checksum(packet, start).to_bytes(2, "big") + packet[place + 2 :]
    return to + source + ETHERTYPE_IPV4 + ipv4_header(addresses[:4], addresses[4:], protocol, length) + packet


def is_whole(data: bytes) -> bool:
    """Tell whether the checksum of a TCP or UDP frame from `transport` is right."""
    protocol, length = data[23], int.from_bytes(data[16:18], "big") - 20
    return checksum(data[34 : 34 + length], pseudo_sum(data[26:34], b"", protocol, length)) in (0, 0xFFFF)
