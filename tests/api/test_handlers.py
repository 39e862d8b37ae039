"""What every HTTP handler has for nothing: its route, its caller, its arguments, its task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from tests.api.conftest import Connection, parse
from tests.api.test_unserved import reader
from tests.conftest import Pool
from xapi import datamodel
from xapi.datamodel import errors
from xapi.http import registry
from xapi.http.registry import Registered, RegistryError, answers, check, handler
from xapi.http.server.exchange import UNREAD, Intake, Refusal, Response
from xapi.http.visit import Visit

MODEL = datamodel.load()
Behaviour = Callable[..., Any]


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Behaviour], None]:
    """Put a function behind a handler that has none."""
    registry.functions(MODEL)

    def put(name: str, function: Behaviour) -> None:
        registered = Registered(UNREAD, False, function)
        check(MODEL.handlers[name], registered)
        monkeypatch.setitem(registry._registered, name, registered)

    return put


def get(pool: Pool, target: str, *lines: str, method: str = "GET") -> bytes:
    head = [f"{method} {target} HTTP/1.1", *lines, "", ""]
    return Connection(pool).send("\r\n".join(head).encode())


async def logs(visit: Visit) -> Response:
    """Behave like /host_logs_download."""
    return Response(200, visit.caller.client.auth_user_name.encode(), b"text/plain")


# Routes


def test_a_handler_is_an_element_and_a_function(pool: Pool, behave: Any) -> None:
    """With or without a slash behind its path; HEAD is GET without the body."""
    behave("get_host_logs_download", logs)
    for path in ("/host_logs_download", "/host_logs_download/"):
        answer = parse(get(pool, f"{path}?session_id={pool.session}"))
        assert (answer.status, answer.body) == (200, b"root")
        assert get(pool, f"{path}?session_id={pool.session}", method="HEAD").endswith(b"content-length: 4\r\n\r\n")


def test_other_methods_are_not_allowed(pool: Pool) -> None:
    """The answer says which are, of all beginnings of the path."""
    answer = parse(get(pool, "/console", method="PUT"))
    assert (answer.status, answer.header("allow")) == (405, "CONNECT, GET, HEAD, OPTIONS, POST")
    assert parse(get(pool, "elsewhere:80", method="CONNECT")).status == 404


def test_arguments_come_typed(pool: Pool, behave: Any) -> None:
    """As the schema declares them; what cannot be read never reaches the function."""
    seen: list[Any] = []

    async def export(visit: Visit, ref: str, uuid: str, use_compression: str, preserve_power_state: bool) -> Response:
        seen.append((ref, uuid, use_compression, preserve_power_state))
        return Response(200, b"", None)

    behave("get_export", export)
    target = f"/export?session_id={pool.session}&uuid=u&preserve_power_state="
    assert parse(get(pool, target + "true")).status == 200
    refused = parse(get(pool, target + "1"))
    assert (refused.status, refused.body) == (
        400,
        b"parameter preserve_power_state: expected true or false, got '1'\n",
    )
    assert seen == [("OpaqueRef:NULL", "u", "", True)]


# Callers


@pytest.mark.parametrize("cookie", [True, False])
def test_the_pools_secret_is_a_caller(pool: Pool, behave: Any, cookie: bool) -> None:
    """For as long as the request; a wrong one is none."""
    behave("get_host_logs_download", logs)
    before = set(pool.db.session.rows)

    def ask(secret: str) -> int:
        if cookie:
            return parse(get(pool, "/host_logs_download", f"cookie: pool_secret={secret}")).status
        return parse(get(pool, f"/host_logs_download?pool_secret={secret}")).status

    assert (ask("pool-secret"), ask("guess"), ask("")) == (200, 401, 401)
    assert set(pool.db.session.rows) == before


def test_a_session_that_is_none_is_not_let_in(pool: Pool, behave: Any) -> None:
    """Not even with the right secret beside it: what comes first counts."""
    behave("get_host_logs_download", logs)
    answer = parse(get(pool, "/host_logs_download?session_id=OpaqueRef:gone&pool_secret=pool-secret"))
    assert (answer.status, answer.header("www-authenticate")) == (401, 'Basic realm="get_host_logs_download"')


def test_a_role_below_the_handlers_never_reaches_it(pool: Pool, behave: Any) -> None:
    """Its parameters are not looked at either."""
    behave("rrd", _unreached)
    assert parse(get(pool, f"/rrd?session_id={reader(pool)}", method="PUT")).status == 403


async def _unreached(visit: Visit, uuid: str, archive: bool) -> Response:
    raise AssertionError


def test_who_is_open_to_all_may_nothing_else(pool: Pool, behave: Any) -> None:
    """Such a handler finds out by itself who asks."""
    may: list[bool] = []

    async def blob(visit: Visit, ref: str, uuid: str) -> Response:
        may.append(visit.caller.may("http/put_blob"))
        return Response(200, b"", None)

    behave("get_blob", blob)
    assert parse(get(pool, "/blob?uuid=x")).status == 200
    assert may == [False]


# Errors


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (Refusal(400, "an iso SR"), 400, b"an iso SR\n"),
        (errors.HANDLE_INVALID("VM", "OpaqueRef:x"), 404, b"HANDLE_INVALID VM OpaqueRef:x\n"),
        (errors.VDI_IN_USE("OpaqueRef:x", "destroy"), 500, b"VDI_IN_USE OpaqueRef:x destroy\n"),
        (ZeroDivisionError("oops"), 500, b"Internal Server Error\n"),
    ],
)
def test_an_error_is_the_answer_and_the_tasks(
    pool: Pool, behave: Any, error: Exception, status: int, body: bytes
) -> None:
    """Only what nobody foresaw is logged."""

    async def fail(visit: Visit) -> Response:
        raise error

    behave("get_host_logs_download", fail)
    task = pool("task.create", "download", "")
    with capturedLogs() as events:
        answer = parse(get(pool, f"/host_logs_download?session_id={pool.session}&task_id={task}"))
    assert (answer.status, answer.body) == (status, body)
    assert pool.db.task[task].status == "failure"
    foreseen = not isinstance(error, ZeroDivisionError)
    assert [event for event in events if event["log_level"] >= LogLevel.error] == [] or not foreseen


# Tasks


def test_a_task_follows_an_upload(pool: Pool, behave: Any) -> None:
    """The answer comes first, as with xapi; the task has the progress and the result."""

    async def restore(visit: Visit) -> Any:
        outgoing = visit.begin(200, None, length=0)
        count = 0
        async for data in visit.body:
            count += len(data)
            visit.task.progress = count / 10
        visit.result = f"<value>{count}</value>"
        return outgoing

    behave("put_host_restore", restore)
    task = pool("task.create", "restore", "")
    wire = Connection(pool)
    head = f"PUT /host_restore?session_id={pool.session}&task_id={task} HTTP/1.1\r\ncontent-length: 10\r\n\r\n"
    wire.server.dataReceived(head.encode() + b"hello")
    row = pool.db.task[task]
    assert wire.transport.value().startswith(b"HTTP/1.1 200 OK\r\n")
    assert (row.progress, row.status, row.allowed_operations) == (0.5, "pending", ("cancel", "destroy"))
    wire.server.dataReceived(b"world")
    assert (row.status, row.result) == ("success", "<value>10</value>")


def test_a_task_that_the_client_has_not_made_goes_with_the_request(pool: Pool, behave: Any) -> None:
    """It can be seen as long as the work lasts."""
    seen: list[tuple[str, str]] = []

    async def download(visit: Visit) -> Response:
        seen.append((visit.task.name_label, visit.task.status))
        return Response(200, b"", None)

    behave("get_host_logs_download", download)
    assert parse(get(pool, f"/host_logs_download?session_id={pool.session}")).status == 200
    assert seen == [("get_host_logs_download", "pending")] and not pool.db.task.rows


def test_a_cancel_of_the_task_ends_the_request(pool: Pool, behave: Any) -> None:
    """Wherever it waits."""

    async def wait(visit: Visit) -> None:
        await Deferred()

    behave("get_host_logs_download", wait)
    task = pool("task.create", "download", "")
    wire = Connection(pool)
    wire.server.dataReceived(
        f"GET /host_logs_download?session_id={pool.session}&task_id={task} HTTP/1.1\r\n\r\n".encode()
    )
    pool("task.cancel", task)
    with capturedLogs() as events:
        answer = wire.answer()
    assert (answer.status, answer.body) == (500, f"TASK_CANCELLED {task}\n".encode())
    assert pool.db.task[task].status == "cancelled" and events == []


@pytest.mark.parametrize("upload", [True, False])
def test_a_client_that_goes_ends_its_task(pool: Pool, behave: Any, upload: bool) -> None:
    """Else somebody would wait for it for ever."""

    async def wait(visit: Visit) -> Any:
        if upload:
            return Response(200, await visit.body.read() + await visit.body.read(), None)
        await Deferred()

    behave("put_host_restore" if upload else "get_host_backup", wait)
    task = pool("task.create", "transfer", "")
    wire = Connection(pool)
    target = "PUT /host_restore" if upload else "GET /host_backup"
    head = f"{target}?session_id={pool.session}&task_id={task} HTTP/1.1\r\ncontent-length: {9 if upload else 0}\r\n\r\n"
    wire.server.dataReceived(head.encode() + b"hi" * upload)
    wire.lose()
    row = pool.db.task[task]
    assert (row.status, row.error_info) == ("failure", ("INTERNAL_ERROR", "the client is gone"))


def test_a_body_is_asked_for_where_there_is_none(pool: Pool, behave: Any) -> None:
    """Length required."""

    async def read(visit: Visit) -> Response:
        return Response(200, await visit.body.read(), None)

    behave("get_host_backup", read)
    assert parse(get(pool, f"/host_backup?session_id={pool.session}")).status == 411


# Registration


def test_what_does_not_fit_the_schema_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function without its element, or with other parameters; a class where callers must be found; two of one."""

    def plain(visit: Visit) -> None: ...

    async def other(visit: Visit, uuid: str) -> None: ...

    class Answers: ...

    monkeypatch.setattr(registry, "_registered", {})
    handler("get_nothing")(logs)
    with pytest.raises(RegistryError, match="get_nothing is no HTTP handler of the schema"):
        registry.functions(MODEL)
    for function in (plain, other):
        with pytest.raises(RegistryError, match="get_host_backup is a coroutine function of"):
            check(MODEL.handlers["get_host_backup"], Registered(UNREAD, False, function))
    with pytest.raises(RegistryError, match="get_host_backup has callers or parameters"):
        check(MODEL.handlers["get_host_backup"], Registered(UNREAD, False, cls=Answers, method="x"))
    answers(Intake(0), post_cli="x")(Answers)
    with pytest.raises(RegistryError, match="post_cli has two functions"):
        handler("post_cli")(logs)
