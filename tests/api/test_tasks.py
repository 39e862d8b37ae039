"""The life of a task, from the call that makes it to the sweep that forgets it."""

from __future__ import annotations

import xmlrpc.client
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.api.conftest import Connection, call, request, text
from tests.conftest import NOW, Pool
from xapi.cancelling import to_its_end
from xapi.datamodel import errors
from xapi.datamodel.lexical import EPOCH
from xapi.process.config import Config
from xapi.process.hosts import UNDONE, Hosts

MINUTE, HOUR = 60, 3600


class Work:
    """Stands in for a message that takes its time: VM.shutdown waits until the test says how it ends."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.method = pool.daemon.dispatcher.methods["VM.shutdown"]
        self.calls: list[Any] = []
        self.waiting: list[Deferred[Any]] = []
        self.before = self.method.function, self.method.waits
        self.method.function, self.method.waits = self.run, True

    async def run(self, call: Any, vm: str) -> Any:
        self.calls.append(call)
        self.waiting.append(Deferred())
        return await self.waiting[-1]

    def start(self) -> Any:
        """Begin the work and return its task's row."""
        ref = self.pool("Async.VM.shutdown", "OpaqueRef:x")
        self.pool.turn()
        return self.pool.db.task[ref]


@pytest.fixture
def work(pool: Pool) -> Iterator[Work]:
    stand_in = Work(pool)
    yield stand_in
    stand_in.method.function, stand_in.method.waits = stand_in.before


def test_new_task(pool: Pool, work: Work) -> None:
    """As semantics know it."""
    task = work.start()
    assert (task.name_label, task.name_description, task.status) == ("Async.VM.shutdown", "", "pending")
    assert (task.progress, task.created, task.finished) == (0.0, NOW, EPOCH)
    assert (task.type, task.result, task.error_info, task.backtrace) == ("<none/>", "", (), "()")
    assert task.resident_on == next(iter(pool.db.host))._ref
    assert task.subtask_of == "OpaqueRef:NULL"
    assert set(task.allowed_operations) == {"cancel", "destroy"}
    assert task._ref in pool("task.get_all")


def test_task_that_succeeds(pool: Pool, work: Work) -> None:
    """Everything about the end is told at once, in one event."""
    task = work.start()
    pool.clock.advance(90)
    token = str(pool("event.from", ["task"], "", 0.0).token)
    work.waiting[0].callback(None)
    pool.turn()
    assert (task.status, task.progress, task.result, task.error_info) == ("success", 1.0, "<value></value>", ())
    assert task.finished == NOW + timedelta(seconds=90)
    assert task.allowed_operations == ()
    (event,) = pool("event.from", ["task"], token, 0.0).events
    assert (event.operation, event.ref) == ("mod", task._ref)


def test_task_that_fails(pool: Pool, work: Work) -> None:
    """With the error that a synchronous call would have answered."""
    task = work.start()
    work.waiting[0].errback(errors.VM_BAD_POWER_STATE("OpaqueRef:x", "running", "halted"))
    pool.turn()
    assert (task.status, task.progress, task.result) == ("failure", 1.0, "")
    assert task.error_info == ("VM_BAD_POWER_STATE", "OpaqueRef:x", "running", "halted")


@pytest.mark.parametrize(
    ("name", "params", "result"),
    [
        ("task.add_to_other_config", ("k", "v"), "<value></value>"),
        ("session.get_all_subject_identifiers", None, "<value><array><data></data></array></value>"),
    ],
)
def test_result_is_xml_of_the_value(pool: Pool, name: str, params: tuple[str, ...] | None, result: str) -> None:
    """Which XenAPI's own parser reads."""
    more = () if params is None else (pool("task.create", "own", ""), *params)
    task = pool(f"Async.{name}", *more)
    pool.turn()
    assert pool.db.task[task].result == result
    xmlrpc.client.loads(f"<params><param>{result}</param></params>")


def test_result_with_special_characters(pool: Pool) -> None:
    """Escaped once as a value, and once more inside the record."""
    task = pool("task.create", "own", "")
    pool("task.set_result", task, "<value>&amp;</value>")
    answer = Connection(pool).ask("task.get_result", text(pool.session), text(task))
    assert b"&lt;value&gt;&amp;amp;&lt;/value&gt;" in answer.body


def test_cancel(pool: Pool, work: Work) -> None:
    """The work is told; the task ends with TASK_CANCELLED."""
    task = work.start()
    assert pool("task.cancel", task._ref) is None
    assert list(task.current_operations.values()) == ["cancel"] or task.status == "cancelled"
    pool.turn()
    assert (task.status, task.error_info) == ("cancelled", ("TASK_CANCELLED", task._ref))
    assert (task.progress, task.current_operations, task.allowed_operations) == (1.0, {}, ())
    assert len(pool.db.task) == 1  # that of the call of task.cancel itself is gone


def test_cancel_of_finished_and_foreign_work(pool: Pool, work: Work) -> None:
    """Nothing happens where nothing can be stopped."""
    task = work.start()
    work.waiting[0].callback(None)
    pool.turn()
    pool("task.cancel", task._ref)
    assert (task.status, task.current_operations) == ("success", {})
    own = pool.db.task[pool("task.create", "own", "")]
    assert own.allowed_operations == ("destroy",)
    pool("task.cancel", own._ref)
    pool.turn()
    assert own.status == "pending"


def test_work_that_ends_in_spite_of_a_cancel(pool: Pool, work: Work) -> None:
    """A finished task never changes its status."""
    task = work.start()
    work.waiting[0].callback(None)
    pool("task.cancel", task._ref)
    pool.turn()
    before = task.status, task.error_info, task.finished
    pool.clock.advance(5)
    pool.daemon.tasks.fail(task, errors.INTERNAL_ERROR("late"))
    assert (task.status, task.error_info, task.finished) == before


def test_destroy_of_a_pending_task(pool: Pool, work: Work) -> None:
    """Marked, and gone when it ends."""
    task = work.start()
    pool("task.destroy", task._ref)
    assert task._ref in pool.db.task
    assert task.current_operations == {"task": "destroy"}
    work.waiting[0].callback(None)
    pool.turn()
    assert task._ref not in pool.db.task


def test_destroy_of_a_named_task_while_a_call_works_under_it(pool: Pool, work: Work) -> None:
    """It goes when the work is over, though the call says nothing of its end."""
    own = pool("task.create", "own", "")
    wire = Connection(pool)
    wire.ask("Async.VM.shutdown", text(pool.session), text("OpaqueRef:x"), task_id=own).value()
    pool.turn()
    pool("task.destroy", own)
    assert pool.db.task[own].current_operations == {"task": "destroy"}
    work.waiting[0].callback(None)
    pool.turn()
    assert own not in pool.db.task


def test_synchronous_call_has_a_task_while_it_lasts(pool: Pool, work: Work) -> None:
    """Named as it was called; destroyed at the end."""
    wire = Connection(pool)
    wire.send(request(call("VM.shutdown", text(pool.session), text("OpaqueRef:x"))))
    (task,) = pool.db.task
    assert (task.name_label, task.status) == ("VM.shutdown", "pending")
    work.waiting[0].callback(None)
    assert wire.answer().value() == ""
    assert len(pool.db.task) == 0


def test_synchronous_call_can_be_cancelled(pool: Pool, work: Work) -> None:
    """The caller hears TASK_CANCELLED."""
    wire = Connection(pool)
    wire.send(request(call("VM.shutdown", text(pool.session), text("OpaqueRef:x"))))
    (task,) = pool.db.task
    pool("task.cancel", task._ref)
    assert wire.answer().error() == ["TASK_CANCELLED", task._ref]
    assert len(pool.db.task) == 0


def test_work_goes_on_when_the_client_goes_away(pool: Pool, work: Work) -> None:
    """Only waits for events stop with their client."""
    wire = Connection(pool)
    wire.send(request(call("VM.shutdown", text(pool.session), text("OpaqueRef:x"))))
    wire.lose()
    pool.turn()
    assert len(pool.db.task) == 1
    work.waiting[0].callback(None)
    pool.turn()
    assert len(pool.db.task) == 0


def test_unexpected_error_of_the_work(pool: Pool, work: Work) -> None:
    """Logged, and INTERNAL_ERROR to the client."""
    task = work.start()
    work.waiting[0].errback(ZeroDivisionError("division by zero"))
    pool.turn()
    assert task.error_info == ("INTERNAL_ERROR", "ZeroDivisionError: division by zero")


def test_progress(pool: Pool) -> None:
    """Between 0 and 1."""
    task = pool("task.create", "own", "d")
    pool("task.set_progress", task, 0.25)
    assert pool("task.get_progress", task) == 0.25
    assert pool.fails("task.set_progress", task, 1.5)[0] == "INVALID_VALUE"
    assert pool.fails("task.set_progress", task, "nan")[0] == "INVALID_VALUE"


# Forgetting


def swept(pool: Pool, seconds: float) -> set[str]:
    """Return the tasks left when the daemon looks after a time."""
    pool.clock.advance(seconds)
    pool.daemon.sweep()
    return set(pool.db.task.rows)


def finish(pool: Pool, count: int = 1) -> list[str]:
    refs = [pool("task.create", "own", "") for _ in range(count)]
    for ref in refs:
        pool("task.set_status", ref, "success")
    return refs


def test_finished_tasks_go_after_65_minutes(pool: Pool) -> None:
    (task,) = finish(pool)
    assert swept(pool, 65 * MINUTE - 1) == {task}
    assert swept(pool, 1) == set()


def test_pending_tasks_go_after_a_day_without_progress(pool: Pool) -> None:
    task = pool("task.create", "own", "")
    pool.clock.advance(HOUR)
    pool("task.set_progress", task, 0.5)
    assert swept(pool, 24 * HOUR - 1) == {task}
    assert swept(pool, 1) == set()


def test_work_in_progress_is_never_forgotten(pool: Pool, work: Work) -> None:
    task = work.start()
    assert swept(pool, 100 * HOUR) == {task._ref}


def test_beyond_200_the_oldest_finished_go(pool: Pool) -> None:
    old = finish(pool, 3)
    pool.clock.advance(1)
    new = finish(pool, 199)
    pending = pool("task.create", "own", "")
    assert swept(pool, 0) == {old[2], *new, pending}


@pytest.mark.parametrize("status", ["success", "failure", "cancelled"])
def test_ended_tasks_of_clients_do_not_change(pool: Pool, status: str) -> None:
    """Whatever the client says later."""
    task = pool("task.create", "own", "")
    pool("task.set_status", task, status)
    pool("task.set_status", task, "pending")
    row = pool.db.task[task]
    assert (row.status, row.finished) == (status, NOW)


def test_end_of_the_daemon_ends_the_work(pool: Pool, work: Work) -> None:
    """As cancelled."""
    task = work.start()
    pool.daemon.tasks.end_all()
    pool.turn()
    assert task.status == "cancelled"


def test_the_end_of_all_work_is_when_what_it_had_begun_is_undone(pool: Pool, work: Work) -> None:
    """A daemon whose hosts go on without it waits for that."""
    undone: Deferred[None] = Deferred()

    async def run(call: Any, vm: str) -> None:
        try:
            await Deferred()
        finally:
            await undone

    assert pool.daemon.tasks.end_all().called
    work.method.function = run
    task = work.start()
    ended = pool.daemon.tasks.end_all()
    pool.turn()
    assert (ended.called, task.status) == (False, "pending")
    undone.callback(None)
    pool.turn()
    assert (bool(ended.called), str(task.status)) == (True, "cancelled")


def test_a_daemon_that_stops_waits_for_work_no_longer_than_it_may(pool: Pool, work: Work) -> None:
    """Work that nobody can end does not keep it."""

    async def run(call: Any, vm: str) -> None:
        await to_its_end(endless())

    async def endless() -> None:
        await Deferred()

    work.method.function = run
    work.start()
    stopped = Deferred.fromCoroutine(Hosts(pool.daemon, Config(Path("unused"))).stop())
    pool.clock.advance(UNDONE - 1)
    assert not stopped.called
    pool.clock.advance(1)
    pool.turn()
    assert pool.outcome(stopped) is None
