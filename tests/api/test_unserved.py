"""Paths that the API declares and nobody serves yet: who is let in, and what is said."""

from __future__ import annotations

import base64

import pytest

from tests.api.conftest import Answer, Connection, parse, text
from tests.conftest import NOW, Pool
from xapi import datamodel
from xapi.access.caller import Origin
from xapi.http import registry

HANDLERS = datamodel.load().handlers
CHECKED = [handler.name for handler in registry.unserved(datamodel.load()) if handler.checked]


def ask(wire: Connection, name: str, query: str = "", *lines: str) -> Answer:
    """Send what a declared handler would take, with a head only."""
    handler = HANDLERS[name]
    target = handler.path + (f"?{query}" if query else "")
    head = [f"{handler.method} {target} HTTP/1.1", "host: h", *lines]
    return parse(wire.send("\r\n".join(head).encode() + b"\r\n\r\n"))


@pytest.mark.parametrize("name", CHECKED)
def test_who_says_nothing_of_himself_is_not_let_in(wire: Connection, name: str) -> None:
    """Before it is told that nobody is there; the realm is the handler's name, as with xapi."""
    answer = ask(wire, name)
    assert (answer.status, answer.header("www-authenticate")) == (401, f'Basic realm="{name}"')


@pytest.mark.parametrize("name", CHECKED)
def test_who_is_let_in_hears_that_nobody_serves(pool: Pool, wire: Connection, name: str) -> None:
    """With the handler's name, in text."""
    answer = ask(wire, name, f"session_id={pool.session}")
    assert (answer.status, answer.header("content-type")) == (501, "text/plain")
    assert answer.body == f"{name} is not implemented\n".encode()


def test_the_longest_path_names_the_handler(pool: Pool, wire: Connection) -> None:
    """As with xapi, what a path begins with counts."""
    told = {
        "/services/xenops/x": b"get_services_xenops is not implemented\n",
        "/services/plugin": b"get_services is not implemented\n",
        "/export_metadata": b"get_export_metadata is not implemented\n",
    }
    for path, body in told.items():
        answer = parse(wire.send(f"GET {path}?session_id={pool.session} HTTP/1.1\r\n\r\n".encode()))
        assert (answer.status, answer.body) == (501, body)


def test_a_cookie_or_a_password_will_do(pool: Pool, wire: Connection) -> None:
    """The session made for a request by its password ends with it."""
    assert ask(wire, "get_export", "", f"cookie: a=b; session_id={pool.session}").status == 501
    before = set(pool.db.session.rows)
    for password, status in (("xenroot", 501), ("guess", 401)):
        basic = base64.b64encode(f"root:{password}".encode()).decode()
        connection = Connection(pool)
        connection.server.dataReceived(f"GET /export HTTP/1.1\r\nauthorization: Basic {basic}\r\n\r\n".encode())
        pool.clock.advance(2)
        assert connection.answer().status == status
    assert set(pool.db.session.rows) == before


def test_local_root_needs_neither(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is proof enough."""
    monkeypatch.setattr("xapi.http.caller.origin_of", lambda request: Origin(trusted=True))
    assert ask(Connection(pool), "get_export").status == 501


def test_a_role_that_is_too_low_is_forbidden(pool: Pool, wire: Connection) -> None:
    """Only then."""
    session = reader(pool)
    assert ask(wire, "get_export", f"session_id={session}").status == 403
    assert ask(wire, "rrd_updates", f"session_id={session}").status == 501


def reader(pool: Pool) -> str:
    """Return a session of a user who is read-only."""
    permissions = pool.daemon.sessions.permissions_of(frozenset({"read-only"}))
    session: str = pool.db.session.create(
        auth_user_name="ann", auth_user_sid="S-1", rbac_permissions=permissions, last_active=NOW
    )._ref
    return session


def test_the_task_of_a_transfer_fails(pool: Pool, wire: Connection) -> None:
    """Clients wait for its end; another user's is left alone."""
    own = pool("task.create", "export", "")
    ask(wire, "get_export", f"session_id={pool.session}&task_id={own}")
    assert (pool.db.task[own].status, pool.db.task[own].error_info) == ("failure", ("NOT_IMPLEMENTED", "get_export"))
    session, roots = reader(pool), pool("task.create", "export", "")
    anns = pool.db.task.create(session=session, status="pending")._ref
    for task in (roots, anns):
        assert ask(wire, "get_export", f"session_id={session}&task_id={task}").status == 403
    assert pool.db.task[roots].status == "pending"
    assert pool.db.task[anns].error_info[:2] == ("RBAC_PERMISSION_DENIED", "http/get_export")


def test_the_thin_cli_is_no_xml_rpc(wire: Connection) -> None:
    """xe shows the line."""
    answer = wire.post(b"vm-list\nusername=root\npassword=xenroot", "/cli")
    assert (answer.status, answer.body) == (501, b"post_cli is not implemented\n")


def test_paths_that_nobody_declares_take_calls_as_ever(pool: Pool, wire: Connection) -> None:
    """POST is XML-RPC; GET has nothing there, and what no handler of a beginning of the path has is not allowed."""
    body = b"<methodCall><methodName>pool.get_all</methodName><params><param>%b</param></params></methodCall>"
    assert len(wire.post(body % text(pool.session).encode(), "/elsewhere").value()) == 1
    assert parse(wire.send(b"GET /elsewhere HTTP/1.1\r\n\r\n")).status == 404
    refused = parse(wire.send(b"PUT /elsewhere HTTP/1.1\r\ncontent-length: 5000000\r\n\r\n"))
    assert (refused.status, refused.header("allow")) == (405, "GET, HEAD, OPTIONS, POST")
