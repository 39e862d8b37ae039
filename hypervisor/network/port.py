"""A port of a switch: where one VIF, TAP device, endpoint or cable to another switch plugs in.

The switch gives frames to `receive`, which may refuse (the guest's ring is full): then they wait in
a bounded queue until the peer calls `drain`, and what comes when that is full is dropped and counted.
The peer gives frames to `send`, which may refuse too (the rate limit is spent): the peer keeps the
frame, as netback leaves it in the guest's ring, and is called back through `ready`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypervisor.network.frame import PLAIN, Frame, Offloads
from hypervisor.network.lock import UNLOCKED, Lock
from hypervisor.network.ratelimit import TokenBucket

if TYPE_CHECKING:
    from hypervisor.network.switch import Switch

QUEUE_FRAMES = 1000
QUEUE_BYTES = 4 << 20
UNTAGGED = 0
"""The VLAN of frames without a tag, where nobody says otherwise."""
EVERY_VLAN = frozenset(range(1, 4095))


@dataclass(frozen=True)
class Membership:
    """The VLANs a port takes part in (IEEE 802.1Q's untagged and tagged sets)."""

    untagged: int | None = UNTAGGED
    """The VLAN whose frames go without a tag; None: untagged frames are dropped."""
    tagged: frozenset[int] = frozenset()
    """The VLANs whose frames carry their tag."""

    def __post_init__(self) -> None:
        if self.untagged is not None and not 0 <= self.untagged <= 4094:
            raise ValueError(f"no VLAN: {self.untagged}")
        if not all(1 <= tag <= 4094 for tag in self.tagged):
            raise ValueError("VLAN tags are 1 to 4094")

    def __contains__(self, vlan: int) -> bool:
        return vlan == self.untagged or vlan in self.tagged


def access(vlan: int = UNTAGGED) -> Membership:
    """Return the membership of a port whose peer knows nothing of tags."""
    return Membership(vlan)


def trunk(tags: Iterable[int] = EVERY_VLAN, untagged: int | None = UNTAGGED) -> Membership:
    """Return the membership of a port that carries several VLANs, each with its tag."""
    return Membership(untagged, frozenset(tags) - {untagged})


@dataclass
class Count:
    """Traffic in one direction. `dropped` was refused by a rule or for want of room, `errors` was malformed."""

    packets: int = 0
    bytes: int = 0
    dropped: int = 0
    errors: int = 0


@dataclass
class Counters:
    """A port's traffic, seen from the switch: `received` came from the peer, `sent` went to it.

    For a VIF `received` is what the guest transmitted. A frame that still waits to be cut counts once.
    """

    received: Count = field(default_factory=Count)
    sent: Count = field(default_factory=Count)
    throttled: int = 0
    """How often the rate limit refused a frame."""


class Port:
    """One plug of a switch. Settings may be changed at any time and hold from the next frame on."""

    def __init__(
        self,
        receive: Callable[[Frame], bool],
        *,
        ready: Callable[[], None] | None = None,
        offloads: Offloads = PLAIN,
        membership: Membership | None = None,
        mtu: int = 1500,
        lock: Lock = UNLOCKED,
    ) -> None:
        """Make a port whose peer takes frames with `receive`, which returns False to refuse one for now.

        `ready` is called when the rate limit that refused a frame has credit again; without it such
        frames are dropped. `mtu` counts bytes after the Ethernet header, tags not included.
        """
        self.receive = receive
        self.ready = ready
        self.offloads = offloads
        self.membership = access() if membership is None else membership
        self.mtu = mtu
        self.lock = lock
        self.limit: TokenBucket | None = None
        self.throttled_until: int | None = None
        """When to call `ready`, in nanoseconds; None while no frame was refused."""
        self.behind: Callable[[], None] | None = None
        """Called when a frame comes while others wait: for a peer that is not told when it has room again."""
        self.counters = Counters()
        self.switch: Switch | None = None
        self._queue: deque[Frame] = deque()
        self._queued_bytes = 0
        self._draining = False

    @property
    def queued(self) -> int:
        """How many frames wait for the peer."""
        return len(self._queue)

    def limit_rate(self, limit: TokenBucket | None) -> None:
        """Put another limit, or none, on what the peer sends."""
        self.limit = limit
        if self.throttled_until is not None:
            self.throttled_until = 0

    def send(self, frame: Frame) -> bool:
        """Take a frame from the peer. False: out of credit, keep it until `ready` is called."""
        if self.switch is None:
            self.counters.received.dropped += 1
            return True
        return self.switch.ingress(self, frame)

    def deliver(self, frame: Frame) -> None:
        """Give a frame to the peer, behind those that wait; without room it is dropped."""
        count = self.counters.sent
        if not self._queue and self.receive(frame):
            count.packets += 1
            count.bytes += len(frame.data)
        elif len(self._queue) < QUEUE_FRAMES and self._queued_bytes + len(frame.data) <= QUEUE_BYTES:
            self._queue.append(frame)
            self._queued_bytes += len(frame.data)
        else:
            count.dropped += 1
        if self.behind is not None and self._queue:
            self.behind()

    def drain(self) -> None:
        """Give the peer what waits, as far as it takes it. The peer calls this when it has room again."""
        if self._draining:
            return
        self._draining = True
        try:
            count = self.counters.sent
            while self._queue and self.receive(self._queue[0]):
                length = len(self._queue.popleft().data)
                self._queued_bytes -= length
                count.packets += 1
                count.bytes += length
        finally:
            self._draining = False

    def discard(self) -> None:
        """Drop what waits for the peer: it is gone."""
        self.counters.sent.dropped += len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
