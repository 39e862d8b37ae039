"""Messages of task."""

from __future__ import annotations

from collections.abc import Mapping

from xapi.calls.call import Call
from xapi.calls.implicit import add_to_map_field, remove_from_map_field
from xapi.calls.registry import message
from xapi.calls.tasks import Tasks, require_owner
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref


def _own(call: Call, ref: Ref[records.task]) -> records.task:
    """Return a task that the caller may end or change: its own, or any with the right permission."""
    task = call.db.task[ref]
    require_owner(call.caller.session, task, call.db, call.caller.may("task.destroy/any"))
    return task


@message("task.create")
def create(call: Call, label: str, description: str) -> Ref[records.task]:
    """Make a task for work of the client's own, such as an HTTP transfer."""
    return call[Tasks].create(label, description, session=call.caller.session, origin=call.caller.origin)._ref


@message("task.destroy")
def destroy(call: Call, self: Ref[records.task]) -> None:
    """Remove a task; one that is at work goes when it ends."""
    call[Tasks].destroy(_own(call, self))


@message("task.cancel")
def cancel(call: Call, task: Ref[records.task]) -> None:
    """Ask for the work to stop; where it cannot any more, nothing happens."""
    call[Tasks].cancel(_own(call, task), call.task._ref)


@message("task.set_status")
def set_status(call: Call, self: Ref[records.task], value: records.enum_task_status_type) -> None:
    """Say how a client's own task stands; an ended one stays as it is."""
    task = _own(call, self)
    if task.status not in ("pending", "cancelling"):
        return
    task.status = value
    if value not in ("pending", "cancelling"):
        task.finished = call.now


@message("task.set_progress")
def set_progress(call: Call, self: Ref[records.task], value: float) -> None:
    """Say how far a client's own task has come, 0 to 1."""
    if not 0 <= value <= 1:
        raise errors.INVALID_VALUE("progress", str(value))
    call[Tasks].progress(_own(call, self), value)


@message("task.set_result")
def set_result(call: Call, self: Ref[records.task], value: str) -> None:
    """Store the result of a client's own task."""
    _own(call, self).result = value


@message("task.set_error_info")
def set_error_info(call: Call, self: Ref[records.task], value: tuple[str, ...]) -> None:
    """Store why a client's own task failed."""
    _own(call, self).error_info = value


@message("task.set_other_config")
def set_other_config(call: Call, self: Ref[records.task], value: Mapping[str, str]) -> None:
    """Replace the map; keys with a role of their own ask for it."""
    task = call.db.task[self]
    call.require_keys("other_config", task.other_config, value)
    task.other_config = value


@message("task.add_to_other_config")
def add_to_other_config(call: Call, self: Ref[records.task], key: str, value: str) -> None:
    """Add a new key."""
    add_to_map_field(call.db.task, self, "other_config", key, value)


@message("task.remove_from_other_config")
def remove_from_other_config(call: Call, self: Ref[records.task], key: str) -> None:
    """Remove a key, if it is there."""
    remove_from_map_field(call.db.task, self, "other_config", key)
