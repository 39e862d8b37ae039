"""Malformed HTTP, XML and JSON: each gets its documented error, and the daemon goes on as before."""

from __future__ import annotations

import json
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from tests.api.conftest import Connection, call, request, text
from tests.conftest import Pool
from xapi.datamodel.errors import Fault
from xapi.http.server.exchange import Limits

NULL = "OpaqueRef:NULL"


@pytest.fixture(scope="module")
def pool(make_pool: Callable[[], Pool]) -> Pool:
    """One pool for all: it has to outlive what they send."""
    return make_pool()


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error() -> Iterator[None]:
    """What a client sends is never our error."""
    seen: list[Any] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.error:
            seen.append(event)

    globalLogPublisher.addObserver(observe)
    yield
    globalLogPublisher.removeObserver(observe)
    assert seen == []


@pytest.fixture(autouse=True)
def the_daemon_goes_on(pool: Pool) -> Iterator[None]:
    """After whatever a test has sent, a new client is served, and its session is as good as before."""
    yield
    assert Connection(pool).ask("pool.get_all", text(pool.session)).value() == [next(iter(pool.db.pool))._ref]


# XML that is no call


LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
BOMB = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
CALL = "<methodCall><methodName>{}</methodName><params><param><value>{}</value></param></params></methodCall>"
MALFORMED = {
    "nothing": b"",
    "blanks": b" \r\n ",
    "text": b"hello",
    "binary": bytes(range(256)),
    "NUL": b"<methodCall>\0</methodCall>",
    "open": b"<methodCall><methodName>pool.get_all",
    "cut": call("pool.get_all", text("x"))[:-9],
    "rest": call("pool.get_all", text("x")) + b"<more/>",
    "two roots": call("pool.get_all", text("x")) * 2,
    "other root": b"<html><body/></html>",
    "fault": b"<methodResponse><fault><value><struct></struct></value></fault></methodResponse>",
    "response": b"<methodResponse><params><param><value>x</value></param></params></methodResponse>",
    "no name": b"<methodCall><params></params></methodCall>",
    "empty call": b"<methodCall></methodCall>",
    "no params": b"<methodCall><methodName>x.y</methodName><values></values></methodCall>",
    "no param": b"<methodCall><methodName>x.y</methodName><params><value>x</value></params></methodCall>",
    "no value": b"<methodCall><methodName>x.y</methodName><params><param>x</param></params></methodCall>",
    "two values": b"<methodCall><methodName>x.y</methodName><params><param><value/><value/></param></params>"
    b"</methodCall>",
    "doctype": b"<!DOCTYPE methodCall>" + call("pool.get_all", text("x")),
    "billion laughs": (BOMB + CALL.format("x.y", "&l9;")).encode(),
    "laughs as a name": (BOMB + CALL.format("&l9;", "x")).encode(),
    "external entity": (OUTSIDE + CALL.format("x.y", "&e;")).encode(),
    "undeclared entity": CALL.format("x.y", "&e;").encode(),
    "doctype in UTF-16": (OUTSIDE + CALL.format("x.y", "&e;")).encode("utf-16"),
    "unknown encoding": b'<?xml version="1.0" encoding="none-such"?><methodCall/>',
    "control character": CALL.format("x.y", "\x07").encode(),
    "reference to NUL": CALL.format("x.y", "&#0;").encode(),
    "reference to a control character": CALL.format("x.y", "&#7;").encode(),
    "reference to a surrogate": CALL.format("x.y", "&#xD800;").encode(),
    "deep arrays": CALL.format("x.y", "<array><data><value>" * 10_000).encode(),
    "deep and closed": CALL.format(
        "x.y", "<array><data><value>" * 5_000 + "</value></data></array>" * 5_000
    ).encode(),
    "deep elements": (b"<a>" * 10_000 + b"</a>" * 10_000),
    "unknown type": CALL.format("x.y", "<decimal>1</decimal>").encode(),
    "two types": CALL.format("x.y", "<int>1</int><int>1</int>").encode(),
    "element in text": CALL.format("x.y", "<string><b>x</b></string>").encode(),
    "no data": CALL.format("x.y", "<array><value>x</value></array>").encode(),
    "value without member": CALL.format("x.y", "<struct><value>x</value></struct>").encode(),
    "member without name": CALL.format("x.y", "<struct><member><value>x</value></member></struct>").encode(),
    "member without value": CALL.format("x.y", "<struct><member><name>x</name></member></struct>").encode(),
    "int of letters": CALL.format("x.y", "<int>one</int>").encode(),
    "int of nothing": CALL.format("x.y", "<int></int>").encode(),
    "int with underscore": CALL.format("x.y", "<int>1_0</int>").encode(),
    "int of other digits": CALL.format("x.y", "<int>١</int>").encode(),
    "int of 300,000 digits": CALL.format("x.y", f"<int>{'9' * 300_000}</int>").encode(),
    "double of letters": CALL.format("x.y", "<double>half</double>").encode(),
    "boolean of letters": CALL.format("x.y", "<boolean>true</boolean>").encode(),
    "date of letters": CALL.format("x.y", "<dateTime.iso8601>today</dateTime.iso8601>").encode(),
    "date of no calendar": CALL.format("x.y", "<dateTime.iso8601>20260231T00:00:00Z</dateTime.iso8601>").encode(),
    "base64 of letters": CALL.format("x.y", "<base64>a</base64>").encode(),
}  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_xml(wire: Connection, body: bytes) -> None:
    """An error of the API with status 200, on a connection that stays."""
    for _ in range(2):
        answer = wire.post(body)
        assert (answer.status, answer.header("content-type")) == (200, "text/xml")
        code, message = answer.error()
        assert code == "INTERNAL_ERROR"
        assert message.startswith("malformed XML-RPC call: ")
    assert not wire.transport.disconnecting


def test_nothing_of_the_outside_is_read(wire: Connection) -> None:
    """Neither a file nor an entity's text comes back."""
    with open("/etc/hostname") as file:
        secret = file.read().strip()
    answer = wire.post((OUTSIDE + CALL.format("x.y", "&e;")).encode())
    assert secret.encode() not in answer.body


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (call("pool.get_by_uuid", text("A")).replace(b"A", b"caf\xe9"), "caf�"),
        (call("pool.get_by_uuid", text("A")).replace(b"A", b"\xed\xa0\x80"), "���"),
        (call("pool.get_by_uuid", text("A")).replace(b"A", b"\xc0\xaf"), "��"),
        (b"\xff", "�"),
    ],
    ids=["latin-1", "surrogate", "overlong", "byte"],
)
def test_text_that_is_not_utf8(wire: Connection, body: bytes, shown: str) -> None:
    """The first check of all, which names what it met."""
    assert wire.post(body).error() == ["INVALID_VALUE", "Invalid UTF-8 string in parameter", shown]


def test_bomb_in_another_alphabet(wire: Connection) -> None:
    """An encoding in which the bytes of <!DOCTYPE are others hides nothing."""
    body = ('<?xml version="1.0" encoding="IBM037"?>' + (BOMB + CALL.format("x", "&l9;"))[21:]).encode("cp037")
    assert b"<!DOCTYPE" not in body
    assert wire.post(body).error()[0] in ("INVALID_VALUE", "INTERNAL_ERROR")


@pytest.mark.parametrize("depth", [50, 80, 85, 200, 330, 500, 680, 1000])
@pytest.mark.parametrize(("start", "end"), [
    ("<array><data><value>", "</value></data></array>"),
    ("<struct><member><name>a</name><value>", "</value></member></struct>"),
], ids=["arrays", "structs"])  # fmt: skip
def test_depth(wire: Connection, depth: int, start: str, end: str) -> None:
    """Around the depth that the XML reader lets through nothing breaks."""
    body = CALL.format("pool.get_all", start * depth + end * depth)
    code, message = wire.post(body.encode()).error()
    assert code == "INTERNAL_ERROR"
    assert message.startswith(("malformed XML-RPC call: ", "pool.get_all: the session must be a string"))


# XML values of the wrong type


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("string", "<int>1</int>", "expected a string, got int"),
        ("string", "<boolean>1</boolean>", "expected a string, got boolean"),
        ("string", "<array><data></data></array>", "expected a string, got array"),
        ("string", "<struct></struct>", "expected a string, got struct"),
        ("string", "<double>1.5</double>", "expected a string, got double"),
        ("string", "<base64>YQ==</base64>", "expected a string, got base64"),
        ("int", "", "expected an int, got ''"),
        ("int", "1.5", "expected an int, got '1.5'"),
        ("int", "<double>1</double>", "expected an int, got double"),
        ("int", "<boolean>1</boolean>", "expected an int, got boolean"),
        ("int", "9223372036854775808", "int out of range: 9223372036854775808"),
        ("int", "<i8>-9223372036854775809</i8>", "int out of range: -9223372036854775809"),
        ("int", "9" * 1000, f"expected an int, got '{'9' * 40}'"),
        ("int", "<nil/>", "expected an int, got nil"),
        ("bool", "1", "expected a boolean, got string"),
        ("bool", "<int>1</int>", "expected a boolean, got int"),
        ("bool", "<nil/>", "expected a boolean, got nil"),
        ("float", "half", "expected a float, got 'half'"),
        ("float", "<boolean>1</boolean>", "expected a float, got boolean"),
        ("datetime", "yesterday", "not a date: 'yesterday'"),
        ("datetime", "<int>0</int>", "expected a date, got int"),
        ("enum", "purple", "'purple' is no value of host_display"),
        ("enum", "<int>0</int>", "expected a value of host_display, got int"),
        ("ref", "<struct></struct>", "expected a reference to a host, got struct"),
        ("set", "x", "expected an array, got string"),
        ("set", "<nil/>", "expected an array, got nil"),
        ("set", "<array><data><value><int>1</int></value></data></array>", "expected a string, got int"),
        ("map", "x", "expected a struct, got string"),
        ("map", "<array><data></data></array>", "expected a struct, got array"),
        (
            "map",
            "<struct><member><name>k</name><value><int>1</int></value></member></struct>",
            "expected a string, got int",
        ),
        ("record", "x", "expected a struct, got string"),
        (
            "record",
            "<struct><member><name>name_label</name><value><int>1</int></value></member></struct>",
            "VM_group.name_label: expected a string, got int",
        ),
    ],
)
def test_wrong_types(wire: Connection, session: str, name: str, value: str, expected: str) -> None:
    """INTERNAL_ERROR that names message, parameter, and what was met."""
    method, parameter, before = {
        "string": ("pool.set_name_label", "value", [text(NULL)]),
        "int": ("network.set_MTU", "value", [text(NULL)]),
        "bool": ("pool.set_wlb_enabled", "value", [text(NULL)]),
        "float": ("task.set_progress", "value", [text(NULL)]),
        "datetime": ("message.get_since", "since", []),
        "enum": ("host.set_display", "value", [text(NULL)]),
        "ref": ("host.get_record", "self", []),
        "set": ("pool.set_tags", "value", [text(NULL)]),
        "map": ("pool.set_other_config", "value", [text(NULL)]),
        "record": ("VM_group.create", "args", []),
    }[name]
    answer = wire.ask(method, session, *before, f"<value>{value}</value>")
    assert answer.error() == ["INTERNAL_ERROR", f"{method}: parameter {parameter}: {expected}"]


@pytest.mark.parametrize("value", ["<int>5</int>", "<i4>5</i4>", "<i8>5</i8>", "5", " 5 ", "<string>5</string>", "+5"])
def test_ints_of_all_kinds_are_read(pool: Pool, wire: Connection, session: str, value: str) -> None:
    """Clients differ in how they send them."""
    ref = next(iter(pool.db.network))._ref
    assert wire.ask("network.set_MTU", session, text(ref), f"<value>{value}</value>").value() == ""
    assert pool.db.network[ref].MTU == 5


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("<value>x</value>", "x"),
        ("<value><string>x</string></value>", "x"),
        ("<value/>", ""),
        ("<value></value>", ""),
        ("<value><string/></value>", ""),
        ("<value><nil/></value>", ""),
        ("<value><![CDATA[<x>]]></value>", "<x>"),
        ("<value>a<!-- no -->b<?no?>c</value>", "abc"),
        ("<value>&#233;&lt;&amp;&#13;</value>", "é<&\r"),
    ],
)
def test_strings_of_all_kinds_are_read(pool: Pool, wire: Connection, session: str, value: str, label: str) -> None:
    """With and without their type."""
    row = next(iter(pool.db.pool))
    wire.ask("pool.set_name_label", session, text(row._ref), value).value()
    assert row.name_label == label


def test_pretty_printed_call(wire: Connection, session: str) -> None:
    """White space between elements means nothing."""
    body = call("pool.get_all", session).replace(b"><", b">\n  <")
    assert len(wire.post(body).value()) == 1


def test_missing_params_element(wire: Connection) -> None:
    """Counts as no parameters."""
    body = b"<methodCall><methodName>pool.get_all</methodName></methodCall>"
    assert wire.post(body).error() == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "pool.get_all", "0", "-1"]


def test_duplicate_members(pool: Pool, wire: Connection, session: str) -> None:
    """The last one counts, as with every struct that becomes a map."""
    row = next(iter(pool.db.pool))
    member = "<member><name>k</name><value>{}</value></member>"
    struct = f"<value><struct>{member.format(1)}{member.format(2)}</struct></value>"
    wire.ask("pool.set_other_config", session, text(row._ref), struct).value()
    assert row.other_config == {"k": "2"}


@pytest.mark.parametrize("value", ["<array><data></data></array>", "<struct></struct>", "<int>1</int>"])
def test_session_that_is_no_string(wire: Connection, value: str) -> None:
    """A wrong type like any other."""
    answer = wire.ask("pool.get_all", f"<value>{value}</value>")
    assert answer.error() == ["INTERNAL_ERROR", "pool.get_all: the session must be a string"]


@pytest.mark.parametrize("name", ["pool.get_all", "no.such_message"])
def test_a_session_that_is_nil_is_invalid(wire: Connection, name: str) -> None:
    """XenAPI's Python client sends it after logout, and logs in again when it hears that."""
    invalid = ["SESSION_INVALID", "OpaqueRef:NULL"]
    assert wire.ask(name, "<value><nil/></value>").error() == invalid
    assert wire.json(name, None, version=None)["error"] == invalid


# JSON


def json_error(wire: Connection, body: bytes) -> list[str]:
    """Return code and parameters of an error in the 2.0 form."""
    answer = wire.post(body, "/jsonrpc")
    assert (answer.status, answer.header("content-type")) == (200, "application/json")
    message = answer.json()
    assert set(message) == {"jsonrpc", "error", "id"}
    assert message["jsonrpc"] == "2.0"
    assert message["error"]["code"] == 1
    return [message["error"]["message"], *message["error"]["data"]]


def v2(params: str, **more: Any) -> bytes:
    members = {"jsonrpc": '"2.0"', "method": '"x.y"', "id": "1", "params": params} | more
    return ("{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}").encode()


UNREADABLE = {
    "nothing": b"",
    "text": b"hello",
    "NUL": b"\0",
    "open": b'{"jsonrpc":"2.0","method":"pool.get_all"',
    "rest": v2("[]") + b"}",
    "two": v2("[]") * 2,
    "byte order mark": b"\xef\xbb\xbf" + v2("[]"),
    "UTF-16": v2("[]").decode().encode("utf-16-le"),
    "NaN": v2("[NaN]"),
    "infinity": v2("[-Infinity]"),
    "lone surrogate": v2(r'["\ud800"]'),
    "lone trailing surrogate": v2(r'["\udc00"]'),
    "comment": b"/* */" + v2("[]"),
    "single quotes": b"{'jsonrpc':'2.0'}",
    "trailing comma": v2("[1,]"),
    "leading zero": v2("[01]"),
    "raw control character": v2('["\x07"]'),
    "deep arrays": v2("[" * 10_000),
    "deep and closed": v2("[" * 10_000 + "]" * 10_000),
    "deep objects": v2('{"a":' * 10_000 + "1" + "}" * 10_000),
    "XML": call("pool.get_all"),
    "batch": b"[" + v2("[]") + b"]",
    "array": b"[]",
    "number": b"7",
    "string": b'"x"',
    "null": b"null",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_malformed_json(wire: Connection, body: bytes) -> None:
    """Answered in the 2.0 form, as nothing says otherwise, and with id null."""
    code, message = json_error(wire, body)
    assert code == "INTERNAL_ERROR"
    assert message.startswith("malformed JSON-RPC call: ")
    assert wire.post(body, "/jsonrpc").json()["id"] is None


@pytest.mark.parametrize(
    "more",
    [
        {"id": "null"}, {"id": "1.5"}, {"id": "true"}, {"id": "[]"}, {"id": "{}"}, {"id": "1" + "0" * 30},
        {"method": "5"}, {"method": "null"},
        {"params": "{}"}, {"params": '{"session":"x"}'}, {"params": '"x"'}, {"params": "5"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("version", ["2.0", "1.0", None])
def test_json_of_the_wrong_shape(wire: Connection, more: dict[str, str], version: str | None) -> None:
    """Answered in the version of the request, with its id where that can be one."""
    members = {"method": '"x.y"', "id": "1", "params": "[]"} | ({"jsonrpc": f'"{version}"'} if version else {}) | more
    body = "{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}"
    answer = wire.post(body.encode(), "/jsonrpc").json()
    wanted_id = None if "id" in more else 1
    if version == "2.0":
        assert answer["error"]["message"] == "INTERNAL_ERROR"
        assert set(answer) == {"jsonrpc", "error", "id"}
    else:
        assert answer["error"][0] == "INTERNAL_ERROR"
        assert (set(answer), answer["result"]) == ({"result", "error", "id"}, None)
    assert answer["id"] == wanted_id


@pytest.mark.parametrize("version", ["2.0", None])
def test_json_without_id_or_method(wire: Connection, version: str | None) -> None:
    """There are no notifications."""
    members = {"jsonrpc": version} if version else {}
    for missing, more in (("id", {"method": "x.y", "params": []}), ("method", {"id": 1, "params": []})):
        answer = wire.post(json.dumps(members | more).encode(), "/jsonrpc").json()
        error = answer["error"]
        assert (error["message"] if version else error[0]) == "INTERNAL_ERROR", missing


def test_json_params_may_be_missing_in_2_0_only(wire: Connection) -> None:
    """Absent or null is none; in 1.0 there must be a list."""
    for more in ({}, {"params": None}):
        answer = wire.post(
            json.dumps({"jsonrpc": "2.0", "method": "pool.get_all", "id": 1} | more).encode(), "/jsonrpc"
        )
        assert answer.json()["error"]["message"] == "MESSAGE_PARAMETER_COUNT_MISMATCH"
        old = wire.post(json.dumps({"method": "pool.get_all", "id": 1} | more).encode(), "/jsonrpc")
        assert old.json()["error"][0] == "INTERNAL_ERROR"


def test_json_that_is_not_utf8(wire: Connection) -> None:
    """The same error as with XML."""
    body = v2('["A"]').replace(b"A", b"caf\xe9")
    code, reason, shown = json_error(wire, body)
    assert (code, reason) == ("INVALID_VALUE", "Invalid UTF-8 string in parameter")
    assert "caf�" in shown


def test_duplicate_keys_of_json(wire: Connection) -> None:
    """The last one counts."""
    body = b'{"jsonrpc":"2.0","id":1,"id":"b","method":"x","method":"x.z","params":[]}'
    assert wire.post(body, "/jsonrpc").json() == {
        "jsonrpc": "2.0", "error": {"code": 1, "message": "MESSAGE_METHOD_UNKNOWN", "data": ["x.z"]}, "id": "b"
    }  # fmt: skip


def test_control_characters_of_json_are_dropped(pool: Pool, wire: Connection) -> None:
    """They could never be told to an XML client."""
    row = next(iter(pool.db.pool))
    assert wire.json("pool.set_name_label", pool.session, row._ref, "a\0b\x07\ufffec\td\r\n")["result"] == ""
    assert row.name_label == "abc\td\r\n"


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("network.set_MTU", 1.5, "expected an int, got double"),
        ("network.set_MTU", 2**63, f"int out of range: {2**63}"),
        ("network.set_MTU", 2**64, "expected an int, got double"),
        ("network.set_MTU", True, "expected an int, got boolean"),
        ("network.set_MTU", None, "expected an int, got nil"),
        ("pool.set_wlb_enabled", 1, "expected a boolean, got int"),
        ("pool.set_wlb_enabled", "true", "expected a boolean, got string"),
        ("pool.set_name_label", 1, "expected a string, got int"),
        ("pool.set_tags", {}, "expected an array, got struct"),
        ("pool.set_other_config", [], "expected a struct, got array"),
        ("pool.set_other_config", {"k": 1}, "expected a string, got int"),
    ],
)
def test_wrong_types_of_json(pool: Pool, wire: Connection, method: str, value: Any, expected: str) -> None:
    """As with XML-RPC."""
    answer = wire.json(method, pool.session, NULL, value)
    assert answer["error"]["data"] == [f"{method}: parameter value: {expected}"]


DEEP = "[" * 1000 + "]" * 1000


def test_deep_value_in_place_of_a_session(wire: Connection) -> None:
    """As deep as the JSON reader lets through."""
    assert json_error(wire, v2(f"[{DEEP}]", method='"pool.get_all"'))[0] == "INTERNAL_ERROR"


def test_deep_value_in_place_of_a_session_of_an_unknown_message(pool: Pool) -> None:
    """It is looked at as a session, too."""
    with pytest.raises(Fault) as caught:
        pool.daemon.dispatcher.call("x.y", [orjson.loads(DEEP)], pool.origin)
    assert caught.value.code == "INTERNAL_ERROR"


# HTTP


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"POST / HTTP/3.0\r\n\r\n", 400),
        (b"POST /\xff HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 307201\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4b001\r\n" + b"x" * 307201, 413),
        (b"POST / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nexpect: miracles\r\ncontent-length: 0\r\n\r\n", 417),
    ],
    ids=[
        "text", "TLS", "version", "path", "negative", "two lengths", "both framings", "gzip", "long", "very long",
        "long chunk", "many lines", "expectation",
    ],
)  # fmt: skip
def test_malformed_http(wire: Connection, data: bytes, status: int) -> None:
    """An HTTP error with a length, and the end of that connection, once a client that still sends has had its time."""
    written = wire.send(data)
    head, _, body = written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-length: %d" % len(body) in head
    assert b"connection: close" in head
    wire.pool.clock.advance(Limits().linger_seconds)
    assert wire.transport.disconnecting or wire.transport.disconnected
    assert wire.send(data) == b""


def test_head_that_does_not_end(wire: Connection) -> None:
    """A header line is bounded, however it comes."""
    wire.send(b"POST / HTTP/1.1\r\nx: " + b"a" * 60_000)
    assert wire.send(b"a" * 70_000).startswith(b"HTTP/1.1 431 ")


def test_largest_body(pool: Pool, wire: Connection, session: str) -> None:
    """300 KiB are served, one byte more is not."""
    row = next(iter(pool.db.pool))
    empty = len(call("pool.set_name_label", session, text(row._ref), text("")))
    body = call("pool.set_name_label", session, text(row._ref), text("x" * (300 * 1024 - empty)))
    assert len(body) == 300 * 1024
    assert wire.post(body).value() == ""
    assert len(row.name_label) == 300 * 1024 - empty
    assert wire.send(request(body + b" ")).startswith(b"HTTP/1.1 413 ")


def test_truncated_body(connect: Callable[..., Connection], pool: Pool, session: str) -> None:
    """A client that goes away in the middle of a call has called nothing."""
    row = next(iter(pool.db.pool))
    before = row.name_label
    data = request(call("pool.set_name_label", session, text(row._ref), text("never")))
    wire = connect()
    assert wire.send(data[:-1]) == b""
    wire.lose()
    assert row.name_label == before


def test_body_that_does_not_come(wire: Connection, pool: Pool) -> None:
    """Patience ends after a minute."""
    wire.send(request(call("pool.get_all"))[:-1])
    pool.clock.advance(61)
    assert wire.take().startswith(b"HTTP/1.1 408 ")


# Memory


def test_memory_stays_bounded(pool: Pool) -> None:
    """The whole corpus some times over leaves nothing behind, and no body costs much more than its size."""
    bodies = [(body, "/") for body in MALFORMED.values()] + [(body, "/jsonrpc") for body in UNREADABLE.values()]

    def send_all() -> None:
        for body, path in bodies:
            wire = Connection(pool)
            wire.send(request(body, path))
            wire.lose()
        pool.clock.advance(3600)  # what waits for time to pass lets go

    send_all()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(4):
            send_all()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_000_000
    assert peak - before < 20_000_000


def test_bombs_do_not_grow_the_process(pool: Pool) -> None:
    """What libxml2 takes is no Python object: look at the process."""
    bombs = [body for name, body in MALFORMED.items() if "laughs" in name or "deep" in name]
    assert len(bombs) == 5
    for body in bombs:
        Connection(pool).send(request(body))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        for body in bombs:
            Connection(pool).send(request(body))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
