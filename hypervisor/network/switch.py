"""A learning bridge between ports: what a XenAPI network is on one host.

IEEE 802.1D learning and forwarding, 802.1Q VLANs. Inside, a frame has no tag; its VLAN goes beside it
and the tag is put back where the leaving port wants one. Single threaded: the caller holds the host's
lock, and a port's peer may call back into the switch from `receive`; such frames are queued, not
recursed into. One call does a bounded amount of work (`WORK_OF_A_CALL`); what is left is done by the
next call or `tick`, so that not even ports joined to a ring can keep the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from hypervisor.network.frame import (
    ETHERNET_HEADER,
    EVERY_OFFLOAD,
    MAX_FRAME,
    MAX_PACKET,
    PLAIN,
    VLAN_HEADER,
    Frame,
    Offloads,
)
from hypervisor.network.lock import LockMode
from hypervisor.network.offload import BadOffload, check, fit, wire_length
from hypervisor.network.packets import ETHERTYPE_VLAN, is_host_mac
from hypervisor.network.port import Membership, Port
from hypervisor.network.table import AGEING_NS, MacTable

WORK_OF_A_CALL = 4096
"""Frames forwarded before a call returns."""
PENDING_FRAMES = 4096
"""Frames that may wait to be forwarded; more are dropped from the tail."""
MAX_HOPS = 8
"""Cables between switches that a frame may pass (802.1D allows a diameter of seven bridges)."""
MAX_PORTS = 4096

_LINK_LOCAL = b"\x01\x80\xc2\x00\x00"
"""01:80:c2:00:00:00-0f: for the two ends of one link (pause, LACP, STP); a bridge does not pass them on."""


class Switch:
    """A bridge with any number of ports up to `MAX_PORTS`. `clock` returns nanoseconds and never goes back."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._ports: list[Port] = []
        self._table: MacTable[Port] = MacTable()
        self._pending: deque[tuple[Port, Frame, int, int]] = deque()
        self._busy = False
        self._throttled: set[Port] = set()
        self._next_sweep = clock() + AGEING_NS
        self.alarm: Callable[[], None] = _nobody
        """Called whenever `next_deadline` may be another; see `ticker`."""

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(self._ports)

    def attach(self, port: Port) -> Port:
        """Plug a port in and return it. Raises ValueError if it is plugged already or there is no room."""
        if port.switch is not None:
            raise ValueError("the port is plugged into a switch")
        if len(self._ports) >= MAX_PORTS:
            raise ValueError(f"the switch has {MAX_PORTS} ports")
        port.switch = self
        self._ports.append(port)
        return port

    def detach(self, port: Port) -> None:
        """Unplug a port; frames on their way to it are dropped. Raises ValueError if it is not plugged in here."""
        if port.switch is not self:
            raise ValueError("the port is not plugged into this switch")
        port.switch = None
        self._ports.remove(port)
        self._table.forget(port)
        self._throttled.discard(port)
        port.throttled_until = None
        port.discard()

    def location(self, mac: bytes, vlan: int = 0) -> Port | None:
        """Return the port behind which an address was learnt, if it still is."""
        return self._table.lookup(vlan, mac, self._clock())

    def ingress(self, port: Port, frame: Frame) -> bool:
        """Take a frame that came in at a port: see `Port.send`."""
        now = self._clock()
        length = len(frame.data)
        if not ETHERNET_HEADER <= length <= MAX_FRAME:
            port.counters.received.errors += 1
            return True
        if port.limit is not None and not port.limit.take(length, now):
            return self._throttle(port, length)
        count = port.counters.received
        count.packets += 1
        count.bytes += length
        classified = self._classify(port, frame)
        if classified is None:
            return True
        frame, vlan, priority = classified
        if not self._acceptable(port, frame):
            return True
        if len(self._pending) >= PENDING_FRAMES:
            count.dropped += 1
            return True
        self._table.learn(vlan, frame.data[6:12], port, now)
        self._pending.append((port, frame, vlan, priority))
        if not self._busy:
            self._run(now)
        return True

    def tick(self, now: int) -> None:
        """Do what time brings: forget old addresses, wake throttled peers, go on with what was left."""
        if now >= self._next_sweep:
            self._table.sweep(now)
            self._next_sweep = now + AGEING_NS
        for port in [port for port in self._throttled if (port.throttled_until or 0) <= now]:
            self._throttled.discard(port)
            port.throttled_until = None
            if port.ready is not None:
                port.ready()
        if self._pending and not self._busy:
            self._run(now)

    def next_deadline(self) -> int | None:
        """Return when `tick` has something to do that cannot wait, in nanoseconds; None: nothing."""
        if self._pending:
            return self._clock()
        return min((port.throttled_until or 0 for port in self._throttled), default=None)

    def _throttle(self, port: Port, length: int) -> bool:
        port.counters.throttled += 1
        if port.ready is None or port.limit is None:
            port.counters.received.dropped += 1
            return True
        port.throttled_until = port.limit.ready_at(length)
        self._throttled.add(port)
        self.alarm()
        return False

    def _classify(self, port: Port, frame: Frame) -> tuple[Frame, int, int] | None:
        """Return the frame without its tag, its VLAN and priority bits; None (counted) if the port is not in it."""
        data = frame.data
        membership = port.membership
        if data[12:14] != ETHERTYPE_VLAN:
            if membership.untagged is None:
                port.counters.received.dropped += 1
                return None
            return frame, membership.untagged, 0
        if len(data) < ETHERNET_HEADER + VLAN_HEADER:
            port.counters.received.errors += 1
            return None
        control = data[14] << 8 | data[15]
        vlan: int | None = control & 0xFFF
        if vlan == 0:  # a tag that tells the priority only
            vlan = membership.untagged
        elif vlan not in membership.tagged:
            vlan = None
        if vlan is None:
            port.counters.received.dropped += 1
            return None
        start = max(0, frame.csum_start - VLAN_HEADER)
        return frame._replace(data=data[:12] + data[16:], csum_start=start), vlan, control & 0xF000

    def _acceptable(self, port: Port, frame: Frame) -> bool:
        """Check addresses, lock, metadata and size of an untagged frame; what fails is counted."""
        data = frame.data
        count = port.counters.received
        if data[0] == 1 and data[:5] == _LINK_LOCAL and data[5] < 16:
            count.dropped += 1
            return False
        if not is_host_mac(data[6:12]):
            count.errors += 1
            return False
        if port.lock.mode is not LockMode.UNLOCKED and not port.lock.permits_from(data):
            count.dropped += 1
            return False
        if frame.csum_start or frame.gso_size or frame.gso_type:
            try:
                check(frame)
            except BadOffload:
                count.errors += 1
                return False
        if wire_length(frame) > port.mtu:
            count.errors += 1
            return False
        return True

    def _run(self, now: int) -> None:
        self._busy = True
        try:
            for _ in range(WORK_OF_A_CALL):
                if not self._pending:
                    return
                self._forward(*self._pending.popleft(), now)
        finally:
            self._busy = False
        if self._pending:
            self.alarm()

    def _forward(self, source: Port, frame: Frame, vlan: int, priority: int, now: int) -> None:
        destination = frame.data[:6]
        known = None if destination[0] & 1 else self._table.lookup(vlan, destination, now)
        made: dict[Offloads, Sequence[Frame]] = {}
        if known is not None:
            if known is not source and vlan in known.membership:
                self._egress(known, frame, vlan, priority, made)
            return
        for port in self.ports:  # a copy: a peer may unplug a port meanwhile
            if port is not source and port.switch is self and vlan in port.membership:
                self._egress(port, frame, vlan, priority, made)

    def _egress(
        self, port: Port, frame: Frame, vlan: int, priority: int, made: dict[Offloads, Sequence[Frame]]
    ) -> None:
        """Give a port what it can take; `made` keeps it for the next port that can do the same."""
        if port.lock.mode is not LockMode.UNLOCKED and not port.lock.permits_to(frame.data):
            port.counters.sent.dropped += 1
            return
        if wire_length(frame) > port.mtu:
            port.counters.sent.dropped += 1
            return
        if vlan == port.membership.untagged:
            if frame.data[12:14] == ETHERTYPE_VLAN:  # an inner tag would pass for one of ours: VLAN hopping
                port.counters.sent.dropped += 1
                return
            frames = _fitting(frame, port.offloads, made)
        else:
            fitting = _fitting(frame, port.offloads if port.offloads.tagged else PLAIN, made)
            frames = [_tagged(each, vlan | priority) for each in fitting]
        for each in frames:
            port.deliver(each)


def _fitting(frame: Frame, offloads: Offloads, made: dict[Offloads, Sequence[Frame]]) -> Sequence[Frame]:
    """Return what `fit` does, from `made` if it is there: a flood is cut once, not for each port."""
    if not frame.csum_start:
        return (frame,)
    found = made.get(offloads)
    if found is None:
        found = made[offloads] = fit(frame, offloads)
    return found


def _nobody() -> None:
    """Stand for an alarm that nobody set."""


def _tagged(frame: Frame, control: int) -> Frame:
    """Return the frame with an 802.1Q tag; the metadata moves with what it points at."""
    data = frame.data
    data = data[:12] + ETHERTYPE_VLAN + control.to_bytes(2, "big") + data[12:]
    return frame._replace(data=data, csum_start=frame.csum_start + VLAN_HEADER if frame.csum_start else 0)


def connect(left: Switch, right: Switch, membership: Membership) -> tuple[Port, Port]:
    """Lay a cable between two switches of one clock and return its two ends; unplug both to take it away.

    Frames keep their metadata on the way. Rings of cables do no lasting harm: see `MAX_HOPS`.
    """
    left_end = Port(lambda frame: _pass_on(right_end, frame), offloads=EVERY_OFFLOAD, membership=membership)
    right_end = Port(lambda frame: _pass_on(left_end, frame), offloads=EVERY_OFFLOAD, membership=membership)
    left_end.mtu = right_end.mtu = MAX_PACKET  # the ports of guests have their own
    return left.attach(left_end), right.attach(right_end)


def _pass_on(far: Port, frame: Frame) -> bool:
    if frame.hops >= MAX_HOPS:
        far.counters.received.dropped += 1
        return True
    return far.send(frame._replace(hops=frame.hops + 1))
