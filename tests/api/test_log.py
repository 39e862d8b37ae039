"""What the log says of calls, and what it never says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from hypervisor.api import Shutdown
from tests.api.test_power import make_vm, running
from tests.conftest import Pool
from xapi.access.caller import Origin
from xapi.datamodel import errors, quoting
from xapi.log import audit, lines
from xapi.log.audit import Trail
from xapi.log.calls import Calls

PEER = IPv4Address("TCP", "192.0.2.1", 4711)


class Heard:
    """A pool whose log and audit trail a test reads."""

    def __init__(self, pool: Pool, level: str = "info") -> None:
        self.pool = pool
        self.kept: list[lines.Line] = []
        self.audited: list[lines.Line] = []
        seconds = pool.clock.seconds
        least = lines.LEVELS[level]
        trail = Trail(pool.db, seconds, self.audited.append)

        def put(*line: Any) -> None:
            if line[1] >= least:
                self.kept.append(line)

        calls = Calls(pool.db, seconds, put, every=level == "debug", trail=trail)
        pool.origin = Origin(False, {b"user-agent": b"test/1.0"}, PEER)
        pool.begin(calls)
        self.clear()

    def clear(self) -> None:
        self.kept.clear()
        self.audited.clear()

    @property
    def said(self) -> list[str]:
        """The sentences, with their levels."""
        return [lines.text(line).decode().split(" ", 1)[1].rstrip("\n") for line in self.kept]

    @property
    def fields(self) -> list[dict[str, Any]]:
        return [json.loads(lines.json(line)) for line in self.kept]

    @property
    def trail(self) -> list[str]:
        """The lines of the audit trail."""
        return [line[3](*line[4])[0] for line in self.audited]

    @property
    def everything(self) -> str:
        return "".join(
            [lines.text(line).decode() for line in self.kept]
            + [lines.json(line).decode() for line in self.kept]
            + self.trail
        )


@pytest.fixture
def heard(pool: Pool) -> Heard:
    return Heard(pool)


def vm_of(pool: Pool, name: str = "web") -> Any:
    template = pool("VM.get_by_name_label", "Other install media")[0]
    return pool.db.VM[pool("VM.clone", template, name)]


# What is said


def test_a_change_is_a_line(pool: Pool, heard: Heard) -> None:
    """Who, from where, what, on which object by its name, how it ended, and in what time."""
    vm = vm_of(pool)
    heard.clear()
    pool("VM.set_name_label", vm._ref, "db")
    session = quoting.trackid(pool.session)
    assert heard.said == [
        f'info     VM.set_name_label self=VM "web" ({vm.uuid}) value="db": done in 0 ms, '
        f'"root" from 192.0.2.1 {session}'
    ]


def test_a_new_object_without_a_name_is_told_of_with_those_it_belongs_to(pool: Pool, heard: Heard) -> None:
    """A drive or a card: of which VM, on which disk or network."""
    vm, network = vm_of(pool), next(iter(pool.db.network))
    heard.clear()
    pool("VIF.create", {"VM": vm._ref, "network": network._ref, "device": "0", "MAC": "", "MTU": "1500",
         "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}})  # fmt: skip
    about = f'[VM "web" ({vm.uuid}), network "{network.name_label}" ({network.uuid})]'
    assert heard.said[0].startswith(f"info     VIF.create args={about}: done in 0 ms")


def test_a_json_line_of_a_call_has_all_of_it(pool: Pool, heard: Heard) -> None:
    """For programs: each thing by itself."""
    vm = vm_of(pool)
    heard.clear()
    pool("VM.set_is_a_template", vm._ref, False)
    (line,) = heard.fields
    assert line.pop("message")
    assert line == {
        "time": "2026-01-31T09:05:07.000Z", "level": "info", "logger": "xapi.log.calls", "event": "call",
        "method": "VM.set_is_a_template", "user": "root", "address": "192.0.2.1", "port": 4711, "agent": "test/1.0",
        "arguments": {"self": {"class": "VM", "name": "web", "uuid": vm.uuid}, "value": False}, "seconds": 0.0,
        "result": "done", "session": quoting.trackid(pool.session),
    }  # fmt: skip


def test_a_getter_is_no_line(pool: Pool, heard: Heard) -> None:
    """Clients poll; who wants to see it asks for debug."""
    pool("VM.get_all_records")
    assert heard.kept == []


def test_at_debug_a_getter_is_a_line(pool: Pool) -> None:
    """Every call, at its level."""
    heard = Heard(pool, "debug")
    heard.clear()
    pool("VM.get_all")
    assert [line.split(":")[0] for line in heard.said] == ["debug    VM.get_all"]


def test_a_call_that_fails_is_a_line(pool: Pool, heard: Heard) -> None:
    """A getter too; objects in the fault have their names."""
    vm = vm_of(pool)
    heard.clear()
    pool.fails("VM.start", vm._ref, False, False)
    assert heard.said[0].startswith(
        f'info     VM.start vm=VM "web" ({vm.uuid}) start_paused=false force=false: VM_IS_TEMPLATE VM "web" ({vm.uuid})'
    )


def test_a_call_that_is_refused_before_it_begins_is_a_line(pool: Pool, heard: Heard) -> None:
    """An unknown method, a session that is none, a parameter too few."""
    for call in (("VM.nonsense", pool.session), ("VM.get_all", "OpaqueRef:gone"), ("VM.start", pool.session)):
        with pytest.raises(Exception):  # noqa: B017
            pool.raw(*call)
    assert [line.split(" in ")[0] for line in heard.said] == [
        'info     VM.nonsense: MESSAGE_METHOD_UNKNOWN "VM.nonsense"',
        f'info     VM.get_all: SESSION_INVALID "{quoting.trackid("OpaqueRef:gone")}"',
        'info     VM.start: MESSAGE_PARAMETER_COUNT_MISMATCH "VM.start" "3" "0"',
    ]


def test_a_login_says_from_where_and_with_what(pool: Pool, heard: Heard) -> None:
    """The session's hash links what the user does to it."""
    session = pool.raw("session.login_with_password", "root", "xenroot", "1.0", "backup")
    assert heard.said == [
        'info     session.login_with_password uname="root": done in 0 ms, "root" from 192.0.2.1 with "test/1.0" '
        f'as "backup" {quoting.trackid(session)}'
    ]


def test_a_failed_login_is_a_warning(pool: Pool, heard: Heard) -> None:
    """What one looks for after an attack."""
    failing = pool.start("session.login_with_password", "root", "wrong-password")
    pool.turn()
    pool.clock.advance(10)
    failing.addErrback(lambda _: None)
    assert heard.said[0].startswith(
        'warn     session.login_with_password uname="root": SESSION_AUTHENTICATION_FAILED "root" '
        '"Authentication failure" in '
    )
    assert "wrong-password" not in heard.everything


def test_a_logout_is_a_line(pool: Pool, heard: Heard) -> None:
    """Whose session it was is known after its end."""
    pool("session.logout")
    track = quoting.trackid(pool.session)
    assert heard.said == [f'info     session.logout: done in 0 ms, "root" from 192.0.2.1 {track}']


def test_the_local_socket_is_named(pool: Pool, heard: Heard) -> None:
    """It has no address."""
    pool.origin = Origin(True, {}, UNIXAddress(None))
    pool.login()
    assert '"root" from the local socket' in heard.said[0]


def test_a_deleted_object_has_its_name(pool: Pool, heard: Heard) -> None:
    """It is looked up before it goes."""
    vm = vm_of(pool)
    heard.clear()
    pool("VM.destroy", vm._ref)
    assert heard.said[0].startswith(f'info     VM.destroy self=VM "web" ({vm.uuid}): done')


def test_an_async_call_is_told_of_when_it_ends(pool: Pool, heard: Heard) -> None:
    """With its task, and the time that it took."""
    vm = vm_of(pool)
    heard.clear()
    task = pool.db.task[pool("Async.VM.clone", vm._ref, "copy")]
    pool.turn()
    assert [line.split(" in ")[0] for line in heard.said] == [
        f'info     Async.VM.clone vm=VM "web" ({vm.uuid}) new_name="copy": done'
    ]
    assert heard.fields[0]["task"] == task.uuid


def test_a_call_that_waits_is_told_of_with_its_time(pool: Pool, heard: Heard) -> None:
    """In milliseconds, from the request to the result."""
    vm = running(pool)
    heard.clear()
    pool.backend.held["pause"] = Deferred()
    pausing = pool.start("VM.pause", pool.session, vm._ref)
    pool.turn()
    pool.clock.advance(0.25)
    pool.backend.held.pop("pause").callback(None)
    pool.outcome(pausing)
    assert ": done in 250 ms" in heard.said[-1]


def test_a_reader_that_takes_long_is_a_line(pool: Pool, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 100 ms on."""
    method = pool.daemon.dispatcher.methods["VM.get_all"]

    def slow(call: Any) -> tuple[str, ...]:
        pool.clock.advance(0.125)
        return ()

    monkeypatch.setattr(method, "function", slow)
    pool("VM.get_all")
    assert heard.said[0].startswith("info     VM.get_all: done in 125 ms")


def test_waiting_for_events_is_not_slow(pool: Pool, heard: Heard) -> None:
    """It is what event.next and event.from are for."""
    pool("event.register", ["VM"])
    waiting = pool.start("event.next", pool.session)
    pool.turn()
    pool.clock.advance(6)
    make_vm(pool)
    pool.outcome(waiting)
    assert heard.kept == []


def test_an_unexpected_error_is_an_error_with_its_traceback(
    pool: Pool, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the call was, without what it must not say."""
    method = pool.daemon.dispatcher.methods["secret.create"]

    def broken(call: Any, record: Any) -> str:
        raise KeyError(f"no place for {record['value']}")

    monkeypatch.setattr(method, "function", broken)
    fault = pool.fails("secret.create", {"value": "do-not-tell", "other_config": {}})
    assert fault[0] == "INTERNAL_ERROR"
    assert heard.said[0].startswith("error    secret.create failed unexpectedly\n")
    assert "KeyError" in heard.said[0]
    assert "do-not-tell" not in heard.everything


def test_a_name_cannot_forge_a_line(pool: Pool, heard: Heard) -> None:
    """Neither a line of its own nor colours."""
    vm = vm_of(pool)
    heard.clear()
    pool("VM.set_name_label", vm._ref, 'a"\n2026-01-31T09:05:07.000Z info     root logged in \x9b31m\u202e')
    assert len(heard.said) == 1
    assert r'value="a\"\n2026-01-31T09:05:07.000Z info     root logged in \x9b31m\u202e"' in heard.said[0]


# What becomes of guests


@pytest.fixture
def life(pool: Pool) -> Iterator[list[str]]:
    """What modules say by their loggers, with levels."""
    said: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_namespace"].startswith("xapi"):
            said.append(f"{event['log_level'].name} {formatEvent(event)}")

    globalLogPublisher.addObserver(observe)
    yield said
    globalLogPublisher.removeObserver(observe)


def test_a_guest_s_begin_and_end_are_lines(pool: Pool, life: list[str]) -> None:
    """Where it lives and as what; and that it has ended."""
    vm = running(pool)
    pool("VM.hard_shutdown", vm._ref)
    host = next(iter(pool.db.host))
    name = f'VM "guest" ({vm.uuid})'
    assert life == [
        f'info {name} lives as domain 1 on host "{host.name_label}" ({host.uuid}): pvh, 1 vCPUs, 64 MiB',
        f"info {name}: domain 1 has ended, it is Halted",
    ]


@pytest.mark.parametrize(
    ("why", "said"),
    [
        (Shutdown.POWEROFF, "info {}: its guest, domain 1, powered off"),
        (Shutdown.REBOOT, "info {}: its guest, domain 1, asked for a reboot"),
        (Shutdown.CRASH, "warn {}: its guest, domain 1, crashed"),
        (Shutdown.WATCHDOG, "warn {}: its guest, domain 1, did not feed its watchdog"),
    ],
)
def test_what_ended_a_guest_is_a_line(pool: Pool, life: list[str], why: Shutdown, said: str) -> None:
    """A crash is a warning: nobody asked for it."""
    vm = running(pool)
    life.clear()
    pool.backend.goes_down(vm.uuid, why)
    pool.turn()
    assert life[0] == said.format(f'VM "guest" ({vm.uuid})')


@pytest.mark.parametrize("why", [Shutdown.CRASH, Shutdown.REBOOT])
def test_all_that_is_said_of_a_guest_s_end_has_its_name(pool: Pool, life: list[str], why: Shutdown) -> None:
    """Whoever looks for the name of a VM finds what the toolstack did with it too."""
    vm = running(pool, actions_after_crash="restart", actions_after_reboot="restart")
    pool.backend.start_time = pool.clock.seconds()
    life.clear()
    pool.backend.goes_down(vm.uuid, why)
    pool.turn()
    assert len(life) >= 2
    assert all(f'VM "guest" ({vm.uuid})' in line for line in life)


def test_a_session_that_idles_away_is_a_line(pool: Pool, life: list[str]) -> None:
    """No call ends it."""
    pool.clock.advance(24 * 3600 + 1)
    pool.daemon.sessions.sweep()
    assert life == [f'info "root"\'s session ends, {quoting.trackid(pool.session)}: idle']


# What is never said

SECRET = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=12, max_size=40).map(
    lambda text: f"s3cr3t-{text}"
)


def given_for(kind: Any, secret: str, name: str) -> Any:
    """Return a value that fits a type, with a secret wherever a text may be secret."""
    shown = str(kind)
    if "map" in shown:
        return {f"{name}-password": secret}
    return {"int": "1", "bool": True, "float": 1.0}.get(shown.removeprefix("<Type ").removesuffix(">"), "")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=4, deadline=None)
@given(secret=SECRET)
def test_no_secret_is_in_any_line(pool: Pool, secret: str) -> None:
    """Every call that has a secret parameter, or a map, with good and with bad company, at every level."""
    heard = Heard(pool, "debug")
    for method in {method.name: method for method in pool.daemon.dispatcher.methods.values()}.values():
        message = method.message
        hidden = [
            parameter.secret or "map" in str(parameter.type) or (message.kind == "add" and parameter.name == "value")
            for parameter in message.parameters
        ]
        if not any(hidden) or message.name in ("login_with_password", "slave_local_login_with_password"):
            continue
        values = [
            secret if hides and "map" not in str(parameter.type) else given_for(parameter.type, secret, parameter.name)
            for parameter, hides in zip(message.parameters, hidden)
        ]
        for form in (values, [*values, "one too many"], values[:-1], [secret if hides else 1 for hides in hidden]):
            started = pool.start(method.name, *([pool.session] if message.session else []), *form)
            started.addErrback(lambda _: None)
            pool.turn()
    assert heard.kept
    escaped = json.dumps(secret)[1:-1]
    for shape in {secret, quoting.escape(secret), escaped, audit._printable(secret)}:
        assert shape not in heard.everything


def test_no_session_is_in_any_line(pool: Pool) -> None:
    """Wherever a client puts its reference: as a session, as an object, as a name."""
    heard = Heard(pool, "debug")
    session = pool.session
    itself = next(iter(pool.db.pool))._ref
    for call in (
        ("VM.get_record", session, session), ("session.get_record", session, session), (session, session),
        ("VM.start", session, session, False, False), ("VM.get_by_uuid", session, session),
        ("VM.get_by_name_label", session, session), ("pool.set_name_label", session, itself, session),
        ("pool.set_name_description", session, itself, f"of {session}"),
        ("session.set_other_config", session, session, {"a": session}), ("session.logout", session),
        ("VM.get_all", session), ("session.login_with_password", session, session),
    ):  # fmt: skip
        pool.start(*call).addErrback(lambda _: None)
        pool.turn()
        pool.clock.advance(10)
    assert len(heard.kept) >= 11
    assert session not in heard.everything
    assert session.removeprefix("OpaqueRef:") not in heard.everything


def test_a_driver_s_words_hide_its_password(pool: Pool, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may repeat its settings; the daemon's client gets them, the log does not."""
    method = pool.daemon.dispatcher.methods["SR.probe"]

    async def probe(call: Any, host: Any, device_config: Any, type: str, sm_config: Any) -> str:
        raise errors.SR_BACKEND_FAILURE("73", f"mount of {device_config} failed", "")

    monkeypatch.setattr(method, "function", probe)
    given = {"server": "nfs.example", "cifspassword": "hunter22"}
    fault = pool.fails("SR.probe", next(iter(pool.db.host))._ref, given, "nfs", {})
    assert "hunter22" in fault[2]
    assert "hunter22" not in heard.everything
    assert 'SR_BACKEND_FAILURE "73" "***" "" in' in heard.said[0]
