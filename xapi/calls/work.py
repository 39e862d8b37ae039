"""What any operation needs, whoever has asked for it: the pool's objects, the time, a task, and who acts.

Made for a call of a message (`xapi.calls.call`), for a schedule, or for what the toolstack does by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

from xapi.access.caller import TOOLSTACK, Caller
from xapi.calls.tasks import Tasks
from xapi.datamodel.lexical import moment

if TYPE_CHECKING:
    from datetime import datetime

    from twisted.internet.interfaces import IReactorTime

    from xapi.datamodel import records
    from xapi.store.memory import Store

T = TypeVar("T")


class Subsystems:
    """The toolstack's parts, each found by its class: ``work[Storage]``. One that is not there is a KeyError.

    So whoever works needs to know only the parts that it asks for, and none of them knows the whole.
    """

    __slots__ = ("_found", "clock", "db")

    def __init__(self, db: Store, clock: IReactorTime) -> None:
        self.db = db
        self.clock = clock
        self._found: dict[type[object], object] = {}

    def add(self, part: T) -> T:
        """Take a part in, the only one of its class, and return it."""
        if self._found.setdefault(type(part), part) is not part:
            raise ValueError(f"there are two of {type(part).__name__}")
        return part

    def __getitem__(self, kind: type[T]) -> T:
        return cast(T, self._found[kind])

    @property
    def now(self) -> datetime:
        """The time of day, in whole seconds."""
        return moment(self.clock.seconds())


class Work:
    """One piece of work. `caller` is who its parts are done for: ask it nothing but in `xapi.calls` and messages."""

    __slots__ = ("caller", "making", "name", "shown_task", "subsystems")

    def __init__(
        self, subsystems: Subsystems, name: str, caller: Caller = TOOLSTACK, task: records.task | None = None
    ) -> None:
        self.subsystems = subsystems
        self.name = name
        self.caller = caller
        self.shown_task = task
        """Its task, once somebody has asked for it; else None."""
        self.making: object = None
        """What `xapi.storage.unfinished` notes of it."""

    def __getitem__(self, kind: type[T]) -> T:
        return self.subsystems[kind]

    @property
    def db(self) -> Store:
        return self.subsystems.db

    @property
    def clock(self) -> IReactorTime:
        return self.subsystems.clock

    @property
    def now(self) -> datetime:
        """The time of day, in whole seconds."""
        return self.subsystems.now

    @property
    def task(self) -> records.task:
        """The task that clients see of this work, made when first asked for; end it with `done`."""
        if self.shown_task is None:
            self.shown_task = self._begin()
        return self.shown_task

    def _begin(self) -> records.task:
        return self[Tasks].create(self.name)

    def done(self) -> None:
        """Let the task go, if there is one."""
        if self.shown_task is not None:
            self[Tasks].drop(self.shown_task)

    @property
    def pool(self) -> records.pool:
        """The one pool object."""
        return next(iter(self.db.pool))

    @property
    def host(self) -> records.host:
        """The host that answers: the coordinator."""
        return self.db.host[self.pool.master]
