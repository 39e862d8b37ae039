"""What goes into a database comes out of it, on both kinds."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.durability.harness import WHOLE, Opened, contents, discard, values
from xapi.store.tables import kept_fields, loader, persistent

# One field of each column type, in whatever class.
_FIELDS = {
    field.type.name: (cls.name, field)
    for cls in WHOLE.stored
    if persistent(cls)
    for field in kept_fields(cls)
    if field.name != "uuid"
}
_EVERY_TYPE = st.fixed_dictionaries({name: values(field.type) for name, (_, field) in _FIELDS.items()})


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal and of equal types; nan equals itself."""
    return type(one) is type(other) and (one == other or (one != one and other != other))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def rows_through(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that writes one value of each type and reads them back."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").new()
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('types') / 'types.db'}"
    opened = Opened(url, model=WHOLE)
    loaders = {table.name: loader(table) for table in opened.store.tables.values()}

    def through(given: dict[str, Any]) -> dict[str, Any]:
        read = {}
        connection = opened.database.connection
        for name, (class_name, field) in _FIELDS.items():
            table = opened.database.metadata.tables[class_name]
            with connection.begin() as transaction:
                connection.execute(table.insert(), {"_ref": "x", field.name: given[name]})
                selected = connection.execute(table.select().where(table.c._ref == "x"))
                (row,) = loaders[class_name](selected)
                read[name] = getattr(row, field.name)
                transaction.rollback()
        return read

    yield through
    opened.database.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(given_values=_EVERY_TYPE)
def test_every_column_type_comes_back_equal(rows_through: Any, given_values: dict[str, Any]) -> None:
    """Value and Python type survive, whatever the schema declares."""
    read = rows_through(given_values)
    assert [name for name in _FIELDS if not same(given_values[name], read[name])] == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e-308, 0.1])
def test_awkward_floats_come_back(rows_through: Any, value: float) -> None:
    """SQLite would turn nan into NULL."""
    defaults = {name: field.type.empty for name, (_, field) in _FIELDS.items()}
    assert same(rows_through(defaults | {"float": value})["float"], value)


def test_dates_come_back_aware_and_in_utc(rows_through: Any) -> None:
    """The database holds them without a zone."""
    defaults = {name: field.type.empty for name, (_, field) in _FIELDS.items()}
    moment = datetime(1, 1, 1, 0, 0, 1, tzinfo=UTC)
    read = rows_through(defaults | {"datetime": moment})["datetime"]
    assert (read, read.tzinfo) == (moment, UTC)


def _change(opened: Opened, rng: random.Random, number: int) -> None:
    """Do one of the things that messages do, to random objects."""
    store = opened.store
    vms = list(store.VM)
    action = rng.choice(["make", "make", "set", "set", "set", "map", "drop", "again", "plug"])
    if action == "make" or not vms:
        store.VM.create(name_label=f"vm {number}", memory_static_max=number << 40)
    elif action == "set":
        with store.atomic():
            rng.choice(vms).name_description = f"text {number} \U0001f600 '\"\\"
            rng.choice(vms).is_a_template = rng.random() < 0.5
    elif action == "map":
        rng.choice(vms).other_config = {"key": str(number), "": "é"}
    elif action == "drop":
        store.VM.delete(rng.choice(vms)._ref)
    elif action == "again":
        ref = rng.choice(vms)._ref
        with store.atomic():
            store.VM.delete(ref)
            store.VM.create(ref, name_label=f"again {number}")
    else:
        store.VBD.create(VM=rng.choice(vms)._ref, userdevice=str(number))


@pytest.mark.parametrize("seed", range(3))
def test_a_restart_gives_the_same_records(url: str, seed: int) -> None:
    """After random changes, in random groups, the reopened store equals the closed one."""
    rng = random.Random(seed)
    with Opened(url, model=WHOLE) as opened:
        for number in range(150):
            _change(opened, rng, number)
            if rng.random() < 0.1:
                assert opened.flush() is None
        assert opened.flush() is None
        before = copy.deepcopy(contents(opened.store))
    again = Opened(url, model=WHOLE)
    again.database.close()
    assert contents(again.store) == before
    assert len(before["VM"]) > 5


def test_stop_writes_all_that_is_queued(url: str) -> None:
    """A change that nobody waited for is durable after stop."""
    opened = Opened(url)
    for number in range(300):
        opened.store.secret.create(value=str(number))
    opened.writer.start(opened.store)
    opened.writer.stop()
    again = Opened(url)
    again.database.close()
    assert {row.value for row in again.store.secret} == set(map(str, range(300)))


def test_roles_and_memory_classes_are_not_stored(url: str) -> None:
    """Roles come from the schema at each start, sessions end with the daemon."""
    with Opened(url) as opened:
        opened.store.role.create(name_label="pool-admin")
        opened.store.session.create()
        opened.store.secret.create(value="kept")
        assert opened.flush() is None
    again = Opened(url)
    again.database.close()
    assert [len(again.store.tables[name]) for name in ("role", "session", "secret")] == [0, 0, 1]


def test_relations_are_whole_after_a_restart(url: str) -> None:
    """The derived side of a relation has no column and follows from the other."""
    with Opened(url) as opened:
        vm = opened.store.VM.create()._ref
        vbd = opened.store.VBD.create(VM=vm)._ref
        assert opened.flush() is None
    again = Opened(url)
    again.database.close()
    assert list(again.store.VM[vm].VBDs) == [vbd]


def test_one_commit_carries_many_changes(new_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All that gathered before the thread took it is told as written at once."""
    opened = Opened(new_url())
    for number in range(200):
        opened.store.secret.create(value=str(number))
    written: list[int] = []
    monkeypatch.setattr(opened.store, "written", written.append)
    with opened:
        opened.loop.until(lambda: written)
    assert written == [opened.store.generation]


def test_changes_of_one_row_are_joined_to_its_net_effect(url: str) -> None:
    """Insert, update, delete and insert again, of one reference, leave the last state."""
    opened = Opened(url)
    store = opened.store
    changes = discard(store)
    store.secret.create("OpaqueRef:a", value="1", uuid="a")
    store.secret["OpaqueRef:a"].value = "2"
    store.secret.delete("OpaqueRef:a")
    store.secret.create("OpaqueRef:a", value="3", uuid="b")
    store.secret.create("OpaqueRef:gone")
    store.secret.delete("OpaqueRef:gone")
    for generation, change in changes:
        opened.writer.write(generation, change)
    opened.writer.start(store)
    opened.writer.stop()
    again = Opened(url)
    again.database.close()
    assert {row._ref: (row.uuid, row.value) for row in again.store.secret} == {"OpaqueRef:a": ("b", "3")}


def test_alerts_come_back_oldest_first(url: str) -> None:
    """However the database keeps them: the first is the one that goes when there are too many."""
    times = [datetime(2026, 1, 1 + day, tzinfo=UTC) for day in (3, 1, 4, 0, 2)]
    with Opened(url, model=WHOLE) as opened:
        for time in times:
            opened.store.message.create(name="n", timestamp=time)
        assert opened.flush() is None
    with Opened(url, model=WHOLE) as again:
        assert [row.timestamp for row in again.store.message] == sorted(times)
