"""Messages of VM about its vCPUs: how many, and their share of the host's processors."""

from __future__ import annotations

from hypervisor.api import Change
from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.lexical import parse_number
from xapi.datamodel.types import Ref
from xapi.operations.vm import is_dom0
from xapi.vms.faults import told
from xapi.vms.power import backend
from xapi.vms.reconcile import Reconciler

VM = Ref[records.VM]
_RULE = "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max"
_LIVE_RULE = "VCPU values must satisfy: 0 < VCPUs ≤ VCPUs_max"


@message("VM.set_VCPUs_max")
async def set_VCPUs_max(call: Call, self: VM, value: int) -> None:
    """Set how many vCPUs a halted VM can have."""
    row = call.db.VM[self]
    if value < max(1, row.VCPUs_at_startup):
        raise errors.INVALID_VALUE(_RULE, str(value))
    with call.db.atomic():
        row.VCPUs_max = value
        if row.is_control_domain and row.power_state == "Running":
            row.requires_reboot = True


@message("VM.set_VCPUs_at_startup")
def set_VCPUs_at_startup(call: Call, self: VM, value: int) -> None:
    """Set with how many vCPUs the VM starts next."""
    row = call.db.VM[self]
    if row.is_control_domain and is_dom0(call.db, row):
        raise errors.OPERATION_NOT_ALLOWED("set_VCPUs_at_startup is not allowed on dom0")
    if not 1 <= value <= row.VCPUs_max:
        raise errors.INVALID_VALUE(_RULE, str(value))
    row.VCPUs_at_startup = value


@message("VM.set_VCPUs_number_live")
async def set_VCPUs_number_live(call: Call, self: VM, nvcpu: int) -> None:
    """Ask a guest to have so many vCPUs online, now and when it next starts. Nobody waits for it to do so.

    A guest of which no vCPU can be plugged, a PV one, is VM_LACKS_FEATURE.
    """
    row = call.db.VM[self]
    if not 1 <= nvcpu <= row.VCPUs_max:
        raise errors.INVALID_VALUE(_LIVE_RULE, str(row.VCPUs_max))  # xapi names what would be right
    with told(row):
        await backend(call, row).adjust(row.uuid, Change(vcpus=nvcpu))
    row.VCPUs_at_startup = nvcpu
    await call[Reconciler].look(row)


@message("VM.add_to_VCPUs_params_live")
async def add_to_VCPUs_params_live(call: Call, self: VM, key: str, value: str) -> None:
    """Set weight, cap or mask of a VM that runs, for now and for later starts."""
    row = call.db.VM[self]
    change = _scheduling(row, key, value)
    with told(row):
        await backend(call, row).adjust(row.uuid, change)
    row.VCPUs_params = {**row.VCPUs_params, key: value}


def _scheduling(vm: records.VM, key: str, value: str) -> Change:
    """Return what a parameter changes. Raises INVALID_VALUE."""
    number = parse_number(value)
    if key == "weight" and number is not None and 1 <= number <= 65535:
        return Change(weight=number)
    if key == "cap" and number is not None and number <= 100 * vm.VCPUs_max:
        return Change(cap=number)
    if key == "mask":
        pcpus = [parse_number(part) for part in value.split(",")]
        affinity = tuple(pcpu for pcpu in pcpus if pcpu is not None)
        if len(affinity) == len(pcpus):
            return Change(affinity=affinity)
    raise errors.INVALID_VALUE(key, value)
