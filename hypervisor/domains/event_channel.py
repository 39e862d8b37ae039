"""Event channels of one domain, the 2-level ABI (public/event_channel.h, public/xen.h: shared_info).

A port is pending when its bit is set in the domain's shared page. Guests clear and mask bits with atomic
instructions, so bits are set only by the thread that runs the domain, between runs or inside a hook:
`EventChannels.raise_port` must be called there, and everybody else goes through `notify`, which queues the
port and asks for the domain to be looked at. The other end of an interdomain channel is either another
domain's port or a function of ours: a backend.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hypervisor.domid import DOMID_SELF
from hypervisor.errors import EEXIST, EINVAL, ENOENT, ENOSPC, ESRCH, XenError
from hypervisor.memory.guest_memory import PAGE, Memory

PORTS = 4096
"""Ports of a 64-bit domain with the 2-level ABI: 64 words of 64 bits; port 0 is never used."""
_PENDING, _MASK, _WALLCLOCK = 0x800, 0xA00, 0xC00
VCPU_INFO_SIZE = 64
LEGACY_VCPUS = 32
"""vCPUs whose vcpu_info lies in the shared page itself (XEN_LEGACY_MAX_VCPUS)."""

VIRQ_TIMER, VIRQ_DEBUG, VIRQ_CONSOLE = 0, 1, 2
_PER_VCPU_VIRQS = frozenset({VIRQ_TIMER, VIRQ_DEBUG, 7, 13})


@dataclass(slots=True)
class Channel:
    """One port in use. `kind` is as EVTCHNOP_status numbers it (EVTCHNSTAT_*)."""

    kind: int
    vcpu: int = 0
    remote: int = 0
    remote_port: int = 0
    detail: int = 0
    notify: Callable[[], None] | None = None
    closed: Callable[[], None] | None = None
    """Of a backend: hears that the guest has closed the port."""


CLOSED, UNBOUND, INTERDOMAIN, PIRQ, VIRQ, IPI = range(6)


class Peers(Protocol):
    """What event channels ask of the host: other domains, and to look at this one."""

    def event_channels_of(self, domid: int) -> EventChannels | None:
        """Return another domain's channels, or None when there is no such domain."""

    def attend(self, domid: int) -> None:
        """Let the domain's thread drain `queued` soon; from any thread."""

    def upcall(self, domid: int, vcpu: int) -> None:
        """Tell a vCPU that an event is pending for it; on the domain's thread."""


@dataclass(slots=True)
class EventChannels:
    """The ports of a domain; the shared page is where the guest or the builder put it."""

    domid: int
    memory: Memory
    peers: Peers
    vcpus: int = 1
    shared_info: int = -1
    """Guest-physical address of the shared page, or -1 before there is one."""
    vcpu_info: dict[int, int] = field(default_factory=dict)
    """Guest-physical addresses of vcpu_info structures that were moved out of the shared page."""
    channels: dict[int, Channel] = field(default_factory=dict)
    queued: deque[int | Callable[[], None]] = field(default_factory=deque)
    """Ports to raise and functions to call, in order, when the domain's thread next comes by."""
    polls: dict[int, frozenset[int]] = field(default_factory=dict)
    """By vCPU: the ports that it waits for (SCHEDOP_poll), masked or not."""
    _waiting: set[int] = field(default_factory=set)
    """The ports in `queued`."""
    _virqs: dict[tuple[int, int], int] = field(default_factory=dict)
    _next: int = 1

    # Ports

    def _free_port(self) -> int:
        for _ in range(PORTS):
            port, self._next = self._next, self._next % (PORTS - 1) + 1
            if port not in self.channels:
                return port
        raise XenError(ENOSPC)

    def _channel(self, port: int) -> Channel:
        channel = self.channels.get(port)
        if channel is None:
            raise XenError(EINVAL)
        return channel

    def _check_vcpu(self, vcpu: int) -> None:
        if not 0 <= vcpu < self.vcpus:
            raise XenError(ENOENT)

    def alloc_unbound(self, remote: int) -> int:
        """Return a new port that the remote domain may bind to."""
        port = self._free_port()
        self.channels[port] = Channel(UNBOUND, remote=remote)
        return port

    def bind_interdomain(self, remote: int, remote_port: int) -> int:
        """Bind a new port to another domain's unbound one and return it."""
        peer = self if remote in (DOMID_SELF, self.domid) else self.peers.event_channels_of(remote)
        if peer is None:
            raise XenError(ESRCH)
        other = peer.channels.get(remote_port)
        if other is None or other.kind != UNBOUND or other.remote not in (self.domid, DOMID_SELF):
            raise XenError(EINVAL)
        port = self._free_port()
        self.channels[port] = Channel(INTERDOMAIN, remote=peer.domid, remote_port=remote_port)
        other.kind, other.remote, other.remote_port = INTERDOMAIN, self.domid, port
        peer.notify(remote_port)  # an event may have been sent before there was anybody to hear it
        return port

    def connect_backend(self, port: int, heard: Callable[[], None], closed: Callable[[], None] | None = None) -> None:
        """Let a backend of ours be the other end of a port that the guest left unbound for domain 0.

        `closed` is called when the guest closes the port.

        Raises XenError when the guest's port is not such a one.
        """
        channel = self.channels.get(port)
        if channel is None or channel.kind != UNBOUND or channel.remote != 0:
            raise XenError(EINVAL)
        channel.kind, channel.notify, channel.closed = INTERDOMAIN, heard, closed
        self.notify(port)

    def disconnect_backend(self, port: int) -> None:
        """Undo `connect_backend`; the guest's port is unbound again. Harmless when it is gone."""
        channel = self.channels.get(port)
        if channel is not None and channel.notify is not None:
            channel.kind, channel.notify, channel.closed = UNBOUND, None, None

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """Return a new port for a virtual interrupt."""
        if not 0 <= virq < 24:
            raise XenError(EINVAL)
        if virq not in _PER_VCPU_VIRQS and vcpu != 0:
            raise XenError(EINVAL)
        self._check_vcpu(vcpu)
        if (virq, vcpu) in self._virqs:
            raise XenError(EEXIST)
        port = self._free_port()
        self.channels[port] = Channel(VIRQ, vcpu, detail=virq)
        self._virqs[virq, vcpu] = port
        return port

    def bind_ipi(self, vcpu: int) -> int:
        """Return a new port by which the domain's vCPUs interrupt this one."""
        self._check_vcpu(vcpu)
        port = self._free_port()
        self.channels[port] = Channel(IPI, vcpu)
        return port

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """Deliver a port's events to another vCPU."""
        self._check_vcpu(vcpu)
        channel = self._channel(port)
        if channel.kind == IPI or (channel.kind == VIRQ and channel.detail in _PER_VCPU_VIRQS):
            raise XenError(EINVAL)
        channel.vcpu = vcpu

    def close(self, port: int) -> None:
        """Give a port up; the other end of an interdomain channel becomes unbound."""
        channel = self._channel(port)
        if channel.kind == VIRQ:
            # A port of a global one may have been bound to another vCPU since.
            del self._virqs[channel.detail, channel.vcpu if channel.detail in _PER_VCPU_VIRQS else 0]
        elif channel.kind == INTERDOMAIN and channel.notify is None:
            peer = self if channel.remote == self.domid else self.peers.event_channels_of(channel.remote)
            other = None if peer is None else peer.channels.get(channel.remote_port)
            if other is not None and other is not channel:
                other.kind, other.remote, other.remote_port = UNBOUND, self.domid, 0
        del self.channels[port]
        self._set_pending(port, False)
        if channel.closed is not None:
            channel.closed()

    def reset(self) -> None:
        """Close all ports."""
        for port in list(self.channels):
            self.close(port)

    def forget(self) -> None:
        """Close all ports and forget where the guest's structures are: it will place them again."""
        self.reset()
        kept = [item for item in self.queued if not isinstance(item, int)]
        self.queued.clear()
        self.queued.extend(kept)
        self._waiting.clear()
        self.vcpu_info.clear()
        self.shared_info = -1

    def status(self, port: int) -> Channel:
        """Return what a port is bound to; a closed one for a number that is not in use."""
        if not 0 < port < PORTS:
            raise XenError(EINVAL)
        return self.channels.get(port) or Channel(CLOSED)

    # Sending

    def send(self, port: int) -> None:
        """Do what the guest means by sending on one of its ports; on the domain's thread."""
        channel = self._channel(port)
        if channel.kind == INTERDOMAIN:
            if channel.notify is not None:
                channel.notify()
                return
            peer = self if channel.remote == self.domid else self.peers.event_channels_of(channel.remote)
            if peer is self:
                self.raise_port(channel.remote_port)
            elif peer is not None:
                peer.notify(channel.remote_port)
        elif channel.kind == IPI:
            self.raise_port(port)
        elif channel.kind != UNBOUND:
            raise XenError(EINVAL)

    def notify(self, port: int) -> None:
        """Raise a port of this domain, from any thread."""
        if port not in self._waiting:  # else another domain could fill our memory with events for a paused one
            self._waiting.add(port)
            self.queued.append(port)
        self.peers.attend(self.domid)

    def post(self, function: Callable[[], None]) -> None:
        """Have a function called on the domain's thread, under the host's lock; from any thread.

        That is where a backend may touch its rings. Dropped when the domain ends before.
        """
        self.queued.append(function)
        self.peers.attend(self.domid)

    def put_off(self, function: Callable[[], None]) -> None:
        """Have a function called like one that is posted, but when the vCPU comes back by itself; in a hook of its."""
        self.queued.append(function)

    def raise_virq(self, virq: int, vcpu: int = 0) -> bool:
        """Raise a virtual interrupt if the guest has bound it; on the domain's thread."""
        port = self._virqs.get((virq, vcpu))
        if port is not None:
            self.raise_port(port)
        return port is not None

    def drain(self) -> None:
        """Raise all queued ports and call what was posted; on the domain's thread."""
        while self.queued:
            item = self.queued.popleft()
            if isinstance(item, int):
                self._waiting.discard(item)  # first: what comes from now on is another event
                self.raise_port(item)
            else:
                item()

    def raise_port(self, port: int) -> None:
        """Make a port pending and, unless it is masked, tell its vCPU; on the domain's thread."""
        channel = self.channels.get(port)
        if channel is None or self.shared_info < 0:
            return
        if not self._set_pending(port, True):
            return
        if self.polls:
            for vcpu in [vcpu for vcpu, ports in self.polls.items() if port in ports]:
                self.peers.upcall(self.domid, vcpu)
        if not self.memory.words[self._word(_MASK, port)] >> (port & 63) & 1:
            self._mark(channel.vcpu, port)

    def is_pending(self, port: int) -> bool:
        """Tell whether a port is pending, masked or not. Raises XenError for what is no port."""
        if not 0 <= port < PORTS:
            raise XenError(EINVAL)
        return self.shared_info >= 0 and bool(self.memory.words[self._word(_PENDING, port)] >> (port & 63) & 1)

    def unmask(self, port: int) -> None:
        """Clear a port's mask and deliver what is pending behind it."""
        channel = self._channel(port)
        if self.shared_info < 0:
            return
        words, word, bit = self.memory.words, self._word(_MASK, port), 1 << (port & 63)
        words[word] &= ~bit
        if words[self._word(_PENDING, port)] & bit:
            self._mark(channel.vcpu, port)

    def _word(self, array: int, port: int) -> int:
        return (self.shared_info + array >> 3) + (port >> 6)

    def _set_pending(self, port: int, pending: bool) -> bool:
        """Write a port's pending bit; tell whether that changed it."""
        if self.shared_info < 0:
            return False
        words, word, bit = self.memory.words, self._word(_PENDING, port), 1 << (port & 63)
        before = bool(words[word] & bit)
        words[word] = words[word] | bit if pending else words[word] & ~bit
        return before != pending

    def _mark(self, vcpu: int, port: int) -> None:
        """Set the vCPU's selector bit for a port's word, and its upcall flag."""
        info = self.info_of(vcpu)
        if info < 0:
            return
        self.memory.words[(info >> 3) + 1] |= 1 << (port >> 6)
        if not self.memory.bytes[info]:
            self.memory.bytes[info] = 1
            self.peers.upcall(self.domid, vcpu)

    # The structures in the guest's memory

    def info_of(self, vcpu: int) -> int:
        """Return the guest-physical address of a vCPU's vcpu_info, or -1 while it has none."""
        moved = self.vcpu_info.get(vcpu)
        if moved is not None:
            return moved
        if self.shared_info < 0 or vcpu >= LEGACY_VCPUS:
            return -1
        return self.shared_info + vcpu * VCPU_INFO_SIZE

    def upcall_pending(self, vcpu: int) -> bool:
        """Tell whether a vCPU has an upcall to take."""
        info = self.info_of(vcpu)
        return info >= 0 and bool(self.memory.bytes[info])

    def place_shared_info(self, frame: int) -> None:
        """Let a frame be the shared page: all ports masked, nothing pending. Raises BadAddress."""
        page = self.memory.frame(frame)
        page[:] = bytes(PAGE)
        page[_MASK:_WALLCLOCK] = b"\xff" * (_WALLCLOCK - _MASK)
        self.shared_info = frame * PAGE

    def place_vcpu_info(self, vcpu: int, address: int) -> None:
        """Move a vCPU's structure (VCPUOP_register_vcpu_info); all its words become pending, as Xen does."""
        self._check_vcpu(vcpu)
        if vcpu in self.vcpu_info:
            raise XenError(EINVAL)
        if address & 7 or (address & (PAGE - 1)) > PAGE - VCPU_INFO_SIZE:
            raise XenError(EINVAL)
        self.memory.check(address, VCPU_INFO_SIZE)
        before = self.info_of(vcpu)
        content = self.memory.read(before, VCPU_INFO_SIZE) if before >= 0 else bytes(VCPU_INFO_SIZE)
        self.memory.write(address, content)
        self.vcpu_info[vcpu] = address
        struct.pack_into("<BBxxxxxxQ", self.memory.bytes, address, 1, content[1], (1 << 64) - 1)
        self.peers.upcall(self.domid, vcpu)
