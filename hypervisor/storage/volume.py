"""What is known of a volume, as plain frozen values; and the description that is kept beside its file.

A VHD tells its size and its parent, but not its name. XCP's file repositories keep names in the pool's database alone,
so a database lost leaves a row of uuids; its LVM ones keep the fields below in a volume of their own (MGT), and are
readable ever after. We do as the latter: one small file a volume, which is right as long as the volume exists,
whatever becomes of any database. It holds nothing on which reading the disk depends.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from enum import Enum

from hypervisor.api import Description
from hypervisor.disks import vhd_format as form
from hypervisor.disks.disk import SECTOR, DiskError, Kind
from hypervisor.storage.errors import Code, StorageError

MAX_DESCRIPTION = 256 * 1024
"""Bytes of a description that are believed."""


PLAIN = Description()
"""What is said of a volume of which nobody has said anything."""


class Format(Enum):
    """How a volume lies in its file; the value is the end of the file's name."""

    VHD = "vhd"
    RAW = "raw"


def encode(description: Description) -> bytes:
    """Return the content of a description's file; raise DiskError(REFUSED) for one that would not be believed."""
    data = json.dumps(asdict(description), indent=1).encode() + b"\n"
    if len(data) > MAX_DESCRIPTION:
        raise DiskError(Kind.REFUSED, f"a description of {len(data)} bytes")
    return data


def decode(data: bytes) -> Description:
    """Read what `encode` wrote; what is unknown or of another type is left out, so no file is refused."""
    default = Description()
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return default
    if not isinstance(found, dict):
        return default
    known = {one.name: type(getattr(default, one.name)) for one in fields(Description)}
    return Description(**{name: value for name, value in found.items() if type(value) is known.get(name)})


@dataclass(frozen=True, slots=True)
class Users:
    """How many have a volume open."""

    readers: int
    writers: int


def rounded(size: int, format: Format) -> int:
    """Return the size that a volume of a wanted size has, as XCP rounds: a VHD to 2 MiB."""
    unit = SECTOR if format is Format.RAW else form.BLOCK
    size = max(-(-size // unit), 1) * unit if size >= 0 else size
    if not 0 < size <= form.MAX_SIZE:
        raise StorageError(Code.VDISize, f"a volume of {size} bytes; at most {form.MAX_SIZE}")
    return size
