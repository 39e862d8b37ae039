"""The one error of storage. Its codes are those of XCP's storage manager (sm: XE_SR_ERRORCODES.xml).

A toolstack makes of it the XenAPI error SR_BACKEND_FAILURE_<code>.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from hypervisor.disks.disk import DiskError, Kind
from hypervisor.disks.image_file import failure


class Code(IntEnum):
    """What went wrong, by the storage manager's names and numbers."""

    InvalidArg = 1
    SRInUse = 16  # attached by another process, or a volume is open
    InvalidDev = 19
    VDIInUse = 24
    Unimplemented = 38  # such as a snapshot of a raw volume
    SRNotEmpty = 39
    SRExists = 42  # the directory holds something else
    VDIExists = 43
    SRNoSpace = 44
    VDIUnavailable = 46  # no such volume, or one that may not be used so: hidden, read-only
    SRUnavailable = 47  # not attached, or not a repository of ours
    SRUnknownType = 48
    FileSRCreate = 61
    FileSRDelete = 63
    VDILoad = 65  # the image, or one of its parents, is damaged or missing
    VDIType = 66
    NFSMount = 73
    VDICreate = 78
    VDISize = 79  # too large, or to be shrunk
    VDIDelete = 80
    VDIClone = 81
    VDISnapshot = 82
    ConfigDeviceMissing = 90
    ConfigLocationMissing = 94
    ConfigTargetMissing = 95
    ConfigTargetIQNMissing = 96
    ConfigServerPathMissing = 101
    ConfigServerMissing = 102
    RootDev = 105  # the disk that the host is installed on
    ConfigSCSIid = 107
    SnapshotChainTooLong = 109
    VDIResize = 110
    SMBMount = 111
    ISCSITarget = 141
    EIO = 200
    ISOMountFailure = 222
    ISOLocalPath = 226
    TapdiskDriveEmpty = 456  # the medium is gone
    SharedFileSystemNoWrite = 461  # the host may not write here


class StorageError(Exception):
    """A request could not be carried out; what was begun is undone."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


_CODES = {
    Kind.NO_SPACE: Code.SRNoSpace,
    Kind.BUSY: Code.VDIInUse,
    Kind.NOT_FOUND: Code.VDIUnavailable,
    Kind.DAMAGED: Code.VDILoad,
    Kind.MISMATCH: Code.VDILoad,
    Kind.READ_ONLY: Code.SharedFileSystemNoWrite,
    Kind.IO: Code.EIO,
}


@contextmanager
def failing(code: Code, path: Path) -> Iterator[None]:
    """Turn failures of disks and of the host into StorageError; `code` is for those that have none of their own."""
    try:
        yield
    except DiskError as error:
        raise StorageError(_CODES.get(error.kind, code), str(error)) from error
    except OSError as error:
        raise StorageError(_CODES.get(failure(error, path).kind, code), str(error)) from error
