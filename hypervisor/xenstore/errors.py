"""Failures of a xenstore operation, one class for each error name of xs_wire.h that is used here."""

from __future__ import annotations

from typing import ClassVar


class XenstoreError(Exception):
    """Say that an operation was refused and changed nothing; `name` is what a guest is told."""

    name: ClassVar[str] = "EIO"


class Invalid(XenstoreError):
    """A malformed request, path, number or permission."""

    name = "EINVAL"


class NotAllowed(XenstoreError):
    """The permissions of the node, or of its nearest existing ancestor, forbid this to the caller."""

    name = "EACCES"


class NotOwner(XenstoreError):
    """Only the control domain gives a node to another owner."""

    name = "EPERM"


class NoEntry(XenstoreError):
    """The node, transaction, watch or domain does not exist."""

    name = "ENOENT"


class Exists(XenstoreError):
    """The same watch is set already."""

    name = "EEXIST"


class Busy(XenstoreError):
    """A transaction cannot start inside another."""

    name = "EBUSY"


class Conflict(XenstoreError):
    """Changes of others invalidate what the transaction saw; do it again."""

    name = "EAGAIN"


class NoSpace(XenstoreError):
    """A quota of the domain is used up."""

    name = "ENOSPC"


class TooBig(XenstoreError):
    """The answer or value does not fit one message."""

    name = "E2BIG"


class Unsupported(XenstoreError):
    """A message type that this store does not serve."""

    name = "ENOSYS"
