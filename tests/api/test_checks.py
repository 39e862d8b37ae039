"""The order of the checks that a call passes, and what each role may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Connection, call, request, text
from tests.conftest import Pool
from xapi.access.caller import Origin
from xapi.access.passwords import CHEAP, hash_password

NULL = "OpaqueRef:NULL"
NOBODY = "OpaqueRef:nobody"
ROLES = ["read-only", "vm-operator", "vm-admin", "vm-power-admin", "pool-operator", "pool-admin"]


@pytest.fixture(scope="module")
def pool(make_pool: Callable[[], Pool]) -> Pool:
    """One pool for all: the calls are refused."""
    return make_pool()


# Order: each call has the mistakes of two neighbouring checks, and is told of the first.


def test_utf8_comes_before_the_name(wire: Connection) -> None:
    assert wire.post(call("VM.fly", text("A")).replace(b"A", b"\xff")).error()[0] == "INVALID_VALUE"


def test_name_comes_before_the_count(wire: Connection) -> None:
    assert wire.ask("VM.fly").error() == ["MESSAGE_METHOD_UNKNOWN", "VM.fly"]


def test_async_form_comes_before_the_count(wire: Connection) -> None:
    assert wire.ask("Async.pool.get_all").error()[0] == "Fault"


def test_count_comes_before_the_types(wire: Connection) -> None:
    answer = wire.ask("pool.set_name_label", "<value><int>1</int></value>", "<value><int>1</int></value>")
    assert answer.error() == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "pool.set_name_label", "2", "1"]


def test_count_comes_before_the_session(wire: Connection) -> None:
    assert wire.ask("pool.get_all", text(NOBODY), text("")).error()[0] == "MESSAGE_PARAMETER_COUNT_MISMATCH"


def test_types_come_before_the_session(wire: Connection) -> None:
    answer = wire.ask("pool.set_name_label", text(NOBODY), text(NULL), "<value><int>1</int></value>")
    assert answer.error()[0] == "INTERNAL_ERROR"


def test_session_comes_before_removal(wire: Connection, session: str) -> None:
    assert wire.ask("pool.enable_ssl_legacy", text(NOBODY), text(NULL)).error() == ["SESSION_INVALID", NOBODY]
    assert wire.ask("pool.enable_ssl_legacy", session, text(NULL)).error() == ["MESSAGE_REMOVED"]


def test_session_comes_before_internal_messages(wire: Connection, session: str) -> None:
    assert wire.ask("host.local_assert_healthy", text(NOBODY)).error() == ["SESSION_INVALID", NOBODY]
    assert wire.ask("host.local_assert_healthy", session).error() == [
        "INTERNAL_ERROR",
        'Internal API "host.local_assert_healthy" call attempted with non-pool (external) session',
    ]


def test_internal_messages_take_a_session_of_the_pool(pool: Pool, wire: Connection) -> None:
    pool_session = pool.raw("session.slave_login", next(iter(pool.db.host))._ref, "pool-secret")
    assert wire.ask("host.local_assert_healthy", text(pool_session)).value() == ""


def test_unknown_name_looks_at_the_session(wire: Connection, session: str) -> None:
    """xapi looks for an extension of that name, for which it asks session and role."""
    assert wire.ask("VM.fly", text(NOBODY)).error() == ["SESSION_INVALID", NOBODY]
    assert wire.ask("VM.fly", session, text("more")).error() == ["MESSAGE_METHOD_UNKNOWN", "VM.fly"]


@pytest.mark.parametrize("name", ["", "VM", "vm.get_all", "VM.get_all.more", "pool.get_all ", "VM.", ".get_all"])
def test_names_are_exact(wire: Connection, name: str) -> None:
    """Case counts; only white space around is nothing."""
    found = wire.ask(name).error()[0]
    assert found == ("MESSAGE_PARAMETER_COUNT_MISMATCH" if name.endswith(" ") else "MESSAGE_METHOD_UNKNOWN")


def test_optional_parameters(wire: Connection, session: str) -> None:
    """Missing ones have their default, surplus ones are ignored."""
    no, nothing = "<value><boolean>0</boolean></value>", "<value><struct></struct></value>"
    parameters = [text(""), text("label"), text(""), text("file"), text("user"), no, nothing, text("surplus")]
    assert wire.ask("SR.introduce", session).error() == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "SR.introduce", "6", "0"]
    for count in (6, 7, 8):
        assert wire.ask("SR.introduce", session, *parameters[:count]).value().startswith("OpaqueRef:")


def test_constructor_asks_for_what_it_needs(wire: Connection, session: str) -> None:
    """A missing required member is an error, a missing one with a default is filled in, others are ignored."""
    member = "<member><name>{}</name><value>{}</value></member>"
    empty = "<value><struct></struct></value>"
    more = "".join([member.format("value", "x"), member.format("colour", "red"), member.format("uuid", "mine")])
    assert wire.ask("secret.create", session, empty).error() == [
        "INTERNAL_ERROR",
        "secret.create: the record has no value",
    ]
    ref = wire.ask("secret.create", session, f"<value><struct>{more}</struct></value>").value()
    record = wire.ask("secret.get_record", session, text(ref)).value()
    assert (record["value"], record["other_config"]) == ("x", {})
    assert record["uuid"] != "mine"


# Roles


class Directory:
    """A pool with external authentication, where each role is a user of that name."""

    def __init__(self, pool: Pool, path: Path) -> None:
        self.pool = pool
        hashed = hash_password("wonderland", CHEAP)
        users = [*ROLES, "nobody", "stranger", "member"]
        lines = ['[groups.staff]\nsid = "S-staff"\n']
        for name in users:
            groups = '["staff"]' if name == "member" else "[]"
            lines.append(f'[users.{name}]\nsid = "S-{name}"\npassword_hash = "{hashed}"\ngroups = {groups}\n')
        path.write_text("".join(lines))
        pool.daemon.sessions.directory_path = path
        pool("pool.enable_external_auth", next(iter(pool.db.pool))._ref, {}, "example", "file")
        roles = {row.name_label: row._ref for row in pool.db.role if not row.is_internal}
        self.subjects = {}
        for name in [*ROLES, "nobody", "staff"]:
            self.subjects[name] = pool("subject.create", {"subject_identifier": f"S-{name}"})
        for name, role in {**dict(zip(ROLES, ROLES)), "staff": "vm-operator"}.items():
            pool("subject.add_to_roles", self.subjects[name], roles[role])

    def login(self, name: str) -> str:
        return self.pool.login(name, "wonderland")


@pytest.fixture(scope="module")
def directory(make_pool: Callable[[], Pool], tmp_path_factory: pytest.TempPathFactory) -> Directory:
    return Directory(make_pool(), tmp_path_factory.mktemp("directory") / "directory.toml")


@pytest.fixture(scope="module")
def logged_in(directory: Directory) -> dict[str, str]:
    """A session of each role."""
    return {name: directory.login(name) for name in ROLES}


def refusal(directory: Directory, session: str, name: str, *params: Any) -> list[str]:
    """Return the ErrorDescription of a call, which all the calls of these tests have."""
    wire = Connection(directory.pool)
    answer = wire.json(name, session, *params)
    return [answer["error"]["message"], *answer["error"]["data"]]


@pytest.mark.parametrize(
    ("least", "name", "params"),
    [
        ("read-only", "VM.get_record", [NULL]),
        ("vm-operator", "VM.start", [NULL, False, False]),
        ("vm-operator", "VM.add_to_other_config", [NULL, "folder", "/"]),
        ("vm-operator", "VM.remove_from_other_config", [NULL, "XenCenter.CustomFields.colour"]),
        ("vm-operator", "pool.add_to_other_config", [NULL, "EMPTY_FOLDERS", ""]),
        ("vm-operator", "task.add_to_other_config", [NULL, "applies_to", "x"]),
        ("vm-admin", "VM.set_name_label", [NULL, "x"]),
        ("vm-admin", "VM.add_to_other_config", [NULL, "other", ""]),
        ("vm-admin", "VM.add_to_other_config", [NULL, "XenCenter.CustomField", ""]),
        ("vm-power-admin", "VM.set_affinity", [NULL, NULL]),
        ("pool-operator", "pool.set_name_label", [NULL, "x"]),
        ("pool-operator", "pool.add_to_other_config", [NULL, "other", ""]),
        ("pool-operator", "secret.get_record", [NULL]),
        ("pool-admin", "VM.add_to_other_config", [NULL, "pci", "0/0000:00:00.0"]),
        ("pool-admin", "VM.add_to_platform", [NULL, "hvm_serial", "pty"]),
        ("pool-admin", "subject.destroy", [NULL]),
    ],
)
def test_least_role(directory: Directory, logged_in: dict[str, str], least: str, name: str, params: list[Any]) -> None:
    """The role and all above it may, those below may not; keys of maps may have a role of their own."""
    codes = {role: refusal(directory, logged_in[role], name, *params)[0] for role in ROLES}
    refused = [role for role, code in codes.items() if code == "RBAC_PERMISSION_DENIED"]
    assert refused == ROLES[: ROLES.index(least)]


def test_refusal_names_the_permission(directory: Directory, logged_in: dict[str, str]) -> None:
    """In lower case, with its key, and who has it."""
    code, permission, text_ = refusal(directory, logged_in["vm-admin"], "VM.add_to_other_config", NULL, "pci", "x")
    assert (code, permission) == ("RBAC_PERMISSION_DENIED", "vm.add_to_other_config/key:pci")
    assert text_ == "No permission in user session. (Roles with this permission: pool-admin)"
    assert refusal(directory, logged_in["read-only"], "VM.start", NULL, False, False)[1] == "vm.start"


def test_role_comes_after_types_and_before_the_work(directory: Directory, logged_in: dict[str, str]) -> None:
    session = logged_in["read-only"]
    assert refusal(directory, session, "pool.set_name_label", NULL, 5)[0] == "INTERNAL_ERROR"
    assert refusal(directory, session, "pool.set_name_label", "OpaqueRef:x", "")[0] == "RBAC_PERMISSION_DENIED"


def test_unknown_name_asks_for_the_role_of_extensions(directory: Directory, logged_in: dict[str, str]) -> None:
    assert refusal(directory, logged_in["pool-operator"], "VM.fly")[:2] == [
        "RBAC_PERMISSION_DENIED", "host.call_extension"
    ]  # fmt: skip
    assert refusal(directory, logged_in["pool-admin"], "VM.fly") == ["MESSAGE_METHOD_UNKNOWN", "VM.fly"]


def test_session_of_a_user(directory: Directory, logged_in: dict[str, str]) -> None:
    """The record says who it is and what it may, in lower case."""
    pool = directory.pool
    session = pool.db.session[logged_in["vm-operator"]]
    assert (session.is_local_superuser, session.auth_user_name, session.auth_user_sid, session.subject) == (
        False, "vm-operator", "S-vm-operator", directory.subjects["vm-operator"]
    )  # fmt: skip
    permissions = session.rbac_permissions
    assert {"vm.start", "vm.add_to_other_config/key:folder", "pool.get_all"} <= set(permissions)
    assert "vm.add_to_other_config" not in permissions
    assert all(permission == permission.lower() for permission in permissions)


def test_group_gives_its_role(directory: Directory) -> None:
    """The subject may be a group that holds the user."""
    session = directory.pool.db.session[directory.login("member")]
    assert session.subject == directory.subjects["staff"]
    assert "vm.start" in session.rbac_permissions


@pytest.mark.parametrize(
    ("user", "password", "code"),
    [
        ("vm-admin", "guess", "SESSION_AUTHENTICATION_FAILED"),
        ("unheard-of", "wonderland", "SESSION_AUTHENTICATION_FAILED"),
        ("stranger", "wonderland", "SESSION_AUTHORIZATION_FAILED"),
        ("nobody", "wonderland", "RBAC_PERMISSION_DENIED"),
    ],
)
def test_directory_logins_that_fail_take_5_seconds(directory: Directory, user: str, password: str, code: str) -> None:
    """Unknown, not let in, or without a role."""
    wire = Connection(directory.pool)
    wire.send(request(call("session.login_with_password", text(user), text(password))))
    directory.pool.clock.advance(4.9)
    assert wire.take() == b""
    directory.pool.clock.advance(0.2)
    assert wire.answer().error()[0] == code


def test_only_root_is_local_while_the_directory_is_on(directory: Directory) -> None:
    """Root needs no directory."""
    assert directory.pool.db.session[directory.pool.login()].is_local_superuser


def test_own_sessions_end_only(directory: Directory) -> None:
    """Logging a user out ends all of that user's sessions and no others."""
    pool = directory.pool
    ended, kept = directory.login("vm-admin"), directory.login("vm-operator")
    assert "S-vm-admin" in pool("session.get_all_subject_identifiers")
    pool("session.logout_subject_identifier", "S-vm-admin")
    assert ended not in pool.db.session
    assert kept in pool.db.session
    assert "S-vm-admin" not in pool("session.get_all_subject_identifiers")


def test_other_users_tasks(directory: Directory) -> None:
    """One's own tasks may be ended, others' with the role of an operator of the pool."""
    pool = directory.pool
    owner, other, operator = (directory.login(name) for name in ("vm-operator", "vm-operator", "pool-operator"))
    stranger = directory.login("vm-power-admin")
    tasks = [pool.raw("task.create", owner, "t", "") for _ in range(2)]
    assert refusal(directory, stranger, "task.destroy", tasks[0])[0] == "RBAC_PERMISSION_DENIED"
    pool.raw("task.destroy", other, tasks[0])
    pool.raw("task.destroy", operator, tasks[1])
    assert not set(tasks) & set(pool.db.task.rows)


# Tasks that headers name


def named(directory: Directory, session: str, name: str, *params: Any, **headers: str) -> Any:
    """Call with headers and return the value."""
    pool = directory.pool
    body = call(name, *(text(param) for param in (session, *params)))
    return Connection(pool).post(body, **headers).value()


def test_a_task_of_another_user_is_not_taken(directory: Directory, logged_in: dict[str, str]) -> None:
    """A call that names one has a task of its own, and the other's stays as it is."""
    pool = directory.pool
    roots = pool("task.create", "root's", "")
    for role in ("vm-operator", "pool-operator"):
        ref = named(directory, logged_in[role], "Async.VM.shutdown", "OpaqueRef:x", task_id=roots, subtask_of=roots)
        assert (ref != roots, pool.db.task[ref].status) == (True, "failure")
        assert pool.db.task[ref].subtask_of == NULL
    assert (pool.db.task[roots].status, list(pool.db.task[roots].subtasks)) == ("pending", [])


def test_a_task_is_taken_from_another_session_of_its_user(directory: Directory, logged_in: dict[str, str]) -> None:
    """While the session that made it is there."""
    pool = directory.pool
    first, second = directory.login("vm-operator"), logged_in["vm-operator"]
    own = named(directory, first, "task.create", "own", "")
    assert named(directory, second, "Async.VM.shutdown", "OpaqueRef:x", task_id=own) == own
    child = named(directory, second, "Async.VM.shutdown", "OpaqueRef:x", subtask_of=own)
    assert pool.db.task[child].subtask_of == own
    pool.raw("session.logout", first)
    assert named(directory, second, "Async.VM.shutdown", "OpaqueRef:x", task_id=own) != own


def test_who_is_not_logged_in_names_no_task(directory: Directory) -> None:
    """A login is a call like others, but nobody's."""
    pool = directory.pool
    roots = pool("task.create", "root's", "")
    origin = Origin(headers={b"task-id": roots.encode()})
    assert pool.daemon.tasks.named_by(origin, None) is None
    assert pool.daemon.tasks.named_by(origin, pool.db.session[pool.session]) is pool.db.task[roots]
