"""What all file systems look like to the boot loader: nodes, and paths that lead to them."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Protocol

from hypervisor.bootloader.errors import BootError, one_line
from hypervisor.bootloader.volume import Budget

Content = bytes | bytearray
"""A file's bytes; a large file is a bytearray, so that its holes cost nothing."""

_MOST_LINKS = 40
"""Symbolic links on one path, as Linux allows."""
_LONGEST_PATH = 4096


class Kind(enum.Enum):
    """What a node is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"


class Node(Protocol):
    """A file, directory or symbolic link. All methods raise BootError."""

    @property
    def kind(self) -> Kind: ...
    @property
    def size(self) -> int: ...

    def content(self, limit: int) -> Content:
        """Return a file's bytes, or a link's target; more than `limit` bytes are refused."""
        ...

    def names(self) -> Iterator[str]:
        """Yield the names in a directory, without . and .. ."""
        ...

    def lookup(self, name: str) -> Node | None:
        """Return a directory's entry."""
        ...


class FileSystem(Protocol):
    """A file system that is open; `uuid` is what Linux and GRUB call it by."""

    @property
    def name(self) -> str: ...
    @property
    def uuid(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def root(self) -> Node: ...
    @property
    def budget(self) -> Budget: ...


def missing(path: str) -> BootError:
    """Return the error that says that a file is not there."""
    return BootError(f"there is no {one_line(path)}")


def find(files: FileSystem, path: str) -> Node:
    """Return the node at a path, links followed. Raises BootError."""
    node, links = files.root, 0
    trail: list[Node] = []
    if len(path) > _LONGEST_PATH:
        raise missing(path)
    left = path.split("/")[::-1]
    while left:
        files.budget.step()
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            node = trail.pop() if trail else files.root
            continue
        child = node.lookup(part) if node.kind is Kind.DIRECTORY else None
        if child is None:
            raise missing(path)
        if child.kind is not Kind.LINK:
            trail.append(node)
            node = child
            continue
        links += 1
        target = bytes(child.content(_LONGEST_PATH)).decode("utf-8", "surrogateescape")
        if links > _MOST_LINKS or len(left) > _LONGEST_PATH:
            raise BootError(f"{one_line(path)} has too many symbolic links")
        if target.startswith("/"):
            node, trail = files.root, []
        left += target.split("/")[::-1]
    return node


def read(files: FileSystem, path: str, limit: int) -> Content:
    """Return a file's bytes. Raises BootError, for more than `limit` bytes too."""
    node = find(files, path)
    if node.kind is not Kind.FILE:
        raise BootError(f"{one_line(path)} is not a file")
    return node.content(limit)


def names(files: FileSystem, path: str) -> list[str]:
    """Return the names in a directory, sorted; [] when it is not there or cannot be read."""
    try:
        node = find(files, path)
        return sorted(node.names()) if node.kind is Kind.DIRECTORY else []
    except BootError:
        files.budget.step()  # a budget that is used up must be heard
        return []


def kind(files: FileSystem, path: str) -> Kind | None:
    """Return what is at a path, None for nothing or what cannot be read."""
    try:
        return find(files, path).kind
    except BootError:
        files.budget.step()
        return None


def check_size(size: int, limit: int) -> None:
    """Refuse a file that is too large to be read."""
    if size > limit:
        raise BootError(f"a file of {size} bytes is too large here; {limit} is the limit")
