"""`xapi.testing`: daemons in a process that is not theirs, by the hundred, with nothing left of any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.clients.daemon import CHECKOUT

SECONDS = 120
_OF_TWISTED = "unclosed file <_io.TextIOWrapper name='/dev/null'"
"""The descriptor that Twisted keeps for a shortage is open when the process ends."""


def python(script: str, *, quiet: bool = True) -> Any:
    """Run a script in a process of its own; return what it prints, as JSON. `quiet`: nothing may be logged."""
    environment = {name: value for name, value in os.environ.items() if name != "XAPI_ROOT_PASSWORD"}
    warnings = ("-W", "error", "-W", f"ignore:{_OF_TWISTED}")
    done = subprocess.run(
        [sys.executable, *warnings, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False,
        env={**environment, "PYTHONPATH": str(CHECKOUT)}, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert not (quiet and done.stderr), done
    return json.loads(done.stdout)


def test_many_daemons_of_one_process_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread, descriptor, map, domain, file nor timer, though guests ran, clients waited and none logged out."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left, ends, first, last = python(
        """
        import gc, json, os, pathlib, socket, threading
        from xapi.testing import running

        def held():
            from twisted.internet import reactor
            from hypervisor.domains.domain import Domain
            gc.collect()
            maps = len(pathlib.Path("/proc/self/maps").read_text().splitlines())
            domains = sum(isinstance(each, Domain) for each in gc.get_objects())
            timers = len(reactor.getDelayedCalls())
            return len(os.listdir("/proc/self/fd")), threading.active_count(), domains, timers, maps

        def use(kronos):
            api = kronos.session().xenapi
            vm = api.VM.clone(api.VM.get_by_name_label("Demo guest")[0], "guest")
            api.VM.provision(vm)
            api.VM.start(vm, False, False)
            waits = threading.Thread(target=wait, args=[kronos.session()])
            waits.start()
            return waits

        def wait(session):
            try:
                session.xenapi.event_from(["pool"], session.xenapi.event_from(["*"], "", 0.0)["token"], 60.0)
            except Exception as error:
                ends.append(type(error).__name__)

        def once():
            with running() as kronos:
                waits = use(kronos)
                idle = socket.create_connection(("127.0.0.1", int(kronos.url.rpartition(":")[2])))
            waits.join()
            idle.close()

        ends = []
        for _ in range(3):
            once()
        first = held()
        for _ in range(12):
            once()
        print(json.dumps([os.listdir(os.environ["TMPDIR"]), len(ends), first, held()]))
    """,
        quiet=False,
    )
    assert (left, ends) == ([], 15)
    assert last[:4] == first[:4]
    assert first[2] == 0
    assert last[4] <= first[4] + 8  # Python's own arenas come and go


def test_a_reactor_that_runs_already_is_used() -> None:
    """And goes on when the daemon has ended."""
    assert python("""
        import json, threading
        from twisted.internet import reactor
        from xapi.testing import running
        thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False})
        begun = threading.Event()
        reactor.callWhenRunning(begun.set)
        thread.start()
        begun.wait()
        before = threading.active_count()
        with running(hosts=2, seed=7, password="other") as kronos:
            hosts = len(kronos.session().xenapi.host.get_all())
        print(json.dumps([hosts, type(reactor).__name__, reactor.running, threading.active_count() - before]))
        reactor.callFromThread(reactor.stop)
        thread.join()
    """) == [2, "EPollReactor", True, 0]


def test_it_cannot_be_used_where_it_would_wait_for_itself() -> None:
    """On the reactor's thread, and in a child whose reactor's thread stayed in its parent."""
    assert python("""
        import json, os, threading
        from xapi.testing import reactor_thread, running
        from twisted.internet.threads import deferToThread

        def refused():
            try:
                with running():
                    return "ran"
            except RuntimeError as error:
                return str(error)

        reactor = reactor_thread.running_reactor()
        said, asked = [], threading.Event()
        reactor.callFromThread(lambda: (said.append(refused()), asked.set()))
        asked.wait()
        reads, writes = os.pipe()
        if not os.fork():
            os.write(writes, refused().encode())
            os._exit(0)
        said.append(os.read(reads, 999).decode())
        print(json.dumps(said))
    """) == [
        "running() waits for the reactor, so it cannot be used on the reactor's own thread",
        "the reactor's thread stayed in the process that this one was forked from",
    ]


def test_a_daemon_that_cannot_start_raises_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, inventories and ports; the next one runs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert python("""
        import json, os, socket, threading
        from xapi.testing import running
        taken = socket.create_server(("127.0.0.1", 0))
        said = []
        with running():
            pass
        before = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for options in (
            {"hosts": 0}, {"colour": "red"}, {"inventory": "/dev/null/none"},
            {"listen": [f"127.0.0.1:{taken.getsockname()[1]}"]},
        ):
            try:
                with running(**options):
                    said.append("ran")
            except Exception as error:
                said.append(type(error).__name__)
        after = threading.active_count(), len(os.listdir("/proc/self/fd"))
        with running() as kronos:
            hosts = len(kronos.session().xenapi.host.get_all())
        taken.close()
        print(json.dumps([said, hosts, before == after, os.listdir(os.environ["TMPDIR"])]))
    """) == [["ConfigError", "TypeError", "DeclarationError", "CannotListenError"], 1, True, []]


@pytest.mark.parametrize("package", [True, False], ids=["XenAPI", "no XenAPI"])
def test_sessions_are_those_of_the_package_or_like_them(package: bool) -> None:
    """Over HTTP and HTTPS: calls, asynchronous ones, events, failures, and the session's reference."""
    (kind, *facts) = python(f"""
        import json, sys
        if not {package}:
            sys.modules["XenAPI"] = None
        from xapi.testing import running
        with running(http=False, https=True) as kronos:
            session = kronos.session()
            (host,) = session.xenapi.host.get_all()
            task = session.xenapi.Async.pool.sync_database()
            events = session.xenapi.event_from(["host"], "", 0.0)["events"]
            try:
                session.xenapi.VM.get_uuid("OpaqueRef:none")
            except kronos.Failure as error:
                details = error.details
            kinds = type(session).__module__
            session.xenapi.session.logout()
            print(json.dumps([kinds, kronos.url, task[:10], [each["ref"] == host for each in events], details]))
    """)
    assert kind == ("XenAPI.XenAPI" if package else "xapi.testing.session")
    assert facts == ["", "OpaqueRef:", [True], ["HANDLE_INVALID", "VM", "OpaqueRef:none"]]
