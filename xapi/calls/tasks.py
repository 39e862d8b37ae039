"""Tasks: what clients see of work that takes its time.

A task is a row of the memory-only class `task`. Every Async call has one until it is destroyed or
forgotten; a synchronous call of a message that may wait has one as long as it runs; `task.create`
makes one for a client's own work. How a task ends is written here, and only once.

A client may name a task of its own for a call to work under (`task-id`) and a parent for the task that a call makes
(`subtask-of`). Both count only where the task was made by the same user: xapi does not check, so there a user may end
the task of another. A call under a named task shows its progress and can be cancelled there; how such a task ends is
said by who made it, as in xapi.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed

from xapi.datamodel import errors, records
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import EPOCH, moment
from xapi.datamodel.types import NULL
from xapi.store.memory import Derivation

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from xapi.access.caller import Origin
    from xapi.calls.faults import Veil
    from xapi.store.memory import Store

T = TypeVar("T")
FINISHED_KEPT = 65 * 60
PENDING_KEPT = 24 * 3600
FINISHED_MOST = 200


class Work(Protocol):
    """What is behind a task: a Deferred of whatever."""

    def cancel(self) -> None: ...


class Tasks:
    """The tasks of one store."""

    def __init__(self, db: Store, clock: IReactorTime, veil: Veil) -> None:
        self.db = db
        self.clock = clock
        self._veil = veil
        self._work: dict[str, Work] = {}
        self._ended: Deferred[None] | None = None
        self._progressed: dict[str, float] = {}
        db.derive(
            Derivation("task", "allowed_operations", self._allowed, {"task": lambda row, names: [row._ref]}),
        )

    def _allowed(self, db: Store, task: records.task) -> tuple[records.enum_task_allowed_operations, ...]:
        """A finished task allows nothing; a pending one may be cancelled while its work goes on."""
        if task.status != "pending":
            return ()
        busy = task.current_operations.values()
        can_cancel = task._ref in self._work and "cancel" not in busy
        return ("cancel", "destroy") if can_cancel else ("destroy",)

    def create(
        self,
        name: str,
        description: str = "",
        *,
        session: records.session | None = None,
        origin: Origin | None = None,
    ) -> records.task:
        """Return a new pending task; a call's headers may name its parent and further keys."""
        headers = {} if origin is None else origin.headers
        other_config = {
            f"http:{key[20:].decode('latin-1')}": value.decode("utf-8", "replace")
            for key, value in headers.items()
            if key.startswith(b"x-http-other-config-")
        }
        parent = self.named(headers.get(b"subtask-of", b"").decode("latin-1"), session)
        return self.db.task.create(
            name_label=name,
            name_description=description,
            status="pending",
            created=moment(self.clock.seconds()),
            finished=EPOCH,
            type="<none/>",
            session=NULL if session is None else session._ref,
            resident_on=next(iter(self.db.pool)).master,
            subtask_of=NULL if parent is None else parent._ref,
            other_config=other_config,
        )

    def named(self, ref: str, session: records.session | None) -> records.task | None:
        """Return the task that a client names for its own work; None if it may not end it, as if there were none."""
        task = self.db.task.get(ref)
        return task if task is not None and session is not None and _owns(session, task, self.db) else None

    def named_by(self, origin: Origin, session: records.session | None) -> records.task | None:
        """Return the client's own pending task that a call's task-id header names, or None."""
        task = self.named(origin.headers.get(b"task-id", b"").decode("latin-1"), session)
        return task if task is not None and task.status == "pending" else None

    def running(self, task: records.task, work: Deferred[T]) -> None:
        """Note the work behind a task: while it goes on, the task can be cancelled."""
        ref = task._ref

        def over(result: T) -> T:
            if self._work.get(ref) is work:
                del self._work[ref]
                self._rest(task)
            return result

        if not work.called:
            self._work[ref] = work
            self._refresh(task)
        work.addBoth(over)

    def _rest(self, task: records.task) -> None:
        """Note that no work is behind a task any more; one that a call borrowed and did not end may wait to go."""
        if task._ref in self.db.task and "destroy" in task.current_operations.values():
            self.db.task.delete(task._ref)
        self._refresh(task)
        if self._ended is not None and not self._work:
            ended, self._ended = self._ended, None
            ended.callback(None)

    def _refresh(self, task: records.task) -> None:
        if task._ref in self.db.task:
            with self.db.atomic():
                task.allowed_operations = self._allowed(self.db, task)

    def succeed(self, task: records.task, result: str) -> None:
        """End a task with the XML-RPC text of its result."""
        self._end(task, status="success", result=result)

    def fail(self, task: records.task, fault: Fault) -> None:
        """End a task with an error; TASK_CANCELLED makes it cancelled."""
        status = "cancelled" if fault.code == "TASK_CANCELLED" else "failure"
        self._end(task, status=status, error_info=tuple(self._veil.over(fault)))

    def _end(self, task: records.task, **fields: object) -> None:
        self._progressed.pop(task._ref, None)
        if task._ref not in self.db.task or task.status not in ("pending", "cancelling"):
            return
        with self.db.atomic():
            task.progress = 1.0
            task.finished = moment(self.clock.seconds())
            for name, value in fields.items():
                setattr(task, name, value)
            if "destroy" in task.current_operations.values():
                self.db.task.delete(task._ref)
            else:
                task.current_operations = {}

    def drop(self, task: records.task) -> None:
        """Remove the task of a synchronous call that is over."""
        if task._ref in self.db.task:
            self.db.task.delete(task._ref)

    def destroy(self, task: records.task) -> None:
        """Remove a finished task at once, a pending one when it ends."""
        if task.status == "pending" and task._ref in self._work:
            task.current_operations = {**task.current_operations, "task": "destroy"}
        else:
            self.db.task.delete(task._ref)

    def cancel(self, task: records.task, canceller: str) -> None:
        """Ask the work behind a task to stop; it ends with TASK_CANCELLED when it has undone its steps."""
        if task.status != "pending":
            return
        task.current_operations = {**task.current_operations, canceller: "cancel"}
        work = self._work.get(task._ref)
        if work is not None:
            # In a later turn: the canceller's own change must be whole first.
            self.clock.callLater(0, work.cancel)

    def progress(self, task: records.task, fraction: float) -> None:
        """Say how far a task has come, 0 to 1."""
        task.progress = fraction
        self._progressed[task._ref] = self.clock.seconds()

    def sweep(self) -> None:
        """Forget old tasks. Call every few minutes."""
        now = self.clock.seconds()
        finished = sorted((row for row in self.db.task if row.status != "pending"), key=lambda row: row.finished)
        surplus = len(finished) - FINISHED_MOST
        with self.db.atomic():
            for number, row in enumerate(finished):
                if number < surplus or now - row.finished.timestamp() >= FINISHED_KEPT:
                    self.db.task.delete(row._ref)
            for row in list(self.db.task):
                last = self._progressed.get(row._ref, row.created.timestamp())
                if row.status == "pending" and row._ref not in self._work and now - last >= PENDING_KEPT:
                    self.db.task.delete(row._ref)

    def end_all(self) -> Deferred[None]:
        """Cancel all work: the daemon stops. The Deferred fires when it has ended, and what it had begun is undone."""
        if not self._work:
            return succeed(None)
        ended = self._ended = self._ended or Deferred()
        for work in list(self._work.values()):
            work.cancel()
        return ended


def _owns(session: records.session, task: records.task, db: Store) -> bool:
    """Tell whether a task was made by a session of the same user that still is there."""
    owner = db.session.get(task.session)
    return owner is not None and (
        (owner.auth_user_sid, owner.is_local_superuser) == (session.auth_user_sid, session.is_local_superuser)
    )


def require_owner(session: records.session | None, task: records.task, db: Store, may: bool) -> None:
    """Raise RBAC_PERMISSION_DENIED unless the task is of the same user, or the caller may touch any."""
    if session is not None and not may and not _owns(session, task, db):
        raise errors.RBAC_PERMISSION_DENIED("task.destroy/any", "The task belongs to another user")
