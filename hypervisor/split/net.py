"""The network device of a guest, as netback serves it (public/io/netif.h).

A `NetDevice` is one NIC of a domain, joined to a `Switch`: plug it with `xenbus.Backend`. It is on the switch while
its front is connected and its carrier is up. It offers scattered frames, checksums and TCP segments left to us, for
IPv4 and IPv6, and an event channel for each direction. What the front itself, or the far port, does not take as it
is, the switch completes (`network.offload`).

Not offered: several queues (one thread serves a domain, and one interpreter all of them: nothing would run beside
anything), the control ring and multicast lists (a switch floods groups, and fronts filter).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypervisor.domains.domain import Domain
from hypervisor.errors import XenError
from hypervisor.memory.guest_memory import PAGE
from hypervisor.network.frame import ETHERNET_HEADER, MAX_PACKET, PLAIN, VLAN_HEADER, Frame, Offloads
from hypervisor.network.lock import Lock, LockMode, addresses
from hypervisor.network.packets import is_host_mac, mac_from_text
from hypervisor.network.port import UNTAGGED, Membership, Port, trunk
from hypervisor.network.ratelimit import TokenBucket
from hypervisor.network.switch import Switch
from hypervisor.split.granted import whole_pages
from hypervisor.split.net_queue import Failures, NetQueue, Rings
from hypervisor.split.net_request import RX_SLOT, TX_SLOT
from hypervisor.split.ring import Ring
from hypervisor.split.xenbus import Backend, BusState, Frontend, FrontendError

MIN_MTU = 68
"""RFC 791: every link carries packets of this size."""
_LAST = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class NetCounters:
    """What a NIC has done since it was made, seen from the guest: XenAPI's vif_*_rx is what the guest received.

    Dropped is what a rule, a rate or a full queue kept back; errors were malformed.
    """

    rx_bytes: int
    rx_packets: int
    rx_dropped: int
    rx_errors: int
    tx_bytes: int
    tx_packets: int
    tx_dropped: int
    tx_errors: int
    throttled: int
    """How often the rate limit made a packet wait."""


def _deaf(frame: Frame) -> bool:
    """Take what comes for a card that was taken away."""
    return True


@dataclass(frozen=True, slots=True)
class NetConfig:
    """A NIC as it is described.

    `network` is the name that xenstore tells, `vlan` the tag of the network on that switch (0: none), `trunks` those
    that the guest may use itself, `kbps` the most that it may send, in KiB a second (0: any). Addresses are those that
    a locked NIC may use.
    """

    mac: str
    number: int = 0
    network: str = ""
    vlan: int = UNTAGGED
    trunks: tuple[int, ...] = ()
    mtu: int = 1500
    kbps: int = 0
    locking: LockMode = LockMode.UNLOCKED
    ipv4: tuple[IPv4Address | IPv4Network, ...] = ()
    ipv6: tuple[IPv6Address | IPv6Network, ...] = ()
    carrier: bool = True


class NetDevice:
    """A NIC of a domain; `config` and `switch` are as they are now. Methods may be called from any thread."""

    kind = "vif"
    ready = frozenset({BusState.CONNECTED})

    def __init__(self, domain: Domain, switch: Switch, config: NetConfig) -> None:
        """Make a NIC. Raises ValueError for a MAC that is none, and an MTU, tag or rate out of range."""
        mac = mac_from_text(config.mac)
        if not is_host_mac(mac) or not MIN_MTU <= config.mtu <= MAX_PACKET or config.number < 0:
            raise ValueError(f"no NIC: number {config.number}, MAC {config.mac}, MTU {config.mtu}")
        self.domain = domain
        self.switch = switch
        self.config = config
        self.port = Port(self._receive, ready=self._has_credit, membership=_membership(config), mtu=config.mtu)
        self.port.limit_rate(_bucket(config))
        self.port.lock = _lock(config)
        self._failures = Failures()
        self._bus: Backend | None = None
        self._queue: NetQueue | None = None

    @property
    def connected(self) -> bool:
        """Tell whether the guest's driver is there."""
        return self._queue is not None

    @property
    def counters(self) -> NetCounters:
        """Return what the NIC has done; take the host's lock to have it consistent."""
        sent, received, failures = self.port.counters.sent, self.port.counters.received, self._failures
        return NetCounters(
            rx_bytes=sent.bytes - failures.received_bytes,
            rx_packets=sent.packets - failures.received,
            rx_dropped=sent.dropped,
            rx_errors=sent.errors + failures.received,
            tx_bytes=received.bytes,
            tx_packets=received.packets,
            tx_dropped=received.dropped,
            tx_errors=received.errors + failures.transmitted,
            throttled=self.port.counters.throttled,
        )

    # For xenbus

    def back_nodes(self) -> Mapping[str, str]:
        """Return the nodes that libxl writes."""
        return {**self._identity(), "bridge": self.config.network}

    def front_nodes(self) -> Mapping[str, str]:
        """Return the nodes that tell the front which NIC it is; `disconnect` is XenServer's word for no carrier."""
        return {**self._identity(), **self._link()}

    def _identity(self) -> dict[str, str]:
        return {"handle": str(self.config.number), "mac": self.config.mac, "mtu": str(self.config.mtu)}

    def features(self) -> Mapping[str, str]:
        """Return what we offer."""
        return {
            "feature-rx-copy": "1",
            "feature-rx-flip": "0",
            "feature-sg": "1",
            "feature-gso-tcpv4": "1",
            "feature-gso-tcpv6": "1",
            "feature-ipv6-csum-offload": "1",
            "feature-split-event-channels": "1",
        }

    def connect(self, frontend: Frontend, bus: Backend) -> Mapping[str, str]:
        """Map the rings and serve them. Raises FrontendError."""
        if not frontend.flag("request-rx-copy"):
            raise FrontendError("request-rx-copy is missing: pages are not flipped")
        frontend.number("multi-queue-num-queues", 1, 1, 1)
        scattered = frontend.flag("feature-sg")
        offloads = _offloads(frontend, scattered)
        rings = self._open(frontend, scattered)
        queue = NetQueue(self.domain, self.port, rings, self._failures, bus.fail)
        self.port.offloads = offloads
        self.port.mtu = self.config.mtu if scattered else min(self.config.mtu, PAGE - ETHERNET_HEADER - VLAN_HEADER)
        # Old fronts give slots without a word: then they are looked for whenever a frame comes.
        self.port.behind = None if frontend.flag("feature-rx-notify") else queue.call
        self._queue, self._bus = queue, bus
        heard: list[int] = []
        try:
            for event in {rings.tx_event, rings.rx_event}:
                self.domain.events.connect_backend(event, queue.heard)
                heard.append(event)
            self._join()
        except (XenError, ValueError) as error:
            for event in heard:
                self.domain.events.disconnect_backend(event)
            self._queue = None
            queue.close()
            what = "an event channel cannot be bound" if isinstance(error, XenError) else str(error)
            raise FrontendError(what) from None
        self.domain.events.post(queue.heard)  # what it did before we listened
        if not self.config.carrier:
            self.domain.events.post(self._tell_link)
        return {}

    def _open(self, frontend: Frontend, scattered: bool) -> Rings:
        """Map both rings. Raises FrontendError, with nothing held."""
        if frontend.has("event-channel-tx"):
            tx, rx = (frontend.number(f"event-channel-{way}", 1, _LAST) for way in ("tx", "rx"))
        else:
            tx = rx = frontend.number("event-channel", 1, _LAST)
        refs = [frontend.number(f"{way}-ring-ref", 0, _LAST) for way in ("tx", "rx")]
        pages = whole_pages(self.domain, refs, "a ring")
        rings = Ring([pages[0].bytes], TX_SLOT), Ring([pages[1].bytes], RX_SLOT)
        return Rings(*rings, pages, tx, rx, scattered)

    def disconnect(self, done: Callable[[], None], drop: bool = False) -> None:
        """Take no more requests; what waits on either side is lost, as on a cable that is pulled."""
        queue, self._queue = self._queue, None
        if queue is not None:
            for event in (queue.rings.tx_event, queue.rings.rx_event):
                self.domain.events.disconnect_backend(event)
            queue.close()
            self._leave()
            self.port.offloads = PLAIN
        if drop:
            self._bus, self.port.receive, self.port.ready = None, _deaf, None
        done()

    # For the port

    def _receive(self, frame: Frame) -> bool:
        return self._queue is not None and self._queue.receive(frame)

    def _has_credit(self) -> None:
        if self._queue is not None:
            self.domain.events.post(self._queue.transmit)

    def _join(self) -> None:
        """Be on the switch, if the front and the carrier are there."""
        if self._queue is not None and self.config.carrier and self.port.switch is None:
            self.switch.attach(self.port)

    def _leave(self) -> None:
        if self.port.switch is not None:
            self.port.switch.detach(self.port)

    def _link(self) -> dict[str, str]:
        return {"disconnect": str(int(not self.config.carrier))}

    def _tell_link(self) -> None:
        if self._bus is not None:
            self._bus.tell(self._link())

    # What the toolstack changes

    def change(self, config: NetConfig, switch: Switch | None = None) -> None:
        """Give it other settings, from the next frame on, and another network's switch; MAC, MTU and number stay.

        Linux tells its new neighbours where it is. It does not look at the carrier: its frames are dropped all the
        same. Raises ValueError for a setting out of range, or when the switch has no room; all is as before then.
        """
        membership, bucket, lock = _membership(config), _bucket(config), _lock(config)
        with self.domain.host.lock:
            before = self.config
            config = replace(config, mac=before.mac, mtu=before.mtu, number=before.number)
            self._go(switch or self.switch, membership, config)
            self.port.lock = lock
            if config.kbps != before.kbps:
                self.port.limit_rate(bucket)
                self._has_credit()
            if config.network != before.network and self._bus is not None:
                self._bus.update({"bridge": config.network})
            if config.carrier != before.carrier:
                self._tell_link()

    def _go(self, switch: Switch, membership: Membership, config: NetConfig) -> None:
        """Be on a switch. Raises ValueError when it has no room, and is where it was then."""
        before = self.switch, self.port.membership, self.config
        if switch is not self.switch or not config.carrier:
            self._leave()
        self.switch, self.port.membership, self.config = switch, membership, config
        try:
            self._join()
        except ValueError:
            self.switch, self.port.membership, self.config = before
            self._join()
            raise


def _membership(config: NetConfig) -> Membership:
    """Return the VLANs of a NIC. Raises ValueError."""
    return trunk(config.trunks, config.vlan)


def _bucket(config: NetConfig) -> TokenBucket | None:
    """Return what limits a NIC's rate. Raises ValueError."""
    return TokenBucket(config.kbps) if config.kbps else None


def _lock(config: NetConfig) -> Lock:
    """Return what holds a guest to its MAC and addresses, lets it do what it likes, or keeps it silent."""
    own = addresses(map(IPv4Network, config.ipv4)), addresses(map(IPv6Network, config.ipv6))
    return Lock(config.locking, mac_from_text(config.mac), *own)


def _offloads(frontend: Frontend, scattered: bool) -> Offloads:
    """Return what the front takes. TCP segments come without a checksum, and in several slots."""
    csum_v4 = not frontend.flag("feature-no-csum-offload")
    csum_v6 = frontend.flag("feature-ipv6-csum-offload")
    gso_v4, gso_v6 = frontend.flag("feature-gso-tcpv4"), frontend.flag("feature-gso-tcpv6")
    return Offloads(csum_v4, csum_v6, gso_v4 and csum_v4 and scattered, gso_v6 and csum_v6 and scattered)
