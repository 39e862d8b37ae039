"""The API's errors for what a host could not do with a VM's domain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import assert_never

from hypervisor.api import Code, HostError, StorageFailure
from xapi.calls.faults import shortage
from xapi.datamodel import errors, records
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.storage.faults import NO_VOLUME, backend_failure


def fault_of(error: HostError, vm: records.VM, device: records.VBD | records.VIF | None = None) -> Fault:
    """Return the API's error for what a host could not do with a VM, or with a drive or card of it.

    What clients can do nothing about has no error of its own in the API.
    """
    return shortage(error) or _fault_of(error, vm, device)


def _fault_of(error: HostError, vm: records.VM, device: records.VBD | records.VIF | None) -> Fault:
    match error.code:
        case Code.LOST:
            return errors.HOST_OFFLINE(vm.resident_on if vm.resident_on != NULL else vm.scheduled_to_be_resident_on)
        case Code.BUSY:
            return errors.TOO_BUSY()
        case Code.NO_GUESTS:
            return errors.VM_HVM_REQUIRED(vm._ref)
        case Code.NO_MEMORY:
            return errors.HOST_NOT_ENOUGH_FREE_MEMORY(str(vm.memory_static_max), "0")
        case Code.NO_SPACE:
            return errors.SR_FULL("", str(error))
        case Code.NO_DOMAIN | Code.NOT_RUNNING:  # its guest went down by itself, a moment ago
            return errors.VM_BAD_POWER_STATE(vm._ref, "running", "halted")
        case Code.NOT_ACKNOWLEDGED:
            return errors.VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT(vm._ref)
        case Code.NOT_SUSPENDED:
            return errors.VM_FAILED_SUSPEND_ACKNOWLEDGMENT(vm._ref)
        case Code.NO_VCPU:
            return errors.VM_LACKS_FEATURE(vm._ref)
        case Code.BAD_KERNEL | Code.BOOTLOADER_FAILED:
            return errors.BOOTLOADER_FAILED(vm._ref, str(error))
        case Code.BAD_DISK if device is not None:
            return errors.VDI_NOT_AVAILABLE(getattr(device, "VDI", NULL))
        case Code.BAD_DISK:
            return backend_failure(NO_VOLUME, str(error))
        case Code.STORAGE if isinstance(error, StorageFailure):
            return backend_failure(error.number, str(error))
        case Code.DEVICE_EXISTS if device is not None:
            return errors.DEVICE_ALREADY_ATTACHED(device._ref)
        case Code.DETACH_TIMEOUT if device is not None:
            return errors.DEVICE_DETACH_TIMEOUT(device._table.name, device._ref)
        case (
            Code.FAILED | Code.LATE | Code.STOPPED | Code.EXISTS | Code.UNSUPPORTED | Code.BAD_IMAGE
            | Code.BAD_ADDRESSES | Code.DEVICE_EXISTS | Code.NO_DEVICE | Code.NO_CDROM | Code.DETACH_TIMEOUT
            | Code.OFF_SCREEN | Code.NO_KEY | Code.STORAGE
        ):  # fmt: skip
            return errors.INTERNAL_ERROR(f"{error.code.value}: {error}")
        case _:
            assert_never(error.code)


@contextmanager
def told(vm: records.VM, device: records.VBD | records.VIF | None = None) -> Iterator[None]:
    """Turn what a host could not do for a VM, or with a drive or card of it, into the API's error."""
    try:
        yield
    except HostError as error:
        raise fault_of(error, vm, device) from error
