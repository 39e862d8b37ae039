"""Whoever follows event.from ends with what get_all_records answers, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.journal import Journal
from xapi import datamodel
from xapi.access.sessions import Sessions
from xapi.datamodel import records
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.events.batch import Batch
from xapi.events.listeners import Events
from xapi.store import memory
from xapi.store.memory import Store
from xapi.store.rows import Row
from xapi.wire.fragments import Fragments

MODEL = datamodel.load()
REFUSAL = Fault("OUT_OF_SPACE", "db")
CLASSES = ("VM", "VBD", "VM_group", "task")
SUBSCRIPTIONS = (("*",), ("vm",), ("VBD", "vm_group"), ("task",), ("vm/OpaqueRef:VM-0",), ("vm/OpaqueRef:VM-0", "vbd"))


class EndlessSessions:
    """Sessions that never end."""

    def when_ended(self, session: Any, heard: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class Listener:
    """A client that follows: add and mod replace what it has, del drops it; EVENTS_LOST begins anew."""

    def __init__(self, world: World, subscription: tuple[str, ...]) -> None:
        self.world = world
        self.subscription = subscription
        self.token = ""
        self.view: dict[tuple[str, str], bytes] = {}
        self.polling: Deferred[Any] | None = None

    def poll(self, timeout: float = 0.0) -> None:
        """Ask, unless an answer is still to come."""
        if self.polling is None:
            session = cast("records.session", SimpleNamespace(_ref="OpaqueRef:session"))
            asked = self.world.events.from_(session, self.subscription, self.token, timeout)
            self.polling = answered = Deferred.fromCoroutine(asked)
            answered.addCallbacks(self.take, self.lost)
            answered.addErrback(self.world.problems.append)

    def take(self, batch: Batch) -> None:
        self.polling = None
        assert str(batch.token) >= self.token
        seen = [(event.table.name, event.ref) for event in batch.events]
        assert len(seen) == len(set(seen)), "one event an object at most"
        self.token = str(batch.token)
        for event in batch.events:
            key = event.table.name, event.ref
            if event.row is None:
                assert event.operation == "del"
                self.view.pop(key, None)
            else:
                assert (event.operation == "mod") == (key in self.view), "add is for what is new, mod for what is known"
                self.view[key] = self.world.fragments.xml_record(event.row)

    def lost(self, failure: Any) -> None:
        failure.trap(Fault)
        assert failure.value.code == "EVENTS_LOST"
        self.polling = None
        self.token, self.view = "", {}

    def wants(self, row: Row) -> bool:
        name = row._table.name.lower()
        wanted = {text.lower() for text in self.subscription}
        return "*" in wanted or name in wanted or f"{name}/{row._ref}".lower() in wanted


class World:
    """A store, its events, and listeners with one subscription each."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.journal = Journal()
        self.journal.held = True
        self.store = Store(MODEL, self.journal, lambda tell: self.clock.callLater(0, tell))
        self.events = Events(self.store, cast("Sessions", EndlessSessions()), self.clock)
        self.fragments = Fragments(self.store, 1 << 20)
        self.listeners = [Listener(self, subscription) for subscription in SUBSCRIPTIONS]
        self.births = 0
        self.problems: list[Any] = []
        """What went wrong in a callback, where no exception reaches the test."""

    def turn(self) -> None:
        for _ in range(6):
            self.clock.advance(0)

    def rows(self, cls: str) -> list[Any]:
        return list(self.store.tables[cls])

    def step(self, step: tuple[Any, ...]) -> None:
        """Do one step; a change that is refused is none."""
        action, *rest = step
        try:
            getattr(self, action)(*rest)
        except Fault as fault:
            assert fault is REFUSAL

    def create(self, cls: str, target: int) -> None:
        self.births += 1
        ref = f"OpaqueRef:VM-{self.births - 1}" if cls == "VM" and self.births == 1 else None
        vms = self.rows("VM")
        more = {"VM": vms[target % len(vms)]._ref if vms else NULL} if cls == "VBD" else {}
        self.store.tables[cls].create(ref, **more)

    def change(self, cls: str, number: int, label: str) -> None:
        rows = self.rows(cls)
        if rows:
            setattr(rows[number % len(rows)], "userdevice" if cls == "VBD" else "name_label", label)

    def move(self, number: int, target: int) -> None:
        """Let a disk belong to another VM: three objects change."""
        disks, vms = self.rows("VBD"), self.rows("VM")
        if disks and vms:
            disks[number % len(disks)].VM = vms[target % len(vms)]._ref

    def group(self, number: int, target: int) -> None:
        vms, groups = self.rows("VM"), self.rows("VM_group")
        if vms and groups:
            vms[number % len(vms)].groups = (groups[target % len(groups)]._ref,)

    def delete(self, cls: str, number: int) -> None:
        rows = self.rows(cls)
        if rows:
            self.store.tables[cls].delete(rows[number % len(rows)]._ref)

    def atomic(self, steps: list[tuple[Any, ...]], holds: bool) -> None:
        try:
            with self.store.atomic():
                for step in steps:
                    getattr(self, step[0])(*step[1:])
                if not holds:
                    raise InterruptedError
        except InterruptedError:
            pass

    def flush(self, count: int) -> None:
        """Let some of what the journal has been given be durable."""
        for _ in range(count):
            if self.journal.changes:
                self.store.written(self.journal.changes.pop(0)[0])

    def fail(self) -> None:
        """Let the journal fail: nothing that is not durable has happened."""
        self.journal.changes.clear()
        self.store.failed(REFUSAL)

    def recover(self) -> None:
        self.store.recovered()

    def poll(self, listener: int, timeout: float) -> None:
        self.listeners[listener % len(self.listeners)].poll(timeout)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def turns(self) -> None:
        self.turn()


NUMBERS = st.integers(0, 3)
NAMES = st.sampled_from(CLASSES)
CHANGES = st.one_of(
    st.tuples(st.just("create"), NAMES, NUMBERS),
    st.tuples(st.just("change"), NAMES, NUMBERS, st.sampled_from("ab")),
    st.tuples(st.just("move"), NUMBERS, NUMBERS),
    st.tuples(st.just("group"), NUMBERS, NUMBERS),
    st.tuples(st.just("delete"), NAMES, NUMBERS),
)
REST = st.one_of(
    st.tuples(st.just("atomic"), st.lists(CHANGES, max_size=4), st.booleans()),
    st.tuples(st.just("flush"), st.integers(1, 5)),
    st.tuples(st.just("poll"), st.integers(0, len(SUBSCRIPTIONS) - 1), st.sampled_from([0.0, 5.0])),
    st.tuples(st.just("turns")),
    st.tuples(st.just("advance"), st.sampled_from([0.0, 1.0, 10.0])),
)
FAILURES = st.tuples(st.just("fail")) | st.tuples(st.just("recover"))


def follow(program: list[tuple[Any, ...]], graves: int) -> None:
    """Run a program, then let everything settle, and compare."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "GRAVES", graves)
        world = World()
        for step in program:
            world.step(step)
        world.recover()
        for _ in range(3):  # an answer that was under way, perhaps EVENTS_LOST, and what came after
            world.flush(len(world.journal.changes))
            world.turn()
            world.clock.advance(10)
            world.turn()
            for listener in world.listeners:
                listener.poll()
            world.turn()
        for problem in world.problems:
            problem.raiseException()
        for listener in world.listeners:
            assert listener.polling is None
            rows = [row for table in world.store.tables.values() for row in table if listener.wants(row)]
            assert listener.view == {(row._table.name, row._ref): world.fragments.xml_record(row) for row in rows}


GRAVES = st.sampled_from([2, 50_000])


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES | REST, max_size=25), GRAVES)
def test_a_listener_ends_with_what_there_is(program: list[tuple[Any, ...]], graves: int) -> None:
    """Changes, changes undone, a journal that lags behind, and any number of polls."""
    follow(program, graves)


UNDELETED = [("create", "VM_group", 0), ("flush", 1), ("poll", 0, 0.0), ("delete", "VM_group", 0), ("fail",)]


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES | REST | FAILURES, max_size=25), GRAVES)
@example(UNDELETED, 50_000)
def test_a_listener_ends_with_what_there_is_when_the_journal_fails(program: list[tuple[Any, ...]], graves: int) -> None:
    """What was undone had not happened for anybody."""
    follow(program, graves)


def test_a_listener_that_waits_over_a_deletion_that_is_undone() -> None:
    """Made, deleted before anybody heard of it, and back again: for the listener it is new."""
    birth = [("poll", 0, 5.0), ("create", "VM_group", 0), ("delete", "VM_group", 0), ("flush", 1), ("turns",)]
    follow([*birth, ("fail",), ("turns",)], 50_000)
