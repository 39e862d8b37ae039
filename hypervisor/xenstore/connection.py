"""One client's byte stream: framing, replies in order, watch events, and the bounds of all that waits.

Input. `feed` takes what has arrived at once, a bare header too: a guest waits for its header to be consumed before it
writes the rest. Requests are served one by one until `Quotas.requests_in_flight` replies, or `reply_bytes` of them,
wait to be taken; then the rest waits in the input buffer, `room` falls to 0, and the owner of the ring leaves further
bytes where they are until `take` has made place. To feed more than `room` breaks the protocol.

Errors as in C xenstored: an unknown type, transaction, path and so on is answered by an ERROR message; a length beyond
4096 leaves the stream without sense, so the connection is dead (`error` says why) and loses all that it had, until
`reset`.

Events. One that waits unsent is not queued twice. Beyond `event_bytes` a watch is only marked, and fires once with its
own path when the guest has made place: a guest that does not read loses detail, not the fact. (C xenstored drops such
events, oxenstored stops the domain that caused them.) An event that cannot fit a message is not sent.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypervisor.xenstore import requests
from hypervisor.xenstore.errors import Busy, Exists, Invalid, NoEntry, NoSpace, TooBig, XenstoreError
from hypervisor.xenstore.operations import View
from hypervisor.xenstore.paths import home, resolve
from hypervisor.xenstore.permissions import Caller
from hypervisor.xenstore.transactions import Transaction
from hypervisor.xenstore.watches import Watch
from hypervisor.xenstore.wire import HEADER, MESSAGE_MAX, OK, PAYLOAD_MAX, RingError, Type, message

if TYPE_CHECKING:
    from hypervisor.xenstore.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """Hold what a saved domain's connection needs to go on: plain data.

    `watches` holds (path as the client gave it, token, depth); `transactions` the ids of those that were open, which
    end in EAGAIN after a restore; `unread` the start of a request and `unsent` the rest of replies and events.
    """

    watches: tuple[tuple[bytes, bytes, int | None], ...] = ()
    transactions: tuple[int, ...] = ()
    unread: bytes = b""
    unsent: bytes = b""


class Connection:
    """Serve the requests of one domain; made by `Store.introduce`, or `Store.connect` for a tool of dom0."""

    def __init__(self, store: Store, domid: int) -> None:
        self.store = store
        self.caller = Caller(domid)
        self.home = home(domid)
        self.error = RingError.NONE
        self.closed = False
        self.view = View(store.tree, self.caller, store.quotas)
        # Called, after the change that caused it is complete, when output appears that no `feed` or `take` asked for.
        self.on_output: Callable[[], None] | None = None
        self._transactions: dict[int, Transaction] = {}
        self._last_transaction = 0
        self._watches: dict[tuple[str, bytes], Watch] = {}
        self._serving = False
        self._clear()

    def _clear(self) -> None:
        self._input = bytearray()
        self._output: deque[tuple[bytes, bool]] = deque()  # message, whether it is a reply
        self._sent = 0  # bytes of the first message that were taken
        self._size = 0
        self._replies = 0
        self._reply_bytes = 0
        self._event_bytes = 0
        self._events: set[bytes] = set()
        self._missed: dict[Watch, None] = {}

    def feed(self, data: bytes) -> None:
        """Take bytes of the request stream, and serve the requests that they complete. O(bytes) beside the requests."""
        if self.error:
            return
        self._input += data
        self._serve()
        if len(self._input) > self.store.quotas.input_bytes:
            self._fail()

    def room(self) -> int:
        """Return how many bytes `feed` may be given now: 0 once dead, and while replies wait for a client to read."""
        return 0 if self.error or self._stalled() else self.store.quotas.input_bytes - len(self._input)

    def pending_output(self) -> int:
        """Return how many bytes wait to be taken. O(1)."""
        return self._size

    def take(self, n: int) -> bytes:
        """Take up to `n` bytes of replies and events, in order, and serve requests that waited for the place.

        Serving can add output, so go on until `pending_output` is 0 or the client has no place.
        """
        chunks = []
        while n > 0 and self._output:
            data, is_reply = self._output[0]
            if not self._sent and not is_reply:
                self._events.discard(data)
            chunk = data[self._sent : self._sent + n]
            chunks.append(chunk)
            n -= len(chunk)
            self._size -= len(chunk)
            self._sent += len(chunk)
            if self._sent == len(data):
                self._output.popleft()
                self._sent = 0
                self._forget(len(data), is_reply)
        if chunks:
            self._recover()
            self._serve()
        return b"".join(chunks)

    def reset(self) -> None:
        """Begin anew, as the ring reconnection feature asks: no watches, transactions, input, output, error.

        A connection that was closed stays so. O(watches + transactions).
        """
        self.drop_watches()
        self.drop_transactions()
        self._clear()
        self._last_transaction = 0
        self.error = RingError.COMMUNICATION if self.closed else RingError.NONE

    def close(self) -> None:
        """End service for good and drop all that the connection held. O(watches + transactions)."""
        self.closed = True
        self.reset()

    def start_transaction(self, inside: int) -> int:
        """Start a transaction and return its id, 1 to 2**32 - 1."""
        if inside:
            raise Busy("transactions do not nest")
        if not self.caller.privileged and len(self._transactions) >= self.store.quotas.transactions:
            raise NoSpace("too many open transactions")
        number = self._last_transaction % 0xFFFFFFFF + 1
        while number in self._transactions:
            number = number % 0xFFFFFFFF + 1
        self._last_transaction = number
        self._transactions[number] = self.store.start_transaction(self.caller)
        return number

    def end_transaction(self, number: int, commit: bool) -> None:
        """Commit or forget a transaction, which is over in any case; raise `NoEntry`, `Conflict`."""
        transaction = self._transactions.pop(number, None)
        if transaction is None:
            raise NoEntry("no such transaction")
        self.view.changes = self.store.end_transaction(transaction, commit)

    def scope(self, number: int) -> View | Transaction:
        """Return what requests with this transaction id work on; raise `NoEntry`."""
        if number == 0:
            return self.view
        transaction = self._transactions.get(number)
        if transaction is None:
            raise NoEntry("no such transaction")
        return transaction

    def watch(self, path: bytes, token: bytes, depth: int | None) -> Watch:
        """Add a watch; its first event is due."""
        full = resolve(path, self.home, special=True)
        if (full, token) in self._watches:
            raise Exists("the same watch is set")
        if not self.caller.privileged and len(self._watches) >= self.store.quotas.watches:
            raise NoSpace("too many watches")
        relative = path[:1] not in (b"/", b"@")
        watch = Watch(full, token, self.caller, self._deliver, depth=depth, relative=relative)
        self._watches[full, token] = watch
        self.store.watches.add(watch)
        return watch

    def unwatch(self, path: bytes, token: bytes) -> None:
        """Remove a watch; events of it that wait are still sent."""
        watch = self._watches.pop((resolve(path, self.home, special=True), token), None)
        if watch is None:
            raise NoEntry("no such watch")
        self.store.watches.remove(watch)
        self._missed.pop(watch, None)

    def drop_watches(self) -> None:
        """Remove all watches."""
        for watch in self._watches.values():
            self.store.watches.remove(watch)
        self._watches.clear()
        self._missed.clear()

    def drop_transactions(self) -> None:
        """Forget all open transactions."""
        for transaction in self._transactions.values():
            self.store.end_transaction(transaction, commit=False)
        self._transactions.clear()

    def dump(self) -> ConnectionState:
        """Return what `restore` needs; the connection goes on."""
        watches = tuple((self._said(watch, watch.path), watch.token, watch.depth) for watch in self._watches.values())
        unsent = b"".join(data for data, _ in self._output)[self._sent :]
        return ConnectionState(watches, tuple(self._transactions), bytes(self._input), unsent)

    def restore(self, state: ConnectionState) -> None:
        """Take over what another connection had, without first events; relative watches follow this domain's home.

        A state that no connection can have had (invalid paths, beyond the quotas) raises a `XenstoreError`, and leaves
        the connection reset.
        """
        self.reset()
        quotas = self.store.quotas
        if (
            len(state.unread) > quotas.input_bytes
            or len(state.unsent) > quotas.reply_bytes + quotas.event_bytes + MESSAGE_MAX
            or len(state.transactions) > quotas.transactions
            or not all(0 < number <= 0xFFFFFFFF for number in state.transactions)
        ):
            raise Invalid("not the state of a connection")
        try:
            for path, token, depth in state.watches:
                self.watch(path, token, depth)
        except XenstoreError:
            self.reset()
            raise
        for number in state.transactions:
            self._transactions[number] = self.store.start_transaction(self.caller)
            self._transactions[number].restart()
        if state.unsent:
            self._queue(state.unsent, is_reply=True)
        self._input += state.unread

    def _stalled(self) -> bool:
        quotas = self.store.quotas
        busy = self._replies >= quotas.requests_in_flight or self._reply_bytes >= quotas.reply_bytes
        return busy and not self.caller.privileged

    def _serve(self) -> None:
        """Answer the whole requests in the input buffer, as far as there is place for replies."""
        if self._serving or len(self._input) < HEADER.size:
            return
        self._serving = True
        position = 0
        data = self._input
        try:
            while len(data) - position >= HEADER.size and not self._stalled():
                kind, request, transaction, length = HEADER.unpack_from(data, position)
                if length > PAYLOAD_MAX:
                    self._fail()
                    break
                end = position + HEADER.size + length
                if len(data) < end:
                    break
                payload = bytes(data[position + HEADER.size : end])
                position = end
                self._answer(kind, request, transaction, payload)
                if data is not self._input:  # closed or reset by what the request set off
                    break
        finally:
            del data[:position]
            self._serving = False

    def _answer(self, kind: int, request: int, transaction: int, payload: bytes) -> None:
        watched: Watch | None = None
        try:
            answer = requests.serve(self, kind, transaction, payload)
            if isinstance(answer, Watch):
                watched, answer = answer, OK
            if len(answer) > PAYLOAD_MAX:
                raise TooBig("the answer does not fit a message")
        except XenstoreError as error:
            kind, answer = Type.ERROR, error.name.encode() + b"\0"
        except Exception:
            # Nothing that a guest sends may end its vCPU's thread; oxenstored answers EIO likewise.
            _log.exception("xenstore request of type %d from domain %d failed", kind, self.caller.domid)
            kind, answer = Type.ERROR, b"EIO\0"
        if not self.error:
            self._queue(message(kind, request, transaction, answer), is_reply=True)
        if watched is not None:
            self._deliver(watched, watched.path)
        self.store.publish(self.view)

    def _queue(self, data: bytes, *, is_reply: bool) -> None:
        if not self._output and not self._serving and self.on_output is not None:
            self.store.call_later(self.on_output)
        self._output.append((data, is_reply))
        self._size += len(data)
        if is_reply:
            self._replies += 1
            self._reply_bytes += len(data)
        else:
            self._event_bytes += len(data)

    def _forget(self, size: int, is_reply: bool) -> None:
        if is_reply:
            self._replies -= 1
            self._reply_bytes -= size
        else:
            self._event_bytes -= size

    def _deliver(self, watch: Watch, path: str) -> None:
        payload = self._said(watch, path) + b"\0" + watch.token + b"\0"
        if len(payload) > PAYLOAD_MAX or self.error:
            return
        data = message(Type.WATCH_EVENT, 0, 0, payload)
        if data in self._events:
            return
        if self._event_bytes + len(data) > self.store.quotas.event_bytes and not self.caller.privileged:
            self._missed[watch] = None
            return
        if path[0] != "@":  # two domains released are two events
            self._events.add(data)
        self._queue(data, is_reply=False)

    def _said(self, watch: Watch, path: str) -> bytes:
        """Return a path in the form, relative or not, in which the client set the watch."""
        return (path[len(self.home) + 1 :] if watch.relative else path).encode()

    def _recover(self) -> None:
        """Fire the watches that missed events, as far as there is place again."""
        serving, self._serving = self._serving, True  # the one who takes need not be told
        while self._missed and self._event_bytes + MESSAGE_MAX <= self.store.quotas.event_bytes:
            watch = next(iter(self._missed))
            del self._missed[watch]
            self._deliver(watch, watch.path)
        self._serving = serving

    def _fail(self) -> None:
        _log.warning("xenstore client of domain %d broke the protocol", self.caller.domid)
        self.reset()
        self.error = RingError.PROTOCOL
