"""Plugins and extensions: how they are found, asked, ended, and what becomes of their answers.

Programs run under a real daemon, in a process of its own; what is of rows alone runs in memory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.api.test_power import running
from tests.clients.daemon import Daemon
from tests.conftest import Pool

XAPI_PLUGIN = f"""#!{sys.executable}
import os, time, XenAPI, XenAPIPlugin

def hosts(session, args):
    return " ".join(session.xenapi.host.get_name_label(ref) for ref in session.xenapi.host.get_all())

def local(session, args):
    other = XenAPI.xapi_local()
    other.login_with_password("root", "")
    return str(len(other.xenapi.pool.get_all()))

def refuse(session, args):
    raise XenAPIPlugin.Failure("VM_BAD_POWER_STATE", ["vm", args["wanted"], "x"])

def crash(session, args):
    return {{}}["no"]

def echo(session, args):
    return repr(sorted(args.items()))

def where(session, args):
    return os.getcwd() + " " + str(os.getpgrp() == os.getpid())

def number(session, args):
    return 7

XenAPIPlugin.dispatch({{f.__name__: f for f in (hosts, local, refuse, crash, echo, where, number)}})
"""
SHELL = {
    "garbage": "#!/bin/sh\necho this is no XML\n",
    "silent": "#!/bin/sh\n",
    "fails": "#!/bin/sh\necho out; echo err >&2; exit 3\n",
    "dies": "#!/bin/sh\nkill -SEGV $$\n",
    "fault": "#!/bin/sh\necho '<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>4</int>"
    "</value></member><member><name>faultString</name><value><string>bad</string></value></member></struct></value>"
    "</fault></methodResponse>'\n",
    "loud": "#!/bin/sh\nexec cat /dev/zero\n",
    "sleeps": "#!/bin/sh\nsleep 1000 &\necho $! $$ >$(dirname $0)/../pids.new\nmv $(dirname $0)/../pids.new "
    "$(dirname $0)/../pids\nwait\n",
    "leaves": "#!/bin/sh\nsleep 1000 &\necho $! >$(dirname $0)/../left\n"
    "echo '<methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member>"
    "<member><name>Value</name><value>done</value></member></struct></value></param></params></methodResponse>'\n",
    "talks": "#!/bin/sh\necho '<methodResponse><params><param><value><struct><member><name>Status</name>"
    "<value>Success</value></member><member><name>Value</name><value>done</value></member></struct></value></param>"
    "</params></methodResponse>'\necho 'all went well <&'\n",
    "not-executable": "#!/bin/sh\n",
}
EXTENSION = f"""#!{sys.executable}
import sys, xmlrpc.client
assert sys.argv[1:] == ["--xmlrpc"]
params, name = xmlrpc.client.loads(sys.stdin.buffer.read())
if params[1] == "fail":
    answer = {{"Status": "Failure", "ErrorDescription": ["HOST_DISABLED", "h"]}}
else:
    value = name + " " + params[1] if isinstance(params[1], str) else params[1:]
    answer = {{"Status": "Success", "Value": value}}
print(xmlrpc.client.dumps((answer,), methodresponse=True))
"""


def write(path: Path, text: str, mode: int = 0o755) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with plugins and an extension."""
    state = tmp_path_factory.mktemp("state")
    write(state / "plugins" / "python", XAPI_PLUGIN)
    for name, text in SHELL.items():
        write(state / "plugins" / name, text, 0o644 if name == "not-executable" else 0o755)
    (state / "plugins" / "directory").mkdir()
    write(state / "extensions" / "Ext.say", EXTENSION)
    write(state / "settings.toml", "plugin_seconds = 5\n", 0o644)
    return state


@pytest.fixture(scope="module")
def api(state: Path) -> Iterator[Any]:
    daemon = Daemon(state, "--config", str(state / "settings.toml")).ready()
    session = XenAPI.Session(daemon.http)
    session.login_with_password("root", "xenroot")
    yield session.xenapi
    session("close")()
    daemon.stop()


@pytest.fixture(scope="module")
def ask(api: Any) -> Callable[..., Any]:
    """Call a plugin's function; the ErrorDescription if it fails."""
    host = api.host.get_all()[0]

    def run(plugin: str, function: str = "f", **arguments: str) -> Any:
        try:
            return api.host.call_plugin(host, plugin, function, arguments)
        except XenAPI.Failure as failure:
            return failure.details

    return run


def is_alive(pid: int) -> bool:
    """Tell whether a process runs: one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline


def test_a_plugin_uses_the_callers_session(api: Any, ask: Callable[..., Any]) -> None:
    """Through the daemon's own socket, as plugins of XCP do."""
    assert ask("python", "hosts") == api.host.get_name_label(api.host.get_all()[0])
    assert ask("python", "local") == "1"


def test_arguments_arrive_as_they_are(ask: Callable[..., Any]) -> None:
    """No shell sees them."""
    given = {"a": "$(id) `id` ; ' \"", "b": "<é&日本>\n\t", "c": ""}
    assert ask("python", "echo", **given) == repr(sorted(given.items()))


def test_a_plugin_leads_a_process_group(ask: Callable[..., Any]) -> None:
    """It begins in the root directory."""
    assert ask("python", "where") == "/ True"


def test_errors_of_plugins(ask: Callable[..., Any]) -> None:
    """Those that they raise are the caller's own."""
    assert ask("python", "refuse", wanted="halted") == ["VM_BAD_POWER_STATE", "vm", "halted", "x"]
    assert ask("python", "crash") == ["XENAPI_PLUGIN_FAILURE", "crash", "KeyError", "'no'"]
    assert ask("python", "<fly>") == ["UNKNOWN_XENAPI_PLUGIN_FUNCTION", "<fly>"]
    assert ask("python", "number")[:2] == ["XENAPI_PLUGIN_FAILURE", "unexpected XMLRPC result"]


@pytest.mark.parametrize("name", ["no-such", "", ".", "..", "../plugins/python", "/bin/sh", "python/"])
def test_only_files_of_the_directory_are_plugins(ask: Callable[..., Any], name: str) -> None:
    """By a plain name."""
    assert ask(name) == ["XENAPI_MISSING_PLUGIN", name]


@pytest.mark.parametrize("name", ["not-executable", "directory"])
def test_what_cannot_be_executed(ask: Callable[..., Any], name: str) -> None:
    """The administrator's mistake has an error of its own, which does not tell where plugins are."""
    assert ask(name) == ["PERMISSION_DENIED", f"{name} cannot be executed"]


def test_what_a_plugin_prints_behind_its_answer_is_no_matter(ask: Callable[..., Any]) -> None:
    """As with xapi, which reads no further than the answer's end."""
    assert ask("talks") == "done"


def test_programs_that_are_no_plugins(ask: Callable[..., Any]) -> None:
    """What they printed is told."""
    assert ask("garbage")[:3] == ["XENAPI_PLUGIN_FAILURE", "failed to parse plugin output", "this is no XML\n"]
    assert ask("silent")[:3] == ["XENAPI_PLUGIN_FAILURE", "failed to parse plugin output", ""]
    assert ask("fails") == ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "out\n", "err\n"]
    assert ask("dies")[:2] == ["XENAPI_PLUGIN_FAILURE", "signal: SIGSEGV"]
    assert ask("fault") == ["XENAPI_PLUGIN_FAILURE", "fault", "4", "bad"]


def test_too_much_output_ends_a_plugin(ask: Callable[..., Any]) -> None:
    """The daemon keeps a few megabytes at most."""
    code, why, shown, _ = ask("loud")
    assert (code, why, len(shown)) == ("XENAPI_PLUGIN_FAILURE", "output limit exceeded", 64 << 10)


def test_a_plugin_that_takes_too_long_is_killed_with_its_children(ask: Callable[..., Any], state: Path) -> None:
    """After the seconds of the setting."""
    (state / "pids").unlink(missing_ok=True)
    assert ask("sleeps")[:2] == ["XENAPI_PLUGIN_FAILURE", "time limit exceeded"]
    for pid in map(int, (state / "pids").read_text().split()):
        wait_until(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]


def test_a_cancelled_plugin_is_killed(api: Any, state: Path) -> None:
    """With its children, and the task says so."""
    (state / "pids").unlink(missing_ok=True)
    task = api.Async.host.call_plugin(api.host.get_all()[0], "sleeps", "f", {})
    wait_until((state / "pids").exists)
    api.task.cancel(task)
    wait_until(lambda: api.task.get_status(task) == "cancelled")
    for pid in map(int, (state / "pids").read_text().split()):
        wait_until(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]


def test_a_plugin_may_leave_something_running(ask: Callable[..., Any], state: Path) -> None:
    """Its answer does not wait for that, though it holds the output open."""
    assert ask("leaves") == "done"
    pid = int((state / "left").read_text())
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


def test_extensions(api: Any) -> None:
    """They get a whole call on standard input."""
    host = api.host.get_all()[0]
    assert api.host.has_extension(host, "Ext.say") is True
    assert api.host.has_extension(host, "python") is False
    call = json.dumps({"method": "Ext.say", "params": ["session", "é"], "id": 1})
    assert api.host.call_extension(host, call) == "Ext.say é"
    for text, expected in (
        (call.replace("\\u00e9", "fail"), ["HOST_DISABLED", "h"]),
        (call.replace("Ext.say", "Ext.no"), ["MESSAGE_METHOD_UNKNOWN", "Ext.no"]),
    ):
        with pytest.raises(XenAPI.Failure) as caught:
            api.host.call_extension(host, text)
        assert caught.value.details == expected
    for text in ("", "[]", '{"method": 1, "params": []}'):
        with pytest.raises(XenAPI.Failure) as caught:
            api.host.call_extension(host, text)
        assert caught.value.details[0] == "INTERNAL_ERROR"


def test_an_extension_is_a_message_of_its_own_name(api: Any) -> None:
    """With all the parameters as they came, and whatever it answers; others stay unknown."""
    assert api.Ext.say("é") == "Ext.say é"
    sent = {"a": [1, True, 2.5, ""], "b": {"c": "<&>"}}
    assert api.Ext.say(sent, "more") == [sent, "more"]
    for call, expected in ((api.Ext.say, ["HOST_DISABLED", "h"]), (api.Ext.no, ["MESSAGE_METHOD_UNKNOWN", "Ext.no"])):
        with pytest.raises(XenAPI.Failure) as caught:
            call("fail")
        assert caught.value.details == expected


# VM.call_plugin


def test_a_guests_agent_is_asked_through_xenstore(pool: Pool) -> None:
    """Where the guest says that it has one; not more often than every ten seconds."""
    vm = running(pool)
    ask: tuple[Any, ...] = ("VM.call_plugin", vm._ref, "guest-agent-operation", "request-rdp-on", {})
    assert pool.fails("VM.call_plugin", vm._ref, "other", "f", {}) == ["XENAPI_MISSING_PLUGIN", "other"]
    assert pool.fails(*ask)[:2] == ["XENAPI_PLUGIN_FAILURE", "failed to execute fn"]
    assert pool.fails(*ask) == ["VM_CALL_PLUGIN_RATE_LIMIT", vm._ref, "10.0", "10.0"]
    pool.clock.advance(10)
    pool.backend.doms[vm.uuid].guest["control/feature-ts2"] = "1"
    pool.backend.attention(vm.uuid)
    pool.turn()
    assert pool(*ask) == ""
    assert "adjust" in pool.backend.calls


def test_scripts_run_only_where_the_pool_allows_them(pool: Pool) -> None:
    """And then they are not implemented, which is said."""
    vm = running(pool)
    arguments = {"username": "u", "password": "p", "script": "s"}

    def fails(**given: str) -> list[str]:
        pool.clock.advance(10)
        return pool.fails("VM.call_plugin", vm._ref, "guest-agent-operation", "run-script", given)

    assert fails(**arguments) == ["FEATURE_RESTRICTED"]
    only = next(iter(pool.db.pool))
    only.other_config = {**only.other_config, "allow_guest_agent_run_script": "true"}
    assert fails(username="u", password="p")[:2] == ["XENAPI_PLUGIN_FAILURE", "missing argument"]
    assert fails(**arguments | {"script": "s" * 1025})[:2] == ["XENAPI_PLUGIN_FAILURE", "length restriction"]
    assert fails(**arguments) == ["NOT_IMPLEMENTED", "run-script"]
