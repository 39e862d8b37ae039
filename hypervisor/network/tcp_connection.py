"""One TCP connection: its states, its receiving half, and what the application sees (RFC 9293 3.3-3.10)."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from hypervisor.network.tcp_reassembly import Reassembly
from hypervisor.network.tcp_segment import ACK, FIN, MAX_SCALE, PSH, RST, SYN, Segment, near
from hypervisor.network.tcp_sender import BUFFER, DEFAULT_MSS, FIRST_TIMEOUT_NS, MAX_RETRIES, Burst, Sender

WINDOW = 256 << 10
SCALE = 3
DELAYED_ACK_NS = 40_000_000
LINGER_NS = 60_000_000_000
"""How long TIME_WAIT lasts, and FIN_WAIT_2 without a word from the peer."""
HANDSHAKE_RETRIES = 5


class State(Enum):
    SYN_SENT = auto()
    SYN_RECEIVED = auto()
    ESTABLISHED = auto()
    FIN_WAIT_1 = auto()
    FIN_WAIT_2 = auto()
    CLOSE_WAIT = auto()
    CLOSING = auto()
    LAST_ACK = auto()
    TIME_WAIT = auto()
    CLOSED = auto()


_CLOSE = {State.ESTABLISHED: State.FIN_WAIT_1, State.CLOSE_WAIT: State.LAST_ACK}
_PEER_CLOSED = {
    State.ESTABLISHED: State.CLOSE_WAIT,
    State.FIN_WAIT_1: State.CLOSING,
    State.FIN_WAIT_2: State.TIME_WAIT,
}
_FIN_ACKNOWLEDGED = {
    State.FIN_WAIT_1: State.FIN_WAIT_2,
    State.CLOSING: State.TIME_WAIT,
    State.LAST_ACK: State.CLOSED,
}
_RECEIVING = (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)

Transmit = Callable[["Connection", Segment, int], None]
"""Sends a segment of a connection, to be cut into payloads of so many bytes (0: not to be cut)."""


class Connection:
    """A stream both ways. Set the callbacks when it is handed over; all are called from the layer's calls."""

    def __init__(
        self,
        peer: bytes,
        peer_port: int,
        port: int,
        mss: int,
        initial: int,
        transmit: Transmit,
        clock: Callable[[], int],
    ) -> None:
        self.peer = peer
        self.peer_port = peer_port
        self.port = port
        self.state = State.CLOSED
        self.opened: Callable[[], None] = _ignore
        """The handshake is done."""
        self.received: Callable[[bytes], None] = _ignore
        """The next bytes of the stream."""
        self.ended: Callable[[], None] = _ignore
        """The peer will send no more; we still may."""
        self.writable: Callable[[], None] = _ignore
        """There is room again after `send` took less than it was given."""
        self.closed: Callable[[str], None] = _ignore
        """It is over: "" in good order, else "refused", "reset" or "timed out"."""
        self._mss = mss
        self._initial = initial
        self._transmit = transmit
        self._clock = clock
        self._sender = Sender(initial + 1)
        self._expected = 0
        self._pieces = Reassembly(2 * WINDOW)
        self._fin_at: int | None = None
        self._peer_scale: int | None = None
        self._starved = False
        self._ack_at: int | None = None
        self._unacknowledged = 0
        self._deadline: int | None = None
        """Of the handshake's retry, or of lingering at the end."""
        self._retries = 0

    # what the application calls

    def send(self, data: bytes) -> int:
        """Queue bytes and return how many were taken; after fewer than given, `writable` tells of room.

        Raises ValueError once `close` was called or the connection is over.
        """
        if self._sender.closing or self.state is State.CLOSED:
            raise ValueError("the connection does not send any more")
        self._starved = False  # nobody is called back for room while here
        view = memoryview(data)
        taken = 0
        while taken < len(view) and self._sender.room:
            taken += self._sender.write(view[taken:])
            self._push()
        self._starved = taken < len(view)
        return taken

    @property
    def unsent(self) -> int:
        """Bytes given to `send` that the peer has not acknowledged yet."""
        return BUFFER - self._sender.room if not self._sender.closing else self._sender.end - self._sender.una

    def close(self) -> None:
        """Send what is queued, then end our half of the stream. Before the handshake is done: give up."""
        if self.state in (State.SYN_SENT, State.SYN_RECEIVED):
            self.abort()
        elif self.state in _CLOSE:
            self.state = _CLOSE[self.state]
            self._sender.closing = True
            self._push()

    def abort(self) -> None:
        """Break the connection at once; the peer gets a reset. `closed` is not called."""
        if self.state not in (State.CLOSED, State.SYN_SENT, State.TIME_WAIT):
            self._emit(RST | ACK, self._sender.next)
        self.state = State.CLOSED

    # what the layer calls

    def open(self) -> None:
        """Begin the handshake."""
        self.state = State.SYN_SENT
        self._handshake(SYN)

    def accept(self, syn: Segment) -> None:
        """Answer a peer's SYN."""
        self._learn(syn)
        self.state = State.SYN_RECEIVED
        self._handshake(SYN | ACK)

    def receive(self, segment: Segment) -> None:
        """Take a segment of this connection."""
        if self.state is State.SYN_SENT:
            self._receive_answer(segment)
        elif self.state is not State.CLOSED:
            self._receive(segment)

    def tick(self, now: int) -> None:
        """Do what is due: acknowledge, send again, probe, give up."""
        if self._deadline is not None and self._deadline <= now:
            self._expire(now)
        if self.state is State.CLOSED:
            return
        if self._sender.deadline is not None and self._sender.deadline <= now and self._is_synchronised():
            if self._sender.retries >= MAX_RETRIES:
                self._end("timed out")
                return
            probe = self._sender.expire(now)
            if probe is not None:
                self._send(probe)
            self._push()
        if self._ack_at is not None and self._ack_at <= now:
            self._acknowledge()

    def forget(self) -> None:
        """End at once, in good order: its place is needed."""
        self._end("")

    def next_deadline(self) -> int | None:
        sender = self._sender.deadline if self._is_synchronised() else None
        return min((at for at in (self._deadline, sender, self._ack_at) if at is not None), default=None)

    # opening

    def _handshake(self, flags: int) -> None:
        self._deadline = self._clock() + (FIRST_TIMEOUT_NS << self._retries)
        scale = SCALE if flags == SYN or self._peer_scale is not None else None
        self._emit(flags, self._initial, mss=self._mss, scale=scale)

    def _learn(self, syn: Segment) -> None:
        self._expected = syn.sequence + 1
        self._peer_scale = None if syn.scale is None else min(syn.scale, MAX_SCALE)
        self._sender.use(min(self._mss, syn.mss or DEFAULT_MSS), syn.window)

    def _receive_answer(self, segment: Segment) -> None:
        """Take a segment in SYN_SENT (RFC 9293 3.10.7.3); the layer answers a wrong acknowledgement."""
        acknowledged = bool(segment.flags & ACK)
        if acknowledged and near(segment.acknowledged, self._initial) != self._initial + 1:
            return
        if segment.flags & RST:
            if acknowledged:
                self._end("refused")
            return
        if not segment.flags & SYN:
            return
        self._learn(segment)
        if not acknowledged:  # both opened at once
            self.state = State.SYN_RECEIVED
            self._handshake(SYN | ACK)
            return
        self._establish()
        self._acknowledge()
        self.opened()
        self._push()

    def _establish(self) -> None:
        self.state = State.ESTABLISHED
        self._deadline = None
        self._retries = 0

    # receiving

    def _receive(self, segment: Segment) -> None:
        sequence = near(segment.sequence, self._expected)
        if not self._acceptable(sequence, segment.length):
            if not segment.flags & RST:
                self._acknowledge()
            return
        if segment.flags & RST:
            if self.state is State.TIME_WAIT:
                return  # RFC 1337: it only means that the peer has forgotten us first
            if sequence == self._expected:
                self._end("refused" if self.state is State.SYN_RECEIVED else self._loss())
            else:
                self._acknowledge()  # RFC 5961: only the exact number resets
            return
        if segment.flags & SYN:
            self._acknowledge()
            return
        if not segment.flags & ACK:
            return
        number = near(segment.acknowledged, self._sender.una)
        if number > self._sender.max:
            self._acknowledge()
            return
        if self.state is State.SYN_RECEIVED:
            if number != self._initial + 1:
                return
            self._establish()
            self.opened()
        self._take_acknowledgement(segment, number)
        if self.state is not State.CLOSED:
            self._take_data(sequence, segment)
        self._push()

    def _acceptable(self, sequence: int, length: int) -> bool:
        end = self._expected + WINDOW
        return sequence < end and (sequence + length > self._expected or (length == 0 and sequence == self._expected))

    def _take_acknowledgement(self, segment: Segment, number: int) -> None:
        window = segment.window << (self._peer_scale or 0)
        pure = not segment.payload and not segment.flags & FIN
        again = self._sender.acknowledge(number, window, self._clock(), pure)
        if again is not None:
            self._send(again)
        if self._sender.finished and self.state in _FIN_ACKNOWLEDGED:
            self.state = _FIN_ACKNOWLEDGED[self.state]
            self._deadline = self._clock() + LINGER_NS
            if self.state is State.CLOSED:
                self._end("")
        elif self._starved and self._sender.room >= BUFFER // 2:
            self._starved = False
            self.writable()

    def _take_data(self, sequence: int, segment: Segment) -> None:
        """Deliver what is next in the stream, keep what is early, note the peer's FIN."""
        if not segment.length or self.state not in _RECEIVING:
            if segment.length:  # after the peer's FIN: sent again, so our acknowledgement was lost
                self._acknowledge()
            return
        payload = segment.payload[: max(0, self._expected + WINDOW - sequence)]
        if segment.flags & FIN and len(payload) == len(segment.payload):
            self._fin_at = sequence + len(payload)
        in_order = sequence <= self._expected
        if sequence == self._expected and not self._pieces:
            ready = [payload] if payload else []  # nearly always
        else:
            self._pieces.add(sequence, payload)
            ready = self._pieces.take(self._expected)
        self._expected += sum(map(len, ready))
        ended = self._fin_at == self._expected
        if ended:
            self._expected += 1
            self.state = _PEER_CLOSED[self.state]
        if self.state in (State.TIME_WAIT, State.FIN_WAIT_2):
            self._deadline = self._clock() + LINGER_NS
        self._owe(sum(map(len, ready)), at_once=ended or not in_order or not ready)
        for data in ready:
            if self.state is not State.CLOSED:  # a callback may have aborted
                self.received(data)
        if ended and self.state is not State.CLOSED:
            self.ended()

    def _owe(self, length: int, at_once: bool) -> None:
        """Acknowledge at once what must be, else every second full segment or after a short while."""
        self._unacknowledged += length
        if at_once or self._unacknowledged >= 2 * self._mss:
            self._acknowledge()
        elif self._ack_at is None:
            self._ack_at = self._clock() + DELAYED_ACK_NS

    # sending

    def _push(self) -> None:
        """Send what may be sent; acknowledgements that come meanwhile may do the same, in order."""
        while self._is_synchronised() and self.state is not State.TIME_WAIT:
            burst = self._sender.next_burst(self._clock())
            if burst is None:
                return
            self._send(burst)

    def _send(self, burst: Burst) -> None:
        flags = ACK | (FIN if burst.fin else 0) | (PSH if burst.data else 0)
        self._emit(flags, burst.sequence, burst.data)

    def _acknowledge(self) -> None:
        self._emit(ACK, self._sender.acceptable)

    def _emit(
        self, flags: int, sequence: int, data: bytes = b"", mss: int | None = None, scale: int | None = None
    ) -> None:
        if flags & ACK:
            self._ack_at = None
            self._unacknowledged = 0
        window = min(WINDOW >> SCALE if self._peer_scale is not None and not flags & SYN else WINDOW, 0xFFFF)
        expected = self._expected if flags & ACK else 0
        segment = Segment(self.port, self.peer_port, sequence, expected, flags, window, data, mss, scale)
        self._transmit(self, segment, self._sender.mss if len(data) > self._sender.mss else 0)

    def _is_synchronised(self) -> bool:
        return self.state not in (State.CLOSED, State.SYN_SENT, State.SYN_RECEIVED)

    # ending

    def _expire(self, now: int) -> None:
        if self.state in (State.SYN_SENT, State.SYN_RECEIVED):
            self._retries += 1
            if self._retries > HANDSHAKE_RETRIES:
                self._end("timed out")
            else:
                self._handshake(SYN if self.state is State.SYN_SENT else SYN | ACK)
        elif self.state is State.TIME_WAIT:
            self._end("")
        elif self.state is State.FIN_WAIT_2:
            self._end("timed out")
        else:
            self._deadline = None

    def _loss(self) -> str:
        """Return what a reset means: nothing once both streams have arrived whole."""
        ended = self._fin_at is not None and self._expected > self._fin_at
        whole = ended and self._sender.closing and self._sender.una >= self._sender.end
        return "" if whole else "reset"

    def _end(self, reason: str) -> None:
        self.state = State.CLOSED
        self._deadline = self._ack_at = None
        self.closed(reason)


def _ignore(*_arguments: object) -> None:
    """Stand for a callback that nobody set."""
