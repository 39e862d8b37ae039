"""The operations as the toolstack and the backends call them: in process, as dom0, on paths and values of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

from hypervisor.xenstore.errors import NoEntry
from hypervisor.xenstore.operations import View
from hypervisor.xenstore.paths import absolute
from hypervisor.xenstore.permissions import Permissions
from hypervisor.xenstore.transactions import Transaction


class Client:
    """Work as dom0 on the live tree or in a transaction; paths are absolute, failures are `XenstoreError`s.

    `publish` is called after each operation that may have changed something.
    """

    def __init__(self, scope: View | Transaction, publish: Callable[[], None]) -> None:
        self._scope = scope
        self._published = publish

    def read(self, path: str) -> bytes:
        """Return the value of a node; raise `NoEntry`. O(depth)."""
        return self._scope.read(absolute(path))

    @overload
    def read_text(self, path: str) -> str | None: ...

    @overload
    def read_text(self, path: str, default: str) -> str: ...

    def read_text(self, path: str, default: str | None = None) -> str | None:
        """Return the value as text, bytes that are not UTF-8 replaced, or `default` if there is no node. O(depth)."""
        try:
            return self.read(path).decode("utf-8", "replace")
        except NoEntry:
            return default

    def exists(self, path: str) -> bool:
        """Tell whether there is a node. O(depth)."""
        try:
            self.read(path)
        except NoEntry:
            return False
        return True

    def ls(self, path: str) -> tuple[str, ...]:
        """Return the names of the children, oldest first; raise `NoEntry`. O(depth + children)."""
        return self._scope.ls(absolute(path))

    def get_perms(self, path: str) -> Permissions:
        """Return the permissions of a node, "@introduceDomain" or "@releaseDomain"; raise `NoEntry`. O(depth)."""
        return self._scope.get_perms(absolute(path, special=True))

    def write(self, path: str, value: bytes | str, permissions: Permissions | None = None) -> None:
        """Set a value of at most 4096 bytes; create the node and its ancestors as needed. O(depth).

        Permissions that are not given stay, or are those of the nearest ancestor, as those of new ancestors always are.
        """
        self._scope.write(absolute(path), value.encode() if isinstance(value, str) else value, permissions)
        self._published()

    def mkdir(self, path: str) -> None:
        """Create a node and its ancestors as needed; leave an existing one as it is. O(depth)."""
        self._scope.mkdir(absolute(path))
        self._published()

    def rm(self, path: str) -> None:
        """Remove a node and all below it; raise `NoEntry` only if its parent is missing too. O(nodes removed)."""
        self._scope.rm(absolute(path))
        self._published()

    def set_perms(self, path: str, permissions: Permissions) -> None:
        """Replace the owner and permissions of a node or special node; raise `NoEntry`. O(depth)."""
        self._scope.set_perms(absolute(path, special=True), permissions)
        self._published()
