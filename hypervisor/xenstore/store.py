"""One host's xenstore: the tree, the connections of its domains, the watches, and dom0's own access.

The caller holds the host's lock around every call here and into a `Connection`; nothing blocks. After a change is
complete and answered, callbacks (of in-process watches, and `Connection.on_output`) run in the order of the changes,
one after the other: what a callback changes is announced after it has returned. A callback that raises is logged.

A domain that goes. As in C xenstored, `release` also removes the nodes that the domain owns and the permission entries
that name it, lest the next domain of that number inherit them; what dom0 owns, such as `/local/domain/<id>` itself, is
the toolstack's to remove. Cheap when the toolstack has removed it before; else O(all nodes).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hypervisor.xenstore.client import Client
from hypervisor.xenstore.connection import Connection, ConnectionState
from hypervisor.xenstore.errors import Conflict, Invalid, NoEntry
from hypervisor.xenstore.operations import Change, View
from hypervisor.xenstore.paths import FIRST_RESERVED_DOMID, absolute, parent
from hypervisor.xenstore.permissions import READ, Caller, Permissions
from hypervisor.xenstore.quotas import Quotas
from hypervisor.xenstore.transactions import Transaction
from hypervisor.xenstore.tree import Tree
from hypervisor.xenstore.watches import Watch, Watches

STALE_AFTER = 16384  # changes after which an open transaction is doomed; bounds the memory that copies pin

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def _nobody(watch: Watch, path: str) -> None:
    """Hear of a change where a watch has ended; what heard it before knew the watch."""


class WatchHandle:
    """Hold an in-process watch; after `cancel` its callback is called no more."""

    def __init__(self, watch: Watch, watches: Watches) -> None:
        self._watch = watch
        self._watches = watches
        self.active = True

    def cancel(self) -> None:
        """End the watch; events that wait are dropped. O(1)."""
        self.active = False
        self._watches.remove(self._watch)
        self._watch.deliver = _nobody


class Store(Client):
    """Serve domains over their connections and dom0 in process; the inherited operations are dom0's.

    `attach(domid, frame, port)` is called when a dom0 tool introduces a domain over the wire, so that the host can map
    the ring; in-process, the host calls `introduce` and attaches the ring itself.
    """

    def __init__(self, quotas: Quotas | None = None, attach: Callable[[int, int, int], None] | None = None) -> None:
        self.quotas = quotas or Quotas()
        self.tree = Tree()
        self.watches = Watches()
        self._attach = attach
        self._connections: dict[int, Connection] = {}
        self._shut_down: set[int] = set()
        self._open: dict[Transaction, None] = {}  # oldest first
        self._dom0 = Caller(0)
        self._view = View(self.tree, self._dom0, self.quotas)
        self._calls: deque[Callable[[], None]] = deque()
        self._calling = False
        super().__init__(self._view, self._publish_own)
        self.mkdir("/tool/xenstored")  # as xenstored makes it

    # Transactions and watches of dom0, in process.

    @contextmanager
    def transaction(self) -> Iterator[Client]:
        """Work in a transaction that commits at the end of the block, unless the block raises.

        Raise `Conflict` at the end if changes made meanwhile, by the block past the transaction or by others if it let
        go of the lock, invalidate what it saw; a block cannot be run again, so see `transact` for that.
        """
        transaction = self.start_transaction(self._dom0)
        commit = False
        try:
            yield Client(transaction, _nothing)
            commit = True
        finally:
            self._view.changes = self.end_transaction(transaction, commit)
            self._publish_own()

    def transact(self, function: Callable[[Client], _Result], attempts: int = 16) -> _Result:
        """Call a function in a transaction, again if there was a conflict, and return its result.

        Raise `Conflict` after the last attempt, and whatever the function raises.
        """
        for _ in range(attempts - 1):
            try:
                with self.transaction() as client:
                    result = function(client)
            except Conflict:
                continue
            return result
        with self.transaction() as client:
            return function(client)

    def watch(self, path: str, callback: Callable[[str], None], *, depth: int | None = None) -> WatchHandle:
        """Call back with the path of each change at or below a path, and once, first, with the path itself.

        `depth` limits the levels below that count; "@releaseDomain" with depth 1 tells "@releaseDomain/<domid>".
        """
        full = absolute(path, special=True)

        def deliver(_: Watch, changed: str) -> None:
            self.call_later(lambda: callback(changed) if handle.active else None)

        watch = Watch(full, b"", self._dom0, deliver, depth=depth)
        handle = WatchHandle(watch, self.watches)
        self.watches.add(watch)
        deliver(watch, full)
        self._run_calls()
        return handle

    # Domains.

    def introduce(self, domid: int) -> Connection:
        """Begin to serve a domain and fire @introduceDomain; one that is known only gets its connection reset."""
        if not 0 < domid < FIRST_RESERVED_DOMID:
            raise Invalid(f"no guest has the domid {domid}")
        connection = self._connections.get(domid)
        if connection is not None:
            connection.reset()
            return connection
        connection = self._connections[domid] = Connection(self, domid)
        self._shut_down.discard(domid)
        self._fire_special("@introduceDomain", domid)
        self._run_calls()
        return connection

    def introduce_ring(self, domid: int, frame: int, port: int) -> None:
        """Introduce a domain for a tool that names its ring's frame and event channel."""
        self.introduce(domid)
        if self._attach is not None:
            self._attach(domid, frame, port)

    def connect(self) -> Connection:
        """Return a connection of dom0, as a tool has through the daemon's socket; `close` it at the end."""
        return Connection(self, 0)

    def connection(self, domid: int) -> Connection:
        """Return the connection of an introduced domain; raise `NoEntry`."""
        try:
            return self._connections[domid]
        except KeyError:
            raise NoEntry(f"domain {domid} is not introduced") from None

    def is_introduced(self, domid: int) -> bool:
        """Tell whether a domain is served. O(1)."""
        return domid in self._connections

    def release(self, domid: int) -> None:
        """End service to a domain, drop what it has here, and fire @releaseDomain; raise `NoEntry`."""
        self.connection(domid).close()
        del self._connections[domid]
        for connection in self._connections.values():
            if connection.caller.target == domid:
                connection.caller.target = None
        for path, node in list(self.tree.mentioning(domid)):
            if self.tree.find(path) is None:  # gone with its parent
                continue
            if node.permissions.owner == domid:
                self._remove_owned(path)
            else:
                self.tree.set_permissions(path, node.permissions.without(domid))
        self._announce(self._view)
        self._fire_special("@releaseDomain", domid)
        self._run_calls()

    def shut_down(self, domid: int) -> None:
        """Fire @releaseDomain because a domain shut down or crashed, once until `resume`; raise `NoEntry`."""
        self.connection(domid)
        if domid not in self._shut_down:
            self._shut_down.add(domid)
            self._fire_special("@releaseDomain", domid)
            self._run_calls()

    def resume(self, domid: int) -> None:
        """Let the next `shut_down` of a domain be announced again; raise `NoEntry`."""
        self.connection(domid)
        self._shut_down.discard(domid)

    def set_target(self, domid: int, target: int) -> None:
        """Give a domain the rights of another on top of its own; raise `NoEntry`."""
        self.connection(target)
        self.connection(domid).caller.target = target

    def dump(self, domid: int) -> ConnectionState:
        """Return a domain's connection as plain data; raise `NoEntry`."""
        return self.connection(domid).dump()

    def restore(self, domid: int, state: ConnectionState) -> None:
        """Give an introduced domain the connection that was dumped, maybe of another domid; raise `XenstoreError`."""
        self.connection(domid).restore(state)
        self._run_calls()

    # For connections.

    def start_transaction(self, caller: Caller) -> Transaction:
        """Start a transaction on a copy of the tree. O(domains)."""
        transaction = Transaction(self.tree, caller, self.quotas)
        self._open[transaction] = None
        return transaction

    def end_transaction(self, transaction: Transaction, commit: bool) -> dict[str, Change]:
        """Commit or forget a transaction and return the changes to publish; raise `Conflict`."""
        del self._open[transaction]
        return transaction.commit() if commit else {}

    def publish(self, view: View) -> None:
        """Announce the changes of a view to the watches, then run the callbacks that are due."""
        if view.changes:
            self._announce(view)
        if self._calls:
            self._run_calls()

    def call_later(self, callback: Callable[[], None]) -> None:
        """Have something called when the present change is complete."""
        self._calls.append(callback)

    def _publish_own(self) -> None:
        self.publish(self._view)

    def _announce(self, view: View) -> None:
        changes, view.changes = view.changes, {}
        for change in changes.values():
            self._fire(change)
        self._restart_stale()

    def _fire(self, change: Change) -> None:
        concerned = self.watches.concerned(change.path)
        if concerned:
            above = self.tree.find(parent(change.path)) if change.path[0] != "@" else None
            audience = change.audience if above is None else (*change.audience, above.permissions)
            for watch in concerned:
                if _may_hear(watch, audience):
                    watch.deliver(watch, change.path)
        if change.removed is not None:
            for path in list(self.watches.below(change.path)):
                self._fire_below(change, path)

    def _fire_below(self, change: Change, path: str) -> None:
        """Fire the watches on a node that was removed along with an ancestor, if it was there."""
        assert change.removed is not None
        above = node = change.removed
        for name in path[len(change.path) + 1 :].split("/"):
            child = node.children.get(name)
            if child is None:
                return
            above, node = node, child
        for watch in self.watches.at(path):
            if _may_hear(watch, (node.permissions, above.permissions)):
                watch.deliver(watch, path)

    def _fire_special(self, name: str, domid: int) -> None:
        node = self.tree.find(name)
        assert node is not None, "special nodes cannot be removed"
        for watch, told in self.watches.concerned_by_domain(name, domid):
            if _may_hear(watch, (node.permissions,)):
                watch.deliver(watch, told)

    def _remove_owned(self, path: str) -> None:
        if path == "/" or path[0] == "@":  # these stay, as dom0's
            self.tree.set_permissions(path, Permissions(0))
        else:
            self._view.rm(path)

    def _restart_stale(self) -> None:
        oldest = self.tree.last - STALE_AFTER
        while self._open:
            transaction = next(iter(self._open))
            if transaction.began > oldest:
                break
            del self._open[transaction]
            transaction.restart()
            self._open[transaction] = None

    def _run_calls(self) -> None:
        if self._calling:
            return
        self._calling = True
        try:
            while self._calls:
                call = self._calls.popleft()
                try:
                    call()
                except Exception:
                    # The change that this follows is done, and belongs to somebody else.
                    _log.exception("a xenstore callback failed")
        finally:
            self._calling = False


def _may_hear(watch: Watch, audience: tuple[Permissions, ...]) -> bool:
    caller = watch.caller
    return caller.privileged or any(permissions.access(caller) & READ for permissions in audience)


def _nothing() -> None:
    """Publish nothing: a transaction's changes are announced when it commits."""
