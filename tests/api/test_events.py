"""Events as clients get them: what is told, when, to whom, and in which bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from tests.api.conftest import Answer, Connection, call, request, text
from tests.conftest import Pool
from xapi.datamodel import errors
from xapi.store import memory


def classes(*names: str) -> str:
    items = "".join(text(name) for name in names)
    return f"<value><array><data>{items}</data></array></value>"


def ask(pool: Pool, *names: str, token: str = "", timeout: float = 0.0, wire: Connection | None = None) -> Connection:
    """Send event.from and return the connection, on which the answer may have come."""
    wire = wire or Connection(pool)
    timeout_ = f"<value><double>{timeout}</double></value>"
    body = call("event.from", text(pool.session), classes(*names), text(token), timeout_)
    wire.server.dataReceived(request(body))
    return wire


def poll(pool: Pool, *names: str, token: str = "") -> dict[str, Any]:
    """Return an answer that comes at once."""
    value: dict[str, Any] = ask(pool, *names, token=token).answer().value()
    return value


def told(batch: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(event["operation"], event["class"], event["ref"]) for event in batch["events"]]


def now(pool: Pool) -> str:
    """Return the token of the present."""
    token: str = poll(pool, "pool")["token"]
    return token


@pytest.fixture
def row(pool: Pool) -> Any:
    return next(iter(pool.db.pool))


def group(pool: Pool, name: str = "g") -> str:
    ref: str = pool("VM_group.create", {"name_label": name, "placement": "normal"})
    return ref


# Bytes


def test_bytes_of_an_answer(pool: Pool, row: Any) -> None:
    """Untyped strings, real i4 in the counts only, and the record as get_record has it."""
    token = now(pool)
    row.name_label = "x"
    pool.turn()
    generation = pool.db.generation
    body = ask(pool, "pool", token=token).answer().body.decode()
    record = Connection(pool).ask("pool.get_record", text(pool.session), text(row._ref)).body.decode()
    snapshot = record.partition("<name>Value</name>")[2].removesuffix(
        "</member></struct></value></param></params></methodResponse>"
    )
    event = (
        f"<value><struct><member><name>id</name><value>{generation}</value></member>"
        "<member><name>timestamp</name><value>0.0</value></member>"
        "<member><name>class</name><value>pool</value></member>"
        "<member><name>operation</name><value>mod</value></member>"
        f"<member><name>ref</name><value>{row._ref}</value></member>"
        f"<member><name>snapshot</name>{snapshot}</member></struct></value>"
    )
    assert f"<member><name>events</name><value><array><data>{event}</data></array></value></member>" in body
    assert "<member><name>vm_group</name><value><i4>0</i4></value></member>" in body
    assert f"<member><name>token</name><value>{generation:020},{generation:020}</value></member>" in body
    counts = body.partition("valid_ref_counts")[2].partition("</struct>")[0]
    assert body.count("<i4>") == counts.count("<i4>") == len(pool.db.tables) - 1
    assert re.search("<(string|int|i8)>", body) is None


def test_json_of_an_answer(pool: Pool, row: Any) -> None:
    """The same members; the id is a string, the counts are numbers."""
    token = now(pool)
    row.name_label = "x"
    pool.turn()
    wire = Connection(pool)
    result = wire.json("event.from", pool.session, ["pool"], token, 0.0)["result"]
    (event,) = result["events"]
    record = wire.json("pool.get_record", pool.session, row._ref)["result"]
    assert event == {
        "id": str(pool.db.generation), "timestamp": "0.0", "class": "pool", "operation": "mod", "ref": row._ref,
        "snapshot": record,
    }  # fmt: skip
    assert result["valid_ref_counts"]["pool"] == 1
    assert result["token"] > token


def test_no_events_in_both_encodings(pool: Pool) -> None:
    token = now(pool)
    assert (
        b"<name>events</name><value><array><data></data></array></value>" in ask(pool, "vm", token=token).answer().body
    )
    assert Connection(pool).json("event.from", pool.session, ["vm"], token, 0.0)["result"]["events"] == []


def test_counts_are_those_of_the_tables(pool: Pool) -> None:
    """xen-api fetches all tasks anew after every poll in which their number is not right."""
    pool("task.create", "own", "")
    counts = poll(pool, "task")["valid_ref_counts"]
    assert counts == {name.lower(): len(table) for name, table in pool.db.tables.items() if name != "message"}
    assert counts["task"] == 1


# What is told


def test_everything_at_first(pool: Pool) -> None:
    """An add for every object of every class that has events."""
    found = told(poll(pool, "*"))
    rows = {(table.name.lower(), ref) for table in pool.db.tables.values() if table.cls.events for ref in table.rows}
    assert {operation for operation, _, _ in found} == {"add"}
    assert {(name, ref) for _, name, ref in found} == rows
    assert len(found) == len(rows)


@pytest.mark.parametrize("name", ["vm_group", "VM_group", "VM_GROUP", "*"])
def test_case_of_a_class_does_not_matter(pool: Pool, name: str) -> None:
    token = now(pool)
    ref = group(pool)
    assert told(poll(pool, name, token=token)) == [("add", "vm_group", ref)]


def test_changes_of_an_object_are_one_event(pool: Pool, row: Any) -> None:
    """However many there were; the snapshot is the newest."""
    token = now(pool)
    for number in range(10):
        row.name_label = str(number)
        pool.turn()
    batch = poll(pool, "pool", token=token)
    assert told(batch) == [("mod", "pool", row._ref)]
    assert batch["events"][0]["snapshot"]["name_label"] == "9"


def test_what_was_made_and_changed_is_an_add(pool: Pool) -> None:
    token = now(pool)
    ref = group(pool)
    pool.db.VM_group[ref].name_label = "other"
    pool.turn()
    batch = poll(pool, "vm_group", token=token)
    assert told(batch) == [("add", "vm_group", ref)]
    assert batch["events"][0]["snapshot"]["name_label"] == "other"


def test_what_was_known_and_is_gone_is_a_del(pool: Pool) -> None:
    """Also when it changed before."""
    ref = group(pool)
    token = now(pool)
    pool.db.VM_group[ref].name_label = "other"
    pool("VM_group.destroy", ref)
    batch = poll(pool, "vm_group", token=token)
    assert told(batch) == [("del", "vm_group", ref)]
    assert "snapshot" not in batch["events"][0]


def test_what_came_and_went_is_not_told(pool: Pool) -> None:
    token = now(pool)
    pool("VM_group.destroy", group(pool))
    assert told(poll(pool, "vm_group", token=token)) == []


def test_far_side_of_a_relation_changes_too(pool: Pool) -> None:
    """A set that follows from another class's field."""
    guest = next(iter(pool.db.VM))
    token = now(pool)
    disk = pool.db.VBD.create(VM=guest._ref, mode="RW", type="Disk")
    pool.turn()
    batch = poll(pool, "vm", "vbd", token=token)
    assert told(batch) == [("add", "vbd", disk._ref), ("mod", "vm", guest._ref)]
    assert batch["events"][1]["snapshot"]["VBDs"] == [disk._ref]


def test_one_object(pool: Pool) -> None:
    """A subscription to it hears of nothing else, and that it is gone."""
    first, second = group(pool, "1"), group(pool, "2")
    token = now(pool)
    pool.db.VM_group[second].name_label = "x"
    pool.turn()
    batch = poll(pool, f"VM_group/{first}", token=token)
    assert told(batch) == []
    pool.db.VM_group[first].name_label = "x"
    pool.turn()
    assert told(poll(pool, f"vm_group/{first}", token=token)) == [("mod", "vm_group", first)]
    assert told(poll(pool, f"vm_group/{first}", "vm_group", token=token)).count(("mod", "vm_group", first)) == 1
    pool("VM_group.destroy", first)
    assert told(poll(pool, f"vm_group/{first}", token=token)) == [("del", "vm_group", first)]
    assert told(poll(pool, f"vm_group/{second}")) == [("add", "vm_group", second)]


def test_undone_changes_are_not_told(pool: Pool, row: Any) -> None:
    """A call that fails has changed nothing."""
    ref = group(pool)
    alert = pool("message.create", "n", 3, "Pool", row.uuid, "")
    token = now(pool)
    assert pool.fails("message.destroy_many", [alert, "OpaqueRef:x"])[0] == "HANDLE_INVALID"
    assert told(poll(pool, "*", token=token)) == []
    assert alert in pool.db.message and ref in pool.db.VM_group


# When it is told


def test_answer_waits_for_a_change(pool: Pool, row: Any) -> None:
    """And comes in the turn after it."""
    wire = ask(pool, "pool", token=now(pool), timeout=30.0)
    assert wire.take() == b""
    pool.clock.advance(10)
    assert wire.take() == b""
    row.name_label = "x"
    assert told(wire.answer().value()) == [("mod", "pool", row._ref)]


def test_changes_of_other_classes_do_not_wake(pool: Pool) -> None:
    wire = ask(pool, "pool", token=now(pool), timeout=30.0)
    group(pool)
    assert wire.take() == b""
    pool.clock.advance(30)
    batch = wire.answer().value()
    assert batch["events"] == []
    assert batch["token"] == now(pool)


@pytest.mark.parametrize("timeout", [0.0, 0.001, 5.001, 30.0])
def test_timeout(pool: Pool, timeout: float) -> None:
    """Not before it, then at once."""
    wire = ask(pool, "pool", token=now(pool), timeout=timeout)
    pool.clock.advance(max(0.0, timeout - 0.0005))
    assert (wire.take() == b"") == (timeout > 0)
    if timeout:
        pool.clock.advance(0.001)
        assert wire.answer().value()["events"] == []


@pytest.mark.parametrize("timeout", ["-1", "nan", "inf", "-inf"])
def test_timeout_that_is_none(pool: Pool, timeout: str) -> None:
    """A day."""
    wire = Connection(pool)
    value = f"<value><double>{timeout}</double></value>"
    wire.send(request(call("event.from", text(pool.session), classes("pool"), text(now(pool)), value)))
    pool.clock.advance(24 * 3600 - 1)
    assert wire.take() == b""
    pool.clock.advance(2)
    assert wire.answer().value()["events"] == []


def test_what_is_not_durable_is_not_told(pool: Pool, row: Any) -> None:
    """The answer waits for the journal."""
    token = now(pool)
    pool.journal.held = True
    row.name_label = "x"
    wire = ask(pool, "pool", token=token, timeout=30.0)
    assert wire.take() == b""
    pool.db.written(pool.db.generation)
    assert told(wire.answer().value()) == [("mod", "pool", row._ref)]


def test_what_could_not_be_stored_is_not_told_as_it_was(pool: Pool, row: Any) -> None:
    """A listener that waits hears of the object as it is again."""
    token = now(pool)
    before = row.name_label
    pool.journal.held = True
    row.name_label = "lost"
    wire = ask(pool, "pool", token=token, timeout=30.0)
    pool.turn()
    pool.db.failed(errors.OUT_OF_SPACE("db"))
    batch = wire.answer().value()
    assert {event["snapshot"]["name_label"] for event in batch["events"]} == {before}


def test_session_that_ends_while_waiting(pool: Pool) -> None:
    session = pool.login()
    wire = Connection(pool)
    body = call("event.from", text(session), classes("pool"), text(now(pool)), "<value><double>30</double></value>")
    wire.send(request(body))
    pool.raw("session.logout", session)
    assert wire.answer().error() == ["SESSION_INVALID", session]


def test_client_that_goes_away_leaves_nothing(pool: Pool) -> None:
    """No listener, no timer of its wait."""
    token = now(pool)
    timers = len(pool.clock.getDelayedCalls())
    wire = ask(pool, "pool", token=token, timeout=30.0)
    pool.turn()
    assert len(pool.daemon.events._waiting) == 1
    wire.lose()
    pool.turn()
    assert pool.daemon.events._waiting == {}
    assert len(pool.clock.getDelayedCalls()) == timers


def test_listeners_of_the_same_share_an_answer(pool: Pool, row: Any) -> None:
    """A hundred of them get the same bytes."""
    token = now(pool)
    wires = [ask(pool, "pool", token=token, timeout=30.0) for _ in range(100)]
    row.name_label = "x"
    answers = {wire.answer().body for wire in wires}
    assert len(answers) == 1


# Tokens and subscriptions that are wrong


@pytest.mark.parametrize("token", ["x", "1", "1,", ",1", "1,2,3", "-1,0", "1, 2", "1" * 21 + ",1", "١,١"])
def test_token_that_is_none(pool: Pool, token: str) -> None:
    answer = ask(pool, "pool", token=token).answer()
    assert answer.error() == ["EVENT_FROM_TOKEN_PARSE_FAILURE", token]


@pytest.mark.parametrize("name", ["", "/", "vm/", "/OpaqueRef:x", "vm/a/b"])
def test_subscription_that_is_none(pool: Pool, name: str) -> None:
    assert ask(pool, "pool", name).answer().error() == ["EVENT_SUBSCRIPTION_PARSE_FAILURE", name]


def test_class_that_is_none(pool: Pool) -> None:
    """Clients of other versions name classes that are not here."""
    assert poll(pool, "spaceship")["events"] == []


def test_token_of_the_future(pool: Pool) -> None:
    """Some other database gave it."""
    assert ask(pool, "pool", token=f"{10**12:020},{10**12:020}").answer().error() == ["EVENTS_LOST"]


def test_token_of_a_forgotten_past(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """When deletions since are not remembered, the client must begin anew."""
    monkeypatch.setattr(memory, "GRAVES", 3)
    token = now(pool)
    for ref in [group(pool) for _ in range(5)]:
        pool("VM_group.destroy", ref)
    assert ask(pool, "pool", token=token).answer().error() == ["EVENTS_LOST"]
    assert poll(pool, "pool", token=now(pool))["events"] == []
    assert len(poll(pool, "pool")["events"]) == 1


# Injecting


def test_inject(pool: Pool, row: Any) -> None:
    """A token with which the object is told of; the class is the object's own."""
    token = pool("event.inject", "pool", row._ref)
    assert told(poll(pool, "pool", token=token)) == [("mod", "pool", row._ref)]
    assert told(poll(pool, "*", token=now(pool))) == []
    assert pool.fails("event.inject", "VM", row._ref) == ["HANDLE_INVALID", "VM", row._ref]
    assert pool.fails("event.inject", "pool", "OpaqueRef:x") == ["HANDLE_INVALID", "pool", "OpaqueRef:x"]


# Register and next


def next_(pool: Pool) -> Connection:
    wire = Connection(pool)
    wire.server.dataReceived(request(call("event.next", text(pool.session))))
    return wire


def old_events(answer: Answer) -> list[tuple[str, str, str]]:
    return [(event["operation"], event["class"], event["ref"]) for event in answer.value()]


def test_next_tells_what_happened_since_the_last_time(pool: Pool, row: Any) -> None:
    """From the registration on, each change once."""
    row.name_label = "before"
    pool.turn()
    pool("event.register", ["Pool", "vm_group"])
    wire = next_(pool)
    assert wire.take() == b""
    row.name_label = "after"
    answer = wire.answer()
    assert old_events(answer) == [("mod", "pool", row._ref)]
    (event,) = answer.value()
    assert set(event) == {"id", "timestamp", "class", "operation", "ref", "snapshot"}
    assert int(event["id"]) == pool("event.get_current_id")
    assert float(event["timestamp"]) == pool.clock.seconds()
    ref = group(pool)
    row.name_label = "again"
    pool.turn()
    assert old_events(next_(pool).answer()) == [("add", "vm_group", ref), ("mod", "pool", row._ref)]


def test_unregister(pool: Pool, row: Any) -> None:
    """One class of two."""
    pool("event.register", ["pool", "vm_group"])
    pool("event.unregister", ["pool"])
    row.name_label = "x"
    wire = next_(pool)
    assert wire.take() == b""
    ref = group(pool)
    assert old_events(wire.answer()) == [("add", "vm_group", ref)]


def test_who_is_not_registered(pool: Pool) -> None:
    assert next_(pool).answer().error() == ["SESSION_NOT_REGISTERED", pool.session]
    assert pool.fails("event.unregister", ["*"]) == ["SESSION_NOT_REGISTERED", pool.session]


def test_next_tells_of_the_pool_every_30_seconds(pool: Pool, row: Any) -> None:
    """So that the client sees that the connection lives."""
    pool("event.register", ["*"])
    wire = next_(pool)
    pool.clock.advance(29.9)
    assert wire.take() == b""
    pool.clock.advance(0.2)
    assert old_events(wire.answer()) == [("mod", "pool", row._ref)]


class StrictClock(Clock):
    """A clock that refuses what the real reactor refuses."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:
        assert delay >= 0, f"{delay} is not greater than or equal to 0 seconds"
        return super().callLater(delay, callable, *args, **kw)


def test_next_waits_on_when_the_pool_is_none_of_its_business(pool: Pool) -> None:
    """Longer than 30 seconds, with a reactor that fires a little late, as all do."""
    pool.daemon.clock = pool.daemon.events.clock = strict = StrictClock()
    strict.rightNow = pool.clock.rightNow
    pool("event.register", ["vm_group"])
    wire = next_(pool)
    strict.advance(30.1)
    assert wire.take() == b""
    ref = group(pool)
    assert old_events(wire.answer()) == [("add", "vm_group", ref)]
