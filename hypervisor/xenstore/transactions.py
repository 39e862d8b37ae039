"""Transactions: a copy to work on, and a log to decide at the end whether it still holds.

Isolation: a transaction sees the tree as it was at its start, and its own changes. At its end, if nothing else changed
meanwhile, its tree becomes the live one. Else, as in oxenstored (tools/ocaml/xenstored/process.ml), its operations are
done again on the tree of now: where each has the outcome that the client was told, the result is as if the transaction
had happened just now, so it stands; where one differs the end is EAGAIN. So transactions that touch different nodes, or
that write the same node without having read it, or that add to the same directory without having listed it, all
succeed, more often than in C xenstored, which compares generations of the nodes. One that changed nothing ends well.

Memory: a copy keeps alive the nodes that were replaced since. `Store` restarts a transaction on a new copy,
doomed to end in EAGAIN, once it is too far behind, so a guest that leaves transactions open pins a bounded number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hypervisor.xenstore.errors import Conflict, NoSpace, XenstoreError
from hypervisor.xenstore.operations import Change, View
from hypervisor.xenstore.permissions import Caller, Permissions
from hypervisor.xenstore.quotas import Quotas
from hypervisor.xenstore.tree import Tree

_Outcome = TypeVar("_Outcome")
_ENTRY_BYTES = 128  # about what a log entry costs beside its texts


class Transaction:
    """Do the operations of `View` on a copy of the tree, and log them with their outcomes."""

    def __init__(self, live: Tree, caller: Caller, quotas: Quotas) -> None:
        self.doomed = False
        self._live = live
        self._start(caller, quotas)

    def _start(self, caller: Caller, quotas: Quotas) -> None:
        self.began = self._live.last
        self._view = View(self._live.copy(), caller, quotas, quotas.transaction_nodes)
        self._log: list[tuple[Callable[..., Any], tuple[Any, ...], object]] = []
        self._bytes = 0

    def restart(self) -> None:
        """Let go of the copy and of all changes; the client learns of it by EAGAIN at the end."""
        self.doomed = True
        self._start(self._view.caller, self._view.quotas)

    def read(self, path: str) -> bytes:
        """Return the value of a node."""
        return self._do(View.read, path)

    def ls(self, path: str) -> tuple[str, ...]:
        """Return the names of the children."""
        return self._do(View.ls, path)

    def listing(self, path: str) -> tuple[int, tuple[str, ...]]:
        """Return the generation of a node and the names of its children."""
        return self._do(View.listing, path)

    def get_perms(self, path: str) -> Permissions:
        """Return the permissions of a node."""
        return self._do(View.get_perms, path)

    def write(self, path: str, value: bytes, permissions: Permissions | None = None) -> None:
        """Set the value of a node, and its permissions if they are given; create it and its missing ancestors."""
        self._do(View.write, path, value, permissions)

    def mkdir(self, path: str) -> None:
        """Create a node and its missing ancestors."""
        self._do(View.mkdir, path)

    def rm(self, path: str) -> None:
        """Remove a node and all below it."""
        self._do(View.rm, path)

    def set_perms(self, path: str, permissions: Permissions) -> None:
        """Replace the permissions of a node."""
        self._do(View.set_perms, path, permissions)

    def commit(self) -> dict[str, Change]:
        """Bring the changes into the live tree and return them for the watches; raise `Conflict`.

        O(1) if nothing else changed since the start, else O(operations). The transaction is spent either way.
        """
        if self.doomed:
            raise Conflict("the transaction was open for too long")
        if not self._view.changes:
            return {}
        if self._live.last == self.began:
            self._live.adopt(self._view.tree)
            return self._view.changes
        quotas = self._view.quotas
        trial = View(self._live.copy(), self._view.caller, quotas, quotas.transaction_nodes)
        if any(_outcome(trial, operation, args) != outcome for operation, args, outcome in self._log):
            raise Conflict("what the transaction saw has changed")
        self._live.adopt(trial.tree)
        return trial.changes

    def _do(self, operation: Callable[..., _Outcome], *args: Any) -> _Outcome:
        quotas = self._view.quotas
        full = len(self._log) >= quotas.transaction_requests or self._bytes >= quotas.transaction_bytes
        if full and not self._view.caller.privileged:
            raise NoSpace("the transaction is too long")
        try:
            outcome = operation(self._view, *args)
        except XenstoreError as error:
            self._record(operation, args, type(error))
            raise
        self._record(operation, args, outcome)
        return outcome

    def _record(self, operation: Callable[..., Any], args: tuple[Any, ...], outcome: object) -> None:
        self._log.append((operation, args, outcome))
        self._bytes += _ENTRY_BYTES + sum(map(_size, args)) + _size(outcome)


def _outcome(view: View, operation: Callable[..., Any], args: tuple[Any, ...]) -> object:
    try:
        return operation(view, *args)
    except XenstoreError as error:
        return type(error)


def _size(item: object) -> int:
    """Return about how many bytes the log keeps alive by holding an argument or outcome."""
    if isinstance(item, str | bytes):
        return len(item)
    if isinstance(item, tuple):  # names of children, alone or with the generation
        return 8 * (len(item[1]) if item and isinstance(item[-1], tuple) else len(item))
    return 64
