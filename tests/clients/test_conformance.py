"""Every message of the schema, asked as the published checker asks, and by a checker of our own."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import xmlrpc.client
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.daemon import CHECKOUT, Daemon
from tests.conftest import Pool
from xapi import datamodel
from xapi.datamodel import Message
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import EPOCH
from xapi.datamodel.types import (
    NULL,
    BoolType,
    DateTimeType,
    EnumType,
    FloatType,
    IntType,
    MapType,
    OptionType,
    RecordType,
    RefType,
    SetType,
    StringType,
    Type,
)
from xapi.handlers.rpc import RPC
from xapi.wire.fragments import Records

CHECKER = CHECKOUT.parent / "shared" / "xenapi" / "check_conformance.py"
MODEL = datamodel.load()
NOBODY = "OpaqueRef:00000000-0000-0000-0000-000000000000"


@pytest.mark.skipif(not CHECKER.exists(), reason="the checker is not beside this checkout")
@pytest.mark.parametrize("options", [(), ("--internal", "--async-live")], ids=["plain", "internal-async"])
def test_published_checker(daemon: Daemon, options: tuple[str, ...]) -> None:
    """Black-box, over HTTP, from the published data model."""
    done = subprocess.run(
        [sys.executable, str(CHECKER), daemon.http, "root", "xenroot", "--quiet", *options],
        text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"[1-9]\d{3} passed, 0 failed", last), done.stdout[-3000:] + done.stderr


# Our own, in memory


@pytest.fixture(scope="module")
def pool(make_pool: Callable[[], Pool]) -> Pool:
    """One pool for all messages: nothing here changes it."""
    return make_pool()


def description(pool: Pool, name: str, *params: Any) -> list[str]:
    """Return the ErrorDescription of a call that dispatch refuses at once."""
    with pytest.raises(Fault) as caught:
        pool.daemon.dispatcher.call(name, list(params), pool.origin)
    return caught.value.description


MESSAGES = list(MODEL.messages)
CLASSES = [cls.name for cls in MODEL.classes.values()]


def of_class(name: str) -> list[Message]:
    return list(MODEL.classes[name].messages.values())


def mismatch(message: Message, received: int) -> list[str]:
    return ["MESSAGE_PARAMETER_COUNT_MISMATCH", message.full_name, str(message.required), str(received)]


def spellings(message: Message) -> list[str]:
    """Return all names by which a message is called."""
    both = [message.full_name, f"{message.class_name}_{message.name}"]
    return both + [f"{prefix}.{message.full_name}" for prefix in ("Async", "InternalAsync") if message.is_async]


@pytest.mark.parametrize("name", CLASSES)
def test_one_parameter_too_few(pool: Pool, name: str) -> None:
    """The count comes before session and types, under every spelling, and says what was wanted."""
    asked = [(message, spelling) for message in of_class(name) if message.required for spelling in spellings(message)]
    first = {message.full_name: [NOBODY] * message.session for message, _ in asked}
    wrong = {
        spelling: found
        for message, spelling in asked
        if (found := description(pool, spelling, *first[message.full_name], *["x"] * (message.required - 1)))
        != mismatch(message, message.required - 1)
    }
    assert wrong == {}


@pytest.mark.parametrize("name", CLASSES)
def test_one_parameter_too_many(pool: Pool, name: str) -> None:
    """Messages without optional parameters take no more than they name."""
    wrong = {
        spelling: found
        for message in of_class(name)
        if not message.open_ended
        for spelling in spellings(message)
        if (found := description(pool, spelling, *[NOBODY] * message.session, *["x"] * (message.required + 1)))
        != mismatch(message, message.required + 1)
    }
    assert wrong == {}


@pytest.mark.parametrize("name", CLASSES)
def test_no_parameters_at_all(pool: Pool, name: str) -> None:
    """Without even the session, -1 were received."""
    wrong = {
        message.full_name: found
        for message in of_class(name)
        if message.session and (found := description(pool, message.full_name)) != mismatch(message, -1)
    }
    assert wrong == {}


def dummy(kind: Type) -> Any:
    """Return the least wire value of a type."""
    if isinstance(kind, EnumType):
        return next(iter(kind.values))
    if isinstance(kind, RefType):
        return NULL
    if isinstance(kind, SetType | OptionType):
        return []
    if isinstance(kind, MapType | RecordType):
        return {}
    if isinstance(kind, DateTimeType):
        return EPOCH
    return {StringType: "", IntType: "0", BoolType: False, FloatType: 0.0}[type(kind)]


@pytest.mark.parametrize("name", CLASSES)
def test_session_that_never_was(pool: Pool, name: str) -> None:
    """Well-typed arguments reach the check of the session, and no farther."""
    wrong = {
        message.full_name: found
        for message in of_class(name)
        # A constructor looks for the members that it needs before it looks at the session.
        if message.session and message.kind != "make"
        if (found := description(pool, message.full_name, NOBODY, *[dummy(p.type) for p in message.parameters]))
        != ["SESSION_INVALID", NOBODY]
    }
    assert wrong == {}


@pytest.mark.parametrize("name", CLASSES)
def test_messages_without_async_form(pool: Pool, name: str) -> None:
    """Asking for one is an error of its own, whatever the parameters."""
    wrong = {
        message.full_name: found
        for message in of_class(name)
        if not message.is_async
        if (found := description(pool, f"Async.{message.full_name}", NOBODY))
        != ["Fault", f"No async mode for this operation (rpc: Async.{message.full_name})"]
    }
    assert wrong == {}


def test_both_checks_saw_every_message() -> None:
    """The tests above cannot pass for lack of messages."""
    assert sum(len(of_class(name)) for name in CLASSES) == len(MESSAGES) > 2000


def valid(value: Any, kind: Type) -> bool:
    """Tell whether what xmlrpc.client read has the wire form of a type; dates stay in their own class."""
    if isinstance(kind, OptionType):
        return valid(value, kind.item)
    if isinstance(kind, SetType):
        return isinstance(value, list) and all(valid(item, kind.item) for item in value)
    if isinstance(kind, MapType):
        return isinstance(value, dict) and all(valid(k, kind.key) and valid(v, kind.value) for k, v in value.items())
    if isinstance(kind, RecordType):
        return isinstance(value, dict)
    if isinstance(kind, BoolType):
        return type(value) is bool
    if isinstance(kind, FloatType):
        return type(value) is float and not math.isinf(value)
    if isinstance(kind, DateTimeType):
        return type(value) is xmlrpc.client.DateTime and bool(re.fullmatch(r"\d{8}T\d\d:\d\d:\d\dZ", str(value)))
    if type(value) is not str:
        return False
    if isinstance(kind, IntType):
        return bool(re.fullmatch(r"-?\d+", value))
    if isinstance(kind, EnumType):
        return value in kind.values
    if isinstance(kind, RefType):
        return bool(re.fullmatch(r"OpaqueRef:(NULL|[0-9a-f-]{36})", value))
    return True


LISTED = [cls for cls in MODEL.stored if "get_all_records" in cls.messages]
ANSWERING = [cls for cls in LISTED if cls.messages["get_all_records"].life.state != "Removed"]


@pytest.mark.parametrize("name", [cls.name for cls in ANSWERING])
def test_records_have_exactly_the_fields_of_the_schema(pool: Pool, name: str) -> None:
    """get_all_records answers, and each value has its declared type on the wire."""
    cls = MODEL.classes[name]
    wanted = {field.name: field.type for field in cls.record_fields}
    rows: Records = pool(f"{name}.get_all_records")
    texts = [pool.daemon.fragments.xml_record(row).decode() for row in rows]
    body = f"<params><param><value><array><data>{''.join(texts)}</data></array></value></param></params>"
    ((records,), _) = xmlrpc.client.loads(body)
    assert isinstance(records, list)
    assert len(records) == len(pool.db.tables[name])
    names = {tuple(record) for record in records} | {tuple(wanted)}
    assert names == {tuple(wanted)}
    bad = {
        member: (kind.name, record[member])
        for record in records
        for member, kind in wanted.items()
        if not valid(record[member], kind)
    }
    assert bad == {}


def test_removed_classes_say_so(pool: Pool) -> None:
    """Their lists are declared, and gone."""
    removed = [cls.name for cls in LISTED if cls not in ANSWERING]
    assert removed == ["VBD_metrics", "VIF_metrics", "VMPP"]
    answers = {name: pool.fails(f"{name}.get_all_records") for name in removed}
    assert list(answers.values()) == [["MESSAGE_REMOVED"]] * 3


def test_every_listed_name_answers(pool: Pool) -> None:
    """xen-api takes the classes from system.listMethods and fetches all records of each at login."""
    listed = [name for name in RPC(pool.daemon.subsystems).names if name.endswith(".get_all_records")]
    assert listed == [f"{cls.name}.get_all_records" for cls in ANSWERING]
    assert {type(pool(name)) for name in listed} == {Records}


def test_classes_that_are_not_listed_have_no_such_message(pool: Pool) -> None:
    """They keep their objects to themselves, if they have any."""
    unlisted = [cls.name for cls in MODEL.stored if cls not in LISTED]
    assert unlisted == ["LVHD", "session", "user"]
    for name in unlisted:
        assert pool.fails(f"{name}.get_all_records") == ["MESSAGE_METHOD_UNKNOWN", f"{name}.get_all_records"]
