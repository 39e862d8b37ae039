"""Other messages as parts of a call: each in a task of its own below the call's, several of them at once.

What a big operation is made of (the disks of a VM that is copied) is thus claimed, cancelled and seen by clients
like what they ask for themselves. No permission is asked for: the call has had its check.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from xapi.access.caller import Caller, Origin
from xapi.calls.call import Call
from xapi.calls.dispatch import Dispatcher
from xapi.calls.tasks import Tasks
from xapi.calls.work import Work
from xapi.cancelling import to_its_end
from xapi.datamodel.errors import Fault

if TYPE_CHECKING:
    from xapi.datamodel import records

log = Logger()

AT_ONCE = 4
"""Parts of one call that run side by side."""
STEP = 0.01
"""How far the parts must have come since clients were told last."""


class Part(NamedTuple):
    """A message with its typed arguments; `size` says how much of the whole work it is.

    With `function` that is what runs in the message's place, under its name.
    """

    name: str
    arguments: tuple[object, ...]
    size: int = 1
    function: Callable[..., Awaitable[object]] | None = None


class _Running:
    """How far a part has come."""

    def __init__(self, part: Part) -> None:
        self.size = max(1, part.size)
        self.task: records.task | None = None
        self.over = False

    @property
    def done(self) -> float:
        return self.size * (1.0 if self.over else 0.0 if self.task is None else self.task.progress)


async def part(work: Work, name: str, *arguments: object) -> Any:
    """Run another message as a part of a call and return its result. Raises Fault, CancelledError."""
    return await _run(work, Part(name, arguments), _Running(Part(name, arguments)))


def lasting(work: Work, name: str, *arguments: object) -> Deferred[Any]:
    """Do the same with what is to be done now: no cancel ends it, that of its own task neither."""
    return to_its_end(_run(work, Part(name, arguments), _Running(Part(name, arguments)), lasts=True))


async def _run(work: Work, asked: Part, running: _Running, *, lasts: bool = False) -> object:
    db, tasks = work.db, work[Tasks]
    method = work[Dispatcher].methods[asked.name]
    caller = Caller(work.caller.session, Origin(work.caller.origin.trusted))
    with db.atomic():
        task = running.task = tasks.create(f"Async.{asked.name}", session=caller.session, origin=caller.origin)
        task.subtask_of = work.task._ref
    inner = Call(work.subsystems, method.message, f"Async.{asked.name}", caller, task)
    inner.making = work.making

    async def run() -> object:
        if asked.function is not None:
            return await asked.function(inner, *asked.arguments)
        if method.waits:
            return await method.function(inner, *asked.arguments)
        with db.atomic():
            return method.function(inner, *asked.arguments)

    try:
        deferred = Deferred.fromCoroutine(run())
        if not lasts:
            tasks.running(task, deferred)
        result = await deferred
        running.over = True
        return result
    finally:
        tasks.drop(task)


async def all_of(work: Work, parts: Sequence[Part], undo: str, *, until: float = 1.0) -> list[Any]:
    """Run parts side by side and return their results in order; the call's task comes as far as `until` (0 to 1).

    When one fails, or the call is cancelled, the others are cancelled, and what they had made is given to the message
    `undo`. Raises what was wrong first.
    """
    states = [_Running(each) for each in parts]
    semaphore = DeferredSemaphore(AT_ONCE)
    begun = [semaphore.run(_run, work, each, state) for each, state in zip(parts, states, strict=True)]
    wrong: list[Failure] = []

    def stop(failure: Failure) -> Failure:
        wrong.append(failure)
        if len(wrong) == 1:
            for each in begun:
                each.cancel()
        return failure

    for each in begun:
        each.addErrback(stop)
    hear = _follow(work, states, until)
    work.db.listen(hear)
    try:
        outcome = await DeferredList(begun, consumeErrors=True)
    finally:
        work.db.unlisten(hear)
    if wrong:
        await undo_all(work, undo, [result for succeeded, result in outcome if succeeded])
        wrong[0].raiseException()
    return [result for _, result in outcome]


def _follow(work: Work, states: list[_Running], until: float) -> Callable[[], None]:
    """Return what tells the call's task how far the parts have come."""
    whole = sum(state.size for state in states)
    base = work.task.progress

    def hear() -> None:
        now = base + (until - base) * sum(state.done for state in states) / whole
        if now - work.task.progress >= STEP:
            work[Tasks].progress(work.task, now)

    return hear


async def undo_all(work: Work, undo: str, made: Sequence[object]) -> None:
    """Give each of these to a message that takes it back; what cannot be taken back is logged and left."""
    for each in made:
        try:
            await lasting(work, undo, each)
        except Fault as error:
            log.error("{undo} of {made} failed: {error}", undo=undo, made=each, error=error)
