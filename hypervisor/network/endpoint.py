"""A station inside the process: one static IPv4 address on a port of a switch.

It answers ARP and echoes, has UDP ports and TCP streams, and needs no right and no socket of the
host. The address service of a network is one; tests and the toolstack use others to talk to guests.
Layers: `arp.Neighbours`, `Ipv4Layer`, `IcmpLayer`, `UdpLayer`, `TcpLayer`; this class joins them.
Driven by calls and by `tick`; callbacks run inside those.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface

from hypervisor.network.arp import Neighbours
from hypervisor.network.frame import EVERY_OFFLOAD, Frame, Offloads
from hypervisor.network.icmp import IcmpLayer
from hypervisor.network.ipv4 import Ipv4Layer
from hypervisor.network.packets import ETHERTYPE_ARP, ETHERTYPE_IPV4, is_host_mac
from hypervisor.network.port import Membership, Port
from hypervisor.network.switch import Switch
from hypervisor.network.tcp import TcpLayer
from hypervisor.network.udp import UdpLayer

MAX_HELD = 1024
"""Frames kept while the port's rate limit refuses them; more are dropped from the tail."""


class Endpoint:
    """An IPv4 host on a switch. `close` it to unplug."""

    def __init__(
        self,
        switch: Switch,
        clock: Callable[[], int],
        mac: bytes,
        interface: IPv4Interface,
        *,
        gateway: IPv4Address | None = None,
        membership: Membership | None = None,
        mtu: int = 1500,
        offloads: Offloads = EVERY_OFFLOAD,
        secret: bytes | None = None,
    ) -> None:
        """Plug a station into `switch`. Raises ValueError for a MAC that is none and an MTU outside 576 … 65535.

        `offloads` is what it takes unfinished: nothing is for it that lacks a checksum or is larger than the MTU
        when there are none. `secret` (16 bytes) makes TCP's first sequence numbers repeatable, for tests.
        """
        if not is_host_mac(mac) or not 576 <= mtu <= 65535:
            raise ValueError(f"no station: MAC {mac.hex(':')}, MTU {mtu}")
        self.mac = mac
        self.address = interface.ip
        self.port = Port(self._receive, ready=self._flush, offloads=offloads, membership=membership, mtu=mtu)
        self.alarm: Callable[[], None] = _nobody
        """Called whenever `next_deadline` may be another; see `ticker`."""
        self._switch = switch
        self._clock = clock
        self._held: deque[Frame] = deque()
        self.neighbours = Neighbours(mac, interface.ip.packed, lambda data: self._transmit(Frame(data)))
        self.ip = Ipv4Layer(mac, interface, gateway, mtu, self.neighbours, self._transmit, clock)
        self.icmp = IcmpLayer(self.ip, clock)
        self.udp = UdpLayer(self.ip, self.icmp)
        self.tcp = TcpLayer(self.ip, clock, secret)
        switch.attach(self.port)

    def ping(
        self,
        address: IPv4Address,
        replied: Callable[[int | None], None],
        size: int = 56,
        timeout_ns: int = 1_000_000_000,
    ) -> None:
        """Send an echo; `replied` gets the round trip in nanoseconds, or None after `timeout_ns`."""
        self.icmp.ping(address.packed, replied, size, timeout_ns)
        self.alarm()

    def tick(self, now: int) -> None:
        """Do what is due: ask neighbours again, give up echoes, drive the TCP timers."""
        self.neighbours.tick(now)
        self.icmp.tick(now)
        self.tcp.tick(now)

    def next_deadline(self) -> int | None:
        """Return when `tick` is needed next, in nanoseconds; None: nothing is under way."""
        deadlines = (self.neighbours.next_deadline(), self.icmp.next_deadline(), self.tcp.next_deadline())
        return min((at for at in deadlines if at is not None), default=None)

    def close(self) -> None:
        """Unplug the station; its connections are lost."""
        self._switch.detach(self.port)
        self._held.clear()

    def _receive(self, frame: Frame) -> bool:
        data = frame.data
        if data[:6] != self.mac and not data[0] & 1:
            return True  # flooded: the switch does not know yet whose it is
        kind = data[12:14]
        if kind == ETHERTYPE_IPV4:
            self.ip.receive(frame)
        elif kind == ETHERTYPE_ARP:
            self.neighbours.receive(data, self._clock())
        self.alarm()
        return True

    def _transmit(self, frame: Frame) -> None:
        if (self._held or not self.port.send(frame)) and len(self._held) < MAX_HELD:
            self._held.append(frame)
        self.alarm()

    def _flush(self) -> None:
        while self._held and self.port.send(self._held[0]):
            self._held.popleft()


def _nobody() -> None:
    """Stand for an alarm that nobody set."""
