"""Sessions as clients meet them: how they begin, how many there may be, and when they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.api.conftest import Connection, call, request, text
from tests.conftest import NOW, Pool
from xapi.access.caller import Origin
from xapi.access.passwords import NOBODY, verify_password
from xapi.access.sessions import DIRECTORY_DELAY
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import EPOCH

HOUR = 3600
INVALID = "SESSION_INVALID"

T = TypeVar("T")


def sweep_after(pool: Pool, seconds: float) -> None:
    """Let time pass, then let the daemon look for what is over."""
    pool.clock.advance(seconds)
    pool.daemon.sweep()


def error(pool: Pool, session: str) -> str | None:
    """Return the code with which a session is refused, or None."""
    answer = Connection(pool).json("pool.get_all", session)
    return answer["error"]["message"] if "error" in answer else None


def test_record_of_a_session(pool: Pool) -> None:
    """Who, from when, and through which host."""
    record = pool.db.session[pool.session]
    assert record.this_host == next(iter(pool.db.pool)).master
    assert {record.this_user, record.parent, record.subject} == {"OpaqueRef:NULL"}
    assert (record.is_local_superuser, record.pool, record.client_certificate) == (True, False, False)
    assert (record.last_active, record.auth_user_name, record.auth_user_sid) == (NOW, "root", "")
    assert (record.originator, record.rbac_permissions, record.validation_time) == ("", (), EPOCH)


def test_trusted_origin_needs_no_password(pool: Pool) -> None:
    """The local socket of root."""
    pool.origin = Origin(trusted=True)
    session = pool.login("", "")
    assert pool.db.session[session].is_local_superuser


@pytest.mark.parametrize(("user", "password"), [("root", "guess"), ("root", ""), ("", ""), ("Root", "xenroot")])
def test_wrong_password_is_answered_after_2_seconds(pool: Pool, wire: Connection, user: str, password: str) -> None:
    """And the answer names the user."""
    wire.send(request(call("session.login_with_password", text(user), text(password))))
    pool.clock.advance(1.9)
    assert wire.take() == b""
    pool.clock.advance(0.2)
    assert wire.answer().error() == ["SESSION_AUTHENTICATION_FAILED", user, "Authentication failure"]


@pytest.mark.parametrize("user", ["root", "nobody", ""])
@pytest.mark.parametrize("message", ["session.login_with_password", "session.slave_local_login_with_password"])
def test_a_failed_login_takes_as_long_for_every_name(
    pool: Pool, wire: Connection, message: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 seconds from its arrival, however long the check took of them, and a check in any case."""
    checked: list[str] = []

    def check(password: str, stored: str) -> Deferred[bool]:
        checked.append(stored)
        return deferLater(pool.clock, 1.5, verify_password, password, stored)

    monkeypatch.setattr(pool.daemon.sessions._checks, "_in_thread", lambda function, *given: check(*given))
    wire.send(request(call(message, text(user), text("guess"))))
    pool.clock.advance(1.5)
    pool.clock.advance(0.4)
    assert wire.take() == b""
    pool.clock.advance(0.1)
    assert wire.answer().error() == ["SESSION_AUTHENTICATION_FAILED", user, "Authentication failure"]
    assert checked == [pool.passwords.stored("root") if user == "root" else NOBODY]


def test_a_login_whose_client_is_gone_makes_no_session(pool: Pool, wire: Connection) -> None:
    """Nobody would end it."""
    waiting: Deferred[None] = Deferred()
    in_thread = pool.daemon.sessions._checks._in_thread

    def later(function: Callable[..., T], *args: object) -> Deferred[T]:
        return waiting.addCallback(lambda _: in_thread(function, *args))

    pool.daemon.sessions._checks._in_thread = later
    pool.passwords.set("root", "fresh")
    before = len(pool.db.session)
    wire.send(request(call("session.login_with_password", text("root"), text("fresh"))))
    wire.lose()
    waiting.callback(None)
    assert len(pool.db.session) == before


def test_local_accounts_log_in_beside_a_directory(pool: Pool, tmp_path: Any) -> None:
    """At the host itself, by slave_local_login_with_password."""
    path = tmp_path / "directory.toml"
    path.write_text('[users.other]\nsid = "S-1"\npassword = "p"\n')
    pool.daemon.sessions.directory_path = path
    pool("pool.enable_external_auth", next(iter(pool.db.pool))._ref, {}, "example", "file")
    pool.passwords.set("other", "local")
    session = pool.raw("session.slave_local_login_with_password", "other", "local")
    assert pool.db.session[session].is_local_superuser


def test_a_pool_secret_that_is_empty_lets_nobody_in(pool: Pool) -> None:
    """Whatever came of the file that holds it."""
    pool.daemon.sessions.pool_secret = ""
    with pytest.raises(Fault, match="SESSION_AUTHENTICATION_FAILED"):
        pool.raw("session.slave_local_login", "")


def test_logout_ends_a_session_at_once(pool: Pool) -> None:
    """Only that one."""
    other = pool.login()
    assert pool.raw("session.logout", other) is None
    assert error(pool, other) == INVALID
    assert error(pool, pool.session) is None
    assert Connection(pool).json("session.logout", other)["error"]["message"] == INVALID


@pytest.mark.parametrize(("originator", "most"), [("", 400), ("script", 500)])
def test_oldest_sessions_of_a_group_go(pool: Pool, originator: str, most: int) -> None:
    """Beyond the limit of its group a new session pushes out the one that was longest unused."""
    other = pool.raw("session.login_with_password", "root", "xenroot", "1.0", "other")
    pool.raw("session.logout", pool.session)
    pool.origin = Origin(trusted=True)  # no hashing, which takes its time
    sessions = []
    for _ in range(most):
        sessions.append(pool.raw("session.login_with_password", "root", "", "1.0", originator))
    pool.clock.advance(700)
    pool.raw("pool.get_all", sessions[0])  # used: no longer the oldest
    more = [pool.raw("session.login_with_password", "root", "", "1.0", originator) for _ in range(2)]
    gone = [session for session in [*sessions, *more, other] if session not in pool.db.session]
    assert gone == sessions[1:3]


def test_idle_session_expires(pool: Pool) -> None:
    """After 24 hours without a call."""
    sweep_after(pool, 24 * HOUR - 1)
    assert pool.session in pool.db.session
    sweep_after(pool, 1)
    assert error(pool, pool.session) == INVALID


def test_use_keeps_a_session(pool: Pool) -> None:
    """The time of the last use is written at most every 10 minutes."""
    row = pool.db.session[pool.session]
    pool.clock.advance(599)
    pool("pool.get_all")
    assert row.last_active == NOW
    pool.clock.advance(1)
    pool("pool.get_all")
    assert (row.last_active - NOW).total_seconds() == 600
    sweep_after(pool, 24 * HOUR - 1)
    assert error(pool, pool.session) is None


def test_session_with_unfinished_work_is_kept(pool: Pool) -> None:
    """Its task goes first, after 24 hours of its own."""
    pool("task.create", "upload", "")
    pool.clock.advance(24 * HOUR)
    pool.daemon.sessions.sweep()
    assert pool.session in pool.db.session


def test_users_are_looked_up_again(pool: Pool, tmp_path: Any) -> None:
    """After 30 minutes a role that was taken, or a user that is gone, counts for existing sessions."""
    path = tmp_path / "directory.toml"
    path.write_text('[users.ann]\nsid = "S-1"\npassword = "p"\n')
    pool.daemon.sessions.directory_path = path
    pool("pool.enable_external_auth", next(iter(pool.db.pool))._ref, {}, "example", "file")
    subject = pool("subject.create", {"subject_identifier": "S-1"})
    roles = {row.name_label: row._ref for row in pool.db.role if not row.is_internal}
    pool("subject.add_to_roles", subject, roles["pool-admin"])
    session = pool.login("ann", "p")
    pool("subject.add_to_roles", subject, roles["read-only"])
    pool("subject.remove_from_roles", subject, roles["pool-admin"])
    sweep_after(pool, 1799)
    assert "vm.start" in pool.db.session[session].rbac_permissions
    sweep_after(pool, 1)
    assert "vm.start" not in pool.db.session[session].rbac_permissions
    assert error(pool, session) is None
    pool("subject.destroy", subject)
    assert error(pool, session) == INVALID


def test_a_new_subject_has_no_role(pool: Pool, tmp_path: Any) -> None:
    """Whatever its record asks for: who may log in is said by subject.add_to_roles."""
    path = tmp_path / "directory.toml"
    path.write_text('[users.ann]\nsid = "S-1"\npassword = "p"\n')
    pool.daemon.sessions.directory_path = path
    pool("pool.enable_external_auth", next(iter(pool.db.pool))._ref, {}, "example", "file")
    (admin,) = pool("role.get_by_name_label", "pool-admin")
    subject = pool("subject.create", {"subject_identifier": "S-1", "roles": [admin]})
    assert pool("subject.get_roles", subject) == ()
    login = pool.start("session.login_with_password", "ann", "p")
    pool.clock.advance(DIRECTORY_DELAY)
    with pytest.raises(Fault) as refused:
        pool.outcome(login)
    assert refused.value.code == "RBAC_PERMISSION_DENIED"
    pool("subject.add_to_roles", subject, admin)
    assert pool.login("ann", "p") in pool.db.session


@pytest.mark.parametrize("restrictions", [{"restrict_rbac": "true"}, {}])
def test_without_roles_in_the_license_a_new_subject_is_pool_admin(pool: Pool, restrictions: dict[str, str]) -> None:
    """There is nothing else that it could be."""
    next(iter(pool.db.pool)).restrictions = restrictions
    subject = pool("subject.create", {"subject_identifier": "S-1"})
    assert list(pool("subject.get_roles", subject)) == pool("role.get_by_name_label", "pool-admin")


def test_directory_switched_off_ends_its_sessions(pool: Pool, tmp_path: Any) -> None:
    """And leaves root's."""
    path = tmp_path / "directory.toml"
    path.write_text('[users.ann]\nsid = "S-1"\npassword = "p"\n')
    pool.daemon.sessions.directory_path = path
    ref = next(iter(pool.db.pool))._ref
    pool("pool.enable_external_auth", ref, {}, "example", "file")
    assert pool.fails("pool.enable_external_auth", ref, {}, "example", "file")[0] == "POOL_AUTH_ALREADY_ENABLED"
    subject = pool("subject.create", {"subject_identifier": "S-1"})
    pool("subject.add_to_roles", subject, pool("role.get_by_name_label", "read-only")[0])
    session = pool.login("ANN", "p")
    pool("pool.disable_external_auth", ref, {})
    assert error(pool, session) == INVALID
    assert error(pool, pool.session) is None


def test_directory_that_cannot_be_used(pool: Pool, tmp_path: Any) -> None:
    """Unknown type, no file named, no such file."""
    ref = next(iter(pool.db.pool))._ref
    assert pool.fails("pool.enable_external_auth", ref, {}, "x", "AD") == ["AUTH_UNKNOWN_TYPE", "AD"]
    assert pool.fails("pool.enable_external_auth", ref, {}, "x", "file")[0] == "POOL_AUTH_ENABLE_FAILED"
    pool.daemon.sessions.directory_path = tmp_path / "none"
    assert pool.fails("pool.enable_external_auth", ref, {}, "x", "file")[0] == "POOL_AUTH_ENABLE_FAILED"


def test_password_can_be_changed(pool: Pool) -> None:
    """With the old one, and not to nothing."""
    assert pool.fails("session.change_password", "guess", "new")[0] == "CHANGE_PASSWORD_REJECTED"
    assert pool.fails("session.change_password", "xenroot", "")[0] == "CHANGE_PASSWORD_REJECTED"
    pool("session.change_password", "xenroot", "new")
    assert pool.login(password="new") in pool.db.session


def test_sessions_of_hosts(pool: Pool) -> None:
    """With the pool's secret only."""
    host = next(iter(pool.db.host))._ref
    session = pool.raw("session.slave_login", host, "pool-secret")
    assert pool.db.session[session].pool is True
    answer = Connection(pool).json("session.slave_login", host, "guess")
    assert answer["error"]["message"] == "SESSION_AUTHENTICATION_FAILED"


def test_sessions_are_not_told_of(pool: Pool) -> None:
    """No list, no events."""
    assert pool.fails("session.get_all") == ["MESSAGE_METHOD_UNKNOWN", "session.get_all"]
    batch = pool("event.from", ["*"], "", 0.0)
    assert "session" not in {event.table.name for event in batch.events}


def test_an_empty_pool_secret_lets_nobody_in(pool: Pool) -> None:
    """Not even who sends the same nothing."""
    pool.daemon.sessions.pool_secret = ""
    with pytest.raises(Fault, match="SESSION_AUTHENTICATION_FAILED"):
        pool.raw("session.slave_login", next(iter(pool.db.host))._ref, "")
    with pytest.raises(Fault, match="SESSION_AUTHENTICATION_FAILED"):
        pool.raw("session.slave_local_login", "")
