"""Validity of paths, as docs/misc/xenstore.txt states it.

A valid path is a `str` from here on: absolute ("/" or "/a/b") or special ("@releaseDomain", "@releaseDomain/7").
"""

from __future__ import annotations

import re

from hypervisor.xenstore.errors import Invalid

ABSOLUTE_MAX = 3072  # XENSTORE_ABS_PATH_MAX
RELATIVE_MAX = 2048  # XENSTORE_REL_PATH_MAX
FIRST_RESERVED_DOMID = 0x7FF0  # DOMID_FIRST_RESERVED of xen.h

_valid_characters = re.compile(r"[-/_@A-Za-z0-9]+").fullmatch
_decimal = re.compile(rb"[0-9]{1,10}").fullmatch


def home(domid: int) -> str:
    """Return the path that relative paths of a domain start from."""
    return f"/local/domain/{domid}"


def resolve(text: bytes, base: str, *, special: bool = False) -> str:
    """Return the valid path that a client named, relative to `base` unless it starts with a slash.

    Special paths pass only where `special` says so. Raise `Invalid`. O(length).
    """
    try:
        path = text.decode("ascii")
    except UnicodeDecodeError:
        raise Invalid("path is not ASCII") from None
    return _checked(path, base, special)


def absolute(path: str, *, special: bool = False) -> str:
    """Return a path of the toolstack's if it is valid; raise `Invalid`. O(length)."""
    if not path.startswith("/") and not (special and path.startswith("@")):
        raise Invalid(f"not an absolute path: {path[:80]!r}")
    return _checked(path, "", special)


def _checked(path: str, base: str, special: bool) -> str:
    first = path[:1]
    if first == "/":
        full = path
    elif first == "@":
        if not special:
            raise Invalid("a special path names no node")
        full = path
    else:
        if len(path) > RELATIVE_MAX:
            raise Invalid("relative path too long")
        full = f"{base}/{path}"
    if len(full) > ABSOLUTE_MAX or not _valid_characters(full) or "//" in full or (full[-1] == "/" and full != "/"):
        raise Invalid(f"not a path: {full[:80]!r}")
    return full


def parts(path: str) -> list[str]:
    """Return the names from the top of the tree down: "/a" is ["", "a"], "/" is [""], "@x" is ["@x"]."""
    return path.split("/") if len(path) > 1 else [""]


def parent(path: str) -> str:
    """Return the path one level up; that of "/" and of a special path is "/"."""
    return path[: max(path.rfind("/"), 0)] or "/"


def number(text: bytes, most: int) -> int:
    """Read a decimal number of 0 to `most`; raise `Invalid`."""
    if not _decimal(text) or int(text) > most:
        raise Invalid("not a number in range")
    return int(text)
