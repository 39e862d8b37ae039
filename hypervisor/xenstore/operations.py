"""What one caller does to one tree: permissions, quotas, and the record of what watches must hear.

Rules of access as in C xenstored (tools/xenstored/core.c): a node's own permissions decide, whatever those of its
ancestors; a missing node is ENOENT to one who has the wanted access to its nearest existing ancestor and EACCES to all
others; creation needs write access to that ancestor, removal needs it to the node itself and takes all below along.
Paths given here are valid ones (`paths`). A refused operation changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypervisor.xenstore.errors import Invalid, NoEntry, NoSpace, NotAllowed, NotOwner, TooBig, XenstoreError
from hypervisor.xenstore.paths import parent
from hypervisor.xenstore.permissions import OWNER, READ, WRITE, Caller, Permissions
from hypervisor.xenstore.quotas import Quotas
from hypervisor.xenstore.tree import Node, Tree

VALUE_MAX = 4096  # what one READ reply carries


@dataclass(frozen=True, slots=True)
class Change:
    """Say that a node changed, for the watches.

    `audience` holds permissions, any of which entitles its readers to the event; `removed` is the node if it went, with
    those that went along below it.
    """

    path: str
    audience: tuple[Permissions, ...]
    removed: Node | None = None


class View:
    """Let one caller work on one tree, and keep the changes that watches have not heard of yet, by path.

    `creations` is how many nodes an unprivileged caller may still create through this view (None: no matter).
    """

    __slots__ = ("caller", "changes", "creations", "quotas", "tree")

    def __init__(self, tree: Tree, caller: Caller, quotas: Quotas, creations: int | None = None) -> None:
        self.tree = tree
        self.caller = caller
        self.quotas = quotas
        self.creations = creations
        self.changes: dict[str, Change] = {}

    def read(self, path: str) -> bytes:
        """Return the value of a node."""
        return self._node(path, READ).value

    def ls(self, path: str) -> tuple[str, ...]:
        """Return the names of the children, oldest first. O(children)."""
        return tuple(self._node(path, READ).children)

    def listing(self, path: str) -> tuple[int, tuple[str, ...]]:
        """Return the generation of a node and the names of its children. O(children)."""
        node = self._node(path, READ)
        return node.generation, tuple(node.children)

    def get_perms(self, path: str) -> Permissions:
        """Return the permissions of a node or special node."""
        return self._node(path, READ).permissions

    def write(self, path: str, value: bytes, permissions: Permissions | None = None) -> None:
        """Set the value of a node, and its permissions if they are given; create it and its missing ancestors."""
        node = self.tree.find(path)
        if node is None:
            self._create(path, value, permissions)
            return
        if not node.permissions.access(self.caller) & WRITE:
            raise NotAllowed(path)
        self._check_value(value)
        self.tree.set_value(path, value)
        self._note(path, node.permissions)
        if permissions is not None:
            self.set_perms(path, permissions)

    def mkdir(self, path: str) -> None:
        """Create a node and its missing ancestors without values; leave an existing one as it is."""
        node = self.tree.find(path)
        if node is None:
            self._create(path, b"")
        elif not node.permissions.access(self.caller) & WRITE:
            raise NotAllowed(path)

    def rm(self, path: str) -> None:
        """Remove a node and all below it; one that is missing below an existing parent is no error."""
        node = self.tree.find(path)
        if node is None:
            if self.tree.find(parent(path)) is not None and isinstance(self._missing(path, WRITE), NoEntry):
                return
            raise self._missing(path, WRITE)
        if not node.permissions.access(self.caller) & WRITE:
            raise NotAllowed(path)
        if path == "/":
            raise Invalid("the root stays")
        removed, above = self.tree.remove(path)
        self._note(path, removed.permissions, above.permissions, removed=removed)

    def set_perms(self, path: str, permissions: Permissions) -> None:
        """Replace the permissions of a node or special node, which the caller must own."""
        if not self.caller.privileged and 1 + len(permissions.entries) > self.quotas.permissions:
            raise NoSpace("too many permission entries")
        before = self._node(path, WRITE | OWNER).permissions
        if not self.caller.privileged and permissions.owner != before.owner:
            raise NotOwner(path)
        self.tree.set_permissions(path, permissions)
        self._note(path, before, permissions)

    def _node(self, path: str, wanted: int) -> Node:
        node = self.tree.find(path)
        if node is None:
            raise self._missing(path, wanted)
        if node.permissions.access(self.caller) & wanted != wanted:
            raise NotAllowed(path)
        return node

    def _missing(self, path: str, wanted: int) -> XenstoreError:
        ancestor = self.tree.deepest(path)[0]
        return NoEntry(path) if ancestor.permissions.access(self.caller) & wanted else NotAllowed(path)

    def _create(self, path: str, value: bytes, permissions: Permissions | None = None) -> None:
        above, missing = self.tree.deepest(path)
        if not above.permissions.access(self.caller) & WRITE:
            raise NotAllowed(path)
        self._check_value(value)
        caller = self.caller
        if not caller.privileged:
            self._check_count(missing)
        inherited = above.permissions.inherited(caller)
        self.tree.create(path, value, inherited)
        if permissions is not None:  # the ancestors that were missing do not have them
            self.tree.set_permissions(path, permissions)
        self._note(path, permissions or inherited)

    def _check_count(self, missing: int) -> None:
        if self.tree.owned.get(self.caller.domid, 0) + missing > self.quotas.nodes:
            raise NoSpace("too many nodes")
        if self.creations is not None:
            if missing > self.creations:
                raise NoSpace("too many nodes created in one transaction")
            self.creations -= missing

    def _check_value(self, value: bytes) -> None:
        if self.caller.privileged:
            if len(value) > VALUE_MAX:
                raise TooBig("no reader could be told a value of this size")
        elif len(value) > self.quotas.value_bytes:
            raise NoSpace("value too long")

    def _note(self, path: str, *audience: Permissions, removed: Node | None = None) -> None:
        """Remember a change, as one event with earlier ones of the same node."""
        known = self.changes.get(path)
        if known is not None:
            audience = tuple(dict.fromkeys((*known.audience, *audience)))
            removed = known.removed or removed
        self.changes[path] = Change(path, audience, removed)
