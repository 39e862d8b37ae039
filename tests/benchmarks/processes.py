"""The processes of a benchmark: started here, measured through /proc, and always ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.benchmarks.wire import Connection

ROOT = Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")
START_SECONDS = 300.0
PASSWORD = "xenroot"


class Child:
    """A Python module run as a process; `with` ends it."""

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        self.module = module
        self.log = log
        environment = {**os.environ, "XAPI_ROOT_PASSWORD": PASSWORD, "PYTHONUNBUFFERED": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed programs have their bytecode
        self.started = time.perf_counter()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end it
            )

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match in the log once it is there. Raises RuntimeError if the process ends or is late."""
        deadline = self.started + START_SECONDS
        while True:
            found = re.search(pattern, self._log_text())
            if found is not None:
                return found
            if self.process.poll() is not None or time.perf_counter() > deadline:
                raise RuntimeError(f"{self.module} did not start:\n{self._log_text()[-2000:]}")
            time.sleep(0.01)

    def _log_text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    @property
    def cpu(self) -> float:
        """Seconds of CPU that all threads of the process have used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self, name: str = "VmRSS") -> int:
        """Return the bytes that the process has in memory; VmHWM is the most it ever had."""
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found.group(1)) * 1024

    def stop(self) -> None:
        """End the process, politely at first."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class Daemon(Child):
    """The product, run through `tests.benchmarks.watched`, which times the reactor's turns."""

    def __init__(self, state: Path, *arguments: str) -> None:
        state.mkdir(exist_ok=True)
        self.turns_file = state / "turns.json"
        super().__init__(
            "tests.benchmarks.watched", str(self.turns_file),
            "--state", str(state), "--listen", "127.0.0.1:0", "--tls", "", "--seed", "1", *arguments,
            log=state / "log",
        )  # fmt: skip
        try:
            self.port = int(self.wait_for(r"Ready: http://127\.0\.0\.1:(\d+)/").group(1))
        except BaseException:
            self.stop()
            raise
        self.ready_seconds = time.perf_counter() - self.started

    def login(self) -> tuple[Connection, str]:
        """Return a connection and the reference of a new session of root."""
        connection = Connection(self.port)
        session: str = connection.call("session.login_with_password", "root", PASSWORD, "1.0", "benchmark")
        return connection, session

    def turns(self) -> dict[str, Any]:
        """Return what is known of the reactor's turns since the last call, and begin anew."""
        self.turns_file.unlink(missing_ok=True)
        os.kill(self.process.pid, signal.SIGUSR1)
        deadline = time.perf_counter() + 10
        while not self.turns_file.exists() and time.perf_counter() < deadline:
            time.sleep(0.001)
        found: dict[str, Any] = json.loads(self.turns_file.read_text())
        return found


class Task:
    """A load client or a peer's computation: a module that prints one JSON value and ends."""

    def __init__(self, module: str, *arguments: str, given: Any = None) -> None:
        self.module = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(json.dumps(given).encode())

    def result(self) -> Any:
        """Wait for the process to end and return what it printed. Raises RuntimeError."""
        assert self.process.stdout is not None
        try:
            with self.process.stdout as pipe:
                printed = pipe.read()
            if self.process.wait() != 0:
                raise RuntimeError(f"{self.module} failed")
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        return json.loads(printed)


def run(module: str, *arguments: str, given: Any = None) -> Any:
    """Run a module to its end and return the JSON value that it prints."""
    return Task(module, *arguments, given=given).result()
