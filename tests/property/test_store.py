"""The store against a dict: any nesting of changes that hold or are undone leaves both the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from xapi import datamodel
from xapi.datamodel import Field
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.store.memory import Change, Store

MODEL = datamodel.load()
SLOTS = 3
# One of each kind of relation: VBD.VM (single) and VM.VBDs (computed), VM.groups (owner) and
# VM_group.VMs (mirror), VM.parent and VM.children (a class with itself), task (memory only).
FIELDS: dict[str, dict[str, Any]] = {
    "VM": {"name_label": "text", "uuid": "uuid", "groups": "VM_group*", "parent": "VM", "is_a_template": "bool"},
    "VBD": {"VM": "VM", "userdevice": "text", "uuid": "uuid"},
    "VM_group": {"name_label": "text"},
    "task": {"name_label": "text", "subtask_of": "task", "uuid": "uuid"},
}
DERIVED = {("VM", "VBDs"): ("VBD", "VM"), ("VM_group", "VMs"): ("VM", "groups"), ("VM", "children"): ("VM", "parent"),
           ("task", "subtasks"): ("task", "subtask_of")}  # fmt: skip
MEMORY_ONLY = {"task"}
uuid_of, label_of = attrgetter("uuid"), attrgetter("name_label")


def reference(cls: str, number: int) -> str:
    return f"OpaqueRef:{cls}-{number}"


def values(kind: str) -> st.SearchStrategy[Any]:
    if kind.endswith("*"):
        return st.lists(values(kind[:-1]), unique=True, max_size=SLOTS).map(
            lambda refs: tuple(ref for ref in refs if ref != NULL)
        )
    if kind in FIELDS:
        return st.integers(0, SLOTS).map(lambda n: NULL if n == SLOTS else reference(kind, n))
    return {"text": st.sampled_from("ab"), "bool": st.booleans(), "uuid": st.sampled_from(["u", "v"])}[kind]


NUMBERS = st.integers(0, SLOTS - 1)


@st.composite
def assignments(draw: st.DrawFn, classes: list[str]) -> tuple[Any, ...]:
    cls = draw(st.sampled_from(classes))
    name = draw(st.sampled_from(sorted(FIELDS[cls])))
    return "set", cls, draw(NUMBERS), name, draw(values(FIELDS[cls][name]))


@st.composite
def creations(draw: st.DrawFn, classes: list[str]) -> tuple[Any, ...]:
    cls = draw(st.sampled_from(classes))
    fields = {name: values(kind) for name, kind in FIELDS[cls].items() if kind != "uuid"}
    return "create", cls, draw(NUMBERS), draw(st.fixed_dictionaries({}, optional=fields))


def programs(classes: list[str]) -> st.SearchStrategy[list[Any]]:
    """Return a strategy for steps and nested changes over some classes."""
    deletions = st.tuples(st.just("delete"), st.sampled_from(classes), NUMBERS)
    steps = creations(classes) | creations(classes) | assignments(classes) | deletions
    nested = st.recursive(
        steps, lambda inner: st.tuples(st.just("atomic"), st.lists(inner, max_size=4), st.booleans()), max_leaves=6
    )
    return st.lists(nested, max_size=12)


PROGRAMS = programs(sorted(FIELDS))
DURABLE = programs(sorted(FIELDS.keys() - MEMORY_ONLY))


class Undo(Exception):
    """Raised inside a change that shall not hold."""


class Log:
    """A journal that applies what it is told to a dict, as a database would."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.generations: list[int] = []

    def write(self, generation: int, changes: list[Change]) -> None:
        self.generations.append(generation)
        for change in changes:
            key = change.table, change.ref
            if change.action == "insert":
                assert key not in self.rows
                self.rows[key] = dict(change.values)
            elif change.action == "update":
                self.rows[key].update(change.values)
            else:
                del self.rows[key]


Model = dict[tuple[str, str], dict[str, Any]]


def defaults(cls: str) -> dict[str, Any]:
    return {name: MODEL.classes[cls].fields[name].default for name in FIELDS[cls]}


def run(store: Store, model: Model, step: tuple[Any, ...]) -> None:
    """Do a step to both; raises Undo or Fault where the step does not hold."""
    if step[0] == "atomic":
        _, steps, holds = step
        before = copy.deepcopy(model)
        try:
            with store.atomic():
                for inner in steps:
                    run(store, model, inner)
                if not holds:
                    raise Undo
        except (Undo, Fault):
            model.clear()
            model.update(before)
            # An inner change that fails and is caught leaves the outer one as it was before.
        return
    action, cls, number = step[:3]
    ref = reference(cls, number)
    key, table = (cls, ref), store.tables[cls]
    if action == "create":
        # References are random, so nobody can name an object before it is there: see the last test.
        if key in model or any(far(model, cls, ref, name) for kind, name in DERIVED if kind == cls):
            return
        row = table.create(ref, **step[3])
        model[key] = defaults(cls) | {"uuid": getattr(row, "uuid", "")} | step[3]
    elif action == "delete":
        if key in model:
            table.delete(ref)
            del model[key]
    elif key in model:
        _, _, _, name, value = step
        taken = name == "uuid" and any(
            other != key and other[0] == cls and fields["uuid"] == value for other, fields in model.items()
        )
        try:
            setattr(table[ref], name, value)
        except Fault as fault:
            assert taken
            assert fault.code == "DB_UNIQUENESS_CONSTRAINT_VIOLATION"
            raise
        assert not taken
        model[key][name] = value


def far(model: Model, cls: str, ref: str, derived: str) -> set[str]:
    """Return what a derived set must hold: the objects whose field names this one."""
    source, name = DERIVED[cls, derived]
    return {
        other
        for (kind, other), fields in model.items()
        if kind == source and (ref in fields[name] if isinstance(fields[name], tuple) else ref == fields[name])
    }


def check(store: Store, model: Model, log: Log) -> None:
    for cls, fields in FIELDS.items():
        table = store.tables[cls]
        wanted = {ref: found for (kind, ref), found in model.items() if kind == cls}
        assert {row._ref: {name: getattr(row, name) for name in fields} for row in table} == {
            ref: {name: found[name] for name in fields} for ref, found in wanted.items()
        }
        for _, derived in (key for key in DERIVED if key[0] == cls):
            assert {row._ref: set(getattr(row, derived)) for row in table} == {
                ref: far(model, cls, ref, derived) for ref in wanted
            }
        if "uuid" in fields:
            assert all(table.by_uuid(uuid_of(row)) is row for row in table)
        labels = {label_of(row) for row in table} if "name_label" in fields else set()
        for label in labels | {"a", "b"}:
            assert {row._ref for row in table.by_name_label(label)} == {
                ref for ref, found in wanted.items() if found.get("name_label") == label
            }
        stamps = [row._modified for row in table.changes]
        assert stamps == sorted(stamps)
        assert set(table.changes) == set(table)
        assert all(0 < row._created <= row._modified <= store.generation for row in table)
        deaths = [grave.deleted for grave in table.graves]
        assert deaths == sorted(deaths)
    kept = {key: fields for key, fields in model.items() if key[0] not in MEMORY_ONLY}
    assert {key: {name: row[name] for name in FIELDS[key[0]]} for key, row in log.rows.items()} == {
        key: {name: fields[name] for name in FIELDS[key[0]]} for key, fields in kept.items()
    }
    assert log.generations == sorted(set(log.generations))


def make() -> tuple[Store, Log]:
    log = Log()
    return Store(MODEL, log, lambda tell: None), log


@settings(max_examples=100, deadline=None)
@given(PROGRAMS)
def test_store_is_the_model(program: list[Any]) -> None:
    """Fields, relations of all kinds, indexes, the journal, and the order of changes, after every step."""
    store, log = make()
    model: Model = {}
    for step in program:
        generation = store.generation
        try:
            run(store, model, step)
        except Fault:
            assert step[0] == "set"
        assert store.generation - generation in (0, 1)
        check(store, model, log)


@settings(deadline=None)
@given(DURABLE, st.integers(0, 12))
def test_failed_journal_undoes_what_it_did_not_write(program: list[Any], durable: int) -> None:
    """All since the last generation that was written, and nothing before."""
    store, log = make()
    model: Model = {}
    for step in program[:durable]:
        run_quietly(store, model, step)
    store.written(store.generation)
    before, rows = copy.deepcopy(model), copy.deepcopy(log.rows)
    for step in program[durable:]:
        run_quietly(store, model, step)
    told: list[Any] = []
    store.when_flushed(store.last_written, told.append)
    refusal = Fault("OUT_OF_SPACE", "db")
    lost = bool(store._pending)
    store.failed(refusal)
    log.rows = rows
    assert told == [refusal if lost else None]
    check_durable(store, before, log)


def run_quietly(store: Store, model: Model, step: tuple[Any, ...]) -> None:
    try:
        run(store, model, step)
    except Fault:
        assert step[0] == "set"


def check_durable(store: Store, model: Model, log: Log) -> None:
    for cls in FIELDS.keys() - MEMORY_ONLY:
        wanted = {ref: found for (kind, ref), found in model.items() if kind == cls}
        assert {row._ref: {name: getattr(row, name) for name in FIELDS[cls]} for row in store.tables[cls]} == {
            ref: {name: found[name] for name in FIELDS[cls]} for ref, found in wanted.items()
        }
        for _, derived in (key for key in DERIVED if key[0] == cls):
            assert {row._ref: set(getattr(row, derived)) for row in store.tables[cls]} == {
                ref: far(model, cls, ref, derived) for ref in wanted
            }
    assert set(log.rows) == {key for key in model if key[0] not in MEMORY_ONLY}


@settings(deadline=None)
@given(PROGRAMS)
def test_loading_makes_the_same_store(program: list[Any]) -> None:
    """What the journal has been told is enough to come back, derived sets included."""
    store, log = make()
    model: Model = {}
    for step in program:
        run_quietly(store, model, step)
    again, _ = make()
    for (cls, ref), row in log.rows.items():
        again.load(again.tables[cls], [again.tables[cls].make(ref, row)])
    again.loaded()
    kept = {key: fields for key, fields in model.items() if key[0] not in MEMORY_ONLY}
    check_durable(again, kept, log)


def test_the_fields_are_what_the_model_takes_them_for() -> None:
    """Guard the table above against a change of the schema."""

    def kinds(names: Iterable[tuple[str, str]]) -> set[str]:
        fields: list[Field] = [MODEL.classes[cls].fields[name] for cls, name in names]
        return {field.relation for field in fields}

    assert kinds(DERIVED) == {"computed", "mirror"}
    assert kinds(DERIVED.values()) == {"single", "owner"}
    assert {cls for cls in FIELDS if MODEL.classes[cls].kept == "memory"} == MEMORY_ONLY


def test_failed_journal_when_a_task_came_with_a_durable_change() -> None:
    """A message makes its task and changes a VM at once; the task goes at its end; then the journal fails."""
    store, _ = make()
    told: list[Any] = []
    with store.atomic():
        store.task.create("t")
        store.VM.create("v")
    store.when_flushed(store.last_written, told.append)
    store.task.delete("t")
    refusal = Fault("OUT_OF_SPACE", "db")
    store.failed(refusal)
    assert told == [refusal]
    assert "v" not in store.VM


def test_object_that_was_named_before_it_was_there() -> None:
    """A restart finds it in the derived set, so it must be there before, too."""
    store, _ = make()
    store.VM.create("r", name_label="named")
    disk = store.VBD.create(VM="r")
    store.VM.delete("r")
    store.VM.create("r", name_label="again")
    assert set(store.VM["r"].VBDs) == {disk._ref}
