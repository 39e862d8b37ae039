"""Exact bytes of requests and answers: what clients of many languages have come to rely on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from twisted.internet.address import IPv4Address

from tests.api.conftest import Connection, call, parse, request, text
from tests.conftest import Pool
from xapi.datamodel.types import FLOAT

NULL = "OpaqueRef:NULL"
NO = "<value><boolean>0</boolean></value>"
SR = (text(""), text("new"), text(""), text("file"), text("user"), NO)
"""What SR.introduce asks for, which answers a reference and does not wait."""
HEAD = '<?xml version="1.0"?><methodResponse><params><param>'
FOOT = "</param></params></methodResponse>"


def success(value: str) -> bytes:
    """Return the whole answer for a value, as xapi writes it."""
    return (
        f"{HEAD}<value><struct><member><name>Status</name><value>Success</value></member>"
        f"<member><name>Value</name>{value}</member></struct></value>{FOOT}"
    ).encode()


def failure(*description: str) -> bytes:
    items = "".join(f"<value>{item}</value>" for item in description)
    return (
        f"{HEAD}<value><struct><member><name>Status</name><value>Failure</value></member>"
        f"<member><name>ErrorDescription</name><value><array><data>{items}</data></array></value></member>"
        f"</struct></value>{FOOT}"
    ).encode()


@pytest.fixture(scope="module")
def pool(make_pool: Callable[[], Pool]) -> Pool:
    """One pool for all: each test sets what it looks at."""
    return make_pool()


@pytest.fixture
def row(pool: Pool) -> Any:
    """The pool object, for tests that give its fields values."""
    return next(iter(pool.db.pool))


# HTTP


def test_answer_of_a_login_byte_for_byte(pool: Pool, wire: Connection) -> None:
    """The whole of it, header lines included."""
    before = set(pool.db.session.rows)
    written = wire.send(request(call("session.login_with_password", text("root"), text("xenroot"))))
    (session,) = set(pool.db.session.rows) - before
    body = success(f"<value>{session}</value>")
    assert re.fullmatch(r"OpaqueRef:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", session)
    assert written == (
        b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-type: text/xml\r\n"
        b"access-control-allow-origin: *\r\naccess-control-allow-headers: X-Requested-With\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )


def test_json_answer_byte_for_byte(pool: Pool, wire: Connection, row: Any) -> None:
    """No charset in the content type; CORS as with XML."""
    body = json.dumps({"jsonrpc": "2.0", "method": "pool.get_all", "params": [pool.session], "id": 7}).encode()
    answer = b'{"jsonrpc":"2.0","result":["%b"],"id":7}' % row._ref.encode()
    assert wire.send(request(body, "/jsonrpc")) == (
        b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-type: application/json\r\n"
        b"access-control-allow-origin: *\r\naccess-control-allow-headers: X-Requested-With\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(answer), answer)
    )


@pytest.mark.parametrize("path", ["/", "/RPC2", "/RPC2/", "/xmlrpc", "/json", "/what/ever", "/?session=x", "*"])
def test_xml_is_served_at_any_path(wire: Connection, session: str, path: str) -> None:
    """xapi takes any POST that nothing else wants for XML-RPC; /json looks at the body."""
    assert len(wire.post(call("pool.get_all", session), path).value()) == 1


@pytest.mark.parametrize("path", ["/jsonrpc", "/jsonrpc/", "/json", "/json/", "/jsonrpc?x=y"])
def test_json_is_served_at_its_paths(pool: Pool, wire: Connection, path: str) -> None:
    """The old path too."""
    assert len(wire.json("pool.get_all", pool.session, path=path)["result"]) == 1


@pytest.mark.parametrize("path", ["/", "/json", "/jsonrpc", "/RPC2"])
def test_preflight(wire: Connection, path: str) -> None:
    """What a browser asks before it posts from another origin."""
    answer = parse(wire.send(request(b"", path, "OPTIONS", origin="http://elsewhere")))
    assert (answer.status, answer.body) == (200, b"")
    assert answer.header("access-control-allow-origin") == "*"
    assert "X-Requested-With" in (answer.header("access-control-allow-headers") or "")
    assert "Content-Type" in (answer.header("access-control-allow-headers") or "")
    assert "POST" in (answer.header("access-control-allow-methods") or "")
    assert answer.header("content-length") == "0"


@pytest.mark.parametrize(("method", "status"), [("GET", 404), ("HEAD", 404), ("PUT", 405), ("DELETE", 405)])
def test_other_methods(wire: Connection, method: str, status: int) -> None:
    """There is nothing to get or put yet; the connection stays."""
    written = wire.send(request(b"", "/", method))
    assert written.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\ncontent-length: " in written
    assert not wire.transport.disconnecting


def test_every_answer_has_its_length_and_keeps_the_connection(wire: Connection, session: str) -> None:
    """Faults, big answers, and 300 calls over one connection."""
    for body in (call("nonsense"), call("VM.get_all_records", session), b"no XML") * 100:
        answer = wire.post(body)
        assert answer.status == 200
        assert answer.header("content-length") == str(len(answer.body))
        assert answer.header("connection") == "keep-alive"
        assert answer.header("transfer-encoding") is None


def test_pipelined_calls_are_answered_in_order(pool: Pool, wire: Connection, session: str) -> None:
    """A slow one (a login with a wrong password) holds back those after it, on its own connection only."""
    slow = request(call("session.login_with_password", text("root"), text("guess")))
    assert wire.send(slow + request(call("system.listMethods"))) == b""
    assert Connection(pool).ask("pool.get_all", session).value()
    pool.clock.advance(2)
    written = wire.take()
    assert written.index(b"SESSION_AUTHENTICATION_FAILED") < written.index(b"VM.get_all_records")


def test_a_hundred_connections(pool: Pool, session: str) -> None:
    """As aiohttp opens them."""
    connections = [Connection(pool) for _ in range(100)]
    assert {len(connection.ask("pool.get_all", session).value()) for connection in connections} == {1}


def test_http_1_0_without_keep_alive(wire: Connection, session: str) -> None:
    """Answered with a length, then closed."""
    body = call("pool.get_all", session)
    written = wire.send(b"POST / HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    assert b"connection: close\r\n" in written
    assert b"content-length: " in written
    assert wire.transport.disconnecting


# XML-RPC values


@pytest.mark.parametrize(
    ("field", "value", "encoded"),
    [
        ("name_label", "", "<value></value>"),
        ("name_label", "x", "<value>x</value>"),
        ("name_label", " \t\n", "<value> \t\n</value>"),
        ("name_label", "\r", "<value>&#13;</value>"),
        ("name_label", "<&>\"'é€𝄞", "<value>&lt;&amp;&gt;&quot;'é€𝄞</value>"),
        ("ha_host_failures_to_tolerate", 0, "<value>0</value>"),
        ("ha_host_failures_to_tolerate", 2**63 - 1, "<value>9223372036854775807</value>"),
        ("ha_host_failures_to_tolerate", -(2**63), "<value>-9223372036854775808</value>"),
        ("ha_enabled", True, "<value><boolean>1</boolean></value>"),
        ("ha_enabled", False, "<value><boolean>0</boolean></value>"),
        ("default_SR", NULL, f"<value>{NULL}</value>"),
        ("tags", (), "<value><array><data></data></array></value>"),
        ("tags", ("a", ""), "<value><array><data><value>a</value><value></value></data></array></value>"),
        ("other_config", {}, "<value><struct></struct></value>"),
        (
            "other_config",
            {"a<": "1", "": ""},
            "<value><struct><member><name>a&lt;</name><value>1</value></member>"
            "<member><name></name><value></value></member></struct></value>",
        ),
        (
            "telemetry_next_collection",
            datetime(2026, 1, 31, 9, 5, 7, tzinfo=UTC),
            "<value><dateTime.iso8601>20260131T09:05:07Z</dateTime.iso8601></value>",
        ),
        (
            "telemetry_next_collection",
            datetime(1970, 1, 1, tzinfo=UTC),
            "<value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>",
        ),
        ("update_sync_frequency", "daily", "<value>daily</value>"),
    ],
)
def test_values(pool: Pool, wire: Connection, session: str, row: Any, field: str, value: Any, encoded: str) -> None:
    """A getter's answer byte for byte, and the same inside the record."""
    setattr(row, field, value)
    assert wire.ask(f"pool.get_{field}", session, text(row._ref)).body == success(encoded)
    record = wire.ask("pool.get_record", session, text(row._ref)).body
    assert f"<member><name>{field}</name>{encoded}</member>".encode() in record


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(1.0, "1"), (0.5, "0.5"), (0.1, "0.1"), (1 / 3, "0.3333333333333333"), (1e300, "1e+300")],
)
def test_floats(pool: Pool, wire: Connection, session: str, value: float, encoded: str) -> None:
    """As C prints with %.16g."""
    cpu = next(iter(pool.db.host_cpu))
    cpu.utilisation = value
    answer = wire.ask("host_cpu.get_utilisation", session, text(cpu._ref))
    assert answer.body == success(f"<value><double>{encoded}</double></value>")


@pytest.mark.parametrize(("value", "encoded"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_floats_that_only_measurements_are(value: float, encoded: str) -> None:
    """A data source may say them; no field does."""
    assert FLOAT.xml(value) == f"<value><double>{encoded}</double></value>"


def test_void(wire: Connection, session: str, row: Any) -> None:
    """An empty string."""
    assert wire.ask("pool.set_name_label", session, text(row._ref), text("x")).body == success("<value></value>")


def test_fault(wire: Connection, session: str) -> None:
    """Never <fault>, always strings, escaped."""
    answer = wire.ask("VM.get_record", session, text("<x>"))
    assert answer.body == failure("HANDLE_INVALID", "VM", "&lt;x&gt;")
    assert answer.status == 200


def test_record_has_no_white_space_between_elements(wire: Connection, session: str) -> None:
    """npm xen-api trips over any, and over <string>, <i8> and <int>."""
    body = wire.ask("VM.get_all_records", session).body
    assert len(body) > 100_000
    assert re.search(rb">\s+<(?!/)", body) is None
    assert re.search(rb"<(string|i8|i4|int|nil)\b", body) is None


def test_map_of_records(pool: Pool, wire: Connection, session: str, row: Any) -> None:
    """get_all_records is a struct from reference to what get_record answers."""
    record = wire.ask("pool.get_record", session, text(row._ref)).body
    inner = record.removeprefix(success("\0").partition(b"\0")[0]).removesuffix(success("\0").partition(b"\0")[2])
    expected = f"<value><struct><member><name>{row._ref}</name>{inner.decode()}</member></struct></value>"
    assert wire.ask("pool.get_all_records", session).body == success(expected)


def test_no_records(wire: Connection, session: str) -> None:
    """An empty struct, in both encodings an object."""
    assert wire.ask("VMSS.get_all_records", session).body == success("<value><struct></struct></value>")


def test_long_answers_are_whole(pool: Pool, wire: Connection, session: str) -> None:
    """Rendered over several turns, they are what the rows say one by one."""
    for number in range(200):
        pool.db.VM_group.create(name_label=f"group {number}", placement="normal")
    records = wire.ask("VM_group.get_all_records", session).value()
    assert len(records) == len(pool.db.VM_group) >= 200
    assert wire.json("VM_group.get_all_records", pool.session)["result"] == records


# Methods that stand apart


def test_list_methods(pool: Pool, wire: Connection) -> None:
    """A bare array; itself and every message that is not removed."""
    answer = wire.ask("system.listMethods").body.decode()
    assert answer.startswith(f"{HEAD}<value><array><data><value>system.listMethods</value>")
    assert answer.endswith(f"</data></array></value>{FOOT}")
    names = re.findall("<value>([^<]+)</value>", answer)
    assert wire.json("system.listMethods")["result"] == names
    assert len(names) == len(set(names)) > 2000


def test_is_alive(wire: Connection) -> None:
    """Answers its parameter."""
    assert wire.ask("system.isAlive:x", text("hello")).body == success("<value>hello</value>")
    assert wire.ask("system.isAlive:x").error()[0] == "INTERNAL_ERROR"


# Async forms


def test_async_call_answers_a_task(pool: Pool, wire: Connection, session: str, row: Any) -> None:
    """Whatever the message itself answers: here nothing, a set, and a reference."""
    own = text(pool("task.create", "own", ""))
    for name, *params in (
        ("Async.task.add_to_other_config", own, text("k"), text("v")),
        ("Async.session.get_all_subject_identifiers",),
        ("InternalAsync.SR.introduce", *SR),
    ):  # fmt: skip
        task = wire.ask(name, session, *params).value()
        assert task in pool.db.task
        assert pool.db.task[task].status == "success"


def test_async_call_answers_a_task_in_json(pool: Pool, wire: Connection) -> None:
    """The same."""
    own = pool("task.create", "own", "")
    for name, *params in (
        ("Async.task.add_to_other_config", own, "k", "v"),
        ("Async.session.get_all_subject_identifiers",),
    ):
        assert wire.json(name, pool.session, *params)["result"] in pool.db.task


@pytest.mark.parametrize(
    ("name", "params", "description"),
    [
        ("Async.pool.get_all", 1, ["Fault", "No async mode for this operation (rpc: Async.pool.get_all)"]),
        ("InternalAsync.pool.get_all", 0, ["Fault", "No async mode for this operation (rpc: Async.pool.get_all)"]),
        ("Async.VM.fly", 0, ["MESSAGE_METHOD_UNKNOWN", "VM.fly"]),
        ("Async.VM.fly", 1, ["MESSAGE_METHOD_UNKNOWN", "VM.fly"]),
        ("Async.VM_start", 0, ["MESSAGE_METHOD_UNKNOWN", "VM_start"]),
        ("Async.VM.start", 2, ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.start", "3", "1"]),
        ("Async.VM.start", 0, ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.start", "3", "-1"]),
        ("Async.Async.VM.start", 0, ["MESSAGE_METHOD_UNKNOWN", "Async.VM.start"]),
        ("async.VM.start", 0, ["MESSAGE_METHOD_UNKNOWN", "async.VM.start"]),
        ("Async.", 0, ["MESSAGE_METHOD_UNKNOWN", ""]),
    ],
)
def test_async_errors(wire: Connection, session: str, name: str, params: int, description: list[str]) -> None:
    """They come at once, not in a task."""
    assert wire.ask(name, *[session] * params).error() == description


# JSON-RPC


def test_json_2_0_shapes(pool: Pool, wire: Connection) -> None:
    """Success has no error, failure no result; the id is echoed as it was."""
    for identifier in (0, -1, 2**63 - 1, "", 'a"b', "é"):
        body = {"jsonrpc": "2.0", "method": "VM.get_record", "params": [pool.session, "x"], "id": identifier}
        assert wire.post(json.dumps(body).encode(), "/jsonrpc").json() == {
            "jsonrpc": "2.0",
            "error": {"code": 1, "message": "HANDLE_INVALID", "data": ["VM", "x"]},
            "id": identifier,
        }
    assert list(wire.json("pool.get_all", pool.session)) == ["jsonrpc", "result", "id"]


def test_json_1_0_shapes(pool: Pool, wire: Connection) -> None:
    """Both members always, one of them null."""
    assert wire.json("VM.get_record", pool.session, "x", version=None) == {
        "result": None, "error": ["HANDLE_INVALID", "VM", "x"], "id": 1
    }  # fmt: skip
    row = next(iter(pool.db.pool))
    row.name_label = ""
    answer = wire.json("pool.get_name_label", pool.session, row._ref, version="1.0")
    assert answer == {"result": "", "error": None, "id": 1}


@pytest.mark.parametrize(
    ("field", "value", "encoded"),
    [
        ("name_label", '<&>"\r\n é', '<&>"\r\n é'),
        ("ha_host_failures_to_tolerate", 2**63 - 1, 2**63 - 1),
        ("ha_enabled", True, True),
        ("tags", ("a",), ["a"]),
        ("other_config", {"a": "1"}, {"a": "1"}),
        ("default_SR", NULL, NULL),
        ("telemetry_next_collection", datetime(2026, 1, 31, 9, 5, 7, tzinfo=UTC), "20260131T09:05:07Z"),
    ],
)
def test_json_values(pool: Pool, wire: Connection, row: Any, field: str, value: Any, encoded: Any) -> None:
    """Numbers and booleans are JSON's own, dates strings; the record says the same."""
    setattr(row, field, value)
    answer = wire.json(f"pool.get_{field}", pool.session, row._ref)["result"]
    assert (answer, type(answer)) == (encoded, type(encoded))
    assert wire.json("pool.get_record", pool.session, row._ref)["result"][field] == encoded
    assert wire.json("pool.get_all_records", pool.session)["result"][row._ref][field] == encoded


def test_json_void_is_an_empty_string(pool: Pool, wire: Connection, row: Any) -> None:
    """xapi has no null."""
    assert wire.json("pool.set_name_label", pool.session, row._ref, "x")["result"] == ""


# Headers and addresses


def test_headers_reach_the_task(pool: Pool, wire: Connection, session: str, row: Any) -> None:
    """subtask-of names a parent, x-http-other-config-* give keys."""
    parent = pool("task.create", "parent", "")
    task = wire.ask(
        "Async.SR.introduce", session, *SR,
        subtask_of=parent, x_http_other_config_a="1",
    ).value()  # fmt: skip
    record = pool.db.task[task]
    assert record.subtask_of == parent
    assert list(pool.db.task[parent].subtasks) == [task]
    assert record.other_config == {"http:a": "1"}


def test_enums_are_read_in_any_case(pool: Pool, wire: Connection, session: str) -> None:
    """In setters and in the keys of maps; shown is the schema's spelling."""
    vm = next(row for row in pool.db.VM if not row.is_control_domain)
    wire.ask("VM.set_actions_after_shutdown", session, text(vm._ref), text("Destroy")).value()
    assert wire.ask("VM.get_actions_after_shutdown", session, text(vm._ref)).value() == "destroy"
    wire.ask("VM.add_to_blocked_operations", session, text(vm._ref), text("Clean_Shutdown"), text("why")).value()
    assert wire.ask("VM.get_blocked_operations", session, text(vm._ref)).value() == {"clean_shutdown": "why"}
    code, why = wire.ask("VM.set_actions_after_shutdown", session, text(vm._ref), text("explode")).error()
    assert (code, "'explode' is no value of" in why) == ("INTERNAL_ERROR", True)


def test_a_call_works_under_the_task_that_its_client_names(
    pool: Pool, wire: Connection, session: str, row: Any
) -> None:
    """And leaves it to the client to say how it ended, as xapi does with a forwarded task."""
    own = pool("task.create", "own", "")
    task = wire.ask(
        "Async.SR.introduce", session, *SR,
        task_id=own,
    ).value()  # fmt: skip
    assert task == own
    assert pool("SR.get_by_name_label", "new")
    assert (pool.db.task[own].status, pool.db.task[own].result) == ("pending", "")


def test_a_task_within_another_host_is_always_a_new_one(pool: Pool, wire: Connection, session: str, row: Any) -> None:
    """InternalAsync. names no task, and says how its own ended."""
    own = pool("task.create", "own", "")
    task = wire.ask(
        "InternalAsync.SR.introduce", session, *SR,
        task_id=own,
    ).value()  # fmt: skip
    assert (task != own, pool.db.task[task].status) == (True, "success")


def test_no_password_is_spared_over_the_network(pool: Pool, connect: Callable[..., Connection]) -> None:
    """Loopback is no local socket."""
    wire = connect(peer=IPv4Address("TCP", "127.0.0.1", 5))
    wire.send(request(call("session.login_with_password", text(""), text(""))))
    pool.clock.advance(2)
    assert wire.answer().error()[0] == "SESSION_AUTHENTICATION_FAILED"


def test_time_is_the_clocks(pool: Pool, wire: Connection, session: str) -> None:
    """Nothing reads the machine's."""
    clock: object = pool.daemon.clock
    task = pool("task.create", "t", "")
    assert clock is pool.clock
    answer = wire.ask("task.get_created", session, text(task))
    now = datetime.fromtimestamp(int(pool.clock.seconds()), UTC)
    assert now.year == 2026
    assert answer.body == success(f"<value><dateTime.iso8601>{now:%Y%m%dT%H:%M:%S}Z</dateTime.iso8601></value>")
