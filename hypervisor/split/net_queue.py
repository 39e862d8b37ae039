"""The two rings of a network front while it is connected, between them and a port of a switch.

Threads. The rings and the guest's memory are touched on the domain's own thread only (see `ring`). What the guest
sends goes through the switch there and then, inside its own hypercall. What comes for it may come on any thread
that holds the host's lock: then it waits in the port, which bounds it, and one call is posted to the domain's
thread, however many frames follow before it is made. What is answered meanwhile, an echo of the host's for
instance, is put into the ring when the batch ends. A batch is answered by one event at most.

Copies, as Xen's netback makes them: a frame is one copy out of the guest's memory and one into each receiver's.
They begin and end while the guest does not run, so its grants are looked at but not marked as used.

A front that does not give us slots loses frames: `QUEUE_FRAMES` and `QUEUE_BYTES` of `network.port` are kept for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import Grant, GrantError
from hypervisor.memory.guest_memory import PAGE
from hypervisor.network.frame import Frame
from hypervisor.network.port import Port
from hypervisor.split.net_request import (
    ERROR,
    OKAY,
    RX_ANSWER,
    RX_REQUEST,
    BadPacket,
    BrokenChain,
    Packet,
    answers_for,
    frame_of,
    gather,
    packets,
    pages_of,
)
from hypervisor.split.ring import Ring

TURN_NS = 1_000_000
"""Nanoseconds of sending after which whoever else wants the host's lock has a turn."""

ANSWERS_HELD = 32
"""Answers that are held until the guest's CPU comes back, at most: each event interrupts the guest."""


@dataclass(slots=True)
class Failures:
    """What the rings made impossible, of all connections of a device; the port counts the rest."""

    transmitted: int = 0
    """Packets of the guest's that were no packets."""
    received: int = 0
    """Frames for the guest that its slots could not take,"""
    received_bytes: int = 0
    """and their bytes."""


@dataclass(frozen=True, slots=True)
class Rings:
    """What a front has connected: its rings, their pages, and the ports of its events, which may be one."""

    tx: Ring
    rx: Ring
    pages: Sequence[Grant]
    tx_event: int
    rx_event: int
    scattered: bool
    """The front takes frames in several slots."""


class NetQueue:
    """Serves the rings of a domain until `close`; `broken` is told what makes that impossible."""

    def __init__(
        self, domain: Domain, port: Port, rings: Rings, failures: Failures, broken: Callable[[str], None]
    ) -> None:
        self.closed = False
        self.rings = rings
        self._domain = domain
        self._port = port
        self._failures = failures
        self._broken = broken
        self._waiting: deque[Packet] = deque()
        """Packets taken from the ring that have no credit yet."""
        self._answers: list[bytes] = []
        self._sending = False
        self._holding = False
        """Answers are held until the guest's CPU comes back."""
        self._posted: deque[tuple[int, int]] = deque()
        """Slots that the guest gave for receiving, id and grant, oldest first."""
        self._filled: list[bytes] = []
        self._filling = False
        self._called = False
        """A fill is on its way."""

    def close(self) -> None:
        """Touch the guest no more."""
        self.closed = True
        for what in (self._waiting, self._answers, self._filled):
            what.clear()
        for page in self.rings.pages:
            page.end()

    def heard(self) -> None:
        """Hear an event of the guest's: there may be something to send, or slots to fill."""
        self.transmit()
        if self._port.queued and not self.closed:
            self._fill_all()

    # From the guest

    def transmit(self) -> None:
        """Send what is in the ring, at most a ring full, as far as the rate allows; on the domain's thread."""
        if self.closed or self._sending:
            return
        self._sending = True
        try:
            if self._send_waiting() and self._take():
                self._send_waiting()
        finally:
            self._sending = False
        if len(self._answers) >= ANSWERS_HELD:
            self._answer()
        elif self._answers and not self._holding:
            self._holding = True
            self._domain.events.put_off(self._answer_held)
        if self._called:
            self._fill_all()

    def _answer_held(self) -> None:
        self._holding = False
        if not self.closed:
            self._answer()

    def _answer(self) -> None:
        """Hand back slots whose packets are gone."""
        answers, self._answers = self._answers, []
        if answers and self.rings.tx.respond(answers):
            self._domain.events.raise_port(self.rings.tx_event)

    def _take(self) -> bool:
        """Take the requests that are in the ring; tell whether there is something to send."""
        ring = self.rings.tx
        slots = ring.requests(ring.slots + 1)  # one more than there can be, so that we hear of the next
        try:
            self._waiting.extend(packets(slots))
        except BrokenChain:
            self._broken("a packet in the transmit ring has no end")
            return False
        if ring.broken:
            self._broken("the transmit ring's request index is wild")
            return False
        return bool(self._waiting)

    def _send_waiting(self) -> bool:
        """Send packets in order; tell whether all are gone. One without credit stays, its slots unanswered."""
        waiting, grants, memory = self._waiting, self._domain.grants, self._domain.memory.bytes
        now = self._domain.time.clock.now
        end = now() + TURN_NS
        while waiting:
            if now() > end:
                self._go_on_later()
                return False
            packet, status = waiting[0], OKAY
            try:
                if not self._port.send(frame_of(packet, gather(packet, grants, memory))):
                    return False
            except BadPacket:
                self._failures.transmitted += 1
                status = ERROR
            if self.closed:  # the frame has had effects
                return False
            waiting.popleft()
            self._answers += packet.answers(status)
        return True

    def _go_on_later(self) -> None:
        """Have `transmit` called again, with the lock let go before if we are in a hypercall."""

        def go_on() -> None:
            with self._domain.host.lock:
                self.transmit()

        if self._domain.vcpus.on_this_thread():
            self._domain.platform.defer(go_on)
        else:
            self._domain.events.post(self.transmit)

    # To the guest

    def receive(self, frame: Frame) -> bool:
        """Take a frame from the port, or leave it there until the domain's thread comes by."""
        if self._filling:
            return self._fill(frame)
        if self._sending or not self._domain.vcpus.on_this_thread():
            self.call()
            return False
        # Inside a hook of this very guest a call would not be put off but made: before the frame is in the port.
        self._filling = True
        try:
            taken = self._fill(frame)
        finally:
            self._filling = False
        self._hand_over()
        return taken

    def call(self) -> None:
        """Have the domain's thread look for frames and slots soon."""
        if not self._called:
            self._called = True
            if not self._sending:  # else the end of that batch sees to it
                self._domain.events.post(self._fill_all)

    def _fill_all(self) -> None:
        """Put into the ring what waits in the port, as far as there are slots; on the domain's thread."""
        self._called = False
        if self.closed or self._filling:
            return
        self._filling = True
        try:
            self._port.drain()
        finally:
            self._filling = False
        self._hand_over()

    def _hand_over(self) -> None:
        """Tell the guest of the slots that were filled."""
        ring = self.rings.rx
        filled, self._filled = self._filled, []
        if filled and ring.respond(filled):
            self._domain.events.raise_port(self.rings.rx_event)
        if ring.broken:
            self._broken("the receive ring's request index is wild")

    def _fill(self, frame: Frame) -> bool:
        """Put a frame into slots of the guest's; False when there are too few."""
        data = frame.data
        pages = pages_of(len(data))
        count = pages + (frame.gso_size > 0)
        if count > 1 and not self.rings.scattered:
            self._fail(len(data))
            return True
        if len(self._posted) < count and not self._take_posted(count):
            return False
        slots = [self._posted.popleft() for _ in range(count)]
        numbers = [number for number, _ in slots]
        try:
            places = self._places([slots[0], *slots[count - pages + 1 :]], len(data))
        except GrantError:
            self._fail(len(data))
            self._filled += [RX_ANSWER.pack(number, 0, 0, ERROR) for number in numbers]
            return True
        memory = self._domain.memory.bytes
        if pages == 1:
            memory[places[0] : places[0] + len(data)] = data
        else:
            view = memoryview(data)
            for page, place in enumerate(places):
                piece = view[page * PAGE : (page + 1) * PAGE]
                memory[place : place + len(piece)] = piece
        self._filled += answers_for(frame, numbers)
        return True

    def _places(self, slots: Sequence[tuple[int, int]], length: int) -> list[int]:
        """Return the addresses of the slots' frames. Raises GrantError, for part of a frame too, if that is too small.

        All are looked at before any is written: a frame arrives whole or not at all.
        """
        places = []
        for _, ref in slots:
            frame, start, granted = self._domain.grants.look(ref, 0, True)
            if start or granted < min(length, PAGE):
                raise GrantError(ERROR)
            places.append(frame * PAGE)
            length -= PAGE
        return places

    def _take_posted(self, count: int) -> bool:
        """Take all slots that the guest has posted; with fewer than `count`, have it tell us of more."""
        ring = self.rings.rx
        missing = count - len(self._posted)
        taken = ring.requests(max(ring.waiting(), missing))
        self._posted.extend(map(RX_REQUEST.unpack, taken))
        return len(taken) >= missing

    def _fail(self, length: int) -> None:
        self._failures.received += 1
        self._failures.received_bytes += length
