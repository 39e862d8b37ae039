"""The API's errors for what storage refuses, as XCP's storage manager words them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypervisor.api import Code, HostError, StorageFailure
from xapi.calls.faults import shortage
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault

IN_USE, UNIMPLEMENTED, NO_SPACE, NO_VOLUME, CANNOT_MAKE = 16, 38, 44, 46, 78

_TEXTS = {
    1: "Invalid argument",
    IN_USE: "The SR device is currently in use",
    19: "No such device",
    24: "The VDI is currently in use",
    UNIMPLEMENTED: "The requested method is not supported/implemented",
    39: "The SR is not empty",
    42: "The SR already exists",
    43: "The VDI already exists",
    NO_SPACE: "There is insufficient space",
    NO_VOLUME: "The VDI is not available",
    47: "The SR is not available",
    48: "Unknown repository type",
    61: "File SR creation error",
    63: "File SR deletion error",
    65: "Failed to load VDI",
    66: "Invalid VDI type",
    73: "NFS mount error",
    CANNOT_MAKE: "VDI Creation failed",
    79: "VDI Invalid size",
    80: "Failed to mark VDI hidden",
    81: "Failed to clone VDI",
    82: "Failed to snapshot VDI",
    90: "The request is missing the device parameter",
    94: "The request is missing the location parameter",
    95: "The request is missing the target parameter",
    96: "The request is missing or has an incorrect target IQN parameter",
    101: "The request is missing the serverpath parameter",
    102: "The request is missing the server parameter",
    105: "Root system device, cannot be used for VM storage",
    107: "The SCSIid parameter is missing or incorrect",
    109: "The snapshot chain is too long",
    110: "VDI resize failed",
    111: "SMB mount error",
    141: "Unable to connect to ISCSI service on target",
    200: "General IO error",
    222: "Could not mount the directory specified in Device Configuration",
    226: "Invalid local path",
    456: "Unable to attach empty optical drive to VM.",
    461: "The file system for SR cannot be written to.",
}


def backend_failure(number: int, detail: str = "") -> Fault:
    """Return SR_BACKEND_FAILURE_`number`, with an output that is always empty, a text and another empty one."""
    text = _TEXTS.get(number, "Unknown error")
    return Fault(f"SR_BACKEND_FAILURE_{number}", "", f"{text} [opterr={detail}]" if detail else text, "")


@contextmanager
def answering() -> Iterator[None]:
    """Turn what storage raises into the API's errors."""
    try:
        yield
    except StorageFailure as failure:
        # That another daemon holds a lock is EAGAIN to the system too, and no shortage.
        short = None if failure.number == IN_USE else shortage(failure)
        raise short or backend_failure(failure.number, str(failure)) from failure
    except HostError as error:
        if error.code is Code.LOST:
            raise errors.HOST_OFFLINE("") from error
        raise errors.INTERNAL_ERROR(f"{error.code.value}: {error}") from error
