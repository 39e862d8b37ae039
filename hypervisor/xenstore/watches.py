"""Watches and which of them a change concerns.

Who hears: as in C xenstored (tools/xenstored/watch.c) a watch fires only where its domain may read the node that
changed, as it is or as it was before, or that node's parent; oxenstored asks the same of the node and parent that the
*watch* names. When a node goes because its ancestor is removed, a watch on exactly that node fires with its own path
(in oxenstored, also watches on nodes that never existed). The initial event is not subject to permissions.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from hypervisor.xenstore.permissions import Caller


class Watch:
    """Hold one subscription; `deliver(watch, path)` is called with the absolute path of each event.

    `depth` limits how many levels below `path` concern it (None: all); of special paths 1 asks for domain ids.
    """

    __slots__ = ("caller", "deliver", "depth", "path", "relative", "token")

    def __init__(
        self,
        path: str,
        token: bytes,
        caller: Caller,
        deliver: Callable[[Watch, str], None],
        *,
        depth: int | None = None,
        relative: bool = False,
    ) -> None:
        self.path = path
        self.token = token
        self.caller = caller
        self.deliver = deliver
        self.depth = depth
        self.relative = relative


class Watches:
    """Find watches by path: a lookup for each level of a changed path, whatever the number of watches."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[Watch, None]] = {}
        self._paths: list[str] = []  # the same paths, sorted
        self._levels: dict[int, int] = {}  # how many of them have how many slashes
        self._deepest = 0

    def add(self, watch: Watch) -> None:
        """Begin to find a watch. O(1), but a move in memory of the paths watched."""
        if watch.path not in self._by_path:
            self._by_path[watch.path] = {}
            insort(self._paths, watch.path)
            self._count(watch.path.count("/"), 1)
        self._by_path[watch.path][watch] = None

    def remove(self, watch: Watch) -> None:
        """Cease to find a watch; one that is not there is no error. O(1), as `add`."""
        found = self._by_path.get(watch.path, {})
        if watch in found:
            del found[watch]
            if not found:
                del self._by_path[watch.path]
                del self._paths[bisect_left(self._paths, watch.path)]
                self._count(watch.path.count("/"), -1)

    def at(self, path: str) -> list[Watch]:
        """Return the watches on exactly this path."""
        return list(self._by_path.get(path, ()))

    def concerned(self, path: str) -> list[Watch]:
        """Return the watches on a changed path or above it, as deep as they look.

        O(depth of the path, or of the deepest watch if that is less).
        """
        if path[0] == "@":
            return self.at(path)
        found: list[Watch] = []
        level = max(path.count("/") - self._deepest, 0)
        if level:
            path = "/".join(path.split("/", self._deepest + 1)[:-1])
        while path and self._by_path:
            found += [watch for watch in self._by_path.get(path, ()) if watch.depth is None or level <= watch.depth]
            if path == "/":
                break
            path = path[: path.rfind("/")] or "/"
            level += 1
        return found

    def below(self, path: str) -> Iterator[str]:
        """Yield the watched paths strictly below one; do not add or remove watches meanwhile."""
        prefix = f"{path}/"
        index = bisect_left(self._paths, prefix)
        while index < len(self._paths) and self._paths[index].startswith(prefix):
            yield self._paths[index]
            index += 1

    def concerned_by_domain(self, name: str, domid: int) -> list[tuple[Watch, str]]:
        """Return the watches on a special path and the path that each is told (xenstore.txt, WATCH)."""
        named = f"{name}/{domid}"
        found = [(watch, named if watch.depth else name) for watch in self.at(name) if watch.depth != 0]
        return found + [(watch, named) for watch in self.at(named)]

    def _count(self, level: int, paths: int) -> None:
        left = self._levels.get(level, 0) + paths
        if left:
            self._levels[level] = left
        else:
            del self._levels[level]
        self._deepest = max(self._levels, default=0)
