"""Holding an operation of objects while it runs: refused by the rules, seen by clients, given back whatever happens.

What a message claims of its own object is said in the schema, and dispatch holds it while the message's function runs;
a function that has to look around first holds it by `declared`. What else an operation needs it claims by itself.

Who finds an object held by another operation waits until it is free, as clients of xapi are used to; every other
refusal is told at once. Costs two changes, of which the last can be part of the message's own; none goes to disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Protocol, TypeVar

from twisted.internet.defer import Deferred

from xapi.datamodel.errors import Fault

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from xapi.calls.call import Call
    from xapi.calls.work import Work
    from xapi.datamodel import Message
    from xapi.datamodel.records import Claimable
    from xapi.store.memory import Store
    from xapi.store.rows import Row

T = TypeVar("T")
PATIENCE = 2 * 3600.0
"""Seconds for which a call waits for an object that another operation holds."""
SHORT = 120.0
"""The same for calls whose clients wait for them."""
_LOOK = 20.0
"""Seconds between two looks when nothing is heard."""

Wanted = tuple[str, "Claimable"]
"""An operation, and the object that it is done to."""


_BESIDE = {"VDI": "SR", "PBD": "SR"}
"""Objects whose operations are recorded at another one as well, which their field of this name refers to."""


class Refusal(Protocol):
    """Tells why an operation may not start on an object now, or None."""

    def __call__(self, db: Store, row: Claimable, operation: str, *, strict: bool) -> Fault | None: ...


class Refusals:
    """Which operations may start; a part of the toolstack, since calls know no object's rules."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class Held:
    """Operations that a task holds, each with what the task did to the object before."""

    def __init__(self, work: Work, wanted: Sequence[Wanted]) -> None:
        self._db, self._task = work.db, work.task._ref
        self._before = [(row, row.current_operations.get(self._task)) for _, row in wanted]

    def give_back(self) -> None:
        """Give them back, in the change that is being made; done again, or undone with that change, it does no harm."""
        with self._db.atomic():
            for row, earlier in self._before:
                if _exists(self._db, row):
                    rest = {ref: name for ref, name in row.current_operations.items() if ref != self._task}
                    row.current_operations = rest if earlier is None else {**rest, self._task: earlier}


def claim(
    work: Work, operation: str, *rows: Claimable, strict: bool = True, patience: float = PATIENCE
) -> AbstractAsyncContextManager[Held]:
    """Hold an operation of some objects while inside. Raises the Fault of the first that refuses."""
    return claims(work, [(operation, row) for row in rows], strict=strict, patience=patience)


@asynccontextmanager
async def claims(
    work: Work, wanted: Sequence[Wanted], *, strict: bool = True, patience: float = PATIENCE
) -> AsyncIterator[Held]:
    """Hold an operation of each of some objects while inside. Raises the Fault of the first that refuses."""
    deadline = work.clock.seconds() + patience
    while True:
        waited = await _free(work, wanted, strict, deadline)
        try:
            held = _hold(work, wanted, strict)
            break
        except Fault as fault:  # others came while we waited; or we are in our own way
            if not waited or fault.code != "OTHER_OPERATION_IN_PROGRESS":
                raise
    try:
        yield held
    finally:
        held.give_back()


def own(message: Message) -> tuple[tuple[str, str], ...]:
    """Return what a message claims of its own object and of what that lies on, as the schema says: class, operation.

    Its own object is the first parameter. What it claims of others, as a start does of a VM's drives, comes with the
    steps that need it.
    """
    mine, beside = message.class_name, _BESIDE.get(message.class_name)
    if not message.parameters or message.parameters[0].type.name != f"{mine} ref":
        return ()
    split = [(cls, operation) for cls, _, operation in (claim.partition(".") for claim in message.claims)]
    first = [(cls, operation) for cls, operation in split if cls == mine][:1]
    return tuple(each for each in split if each in first or each[0] == beside)


def declared(
    call: Call, row: Row, *, strict: bool = True, patience: float = PATIENCE
) -> AbstractAsyncContextManager[Held]:
    """Hold what a call's message claims of its own object while inside. Raises the Fault of the first that refuses."""
    db, mine = call.db, call.message.class_name
    wanted = [
        (operation, db.claimable(cls)[row._ref if cls == mine else getattr(row, cls)])
        for cls, operation in own(call.message)
    ]
    return claims(call, wanted, strict=strict, patience=patience)


def claiming(message: Message, function: Callable[..., Awaitable[T]], patience: float) -> Callable[..., Awaitable[T]]:
    """Return the function of a message that runs while what the message claims of its own object is held."""

    @wraps(function)
    async def run(call: Call, ref: str, *arguments: object) -> T:
        async with declared(call, call.db.tables[message.class_name][ref], patience=patience):
            return await function(call, ref, *arguments)

    return run


def _hold(work: Work, wanted: Sequence[Wanted], strict: bool) -> Held:
    """Hold all the objects, each by the rules that the others' being held makes."""
    held = Held(work, wanted)
    with work.db.atomic():
        for operation, row in wanted:
            if (fault := _refusal(work, row, operation, strict)) is not None:
                raise fault
            row.current_operations = {**row.current_operations, work.task._ref: operation}
    return held


async def _free(work: Work, wanted: Sequence[Wanted], strict: bool, deadline: float) -> bool:
    """Return when the operation may start on each of the objects, and whether that took time. Raises Fault."""
    waited = False
    for operation, row in wanted:
        while (fault := _refusal(work, row, operation, strict)) is not None:
            left = deadline - work.clock.seconds()
            if fault.code != "OTHER_OPERATION_IN_PROGRESS" or left <= 0:
                raise fault
            await changed(work.db, work.clock, _mover(work.db, row), min(left, _LOOK))
            waited = True
    return waited


def _refusal(work: Work, row: Claimable, operation: str, strict: bool) -> Fault | None:
    if not _exists(work.db, row):
        return Fault("HANDLE_INVALID", row._table.name, row._ref)
    return work[Refusals].refusal(work.db, row, operation, strict=strict)


def _mover(db: Store, row: Claimable) -> Callable[[], bool]:
    """Return what tells whether others hold an object now than when this was called, or what may keep it busy."""
    held = [(each, each.current_operations) for each in (row, *_joined(db, row))]
    return lambda: not _exists(db, row) or any(each.current_operations is not before for each, before in held)


def _joined(db: Store, row: Claimable) -> list[Claimable]:
    """Return the objects whose operations keep another busy: a disk's drives, and a drive's disk."""
    if (disk := db.VDI.get(row._ref)) is not None:
        return [db.VBD[ref] for ref in disk.VBDs]
    drive = db.VBD.get(row._ref)
    medium = None if drive is None else db.VDI.get(drive.VDI)
    return [] if medium is None else [medium]


def _exists(db: Store, row: Row) -> bool:
    return row._table.rows.get(row._ref) is row


async def changed(db: Store, clock: IReactorTime, happened: Callable[[], bool], seconds: float) -> bool:
    """Return True once something is so after a change, False when the time is over. A cancel ends the wait."""
    if happened():
        return True
    news: Deferred[bool] = Deferred()

    def hear() -> None:
        if not news.called and happened():
            news.callback(True)

    def end() -> None:
        if not news.called:
            news.callback(False)

    timer = clock.callLater(seconds, end)
    db.listen(hear)
    try:
        return await news
    finally:
        db.unlisten(hear)
        if timer.active():
            timer.cancel()
