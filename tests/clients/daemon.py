"""The real daemon as a child process, for tests to meet it as its users do."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
REFUSE_SECONDS = 20
STOP_SECONDS = 30


class Daemon:
    """One child process. `ready()` waits for its addresses; `stop()` ends it and checks how it went."""

    def __init__(
        self,
        state: Path,
        *options: str,
        password: str | None = "xenroot",
        first: str = "",
        keeps: Sequence[int] = (),
    ) -> None:
        """Start it; `first` is Python that the process runs before all else, `keeps` are descriptors that it gets."""
        self.state = state
        self.lines: list[str] = []
        """What it has written on standard error."""
        self.printed: queue.Queue[str] = queue.Queue()
        """Lines of its standard output, as they come."""
        self.http = self.https = ""
        self._news: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            command(state, *options, first=first), cwd=CHECKOUT, env=environment(password), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=keeps,
        )  # fmt: skip
        self._readers = [threading.Thread(target=self._read_log), threading.Thread(target=self._read_output)]
        for reader in self._readers:
            reader.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            self._news.put(line)
        self._news.put(None)

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.put(line.rstrip("\n"))

    def wait_for(self, text: str) -> str:
        """Return the first line of the log, not yet waited for, that has the text."""
        while True:
            line = self._news.get(timeout=START_SECONDS)
            assert line is not None, f"ended without {text!r}: {self.lines}"
            if text in line:
                return line

    def ready(self) -> Daemon:
        """Wait until it serves and read the addresses off its log."""
        line = self.wait_for("Ready: ")
        self.http = "".join(re.findall(r"http://\S+", line))
        self.https = "".join(re.findall(r"https://\S+", line))
        return self

    @property
    def socket(self) -> Path:
        return self.state / "xapi"

    def stop(self, number: int = signal.SIGTERM) -> list[str]:
        """Send a signal, check that it ends with status 0, and return its log."""
        self.process.send_signal(number)
        assert self.ended() == 0, self.lines
        return self.lines

    def kill(self) -> None:
        """End it at once, if it runs, as a failing machine does."""
        self.process.kill()
        self.ended()

    def ended(self) -> int:
        """Wait until it ends by itself and return its exit status."""
        status = self.process.wait(STOP_SECONDS)
        for reader in self._readers:
            reader.join(STOP_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status


def command(state: Path, *options: str, first: str = "") -> list[str]:
    """Return the command line of a daemon on free ports; options given go before that."""
    program = ["-c", f"{first}\nfrom xapi.__main__ import main\nraise SystemExit(main())"] if first else ["-m", "xapi"]
    given = {option for option in options if option.startswith("--")}
    defaults = {"--listen": ["127.0.0.1:0"], "--state": [str(state)]} | ({} if "--tls" in given else {"--no-tls": []})
    if "--ephemeral" in given:
        del defaults["--state"]
    missing = [part for name, value in defaults.items() if name not in given for part in (name, *value)]
    return [sys.executable, *program, *missing, *options]


def environment(password: str | None) -> Mapping[str, str]:
    """Return our own environment, in which only the test says what root's password is."""
    # PYTHONUNBUFFERED would hide that something is not printed before the end; without bytecode each start compiles.
    dropped = ("XAPI_ROOT_PASSWORD", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept if password is None else kept | {"XAPI_ROOT_PASSWORD": password}


def refused(state: Path, *options: str) -> str:
    """Run a daemon that must not start; return what it said, after checking that it exits with 1."""
    done = subprocess.run(
        command(state, *options), cwd=CHECKOUT, env=environment("xenroot"), text=True, capture_output=True,
        timeout=REFUSE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done
    assert done.stdout == ""
    return done.stderr
