"""Schedules of snapshots (class VMSS): what their times may be, when they are due, and a run of one.

Times are those of the coordinator's time zone. A run begins within a quarter of an hour after its time, as cron would
begin it: what a daemon that was down has missed is not made up for. Looking for what is due costs some microseconds a
schedule, once a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from xapi.calls.parts import part
from xapi.calls.tasks import Tasks
from xapi.calls.work import Subsystems, Work
from xapi.datamodel import errors, records
from xapi.datamodel.errors import Fault
from xapi.datamodel.quoting import quoted
from xapi.datamodel.types import NULL
from xapi.events.alerts import alert
from xapi.log.guests import named

log = Logger()

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MINUTES = ("0", "15", "30", "45")
WINDOW = timedelta(minutes=15)
KEYS: Mapping[str, Mapping[str, str]] = {
    "hourly": {"min": "0"},
    "daily": {"hour": "0", "min": "0"},
    "weekly": {"hour": "0", "min": "0", "days": "Monday"},
}
"""The keys of a schedule by its frequency, with what they are when nobody says."""
FEWEST, MOST = 1, 10
"""Snapshots that may be kept of a VM."""


# What may be set


def checked(schedule: Mapping[str, str], keys: Mapping[str, str] = KEYS["weekly"]) -> dict[str, str]:
    """Return a schedule as it is kept. Raises INVALID_VALUE for a key that is not among some, or for a wrong value."""
    return {key: _checked(key, value, keys) for key, value in schedule.items()}


def _checked(key: str, value: str, keys: Mapping[str, str]) -> str:
    wrong = errors.INVALID_VALUE(f"schedule:{key}", value)
    if key not in keys:
        raise wrong
    if key == "min" and value not in MINUTES:
        raise wrong
    if key == "hour" and not (value.isascii() and value.isdecimal() and len(value) <= 2 and int(value) < 24):
        raise wrong
    if key != "days":
        return value
    known = {day.lower(): day for day in DAYS}
    days = [known.get(word.strip().lower(), "") for word in value.split(",")]
    if "" in days or len(set(days)) != len(days):
        raise wrong
    return ",".join(days)


def completed(frequency: str, schedule: Mapping[str, str]) -> dict[str, str]:
    """Return a schedule with the keys of a frequency and no others. Raises INVALID_VALUE."""
    keys = KEYS[frequency]
    return checked({key: schedule.get(key, default) for key, default in keys.items()}, keys)


def check_retained(number: int) -> None:
    """Raise INVALID_VALUE for a number of snapshots that cannot be kept."""
    if not FEWEST <= number <= MOST:
        raise errors.INVALID_VALUE("retained_snapshots", str(number))


# When one is due


def latest(frequency: str, schedule: Mapping[str, str], now: datetime) -> datetime:
    """Return the newest time of a schedule that is not after `now`, in the time zone of that."""
    minute, hour = int(schedule.get("min", "0")), int(schedule.get("hour", "0"))
    if frequency == "hourly":
        at = now.replace(minute=minute, second=0, microsecond=0)
        return at if at <= now else at - timedelta(hours=1)
    at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if at > now:
        at -= timedelta(days=1)
    days = schedule.get("days", "Monday").split(",") if frequency == "weekly" else DAYS
    while DAYS[at.weekday()] not in days:
        at -= timedelta(days=1)
    return at


class Schedules:
    """Begins what is due; one run of a schedule at a time."""

    def __init__(self, subsystems: Subsystems) -> None:
        self._subsystems = subsystems
        self._running: set[str] = set()
        self._told: dict[str, datetime] = {}
        """By schedule, the time of which was told that it is missed."""

    def look(self) -> None:
        """Begin the runs that are due. Call this every minute."""
        db = self._subsystems.db
        if not len(db.VMSS):
            return
        now = self._subsystems.now
        zone = ZoneInfo(db.host[next(iter(db.pool)).master].timezone)
        for row in list(db.VMSS):
            if row.enabled:
                at = latest(row.frequency, row.schedule, now.astimezone(zone))
                if at > row.last_run_time and now - at.astimezone(now.tzinfo) < WINDOW:
                    self._begin(row, at, now)

    def _begin(self, row: records.VMSS, at: datetime, now: datetime) -> None:
        """Begin a run whose time has come, or tell once that the one before is not over."""
        if row._ref in self._running:
            if self._told.get(row._ref) != at:
                self._told[row._ref] = at
                text = f"The run of {at:%Y-%m-%d %H:%M} is missed, for another one is not over"
                alert(self._subsystems.db, now, "VMSS_SNAPSHOT_MISSED_EVENT", "VMSS", row, text)
            return
        work = Work(self._subsystems, "VMSS.snapshot_now")
        running = Deferred.fromCoroutine(self._run(work, row))
        self._subsystems[Tasks].running(work.task, running)
        running.addErrback(lambda failure: log.failure("schedule {name} failed", failure, name=row.name_label))

    async def _run(self, work: Work, row: records.VMSS) -> None:
        try:
            came = await self.run(work, row)
            log.info("schedule {name} has run: {came}", name=quoted(row.name_label), came=came)
        except CancelledError:
            log.info("the run of schedule {name} was cancelled", name=row.name_label)
        finally:
            work.done()

    async def run(self, work: Work, row: records.VMSS) -> str:
        """Take the snapshots of a schedule, delete those that are too many, and return what came of it."""
        db = work.db
        if row._ref in self._running:
            alert(db, work.now, "VMSS_SNAPSHOT_LOCK_FAILED", "VMSS", row, "The schedule is busy")
            raise errors.OTHER_OPERATION_IN_PROGRESS("VMSS", row._ref)
        self._running.add(row._ref)
        row.last_run_time = work.now
        made, failed = 0, 0
        try:
            for vm in [db.VM[ref] for ref in row.VMs]:
                try:
                    await _take(work, row, vm)
                    made += 1
                except Fault as fault:
                    failed += 1
                    log.warn("{vm} has no snapshot of schedule {name}: {fault}",
                             vm=named(vm), name=quoted(row.name_label), fault=" ".join(fault.description))  # fmt: skip
                    text = f"Snapshot of VM '{vm.name_label}' (uuid: {vm.uuid}) failed: {fault.code}"
                    alert(db, work.now, "VMSS_SNAPSHOT_FAILED", "VMSS", row, text)
        finally:
            self._running.discard(row._ref)
        return f"{made} snapshots made, {failed} failed"


async def _take(work: Work, row: records.VMSS, vm: records.VM) -> None:
    """Take one VM's snapshot, and delete its oldest ones of schedules."""
    db = work.db
    name = f"{row.name_label}_{vm.name_label}_{work.now:%Y%m%dT%H%M%SZ}"
    if row.type == "checkpoint" and vm.power_state == "Running":
        made = await part(work, "VM.checkpoint", vm._ref, name)
    else:
        made = await part(work, "VM.snapshot", vm._ref, name, ())
    with db.atomic():
        if made in db.VM:
            db.VM[made].is_vmss_snapshot = True
        text = f"Snapshot of VM '{vm.name_label}' (uuid: {vm.uuid}) made: {name}"
        alert(db, work.now, "VMSS_SNAPSHOT_SUCCEEDED", "VMSS", row, text)
    mine = [each for ref in vm.snapshots if (each := db.VM[ref]).is_vmss_snapshot]
    for old in sorted(mine, key=lambda each: each.snapshot_time)[: -row.retained_snapshots]:
        await _delete(work, old)


async def _delete(work: Work, snapshot: records.VM) -> None:
    """Delete a snapshot with its disks and memory."""
    db = work.db
    drives = [db.VBD[ref] for ref in snapshot.VBDs]
    images = [vbd.VDI for vbd in drives if vbd.type != "CD" and not vbd.empty]
    if snapshot.suspend_VDI != NULL:
        images.append(snapshot.suspend_VDI)
    await part(work, "VM.destroy", snapshot._ref)
    for image in images:
        if image in db.VDI:
            await part(work, "VDI.destroy", image)
