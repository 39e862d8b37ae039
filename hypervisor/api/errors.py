"""What can go wrong at a host."""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """What went wrong, for programs."""

    FAILED = "failed"  # nothing that has a code of its own
    LOST = "lost"  # the host is not reached; what was under way may be done, or not
    LATE = "late"  # no answer in time; likewise
    STOPPED = "stopped"  # the host goes down
    BUSY = "busy"  # the host's process is short of files or threads
    NO_GUESTS = "no_guests"  # the host has no CPU for guests
    NO_MEMORY = "no_memory"
    NO_SPACE = "no_space"  # for a file
    NO_DOMAIN = "no_domain"
    EXISTS = "exists"  # such a domain
    NOT_RUNNING = "not_running"
    NOT_ACKNOWLEDGED = "not_acknowledged"  # the guest has not heard of what it was asked
    NOT_SUSPENDED = "not_suspended"
    NO_VCPU = "no_vcpu"  # more, or fewer, than the domain can have
    UNSUPPORTED = "unsupported"  # such a kind of guest
    BAD_KERNEL = "bad_kernel"
    BOOTLOADER_FAILED = "bootloader_failed"
    BAD_DISK = "bad_disk"  # what a drive names cannot be opened
    BAD_IMAGE = "bad_image"  # of a saved domain
    BAD_ADDRESSES = "bad_addresses"  # of an address service
    DEVICE_EXISTS = "device_exists"
    NO_DEVICE = "no_device"
    NO_CDROM = "no_cdrom"  # the drive takes no CDs
    DETACH_TIMEOUT = "detach_timeout"  # the guest keeps the device
    OFF_SCREEN = "off_screen"
    NO_KEY = "no_key"
    STORAGE = "storage"  # see `StorageFailure`


class HostError(Exception):
    """A request could not be carried out; what was begun is undone, unless it is LOST or LATE."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def is_unknown(self) -> bool:
        """Tell whether nobody knows if the request was carried out."""
        return self.code in (Code.LOST, Code.LATE)


class StorageFailure(HostError):
    """A request about storage could not be carried out; `number` is XCP's storage manager's for what went wrong."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(Code.STORAGE, text)
        self.number = number
