"""The tree of nodes, copied on write.

A tree owns the nodes that carry its stamp and changes them in place. `copy` gives both sides new stamps, so that
each copies a node, and its ancestors, the first time it changes it afterwards. Thus a copy costs O(domains), a
change O(depth), and only the first change of a directory after a copy costs O(its children). Nothing here checks
permissions, and no walk recurses: a guest may nest nodes deeper than Python's stack.

The root and the special nodes are children of a nameless top that no path names.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from hypervisor.xenstore.paths import home, parent, parts
from hypervisor.xenstore.permissions import Permissions

SPECIAL_NODES = ("@introduceDomain", "@releaseDomain")
_NOBODY = Permissions(0)


class Node:
    """Hold a value, permissions and children; `generation` grows with each change of these."""

    __slots__ = ("children", "generation", "permissions", "stamp", "value")

    def __init__(self, value: bytes, permissions: Permissions, generation: int, stamp: object) -> None:
        self.value = value
        self.permissions = permissions
        self.children: dict[str, Node] = {}
        self.generation = generation
        self.stamp = stamp


class Tree:
    """Hold all nodes, and count those that each domain owns and those whose permissions name it."""

    __slots__ = ("_generations", "_stamp", "_top", "last", "mentions", "owned")

    def __init__(self) -> None:
        self._generations = count(1)
        self._stamp = object()
        self.last = 0
        self._top = Node(b"", _NOBODY, 0, self._stamp)
        self.owned: dict[int, int] = {}
        self.mentions: dict[int, int] = {}
        for name in ("", *SPECIAL_NODES):
            self._top.children[name] = Node(b"", _NOBODY, 0, self._stamp)
            self._account(_NOBODY, 1)

    def copy(self) -> Tree:
        """Return a tree of the same content that changes apart from this one. O(domains)."""
        self._stamp = object()
        twin = Tree.__new__(Tree)
        twin._stamp = object()
        twin._generations = self._generations
        twin.owned = self.owned.copy()
        twin.mentions = self.mentions.copy()
        twin._top = self._top
        twin.last = self.last
        return twin

    def adopt(self, other: Tree) -> None:
        """Take the content of another tree, which must not be used afterwards. O(1)."""
        self._top, self._stamp, self.last = other._top, other._stamp, other.last
        self.owned, self.mentions = other.owned, other.mentions

    def find(self, path: str) -> Node | None:
        """Return a node, not to be changed, or None. O(depth)."""
        node = self._top
        try:
            for name in parts(path):
                node = node.children[name]
        except KeyError:
            return None
        return node

    def deepest(self, path: str) -> tuple[Node, int]:
        """Return the nearest existing ancestor of a missing node and how many nodes are missing. O(depth)."""
        names = parts(path)
        node = self._top.children[""]
        for index, name in enumerate(names[1:], 1):
            child = node.children.get(name)
            if child is None:
                return node, len(names) - index
            node = child
        return node, 0

    def set_value(self, path: str, value: bytes) -> None:
        """Change the value of an existing node. O(depth)."""
        node = self._own(path)
        node.value = value
        node.generation = self.last = next(self._generations)

    def set_permissions(self, path: str, permissions: Permissions) -> None:
        """Change the permissions of an existing node. O(depth)."""
        node = self._own(path)
        self._account(node.permissions, -1)
        self._account(permissions, 1)
        node.permissions = permissions
        node.generation = self.last = next(self._generations)

    def create(self, path: str, value: bytes, permissions: Permissions) -> None:
        """Add a missing node and its missing ancestors, these without values. O(depth)."""
        names = parts(path)
        made = self.deepest(path)[1]
        above = len(names) - made
        node = self._own_parts(names[:above])
        generation = self.last = next(self._generations)
        node.generation = generation
        for name in names[above:]:
            child = Node(b"", permissions, generation, self._stamp)
            node.children[name] = child
            node = child
        node.value = value
        self._account(permissions, made)

    def remove(self, path: str) -> tuple[Node, Node]:
        """Detach an existing node, not the root, with all below it; return it and what was its parent.

        O(depth + nodes removed).
        """
        above = self._own(parent(path))
        node = above.children.pop(path[path.rfind("/") + 1 :])
        stack = [node]
        while stack:
            gone = stack.pop()
            self._account(gone.permissions, -1)
            stack.extend(gone.children.values())
        above.generation = self.last = next(self._generations)
        return node, above

    def mentioning(self, domid: int) -> Iterator[tuple[str, Node]]:
        """Yield each node whose permissions name a domain; do not change the tree meanwhile.

        Those of its home come first, then the others, in both cases parents first. O(all nodes), but stops after the
        last one, which is often in the home, and at once where there is none.
        """
        left = self.mentions.get(domid, 0)
        if left <= 0:
            return
        own = self.find(home(domid))
        stack = [(name or "/", node) for name, node in self._top.children.items()]
        if own is not None:
            stack.append((home(domid), own))
        first = own
        while stack and left > 0:
            path, node = stack.pop()
            if node is own and node is not first:
                continue
            first = None
            if domid in node.permissions.domids:
                left -= 1
                yield path, node
            prefix = "" if path == "/" else path
            stack.extend((f"{prefix}/{name}", child) for name, child in node.children.items())

    def _own(self, path: str) -> Node:
        return self._own_parts(parts(path))

    def _own_parts(self, names: list[str]) -> Node:
        """Return the node at a path that exists, after making it and its ancestors this tree's own."""
        stamp = self._stamp
        if self._top.stamp is not stamp:
            self._top = _copy(self._top, stamp)
        node = self._top
        for name in names:
            child = node.children[name]
            if child.stamp is not stamp:
                child = node.children[name] = _copy(child, stamp)
            node = child
        return node

    def _account(self, permissions: Permissions, nodes: int) -> None:
        for domid in permissions.domids:
            _add(self.mentions, domid, nodes)
        _add(self.owned, permissions.owner, nodes)


def _add(counts: dict[int, int], domid: int, nodes: int) -> None:
    left = counts.get(domid, 0) + nodes
    if left:
        counts[domid] = left
    else:
        del counts[domid]


def _copy(node: Node, stamp: object) -> Node:
    twin = Node(node.value, node.permissions, node.generation, stamp)
    twin.children = node.children.copy()
    return twin
