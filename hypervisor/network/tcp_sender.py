"""The sending half of a TCP connection: what to send when, and when again.

RFC 9293 (windows, probes), RFC 5681 and 6582 (slow start, congestion avoidance, fast retransmit,
NewReno), RFC 6298 (retransmission timer). No Nagle, no selective acknowledgements: the wires here
lose nothing but what a full queue drops. Sequence numbers are unbounded inside.
"""

from __future__ import annotations

from typing import NamedTuple

BUFFER = 1 << 20
"""Bytes that the application may have waiting, sent and unsent."""
MAX_BURST = 64_000
"""Payload bytes of one GSO segment at most: with its headers it fits an IP packet."""
MAX_CUTS = 64
"""Segments that one GSO segment may become."""
MIN_MSS = 88
DEFAULT_MSS = 536
FIRST_TIMEOUT_NS = 1_000_000_000
MIN_TIMEOUT_NS = 200_000_000
MAX_TIMEOUT_NS = 60_000_000_000
MAX_RETRIES = 10
_FIRST_WINDOW = 10
_DUPLICATES = 3


class Burst(NamedTuple):
    """A stretch of the stream to send now."""

    sequence: int
    data: bytes
    fin: bool


class Sender:
    """Bytes on their way out, from `una` (the first not acknowledged) on."""

    def __init__(self, first: int) -> None:
        """Start a stream whose first byte has the sequence number `first`."""
        self.una = first
        self.next = first
        self.max = first
        self.window = 0
        self.mss = DEFAULT_MSS
        self.closing = False
        self.deadline: int | None = None
        """When to send again what was not acknowledged, or to probe a closed window."""
        self.retries = 0
        self._data = bytearray()  # from una on
        self._congestion = _FIRST_WINDOW * DEFAULT_MSS
        self._threshold = 1 << 30
        self._duplicates = 0
        self._recover: int | None = None
        self._smoothed: int | None = None
        self._variation = 0
        self._timeout = FIRST_TIMEOUT_NS
        self._timed: tuple[int, int] | None = None
        self._fin_acknowledged = False

    @property
    def end(self) -> int:
        """The sequence number after the last byte given to us; the FIN's, when there is one."""
        return self.una + len(self._data)

    @property
    def acceptable(self) -> int:
        """The sequence number to put on a segment without data: what we sent last, if that is in the window."""
        return max(self.una, min(self.max, self.una + self.window))

    @property
    def room(self) -> int:
        """How many more bytes `write` takes."""
        return 0 if self.closing else BUFFER - len(self._data)

    @property
    def finished(self) -> bool:
        """Whether everything and the FIN have been acknowledged."""
        return self._fin_acknowledged

    def use(self, mss: int, window: int) -> None:
        """Take over what the peer said in its SYN."""
        self.mss = max(MIN_MSS, mss)
        self.window = window
        self._congestion = _FIRST_WINDOW * self.mss

    def write(self, data: memoryview) -> int:
        """Take as many bytes as there is room for and return how many those were."""
        taken = min(len(data), self.room)
        self._data += data[:taken]
        return taken

    def next_burst(self, now: int) -> Burst | None:
        """Return what may be sent next and note it as sent; None when that is all for now.

        One at a time: sending may bring an acknowledgement before it returns, and with it more to send.
        """
        length = self._sendable()
        fin = self.closing and not self._fin_acknowledged and self.next + length == self.end
        if length == 0 and not fin:
            if self.deadline is None and self.una < max(self.next, self.end):
                self.deadline = now + self._timeout  # what flies may be lost, or the window stay closed
            return None
        offset = self.next - self.una
        burst = Burst(self.next, bytes(self._data[offset : offset + length]), fin)
        if self._timed is None and self.next >= self.max:
            self._timed = (self.next + length + fin, now)
        if self.deadline is None or self.next == self.una:
            self.deadline = now + self._timeout
        self.next += length + fin
        self.max = max(self.max, self.next)
        return burst

    def _sendable(self) -> int:
        """Return how many bytes from `next` on may go in one segment; 0: none now."""
        waiting = self.end - self.next
        flying = self.next - self.una
        window = min(self.window, self._congestion)
        largest = min(waiting, MAX_BURST, MAX_CUTS * self.mss)
        length = min(largest, window - flying)
        if length <= 0:
            return 0
        if length < waiting:
            if flying and length < min(largest, window // 4) and self._recover is None:
                return 0  # acknowledgements are on their way: wait for a burst worth cutting
            if length >= self.mss:
                return length - length % self.mss
            if flying and length < self.window // 2:
                return 0  # silly window: wait for room for a whole segment
        return length

    def acknowledge(self, number: int, window: int, now: int, pure: bool) -> Burst | None:
        """Take an acknowledgement up to `number` and return what must be sent again at once.

        `pure`: the segment had no data, so that it may be a sign of loss. The caller has checked that
        `number` was sent.
        """
        if number <= self.una:
            same = pure and number == self.una and window == self.window and self.max > self.una
            self.window = window
            if window == 0:
                self.retries = 0  # the peer lives, it only has no room
            return self._duplicate(now) if same else None
        self.window = window
        gained = number - self.una
        fin = self.closing and number > self.end
        del self._data[: gained - fin]
        self._fin_acknowledged = fin
        self.una = number
        if fin:
            self.next = self.max = number
        self.next = max(self.next, number)
        self._measure(number, now)
        self._duplicates = 0
        self.retries = 0
        self.deadline = now + self._timeout if self.max > number or self.next < self.end else None
        return self._progress(number, gained, now)

    def _progress(self, number: int, gained: int, now: int) -> Burst | None:
        if self._recover is None:
            if self._congestion < self._threshold:
                self._congestion += gained  # bytes counted as in RFC 3465, without its limit: nothing to be fair to
            else:
                self._congestion += max(1, self.mss * gained // self._congestion)
            self._congestion = min(self._congestion, 2 * BUFFER)
            return None
        if number >= self._recover:
            self._recover = None
            self._congestion = self._threshold
            return None
        return self._retransmit(now)

    def _duplicate(self, now: int) -> Burst | None:
        self._duplicates += 1
        if self._recover is not None:
            self._congestion = min(self._congestion + self.mss, 2 * BUFFER)
            return None
        if self._duplicates != _DUPLICATES:
            return None
        self._threshold = max((self.max - self.una) // 2, 2 * self.mss)
        self._congestion = self._threshold + _DUPLICATES * self.mss
        self._recover = self.max
        return self._retransmit(now)

    def _retransmit(self, now: int) -> Burst:
        """Return the first segment that was not acknowledged."""
        self._timed = None
        self.deadline = now + self._timeout
        data = bytes(self._data[: self.mss])
        fin = self.closing and self.una + len(data) == self.end and self.max > self.end
        return Burst(self.una, data, fin)

    def expire(self, now: int) -> Burst | None:
        """Do what is due at `deadline`: go back to the first byte not acknowledged, or probe a closed window.

        The caller sends the probe, if one is returned, then what `next_burst` has, and gives up
        when `retries` has passed `MAX_RETRIES`.
        """
        self.retries += 1
        self._timeout = min(self._timeout * 2, MAX_TIMEOUT_NS)
        self.deadline = now + self._timeout
        self._timed = None
        self._recover = None
        self._duplicates = 0
        if self.window == 0 and self._data:
            self.next = self.una
            self.max = max(self.max, self.una + 1)
            return Burst(self.una, bytes(self._data[:1]), False)
        self._threshold = max((self.max - self.una) // 2, 2 * self.mss)
        self._congestion = self.mss
        self.next = self.una
        return None

    def _measure(self, number: int, now: int) -> None:
        """Take a round-trip sample if the timed byte was acknowledged (RFC 6298; Karn: never of one sent twice)."""
        if self._timed is None or number < self._timed[0]:
            return
        sample = now - self._timed[1]
        self._timed = None
        if self._smoothed is None:
            self._smoothed, self._variation = sample, sample // 2
        else:
            self._variation += (abs(self._smoothed - sample) - self._variation) // 4
            self._smoothed += (sample - self._smoothed) // 8
        self._timeout = min(max(self._smoothed + 4 * self._variation, MIN_TIMEOUT_NS), MAX_TIMEOUT_NS)
