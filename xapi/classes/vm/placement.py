"""Messages of VM that ask what could be done with it: where it could run, which operations it allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import NULL, Ref
from xapi.operations.refusal import allowed_operations, refusal
from xapi.vms.placement import assert_can_boot_here, possible_hosts
from xapi.wire.fragments import RecordOf, Refs

VM = Ref[records.VM]
Host = Ref[records.host]


# Where


@message("VM.get_possible_hosts")
def get_possible_hosts(call: Call, vm: VM) -> Refs:
    """Return the hosts on which the VM could start now."""
    return Refs(host._ref for host in possible_hosts(call.db, call.db.VM[vm]))


@message("VM.assert_can_boot_here")
def can_boot_here(call: Call, self: VM, host: Host) -> None:
    """Raise the reason why the VM could not start on a host now."""
    assert_can_boot_here(call.db, call.db.VM[self], call.db.host[host])


@message("VM.retrieve_wlb_recommendations")
def retrieve_wlb_recommendations(call: Call, vm: VM) -> Mapping[str, tuple[str, ...]]:
    """Return what the workload balancing server thinks of each host; no pool of ours talks to one."""
    _ = call.db.VM[vm]
    if not call.pool.wlb_url:
        raise errors.WLB_NOT_INITIALIZED()
    if not call.pool.wlb_enabled:
        raise errors.WLB_DISABLED()
    raise errors.NOT_IMPLEMENTED("VM.retrieve_wlb_recommendations")


@message("VM.assert_agile")
def assert_agile(call: Call, self: VM) -> None:
    """Raise the reason why the VM could not run on every enabled host."""
    db, row = call.db, call.db.VM[self]
    if row.VGPUs:
        raise errors.VM_HAS_VGPU(self)
    if row.VUSBs:
        raise errors.VM_HAS_VUSBS(self)
    enabled = {host._ref for host in db.host if host.enabled}
    for ref in row.VBDs:
        vbd = db.VBD[ref]
        if vbd.empty:
            continue
        sr = db.SR[db.VDI[vbd.VDI].SR]
        plugged = {pbd.host for each in sr.PBDs if (pbd := db.PBD[each]).currently_attached}
        if not (sr.shared and enabled <= plugged):
            raise errors.HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED(sr._ref)
    for card in row.VIFs:
        network = db.network[db.VIF[card].network]
        pifs = [db.PIF[each] for each in network.PIFs]
        if not enabled <= {pif.host for pif in pifs if pif.bond_slave_of == NULL}:
            raise errors.HA_CONSTRAINT_VIOLATION_NETWORK_NOT_SHARED(network._ref)


# What


@message("VM.assert_operation_valid")
def assert_operation_valid(call: Call, self: VM, op: records.enum_vm_operations) -> None:
    """Raise the reason why an operation could not start now."""
    fault = refusal(call.db, call.db.VM[self], op)
    if fault is not None:
        raise fault


@message("VM.update_allowed_operations")
def update_allowed_operations(call: Call, self: VM) -> None:
    """Bring the lists of the VM and of its devices up to date; they always are."""
    db, row = call.db, call.db.VM[self]
    drives, cards = [db.VBD[ref] for ref in row.VBDs], [db.VIF[ref] for ref in row.VIFs]
    listing: Iterable[records.Claimable] = (row, *drives, *cards, *[db.VUSB[ref] for ref in row.VUSBs])
    for each in listing:
        each.allowed_operations = allowed_operations(db, each)


@message("VM.get_boot_record")
async def get_boot_record(call: Call, self: VM) -> RecordOf:
    """Return the VM's record."""
    row = call.db.VM[self]
    return RecordOf(row)


# Signals


@message("VM.send_sysrq")
async def send_sysrq(call: Call, vm: VM, key: str) -> None:
    """Refuse, as xapi does."""
    raise errors.NOT_IMPLEMENTED("send_sysrq")


@message("VM.send_trigger")
async def send_trigger(call: Call, vm: VM, trigger: str) -> None:
    """Refuse, as xapi does: no trigger is known."""
    raise errors.NOT_IMPLEMENTED("send_trigger")


@message("VM.query_services")
async def query_services(call: Call, self: VM) -> Mapping[str, str]:
    """Refuse, as xapi does: no driver domain is asked."""
    raise errors.NOT_IMPLEMENTED("query_services")
