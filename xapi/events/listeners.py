"""Events: what has changed since a token, told at once or when something does.

A token is two generations of the store, of the database's objects and of the alerts (class
`message`). Nothing is queued for anybody: an answer is read off the tables, whose rows are in the order
of their last change, so its cost is that of the changes it tells of, and ten quick changes of an object
are one event. An answer goes out only when all it tells is durable.

Unlike xapi there is no fixed batching delay of 50 ms: group commit and the reactor's turn batch.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from xapi.datamodel import errors
from xapi.events.batch import Batch, Event, NextEvents
from xapi.events.subscription import NOTHING, Subscription
from xapi.events.token import Token

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from xapi.access.sessions import Sessions
    from xapi.datamodel import records
    from xapi.store.memory import Store
    from xapi.store.rows import Row, Table

FOREVER = 24 * 3600.0
"""Seconds that a timeout below 0, or none, means."""
HEARTBEAT = 30.0
"""Seconds after which `event.next` tells of the pool object when nothing else happens."""
TURN = 0.003
"""Seconds of waking listeners in one turn of the reactor."""


class Events:
    """Answers for all listeners of one store."""

    def __init__(self, db: Store, sessions: Sessions, clock: IReactorTime) -> None:
        self.db = db
        self.sessions = sessions
        self.clock = clock
        self._tables = {table.name.lower(): table for table in db.tables.values() if table.cls.events}
        self._counted = {table.name.lower(): table for table in db.tables.values() if table.name != "message"}
        self._shared: tuple[Subscription, Token, int, Batch] | None = None
        self._registered: dict[str, Registration] = {}
        self._waiting: dict[Deferred[None], int] = {}
        self._woken: deque[Deferred[None]] = deque()
        db.listen(self._news)

    # event.from

    async def from_(self, session: records.session, classes: Iterable[str], token_text: str, timeout: float) -> Batch:
        """Return what has changed since a token, at once or as soon as something does.

        After `timeout` seconds (below 0 or nonsense: 24 h) the answer has no events. Raises
        EVENTS_LOST for a token whose deletions are forgotten, or which this store never gave, and
        SESSION_INVALID when the session ends meanwhile.
        """
        subscription = Subscription.parse(classes)
        token = Token.parse(token_text)
        if not timeout >= 0 or math.isinf(timeout):
            timeout = FOREVER
        deadline = self.clock.seconds() + timeout
        while True:
            batch = self.batch(subscription, token)
            remaining = deadline - self.clock.seconds()
            if batch.events or remaining <= 0:
                if await self._durable(batch.token.objects) and self._settled(batch.rows):
                    return batch
                continue
            # Nothing to tell up to here: what is born and dies before then need not be looked at again.
            # But only as far as nothing can be undone any more.
            if batch.token.objects <= self.db.flushed:
                token = batch.token
            await self._change(session, max(token.objects, self.db.flushed), remaining)

    def batch(self, subscription: Subscription, token: Token) -> Batch:
        """Return the changes since a token as things stand now."""
        if token.objects and not self.db.oldest <= token.objects <= self.db.generation:
            raise errors.EVENTS_LOST()
        shared, generation = self._shared, self.db.generation
        if shared is not None and shared[:3] == (subscription, token, generation):
            return shared[3]
        counts = {name: len(table) for name, table in self._counted.items()}
        batch = Batch(self.since(subscription, token), counts, Token(generation, generation))
        self._shared = (subscription, token, generation, batch)
        return batch

    def since(self, subscription: Subscription, token: Token) -> list[Event]:
        """Return the events of a subscription since a token: adds, then mods, then dels."""
        events: list[Event] = []
        for name, table in self._tables.items():
            since = token.messages if name == "message" else token.objects
            if subscription.everything or name in subscription.classes:
                events += _class_events(table, since)
        for name, ref in subscription.objects:
            table_ = self._tables.get(name)
            if table_ is not None and not (subscription.everything or name in subscription.classes):
                since = token.messages if name == "message" else token.objects
                events += _object_events(table_, ref, since)
        order = {"add": 0, "mod": 1, "del": 2}
        events.sort(key=lambda event: (order[event.operation], event.generation))
        return events

    def _settled(self, rows: Sequence[Row]) -> bool:
        """Tell whether the rows, as they are now, are durable: they may have changed while we waited.

        Objects that change without pause are told as they are: the next answer will tell of them again.
        """
        flushed = self.db.flushed
        return len(rows) > 100 or all(row._modified <= flushed for row in rows)

    async def _durable(self, generation: int) -> bool:
        """Wait until a generation is durable; False when it was undone instead."""
        if generation <= self.db.flushed:
            return True
        done: Deferred[bool] = Deferred()
        self.db.when_flushed(generation, lambda fault: None if done.called else done.callback(fault is None))
        return await done

    async def _change(self, session: records.session, generation: int, seconds: float) -> None:
        """Wait for a durable change after a generation, the end of the session, or the time to be up."""
        if self.db.flushed > generation:
            return
        waiting: Deferred[None] = Deferred()

        def ended() -> None:
            if not waiting.called:
                waiting.errback(errors.SESSION_INVALID(session._ref))

        def late() -> None:
            if not waiting.called:
                waiting.callback(None)

        timer = self.clock.callLater(seconds, late)
        forget = self.sessions.when_ended(session, ended)
        self._waiting[waiting] = generation
        try:
            await waiting
        finally:
            self._waiting.pop(waiting, None)
            forget()
            if timer.active():
                timer.cancel()

    def _news(self) -> None:
        """Wake who waits for a change, some now and the rest in later turns: there may be thousands."""
        flushed = self.db.flushed
        ready = [waiting for waiting, generation in self._waiting.items() if flushed > generation]
        for waiting in ready:
            del self._waiting[waiting]
        idle = not self._woken
        self._woken.extend(ready)
        if idle and ready:
            self._wake()

    def _wake(self) -> None:
        over = self.clock.seconds() + TURN
        while self._woken:
            waiting = self._woken.popleft()
            if not waiting.called:
                waiting.callback(None)
            if self._woken and self.clock.seconds() >= over:
                self.clock.callLater(0, self._wake)
                return

    def inject(self, class_name: str, ref: str) -> str:
        """Touch an object and return a token from just before: event.from with it tells of the object.

        Raises HANDLE_INVALID unless the object exists and is of that class.
        """
        table = self._tables.get(class_name.lower())
        row = None if table is None else table.get(ref)
        if row is None:
            raise errors.HANDLE_INVALID(class_name, ref)
        before = self.db.generation
        self.db.touch(row)
        return str(Token(before, before))

    # event.register, next, unregister

    def register(self, session: records.session, classes: Iterable[str]) -> None:
        """Subscribe a session to classes, besides those it has already."""
        more = Subscription.parse(classes)
        registration = self._registered.get(session._ref)
        if registration is None:
            registration = Registration(NOTHING, self.db.generation)
            self._registered[session._ref] = registration
            self.sessions.when_ended(session, functools.partial(self._forget, session._ref))
        registration.subscription = registration.subscription.with_(more)

    def _forget(self, session: str) -> None:
        self._registered.pop(session, None)

    def unregister(self, session: records.session, classes: Iterable[str]) -> None:
        """Give up classes. Raises SESSION_NOT_REGISTERED."""
        registration = self._registration(session)
        registration.subscription = registration.subscription.without(Subscription.parse(classes))

    def _registration(self, session: records.session) -> Registration:
        registration = self._registered.get(session._ref)
        if registration is None:
            raise errors.SESSION_NOT_REGISTERED(session._ref)
        return registration

    async def next(self, session: records.session) -> NextEvents:
        """Return the next events of a session's subscription; waits for at least one.

        Every 30 s without any it tells of the pool object, so that clients see the connection lives.
        """
        registration = self._registration(session)
        deadline = self.clock.seconds() + HEARTBEAT
        while True:
            generation = self.db.generation
            if registration.since < self.db.oldest:
                registration.since = generation
                raise errors.EVENTS_LOST()
            events = self.since(registration.subscription, Token(registration.since, registration.since))
            remaining = deadline - self.clock.seconds()
            if not events and remaining <= 0:
                remaining = HEARTBEAT
                deadline = self.clock.seconds() + remaining
                events = self._heartbeat(registration.subscription)
            if events:
                if await self._durable(generation):
                    registration.since = generation
                    answer = NextEvents(events)
                    answer.timestamp = f"{self.clock.seconds():.6f}"
                    return answer
                continue
            await self._change(session, generation, remaining)

    def _heartbeat(self, subscription: Subscription) -> list[Event]:
        table = self.db.tables["pool"]
        if not (subscription.everything or "pool" in subscription.classes):
            return []
        return [Event(self.db.generation, "mod", table, row._ref, row) for row in table]


class Registration:
    """What one session has registered for, and up to which generation it was told."""

    __slots__ = ("since", "subscription")

    def __init__(self, subscription: Subscription, since: int) -> None:
        self.subscription = subscription
        self.since = since


def _class_events(table: Table[Row], since: int) -> Iterable[Event]:
    for row in reversed(table.changes):
        if row._modified <= since:
            break
        operation = "add" if row._created > since else "mod"
        yield Event(row._modified, operation, table, row._ref, row)
    for grave in reversed(table.graves):
        if grave.deleted <= since:
            break
        if grave.created <= since:
            yield Event(grave.deleted, "del", table, grave.ref, None)


def _object_events(table: Table[Row], ref: str, since: int) -> Iterable[Event]:
    row = table.get(ref)
    if row is not None:
        if row._modified > since:
            operation = "add" if row._created > since else "mod"
            yield Event(row._modified, operation, table, ref, row)
        return
    for grave in reversed(table.graves):
        if grave.deleted <= since:
            break
        if grave.ref == ref and grave.created <= since:
            yield Event(grave.deleted, "del", table, ref, None)
