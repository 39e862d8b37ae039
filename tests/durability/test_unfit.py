"""Values that no database can hold: refused where they are assigned, and if one comes further, it alone is undone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.durability.harness import WHOLE, Opened, contents
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import BoolType, DateTimeType, EnumType, FloatType, IntType, MapType, SetType, Type
from xapi.store.memory import Derivation
from xapi.store.tables import kept_fields, loader, persistent

TOO_MUCH = 1 << 63


def absurd(kind: Type) -> st.SearchStrategy[Any]:
    """Return a strategy for all that Python can put into a field of a type."""
    if isinstance(kind, SetType):
        return st.lists(absurd(kind.item), max_size=4).map(tuple)
    if isinstance(kind, MapType):
        return st.dictionaries(absurd(kind.key), absurd(kind.value), max_size=4)
    if isinstance(kind, EnumType):
        return st.sampled_from(list(kind.values))
    if isinstance(kind, IntType):
        return st.integers() | st.sampled_from([TOO_MUCH, TOO_MUCH - 1, -TOO_MUCH, -TOO_MUCH - 1, 10**400])
    if isinstance(kind, BoolType):
        return st.booleans()
    if isinstance(kind, FloatType):
        return st.floats() | st.integers()
    if isinstance(kind, DateTimeType):
        zones = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
        return st.datetimes(timezones=zones) | st.sampled_from(
            [datetime.min.replace(tzinfo=timezone(timedelta(hours=9))), datetime.max.replace(tzinfo=UTC)]
        )
    return st.text(st.characters()) | st.sampled_from(["\0", "\ud800", "a\x1b[0mb", "\ufffe", "\r\n\t", "x" * 100_000])


def shape(kind: Type) -> str:
    """Return what a type is made of, whatever class or enum it names."""
    return re.sub(r"\w+ ref|enum \w+", lambda match: "ref" if match[0].endswith(" ref") else "enum", kind.name)


_FIELDS = {
    shape(field.type): (cls.name, field.name, field.type)
    for cls in WHOLE.stored
    if persistent(cls)
    for field in kept_fields(cls)
    if field.name != "uuid"
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").new()
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('unfit') / 'unfit.db'}"
    opened = Opened(url, model=WHOLE)
    yield opened
    opened.database.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(absurdities=st.fixed_dictionaries({name: absurd(kind) for name, (_, _, kind) in _FIELDS.items()}))
def test_what_a_field_takes_comes_back_from_the_database(opened: Opened, absurdities: dict[str, Any]) -> None:
    """Of every type of field: a value is refused by name, or it is kept and read back equal."""
    connection = opened.database.connection
    for type_name, (class_name, name, _) in _FIELDS.items():
        table, sql = opened.store.tables[class_name], opened.database.metadata.tables[class_name]
        try:
            kept = table.fitted(name, absurdities[type_name])
        except Fault as fault:
            assert fault.description[:2] == ["VALUE_NOT_SUPPORTED", f"{class_name}.{name}"]
            continue
        with connection.begin() as transaction:
            connection.execute(sql.insert(), {"_ref": "x", name: kept})
            (row,) = loader(table)(connection.execute(sql.select().where(sql.c._ref == "x")))
            read = getattr(row, name)
            transaction.rollback()
        assert isinstance(kept, type(read)) and read == kept


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("VCPUs_max", TOO_MUCH, "the number does not fit into 64 bits"),
        ("VCPUs_params", {"weight": "\0"}, ""),
        ("HVM_shadow_multiplier", float("nan"), "the number is not finite"),
        ("HVM_shadow_multiplier", float("inf"), "the number is not finite"),
        ("snapshot_time", datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "the date is not within"),
    ],
)
def test_the_fault_names_field_and_reason(opened: Opened, field: str, value: Any, reason: str) -> None:
    """Text is cleaned instead, as that of calls is."""
    vm = opened.store.VM.make("OpaqueRef:x", {})
    if not reason:
        assert vm._table.fitted(field, value) == {"weight": ""}
        return
    with pytest.raises(Fault) as caught:
        setattr(vm, field, value)
    assert caught.value.description[:2] == ["VALUE_NOT_SUPPORTED", f"VM.{field}"]
    assert caught.value.description[3].startswith(reason)


def without_bounds(opened: Opened) -> None:
    """Let a number of any size in, as a field would that nobody looks at."""
    opened.store.VM.fit["VCPUs_max"] = lambda value: value


def outcome(opened: Opened) -> list[str]:
    """Return what those hear who wait now; "" for a change that holds."""
    told: list[Fault | None] = []
    opened.store.when_flushed(opened.store.generation, told.append)
    return told  # type: ignore[return-value]


def test_only_the_culprit_of_a_batch_is_refused(url: str) -> None:
    """The changes of others, before and after it in the same transaction, are durable; nothing is refused later."""
    opened = Opened(url)
    without_bounds(opened)
    told: list[list[Any]] = []
    vms = []
    for number in range(20):
        with opened.store.atomic():
            vms.append(opened.store.VM.create(name_label=str(number)))
            vms[-1].VCPUs_max = TOO_MUCH if number == 7 else number
        told.append(outcome(opened))
    with opened:
        opened.loop.until(lambda: all(told))
        assert [number for number, (fault,) in enumerate(told) if fault is not None] == [7]
        assert told[7][0].code == "INTERNAL_ERROR"
        assert "the database cannot hold this" in told[7][0].parameters[0]
        assert opened.store.refusal is None
        assert [row.name_label for row in opened.store.VM] == [str(n) for n in range(20) if n != 7]
        opened.store.secret.create(value="after")
        assert opened.flush() is None
        before = contents(opened.store)
    again = Opened(url)
    again.database.close()
    assert contents(again.store) == before


def test_what_builds_on_the_culprit_goes_with_it(url: str) -> None:
    """A later change of the same object, and an object that refers to it, whether in the batch or behind it."""
    opened = Opened(url)
    without_bounds(opened)
    store = opened.store
    old = store.VM.create(name_label="old")
    store.VM.create(name_label="bystander")
    with opened:
        assert opened.flush() is None
        arrived = opened.loop.from_thread
        new = store.VM.create(name_label="new", VCPUs_max=TOO_MUCH)
        told = [outcome(opened)]
        opened.writer._call_from_thread = lambda *call: (arrived(*call), arrived(lambda: None))
        store.VBD.create(VM=new._ref)
        told.append(outcome(opened))
        new.name_label = "renamed"
        told.append(outcome(opened))
        old.name_label = "renamed"
        kept = outcome(opened)
        opened.loop.until(lambda: all(told) and kept)
        assert kept == [None]
        assert all(fault is not None for (fault,) in told)
        assert (len(store.VBD), sorted(row.name_label for row in store.VM)) == (0, ["bystander", "renamed"])
        before = contents(store)
    again = Opened(url)
    again.database.close()
    assert contents(again.store) == before


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["make", "set", "bad", "drop", "plug", "wait"]), st.integers(0, 3)), max_size=30
    )
)
def test_memory_and_database_agree_whatever_was_refused(tmp_path_factory: Any, steps: list[tuple[str, int]]) -> None:
    """Any mixture of changes that can be held and that cannot, in batches of any size."""
    url = f"sqlite:///{tmp_path_factory.mktemp('mix') / 'mix.db'}"
    opened = Opened(url)
    without_bounds(opened)
    store = opened.store
    store.derive(
        Derivation("VM", "name_description", lambda _, vm: str(vm.VCPUs_max), {"VM": lambda vm, _: (vm._ref,)})
    )
    with opened:
        for number, (action, at) in enumerate(steps):
            vms = list(store.VM)
            if action == "make" or not vms:
                store.VM.create(name_label=str(number), VCPUs_max=TOO_MUCH if action == "bad" else number)
            elif action in ("set", "bad"):
                vms[at % len(vms)].VCPUs_max = TOO_MUCH if action == "bad" else number
            elif action == "drop":
                store.VM.delete(vms[at % len(vms)]._ref)
            elif action == "plug":
                store.VBD.create(VM=vms[at % len(vms)]._ref)
            else:
                opened.flush()
        while store.last_written > store.flushed:
            opened.flush()
        opened.flush()
        assert store.refusal is None
        assert all(row.VCPUs_max != TOO_MUCH for row in store.VM)
        before = contents(store)
    again = Opened(url)
    again.database.close()
    assert contents(again.store) == before
