"""Alerts (class message), blobs and the pool's settings."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.api.conftest import Connection
from tests.conftest import Pool
from xapi.datamodel.lexical import EPOCH, format_datetime
from xapi.events import alerts


@pytest.fixture(scope="module")
def pool(make_pool: Callable[[], Pool]) -> Pool:
    """One pool for all; its alerts go before each test."""
    return make_pool()


@pytest.fixture(autouse=True)
def no_alerts(pool: Pool) -> None:
    pool("message.destroy_all", {})
    assert len(pool.db.message) == 0


def now(pool: Pool) -> datetime:
    return datetime.fromtimestamp(int(pool.clock.seconds()), UTC)


@pytest.fixture
def row(pool: Pool) -> Any:
    return next(iter(pool.db.pool))


def alert(pool: Pool, name: str = "VM_STARTED", priority: int = 5) -> str:
    ref: str = pool("message.create", name, str(priority), "Pool", next(iter(pool.db.pool)).uuid, "body")
    return ref


# Alerts


def test_record_of_an_alert(pool: Pool, row: Any) -> None:
    """With the time of the daemon, and found by its uuid."""
    ref = alert(pool)
    record = Connection(pool).json("message.get_record", pool.session, ref)["result"]
    assert record == {
        "uuid": record["uuid"], "name": "VM_STARTED", "priority": 5, "cls": "Pool", "obj_uuid": row.uuid,
        "timestamp": format_datetime(now(pool)), "body": "body",
    }  # fmt: skip
    assert pool("message.get_by_uuid", record["uuid"]) == ref


def test_alert_about_nothing(pool: Pool, row: Any) -> None:
    """The object must exist, and be of that class."""
    assert pool.fails("message.create", "n", 1, "VM", row.uuid, "") == ["UUID_INVALID", "VM", row.uuid]
    assert pool.fails("message.create", "n", 1, "Pool", "x", "") == ["UUID_INVALID", "pool", "x"]
    assert pool.fails("message.create", "n", 0, "Pool", row.uuid, "") == ["INVALID_VALUE", "priority", "0"]
    assert pool.fails("message.create", "n", 6, "Pool", row.uuid, "") == ["INVALID_VALUE", "priority", "6"]
    assert pool.fails("message.create", "n", 1, "starship", row.uuid, "")[0] == "INTERNAL_ERROR"


def test_alerts_are_read_newest_first(pool: Pool, row: Any) -> None:
    """All, those since a time, those of one object, and those that an expression selects."""
    first = alert(pool, "A")
    pool.clock.advance(60)
    second = alert(pool, "B", 1)
    half = format_datetime(now(pool) - timedelta(seconds=30))
    assert [row._ref for row in pool("message.get_all_records")] == [second, first]
    assert [row._ref for row in pool("message.get_since", half)] == [second]
    assert {row._ref for row in pool("message.get", "Pool", row.uuid, EPOCH)} == {first, second}
    assert [row._ref for row in pool("message.get_all_records_where", 'field "name" = "A"')] == [first]
    assert [row._ref for row in pool("message.get_all_records_where", 'field "priority" = "1"')] == [second]
    assert set(pool("message.get_all")) == {first, second}


def test_alerts_have_no_setters(pool: Pool) -> None:
    ref = alert(pool)
    assert pool.fails("message.set_body", ref, "x") == ["MESSAGE_METHOD_UNKNOWN", "message.set_body"]


def test_destroying_alerts(pool: Pool) -> None:
    """One, some or none of some, and those that filters fit."""
    one, two, three = alert(pool), alert(pool), alert(pool, priority=1)
    pool("message.destroy", one)
    assert pool.fails("message.destroy", one) == ["HANDLE_INVALID", "message", one]
    assert pool.fails("message.destroy_many", [two, one]) == ["HANDLE_INVALID", "message", one]
    assert set(pool.db.message.rows) == {two, three}
    pool("message.destroy_all", {"priority": "1"})
    assert set(pool.db.message.rows) == {two}
    pool("message.destroy_all", {"before": format_datetime(now(pool))})
    assert set(pool.db.message.rows) == {two}
    pool(
        "message.destroy_all",
        {"after": format_datetime(EPOCH), "before": format_datetime(now(pool) + timedelta(days=1))},
    )
    assert set(pool.db.message.rows) == set()


@pytest.mark.parametrize("filters", [{"colour": "red"}, {"after": "soon"}, {"priority": "high"}])
def test_filters_that_are_none(pool: Pool, filters: dict[str, str]) -> None:
    """Nothing is destroyed by mistake."""
    ref = alert(pool)
    assert pool.fails("message.destroy_all", filters)[:2] == ["INVALID_VALUE", "filters"]
    assert ref in pool.db.message


def test_oldest_alerts_go(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit."""
    monkeypatch.setattr(alerts, "MOST", 3)
    refs = [alert(pool) for _ in range(5)]
    assert list(pool.db.message.rows) == refs[2:]


def test_ten_thousand_alerts_are_kept(pool: Pool) -> None:
    """The oldest goes for each that is one too many, and its end is told."""
    pool_row = next(iter(pool.db.pool))
    first = alert(pool)
    token = str(pool("event.from", ["message"], "", 0.0).token)
    with pool.db.atomic():
        for number in range(alerts.MOST):
            alerts.alert(pool.db, now(pool), "VM_STARTED", "Pool", pool_row, str(number))
    assert len(pool.db.message) == alerts.MOST == 10_000
    events = pool("event.from", ["message"], token, 0.0).events
    assert [event.ref for event in events if event.operation == "del"] == [first]


def test_a_state_with_far_too_many_alerts_shrinks_by_and_by(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call pays for all of them."""
    refs = [alert(pool) for _ in range(250)]
    monkeypatch.setattr(alerts, "MOST", 10)
    alert(pool)
    assert list(pool.db.message.rows)[:-1] == refs[100:]
    alert(pool)
    alert(pool)
    assert len(pool.db.message) == 10


def test_events_of_alerts(pool: Pool) -> None:
    """add and del, with id 0, and told of from the second part of the token."""
    token = str(pool("event.from", ["message"], "", 0.0).token)
    ref = alert(pool)
    wire = Connection(pool)
    (event,) = wire.json("event.from", pool.session, ["message"], token, 0.0)["result"]["events"]
    assert (event["id"], event["class"], event["operation"], event["ref"]) == ("0", "message", "add", ref)
    assert event["snapshot"]["name"] == "VM_STARTED"
    batch = wire.json("event.from", pool.session, ["message"], token, 0.0)["result"]
    assert "message" not in batch["valid_ref_counts"]
    pool("message.destroy", ref)
    (event,) = wire.json("event.from", pool.session, ["message"], batch["token"], 0.0)["result"]["events"]
    assert (event["id"], event["operation"]) == ("0", "del")


def test_events_of_one_alert(pool: Pool) -> None:
    """They count from the second part of the token too."""
    ref = alert(pool)
    objects, _ = str(pool("event.from", ["message"], "", 0.0).token).split(",")
    pool("message.destroy", ref)
    token = f"{objects},{pool.db.generation:020}"
    assert pool("event.from", ["message"], token, 0.0).events == []
    assert pool("event.from", [f"message/{ref}"], token, 0.0).events == []


# Blobs


@pytest.mark.parametrize("cls", ["VM", "host", "pool", "network", "SR"])
def test_no_blob_is_made_that_nobody_can_fill(pool: Pool, cls: str) -> None:
    """Until HTTP takes the content of blobs."""
    owner = next(iter(pool.db.tables[cls]))
    name = f"{cls}.create_new_blob"
    assert pool.fails(name, owner._ref, "b", "", False) == ["NOT_IMPLEMENTED", name]
    assert pool.fails("blob.create", "text/plain", True) == ["NOT_IMPLEMENTED", "blob.create"]
    assert not pool.db.blob.rows and not pool(f"{cls}.get_blobs", owner._ref)


def test_a_blob_of_an_older_version_can_be_removed(pool: Pool) -> None:
    ref = pool.db.blob.create()._ref
    pool("blob.destroy", ref)
    assert pool.fails("blob.get_record", ref) == ["HANDLE_INVALID", "blob", ref]


# The pool's settings


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("local_auth_max_threads", [1, 8], [0, 9]),
        ("ext_auth_max_threads", [1, 8], [0, 9]),
        ("ext_auth_cache_size", [1, 1000], [0, -1]),
        ("ext_auth_cache_expiry", [1, 1000], [0, -1]),
    ],
)
def test_settings_within_bounds(pool: Pool, row: Any, field: str, good: list[int], bad: list[int]) -> None:
    """What is out of them changes nothing."""
    for value in good:
        pool(f"pool.set_{field}", row._ref, value)
        assert getattr(row, field) == value
    for value in bad:
        assert pool.fails(f"pool.set_{field}", row._ref, value) == ["INVALID_VALUE", field, str(value)]
    assert getattr(row, field) == good[-1]


def test_update_settings(pool: Pool, row: Any) -> None:
    pool("pool.configure_update_sync", row._ref, "weekly", 3)
    assert (row.update_sync_frequency, row.update_sync_day) == ("weekly", 3)
    assert pool.fails("pool.configure_update_sync", row._ref, "weekly", 7) == ["INVALID_UPDATE_SYNC_DAY", "7"]
    assert pool.fails("pool.set_update_sync_enabled", row._ref, True) == ["NO_REPOSITORIES_CONFIGURED"]
    pool("pool.set_update_sync_enabled", row._ref, False)


def test_repository_proxy(pool: Pool, row: Any) -> None:
    """The password goes into a secret, which goes with it."""
    pool("pool.configure_repository_proxy", row._ref, "http://proxy:3128", "ann", "s3cret")
    secret = row.repository_proxy_password
    assert pool.db.secret[secret].value == "s3cret"
    pool("pool.configure_repository_proxy", row._ref, "https://proxy", "", "")
    assert secret not in pool.db.secret
    assert pool.fails("pool.configure_repository_proxy", row._ref, "proxy", "", "") == [
        "INVALID_REPOSITORY_PROXY_URL", "proxy"
    ]  # fmt: skip
    assert pool.fails("pool.configure_repository_proxy", row._ref, "http://proxy", "ann", "") == [
        "INVALID_REPOSITORY_PROXY_CREDENTIAL"
    ]  # fmt: skip
    pool("pool.disable_repository_proxy", row._ref)
    assert (row.repository_proxy_url, row.repository_proxy_username) == ("", "")


@pytest.mark.parametrize("url", ["http://[", "http://h:port", "http://[::1", "http://\u2100"])
def test_addresses_that_urllib_refuses(pool: Pool, row: Any, url: str) -> None:
    """What cannot be taken apart is no address either."""
    assert pool.fails("pool.configure_repository_proxy", row._ref, url, "", "") == ["INVALID_REPOSITORY_PROXY_URL", url]


def test_guest_agent_config(pool: Pool, row: Any) -> None:
    pool("pool.add_to_guest_agent_config", row._ref, "k", "v")
    assert pool.fails("pool.add_to_guest_agent_config", row._ref, "k", "w")[0] == "MAP_DUPLICATE_KEY"
    pool("pool.remove_from_guest_agent_config", row._ref, "k")
    assert row.guest_agent_config == {}
    assert row.guest_agent_config == pool("pool.get_guest_agent_config", row._ref)


def test_telemetry_identifier_is_replaced(pool: Pool, row: Any) -> None:
    pool("pool.reset_telemetry_uuid", row._ref)
    before = row.telemetry_uuid
    pool("pool.reset_telemetry_uuid", row._ref)
    assert row.telemetry_uuid != before
    assert before not in pool.db.secret


def test_questions_about_the_pool(pool: Pool, row: Any) -> None:
    host = row.master
    assert pool("pool.is_slave", host) is False
    assert pool("pool.has_extension", row._ref, "x") is False
    assert pool("pool.sync_database") is None
    assert pool("pool.detect_nonhomogeneous_external_auth", row._ref) is None
    assert pool.fails("auth.get_subject_identifier", "ann") == ["AUTH_IS_DISABLED"]
