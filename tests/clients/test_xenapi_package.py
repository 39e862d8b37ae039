"""The XenAPI package of PyPI against the daemon: all that its users do without VMs that run."""

from __future__ import annotations

import threading
import xmlrpc.client
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon

NULL = "OpaqueRef:NULL"
EPOCH = "19700101T00:00:00Z"


def failure(call: Callable[..., Any], *arguments: Any) -> list[str]:
    """Return the ErrorDescription of a call that must fail."""
    with pytest.raises(XenAPI.Failure) as caught:
        call(*arguments)
    details: list[str] = caught.value.details
    return details


@pytest.fixture
def api(session: Any) -> Any:
    return session.xenapi


@pytest.fixture
def pool(api: Any) -> str:
    (ref,) = api.pool.get_all()
    return str(ref)


@pytest.fixture
def template(api: Any) -> str:
    """A VM record that tests may change."""
    refs = api.VM.get_by_name_label("Debian Bookworm 12")
    return str(refs[0])


# Logging in


@pytest.mark.parametrize("more", [(), ("1.0",), ("1.0", "originator of tests")], ids=["two", "three", "four"])
@pytest.mark.parametrize("address", ["http", "https", "socket"])
def test_login_and_first_calls(daemon: Daemon, clients: Clients, address: str, more: tuple[str, ...]) -> None:
    """Every transport takes two, three and four arguments, and the package finds the API version."""
    client = clients(getattr(daemon, address))
    client.login_with_password("root", "xenroot", *more)
    record = client.xenapi.session.get_record(client.handle)
    assert client.API_version == "2.23"
    assert record["originator"] == (more[1] if len(more) > 1 else "")
    assert record["is_local_superuser"] is True
    client.xenapi.session.logout()


def test_local_socket_asks_no_password(daemon: Daemon, clients: Clients) -> None:
    """What Ansible and xsconsole do on the host itself."""
    client = clients(daemon.socket)
    client.login_with_password("", "")
    assert client.xenapi.session.get_auth_user_name(client.handle) == "root"


def test_wrong_password_is_refused_after_a_while(daemon: Daemon, clients: Clients) -> None:
    """Guessing is slow, and the answer names the user."""
    client = clients(daemon.http)
    start = monotonic()
    description = failure(client.login_with_password, "root", "guess")
    assert description == ["SESSION_AUTHENTICATION_FAILED", "root", "Authentication failure"]
    assert monotonic() - start >= 2


def test_other_clients_are_served_while_a_login_is_delayed(daemon: Daemon, clients: Clients, api: Any) -> None:
    """The delay of a wrong password is nobody else's."""
    guesser = clients(daemon.http)
    guess = threading.Thread(target=lambda: failure(guesser.login_with_password, "root", "guess"))
    guess.start()
    start = monotonic()
    api.pool.get_all()
    assert monotonic() - start < 1.5
    guess.join()


def test_a_session_that_ended_is_invalid(daemon: Daemon, clients: Clients) -> None:
    """The bare answer has the code and the reference, which the package takes as a word to log in again."""
    client = clients.root(daemon)
    ref = client.handle
    client.xenapi.session.logout()
    answer = clients.plain(daemon.http).VM.get_all(ref)
    assert answer == {"Status": "Failure", "ErrorDescription": ["SESSION_INVALID", ref]}


def test_the_package_logs_in_again_by_itself(daemon: Daemon, clients: Clients, session: Any) -> None:
    """A session that somebody else ended comes back with the saved password."""
    first = session.handle
    clients.plain(daemon.http).session.logout(first)
    assert session.xenapi.pool.get_all()
    assert session.handle != first


def test_slave_local_login(daemon: Daemon, clients: Clients) -> None:
    """The emergency login gives a session that local_logout ends."""
    client = clients(daemon.http)
    client.slave_local_login_with_password("root", "xenroot")
    assert client.xenapi.pool.get_all()
    client.logout()


# Records, getters and setters


def test_records_agree_with_getters(api: Any, pool: str) -> None:
    """get_all_records, get_record and a getter say the same."""
    record = api.pool.get_record(pool)
    assert api.pool.get_all_records() == {pool: record}
    assert api.pool.get_uuid(pool) == record["uuid"]
    assert api.pool.get_other_config(pool) == record["other_config"]
    assert api.pool.get_ha_enabled(pool) is record["ha_enabled"] is False


def test_types_of_a_record(api: Any) -> None:
    """Each kind of value arrives as the Python type that scripts expect."""
    (host,) = api.host.get_all_records().values()
    metrics = api.host_metrics.get_record(host["metrics"])
    assert isinstance(host["enabled"], bool)
    assert host["API_version_major"] == "2"
    assert int(host["memory_overhead"]) >= 0
    assert isinstance(host["capabilities"], list)
    assert isinstance(host["software_version"], dict)
    assert isinstance(metrics["last_updated"], xmlrpc.client.DateTime)
    assert host["crash_dump_sr"].startswith("OpaqueRef:")
    (cpu, *_) = api.host_cpu.get_all_records().values()
    assert isinstance(cpu["utilisation"], float)


def test_setter_is_seen_by_all(daemon: Daemon, clients: Clients, api: Any, pool: str) -> None:
    """One client writes, another reads."""
    api.pool.set_name_label(pool, "Überpool <&> \"'")
    assert clients.root(daemon).xenapi.pool.get_name_label(pool) == "Überpool <&> \"'"
    api.pool.set_name_label(pool, "")


def test_map_keys_come_and_go(api: Any, pool: str) -> None:
    """add_to refuses a key that is there, remove_from takes one that is not."""
    api.pool.add_to_other_config(pool, "k", "v")
    assert failure(api.pool.add_to_other_config, pool, "k", "v") == [
        "MAP_DUPLICATE_KEY", "pool", "other_config", pool, "k"
    ]  # fmt: skip
    assert api.pool.get_other_config(pool)["k"] == "v"
    api.pool.remove_from_other_config(pool, "k")
    api.pool.remove_from_other_config(pool, "k")
    assert "k" not in api.pool.get_other_config(pool)


def test_set_values_come_and_go(api: Any, pool: str) -> None:
    """Adding twice and removing twice are no errors."""
    for tag in ("a", "b", "a"):
        api.pool.add_tags(pool, tag)
    assert api.pool.get_tags(pool) == ["a", "b"]
    for tag in ("a", "a", "b"):
        api.pool.remove_tags(pool, tag)
    assert api.pool.get_tags(pool) == []


def test_objects_are_found(api: Any, template: str) -> None:
    """By uuid, by name and by an expression."""
    record = api.VM.get_record(template)
    assert api.VM.get_by_uuid(record["uuid"]) == template
    assert api.VM.get_by_name_label("no such VM") == []
    expression = f'field "name__label" = "{record["name_label"]}" and field "is_a_template" = "true"'
    assert api.VM.get_all_records_where(expression) == {template: record}
    assert template in api.VM.get_all()


def test_none_counts_as_empty(api: Any, pool: str) -> None:
    """The package sends <nil/>: an empty string, or a null reference."""
    api.pool.set_name_description(pool, None)
    api.pool.set_default_SR(pool, None)
    assert api.pool.get_name_description(pool) == ""
    assert api.pool.get_default_SR(pool) == NULL


@pytest.mark.parametrize("value", [0, 2**31, 2**63 - 1, -(2**63)])
def test_64_bit_integers_go_as_strings(api: Any, template: str, value: int) -> None:
    """xmlrpc.client cannot send them as ints, and they come back as strings."""
    api.VM.set_user_version(template, str(value))
    assert api.VM.get_user_version(template) == str(value)
    api.VM.set_user_version(template, "0")


def test_small_integers_may_go_as_ints(api: Any, template: str) -> None:
    """<int> is read too."""
    api.VM.set_user_version(template, 7)
    assert api.VM.get_user_version(template) == "7"
    api.VM.set_user_version(template, "0")


@pytest.mark.parametrize(
    "text",
    ["déjà vu", "日本語", "𝄞 \U0001f600", "tab\tand\nnewline", "carriage\r\nreturn", " blanks around ", "]]>", "&amp;"],
)
def test_text_survives(api: Any, pool: str, text: str) -> None:
    """Whatever XML can say comes back as it went."""
    api.pool.set_name_description(pool, text)
    # xmlrpc.client sends CR bare, which every XML reader takes for LF.
    assert api.pool.get_name_description(pool) == text.replace("\r\n", "\n")
    api.pool.set_name_description(pool, "")


def test_control_characters_are_refused_and_the_connection_lives(api: Any, pool: str) -> None:
    """xmlrpc.client sends them bare, which is no XML: an error of the API, not of the transport."""
    code, text = failure(api.pool.set_name_description, pool, "bell \x07")
    assert code == "INTERNAL_ERROR"
    assert "malformed XML-RPC call" in text
    assert api.pool.get_name_description(pool) == ""


def test_long_text(api: Any, pool: str) -> None:
    """200 KB in one parameter."""
    text = "x€" * 50_000
    api.pool.set_name_description(pool, text)
    assert api.pool.get_name_description(pool) == text
    api.pool.set_name_description(pool, "")


def test_body_beyond_the_limit_is_refused(api: Any, pool: str) -> None:
    """More than 300 KiB: 413, and the next call is served on a new connection."""
    with pytest.raises(xmlrpc.client.ProtocolError) as caught:
        api.pool.set_name_description(pool, "x" * 400 * 1024)
    assert caught.value.errcode == 413
    assert api.pool.get_name_description(pool) == ""


# Faults


def test_faults(api: Any, pool: str) -> None:
    """Code and parameters of the errors that scripts look at."""
    assert failure(api.VM.get_record, "OpaqueRef:x") == ["HANDLE_INVALID", "VM", "OpaqueRef:x"]
    assert failure(api.VM.get_record, pool) == ["HANDLE_INVALID", "VM", pool]
    assert failure(api.VM.get_by_uuid, "x") == ["UUID_INVALID", "VM", "x"]
    assert failure(api.VM.fly) == ["MESSAGE_METHOD_UNKNOWN", "VM.fly"]
    assert failure(api.VM.get_record) == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "0"]
    assert failure(api.pool.get_all, "more") == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "pool.get_all", "0", "1"]
    assert failure(api.Async.pool.get_all)[0] == "Fault"
    assert failure(api.pool.set_name_label, pool, 5)[0] == "INTERNAL_ERROR"


def test_both_spellings(daemon: Daemon, clients: Clients, session: Any, api: Any, pool: str) -> None:
    """An underscore stands for the dot: `event.from` is no Python."""
    assert api.pool_get_all() == [pool]
    batch = api.event_from(["pool"], "", 0.0)
    assert [event["ref"] for event in batch["events"]] == [pool]
    answer = clients.plain(daemon.http).pool_get_all(session.handle)
    assert answer == {"Status": "Success", "Value": [pool]}


def test_list_methods(daemon: Daemon, clients: Clients) -> None:
    """Without a session and without the Status struct."""
    names = clients.plain(daemon.http).system.listMethods()
    assert isinstance(names, list)
    assert {"VM.get_all_records", "event.from", "session.login_with_password"} <= set(names)


# Events


class Follower(threading.Thread):
    """A second client that asks for events until it has seen what it waits for."""

    def __init__(self, api: Any, classes: list[str], token: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        super().__init__()
        self.api = api
        self.classes = classes
        self.token = token
        self.wanted = wanted
        self.found: dict[str, Any] | None = None
        self.tokens = [token]

    def run(self) -> None:
        deadline = monotonic() + 20
        while self.found is None and monotonic() < deadline:
            batch = self.api.event_from(self.classes, self.tokens[-1], 5.0)
            self.tokens.append(batch["token"])
            self.found = next((event for event in batch["events"] if self.wanted(event)), None)


def test_events_tell_another_thread(daemon: Daemon, clients: Clients, api: Any, pool: str) -> None:
    """event.from in one thread hears what the other changes, and its tokens grow."""
    token = api.event_from(["pool"], "", 0.0)["token"]
    follower = Follower(
        clients.root(daemon).xenapi, ["pool"], token, lambda event: "told" in event["snapshot"]["other_config"]
    )
    follower.start()
    api.pool.add_to_other_config(pool, "told", "1")
    follower.join()
    api.pool.remove_from_other_config(pool, "told")
    assert follower.found is not None
    snapshot = follower.found.pop("snapshot")
    assert int(follower.found.pop("id")) > 0
    assert follower.found == {"class": "pool", "operation": "mod", "ref": pool, "timestamp": "0.0"}
    assert snapshot["other_config"]["told"] == "1"
    assert follower.tokens == sorted(set(follower.tokens))


def test_events_of_an_object_that_comes_and_goes(daemon: Daemon, clients: Clients, api: Any) -> None:
    """add with a snapshot, del without."""
    token = api.event_from(["VM_group"], "", 0.0)["token"]
    ref = api.VM_group.create({"name_label": "group", "placement": "normal"})
    (event,) = api.event_from(["VM_group"], token, 5.0)["events"]
    assert (event["operation"], event["ref"], event["snapshot"]) == ("add", ref, api.VM_group.get_record(ref))
    token = api.event_from(["VM_group"], "", 0.0)["token"]
    api.VM_group.destroy(ref)
    (event,) = api.event_from(["VM_group"], token, 5.0)["events"]
    assert (event["operation"], event["ref"]) == ("del", ref)
    assert "snapshot" not in event


def test_events_time_out(api: Any) -> None:
    """With nothing to tell the answer has a token and counts, and real ints in them."""
    token = api.event_from(["VM_group"], "", 0.0)["token"]
    start = monotonic()
    batch = api.event_from(["VM_group"], token, 0.5)
    assert 0.4 < monotonic() - start < 5
    assert batch["events"] == []
    assert batch["token"] >= token
    assert batch["valid_ref_counts"]["pool"] == 1
    assert type(batch["valid_ref_counts"]["vm"]) is int


def test_inject(api: Any, pool: str) -> None:
    """A token from just before a touch of the object."""
    token = api.event.inject("pool", pool)
    (event,) = api.event_from([f"pool/{pool}"], token, 5.0)["events"]
    assert event["operation"] == "mod"
    assert failure(api.event.inject, "VM", pool) == ["HANDLE_INVALID", "VM", pool]


def test_register_and_next(daemon: Daemon, clients: Clients, session: Any, pool: str) -> None:
    """The old way: one subscription a session, and next() waits."""
    listener = clients.root(daemon)
    api = listener.xenapi
    assert failure(api.event.next) == ["SESSION_NOT_REGISTERED", listener.handle]
    api.event.register(["Pool"])
    heard: list[Any] = []
    waiting = threading.Thread(target=lambda: heard.extend(api.event.next()))
    waiting.start()
    session.xenapi.pool.add_to_other_config(pool, "next", "1")
    waiting.join()
    session.xenapi.pool.remove_from_other_config(pool, "next")
    api.event.unregister(["pool"])
    assert [(event["class"], event["operation"], event["ref"]) for event in heard] == [("pool", "mod", pool)]
    assert float(heard[0]["timestamp"]) > 0


def test_logout_ends_a_wait_for_events(daemon: Daemon, clients: Clients, api: Any) -> None:
    """A thread that waits hears SESSION_INVALID."""
    listener = clients.plain(daemon.http)
    ref = listener.session.login_with_password("root", "xenroot")["Value"]
    token = api.event_from(["VM_group"], "", 0.0)["token"]
    heard: list[Any] = []
    ask = getattr(listener, "event.from")
    waiting = threading.Thread(target=lambda: heard.append(ask(ref, ["VM_group"], token, 20.0)))
    waiting.start()
    clients.plain(daemon.http).session.logout(ref)
    waiting.join()
    assert heard == [{"Status": "Failure", "ErrorDescription": ["SESSION_INVALID", ref]}]


# Tasks


def finished(api: Any, task: str) -> dict[str, Any]:
    """Poll a task until it ends, as scripts do."""
    deadline = monotonic() + 20
    while api.task.get_status(task) == "pending":
        assert monotonic() < deadline
    record: dict[str, Any] = api.task.get_record(task)
    return record


def test_async_call_that_succeeds(api: Any) -> None:
    """A task at once; then its result as XML-RPC text."""
    task = api.Async.SR.introduce("", "of an async call", "", "file", "user", False, {})
    record = finished(api, task)
    sr = api.SR.get_by_name_label("of an async call")[0]
    assert record["status"] == "success"
    assert record["result"] == f"<value>{sr}</value>"
    assert record["name_label"] == "Async.SR.introduce"
    assert (record["progress"], record["error_info"], record["allowed_operations"]) == (1.0, [], [])
    assert str(record["finished"]) != EPOCH
    api.task.destroy(task)
    assert failure(api.task.get_status, task) == ["HANDLE_INVALID", "task", task]
    api.SR.forget(sr)


def test_async_void_call(api: Any) -> None:
    """Nothing is an empty value."""
    record = finished(api, api.Async.task.add_to_other_config(api.task.create("own", ""), "k", "v"))
    assert (record["status"], record["result"]) == ("success", "<value></value>")


def test_async_call_that_fails(api: Any) -> None:
    """error_info is the ErrorDescription."""
    record = finished(api, api.Async.SR.get_live_hosts("OpaqueRef:x"))
    assert record["status"] == "failure"
    assert record["error_info"] == ["HANDLE_INVALID", "SR", "OpaqueRef:x"]
    assert record["result"] == ""


def test_a_clients_own_task(api: Any) -> None:
    """What upload scripts do with one: progress, result, end; then it changes no more."""
    task = api.task.create("upload", "of a disk")
    api.task.set_progress(task, 0.5)
    api.task.set_result(task, "<value>7</value>")
    record = api.task.get_record(task)
    assert (record["name_label"], record["status"], record["progress"]) == ("upload", "pending", 0.5)
    assert (record["type"], record["result"], str(record["finished"])) == ("<none/>", "<value>7</value>", EPOCH)
    api.task.cancel(task)
    api.task.set_status(task, "success")
    api.task.set_status(task, "failure")
    assert api.task.get_status(task) == "success"
    assert task in api.task.get_all()
    api.task.destroy(task)
    assert task not in api.task.get_all()
