"""Schedules of snapshots: what may be set, when they run, and what they leave."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from tests.api.storage_pool import Disks
from tests.conftest import NOW, Pool
from xapi.vms.schedules import DAYS, MINUTES, latest

DAILY = {"type": "snapshot", "frequency": "daily", "schedule": {"hour": "9", "min": "15"}, "name_label": "plan"}


def plan(pool: Pool, *vms: Any, **fields: Any) -> Any:
    """Return a schedule with VMs; the clock stands at 09:05:07."""
    row = pool.db.VMSS[pool("VMSS.create", DAILY | {"retained_snapshots": "2", **fields})]
    for vm in vms:
        pool("VM.set_snapshot_schedule", vm._ref, row._ref)
    return row


def make_vm(disks: Disks) -> Any:
    vm = disks.db.VM[disks.drive(disks.create()).VM]
    vm.name_label = "guest"
    return vm


def go_to(pool: Pool, hour: int, minute: int, day: int = 31) -> None:
    """Move the clock there, minute by minute, as the daemon looks."""
    while pool.clock.seconds() < datetime(2026, 1, day, hour, minute, tzinfo=UTC).timestamp():
        pool.clock.advance(60)
        pool.daemon.sweep()
        pool.turn()
    pool.session = pool.login()


def alerts(pool: Pool) -> list[str]:
    return [row.name for row in pool.db.message if row.cls == "VMSS"]


def test_a_schedule_takes_snapshots_at_its_time_and_not_again(disks: Disks) -> None:
    """Marked as its own, told of by an alert, under a name with the time."""
    vm = make_vm(disks)
    row = plan(disks, vm)
    go_to(disks, 9, 14)
    assert not vm.snapshots
    go_to(disks, 9, 45)
    (snapshot,) = (disks.db.VM[ref] for ref in vm.snapshots)
    assert snapshot.is_vmss_snapshot and snapshot.name_label == "plan_guest_20260131T091507Z"
    assert row.last_run_time == NOW + timedelta(minutes=10)
    assert alerts(disks) == ["VMSS_SNAPSHOT_SUCCEEDED"]


def test_the_log_tells_that_a_schedule_has_run_and_what_failed(disks: Disks) -> None:
    """No call does, for nobody has called."""
    vm, other = make_vm(disks), make_vm(disks)
    plan(disks, vm, other)
    vm.blocked_operations = {"snapshot": "not now"}
    with capturedLogs() as events:
        go_to(disks, 9, 16)
    said = [f"{event['log_level'].name} {formatEvent(event)}" for event in events]
    (failed,) = (line for line in said if line.startswith("warn"))
    assert failed.startswith(f'warn VM "guest" ({vm.uuid}) has no snapshot of schedule "plan": OPERATION_BLOCKED')
    assert 'info schedule "plan" has run: 1 snapshots made, 1 failed' in said


def test_a_schedule_that_is_disabled_or_has_no_time_now_does_not_run(disks: Disks) -> None:
    """A time of an hour ago is past."""
    vm, other = make_vm(disks), make_vm(disks)
    plan(disks, vm, enabled=False)
    plan(disks, other, schedule={"hour": "8"})
    go_to(disks, 9, 45)
    assert not vm.snapshots and not other.snapshots


def test_no_more_snapshots_are_kept_than_the_schedule_says(disks: Disks) -> None:
    """The oldest of schedules go, with their disks; those of people stay."""
    vm = make_vm(disks)
    own = disks("VM.snapshot", vm._ref, "by hand")
    row = plan(disks, vm)
    for _ in range(4):
        assert disks("VMSS.snapshot_now", row._ref) == "1 snapshots made, 0 failed"
        disks.clock.advance(60)
        disks.turn()
    kept = [disks.db.VM[ref] for ref in vm.snapshots]
    assert own in {each._ref for each in kept} and sum(each.is_vmss_snapshot for each in kept) == 2
    names = sorted(each.name_label for each in kept if each.is_vmss_snapshot)
    assert names == ["plan_guest_20260131T090707Z", "plan_guest_20260131T090807Z"]
    images = {disks.db.VBD[ref].VDI for each in kept for ref in each.VBDs}
    assert {vdi._ref for vdi in disks.db.VDI if vdi.is_a_snapshot} == images


def test_a_vm_that_cannot_be_snapshotted_does_not_keep_the_others(disks: Disks) -> None:
    vm, other = make_vm(disks), make_vm(disks)
    row = plan(disks, vm, other)
    vm.blocked_operations = {"snapshot": "not now"}
    assert disks("VMSS.snapshot_now", row._ref) == "1 snapshots made, 1 failed"
    assert not vm.snapshots and other.snapshots
    assert sorted(alerts(disks)) == ["VMSS_SNAPSHOT_FAILED", "VMSS_SNAPSHOT_SUCCEEDED"]


def test_a_run_that_is_not_over_keeps_off_the_next(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of once, and to who asks for one at once."""
    held: Deferred[None] = Deferred()

    async def take(call: Any, row: Any, vm: Any) -> None:
        await held

    monkeypatch.setattr("xapi.vms.schedules._take", take)
    row = plan(disks, make_vm(disks), frequency="hourly", schedule={"min": "15"})
    go_to(disks, 10, 20)
    assert disks.fails("VMSS.snapshot_now", row._ref)[0] == "OTHER_OPERATION_IN_PROGRESS"
    assert alerts(disks) == ["VMSS_SNAPSHOT_MISSED_EVENT", "VMSS_SNAPSHOT_LOCK_FAILED"]
    held.callback(None)
    disks.turn()
    go_to(disks, 11, 20)
    assert row.last_run_time.hour == 11


def test_times_are_those_of_the_hosts_zone(disks: Disks) -> None:
    """09:15 in Kolkata is 03:45 in UTC."""
    next(iter(disks.db.host)).timezone = "Asia/Kolkata"
    vm = make_vm(disks)
    plan(disks, vm, schedule={"hour": "14", "min": "45"})
    go_to(disks, 9, 20)
    assert vm.snapshots


# What may be set


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"schedule": {"hour": "24"}}, ["schedule:hour", "24"]),
        ({"schedule": {"min": "7"}}, ["schedule:min", "7"]),
        ({"schedule": {"days": "Monday"}}, ["schedule:days", "Monday"]),
        ({"frequency": "weekly", "schedule": {"days": "Monday,Funday"}}, ["schedule:days", "Monday,Funday"]),
        ({"retained_snapshots": "11"}, ["retained_snapshots", "11"]),
        ({"retained_snapshots": "0"}, ["retained_snapshots", "0"]),
    ],
)
def test_what_no_schedule_can_be_is_refused(pool: Pool, fields: dict[str, Any], wrong: list[str]) -> None:
    assert pool.fails("VMSS.create", DAILY | fields) == ["INVALID_VALUE", *wrong]
    assert not pool.db.VMSS.rows


def test_a_schedule_has_the_keys_of_its_frequency(pool: Pool) -> None:
    """Missing ones have defaults, others go; days are spelt as the API does."""
    row = plan(pool, frequency="weekly", schedule={"days": "sunday, friday"})
    assert row.schedule == {"hour": "0", "min": "0", "days": "Sunday,Friday"}
    pool("VMSS.set_frequency", row._ref, "hourly")
    assert row.schedule == {"min": "0"}
    pool("VMSS.set_schedule", row._ref, {"min": "30"})
    assert row.schedule == {"min": "30"}
    pool("VMSS.remove_from_schedule", row._ref, "min")
    assert pool.fails("VMSS.add_to_schedule", row._ref, "min", "31") == ["INVALID_VALUE", "schedule:min", "31"]
    pool("VMSS.add_to_schedule", row._ref, "min", "45")
    assert row.schedule == {"min": "45"}


def test_a_schedule_with_vms_is_not_destroyed(disks: Disks) -> None:
    """Its alerts go with it."""
    vm = make_vm(disks)
    row = plan(disks, vm)
    disks("VMSS.snapshot_now", row._ref)
    assert disks.fails("VMSS.destroy", row._ref) == ["VMSS_HAS_VM"]
    assert disks.fails("VMSS.set_type", row._ref, "snapshot_with_quiesce") == [
        "VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", vm._ref
    ]  # fmt: skip
    disks("VM.set_snapshot_schedule", vm._ref, "OpaqueRef:NULL")
    disks("VMSS.destroy", row._ref)
    assert not disks.db.VMSS.rows and not alerts(disks) and vm.snapshots


SCHEDULES = st.fixed_dictionaries(
    {
        "min": st.sampled_from(MINUTES),
        "hour": st.integers(0, 23).map(str),
        "days": st.lists(st.sampled_from(DAYS), min_size=1, unique=True).map(",".join),
    }
)


YEAR_2000 = datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=None)


@given(st.sampled_from(["hourly", "daily", "weekly"]), SCHEDULES, st.datetimes(YEAR_2000, timezones=st.just(UTC)))
def test_the_newest_time_is_not_after_now_and_there_is_none_between(
    frequency: str, schedule: dict[str, str], now: datetime
) -> None:
    """Against a search quarter by quarter."""

    def fits(at: datetime) -> bool:
        same = str(at.minute) == schedule["min"]
        same = same and (frequency == "hourly" or str(at.hour) == schedule["hour"])
        return same and (frequency != "weekly" or DAYS[at.weekday()] in schedule["days"].split(","))

    at = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
    while not fits(at):
        at -= timedelta(minutes=15)
    assert latest(frequency, schedule, now) == at
