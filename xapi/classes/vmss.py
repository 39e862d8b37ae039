"""Messages of VMSS: schedules of snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from xapi.calls.call import Call
from xapi.calls.implicit import constructor_fields
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref
from xapi.vms import schedules
from xapi.vms.schedules import Schedules

VMSS = Ref[records.VMSS]


@message("VMSS.create")
def create(call: Call, args: records.VMSS_record) -> VMSS:
    """Make a schedule; keys of its times that are not given get their defaults."""
    table = call.db.VMSS
    known = constructor_fields(table)
    fields = {name: value for name, value in args.items() if name in known}
    given = args.get("schedule", {})
    schedules.checked(given, schedules.KEYS[args["frequency"]])
    schedules.check_retained(args.get("retained_snapshots", 7))
    made: VMSS = table.create(**{**fields, "schedule": schedules.completed(args["frequency"], given)})._ref
    return made


@message("VMSS.destroy")
def destroy(call: Call, self: VMSS) -> None:
    """Remove a schedule without VMs, with its alerts; its snapshots stay."""
    row = call.db.VMSS[self]
    if row.VMs:
        raise errors.VMSS_HAS_VM()
    for alert in [alert for alert in call.db.message if alert.obj_uuid == row.uuid]:
        call.db.message.delete(alert._ref)
    call.db.VMSS.delete(self)


@message("VMSS.snapshot_now")
async def snapshot_now(call: Call, vmss: VMSS) -> str:
    """Run a schedule at once, whether it is enabled or not."""
    return await call[Schedules].run(call, call.db.VMSS[vmss])


@message("VMSS.set_type")
def set_type(call: Call, self: VMSS, value: records.enum_vmss_type) -> None:
    """Choose what is kept of VMs; no guest can bring its file systems to rest."""
    row = call.db.VMSS[self]
    if value == "snapshot_with_quiesce":
        for vm in row.VMs:
            raise errors.VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED(vm)
    row.type = value


@message("VMSS.set_frequency")
def set_frequency(call: Call, self: VMSS, value: records.enum_vmss_frequency) -> None:
    """Choose hourly, daily or weekly runs; the times are made to fit."""
    row = call.db.VMSS[self]
    row.schedule = schedules.completed(value, row.schedule)
    row.frequency = value


@message("VMSS.set_schedule")
def set_schedule(call: Call, self: VMSS, value: Mapping[str, str]) -> None:
    """Set times; those that are not named stay."""
    row = call.db.VMSS[self]
    row.schedule = {**row.schedule, **schedules.checked(value)}


@message("VMSS.add_to_schedule")
def add_to_schedule(call: Call, self: VMSS, key: str, value: str) -> None:
    """Set one key of the times that is not there."""
    row = call.db.VMSS[self]
    good = schedules.checked({key: value})
    if key in row.schedule:
        raise errors.MAP_DUPLICATE_KEY("VMSS", "schedule", self, key)
    row.schedule = {**row.schedule, **good}


@message("VMSS.remove_from_schedule")
def remove_from_schedule(call: Call, self: VMSS, key: str) -> None:
    """Let one key of the times have its default."""
    row = call.db.VMSS[self]
    row.schedule = {name: value for name, value in row.schedule.items() if name != key}


@message("VMSS.set_retained_snapshots")
def set_retained_snapshots(call: Call, self: VMSS, value: int) -> None:
    """Say how many snapshots are kept of each VM; those beyond go at the next run."""
    row = call.db.VMSS[self]
    schedules.check_retained(value)
    row.retained_snapshots = value


@message("VMSS.set_last_run_time")
def set_last_run_time(call: Call, self: VMSS, value: datetime) -> None:
    """Record when a schedule ran last."""
    call.db.VMSS[self].last_run_time = value
