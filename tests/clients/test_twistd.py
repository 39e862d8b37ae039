"""The daemon under twistd: the options, the reactor, the log and the manners of the command `xapi`."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.python import usage

from tests.clients.conftest import Clients
from tests.clients.daemon import CHECKOUT, environment
from xapi.process.twistd import Options

SECONDS = 60


class Twistd:
    """Runs twistd in a directory, with the plugin as the wheel has it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[subprocess.Popen[str]] = []
        plugins = directory / "path" / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        shutil.copy(CHECKOUT / "deploy" / "xapi_plugin.py", plugins)

    def start(self, *arguments: str, keeps: tuple[int, ...] = ()) -> subprocess.Popen[str]:
        """Run it with its own options, up to `xapi`, and the daemon's."""
        path = os.pathsep.join([str(CHECKOUT), str(self.directory / "path")])
        process = subprocess.Popen(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *arguments], cwd=self.directory,
            env={**environment("xenroot"), "PYTHONPATH": path}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, pass_fds=keeps,
        )  # fmt: skip
        self.running.append(process)
        return process

    def refused(self, *arguments: str) -> str:
        """Run it where it must not start; return what it says on standard error."""
        said, log = self.start(*arguments).communicate(timeout=SECONDS)
        assert (self.running[-1].returncode, said) == (1, "")
        assert not (self.directory / "twistd.pid").exists()
        return log

    def serving(self, *arguments: str) -> tuple[subprocess.Popen[str], str]:
        """Run it until it serves; return the process and its first address."""
        process = self.start("--nodaemon", "xapi", *arguments)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], SECONDS)[0]
        return process, process.stdout.readline().split()[1]


@pytest.fixture
def twistd(tmp_path: Path) -> Iterator[Twistd]:
    made = Twistd(tmp_path)
    yield made
    for process in made.running:
        if process.poll() is None:
            process.kill()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        process.wait(SECONDS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--state", "/dev/null/x"], "/dev/null/x: cannot be used as state directory: Not a directory"),
        (["--state", "state", "--listen", "192.0.2.1:1"], "Couldn't listen on 192.0.2.1:1: "),
    ],
    ids=["before it listens", "when it listens"],
)
def test_a_daemon_that_cannot_start_ends_twistd(twistd: Twistd, options: list[str], said: str) -> None:
    """With status 1 and one line, not a traceback, and with no reactor left that runs for nothing."""
    log = twistd.refused("--nodaemon", "xapi", "--no-tls", *options)
    assert [line for line in log.splitlines() if line.startswith("xapi: ")] == [log.splitlines()[-1]]
    assert log.splitlines()[-1].startswith(f"xapi: {said}")
    assert "Traceback" not in log


def test_a_wrong_option_is_told_as_twistd_tells_its_own(twistd: Twistd) -> None:
    done = twistd.start("--nodaemon", "xapi", "--colour")
    said, log = done.communicate(timeout=SECONDS)
    assert done.returncode == 1 and said.startswith("Usage: twistd")
    assert said.endswith("unrecognized arguments: --colour\n") and log == ""


def test_twist_is_refused_in_one_line() -> None:
    """It lists the plugin too; its reactor runs already, and its log has begun."""
    options = Options()  # type: ignore[no-untyped-call]
    options.parent = usage.Options()
    with pytest.raises(usage.UsageError, match="use twistd, or the command xapi"):
        options.parseOptions(["--no-tls"])


def test_it_serves_on_our_reactor_and_logs_from_its_level_on(twistd: Twistd, clients: Clients) -> None:
    """What Twisted says of itself is for debugging."""
    process, address = twistd.serving("--state", "state", "--listen", "0", "--no-tls", "--log-level", "debug")
    clients(address.rstrip("/")).login_with_password("root", "xenroot")
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=SECONDS)
    assert "reactor class: xapi.process.reactor.ShortTurnReactor." in log
    assert "Ready: " in log and "Traceback" not in log
    assert process.returncode == -signal.SIGTERM  # twistd's way
    assert not (twistd.directory / "state" / "xapi").exists()
    process, _ = twistd.serving("--state", "state", "--listen", "0", "--no-tls", "--log-level", "critical")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=SECONDS)[1] == ""


def test_a_daemon_off_the_terminal_has_its_lock_and_its_log(twistd: Twistd, clients: Clients) -> None:
    """All of it begins in the process that stays: the lock is its own, and the log a file."""
    reads, writes = os.pipe()
    parent = twistd.start(
        "xapi", "--state", "state", "--listen", "0", "--no-tls", "--ready-fd", str(writes), keeps=(writes,)
    )
    os.close(writes)
    with open(reads, encoding="utf-8") as file:
        told = json.loads(file.read())
    assert parent.wait(SECONDS) == 0
    handle = os.pidfd_open(told["pid"])
    ended = select.poll()
    ended.register(handle, select.POLLIN)
    try:
        assert told["pid"] != parent.pid
        assert int((twistd.directory / "twistd.pid").read_text()) == told["pid"]
        assert int((twistd.directory / "state" / "lock").read_text()) == told["pid"]
        clients(told["url"]).login_with_password("root", "xenroot")
    finally:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        assert ended.poll(SECONDS * 1000)
        os.close(handle)
    log = (twistd.directory / "twistd.log").read_text()
    assert "Ready: " in log and "Stopped" in log and "Traceback" not in log
