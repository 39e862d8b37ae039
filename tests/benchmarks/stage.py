"""What the benchmarks share: one directory, one daemon with 10,000 VMs, and one that keeps nothing rendered."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from tests.benchmarks.processes import Child, Daemon
from tests.benchmarks.wire import Connection, request

VMS = 10_000


class Login:
    """A daemon with a session, and what the benchmarks ask it for."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.connection: Connection
        self.connection, self.session = daemon.login()
        self.vms: list[str] = self.connection.call("VM.get_by_name_label", self.session, "vm-000001")

    @property
    def small(self) -> bytes:
        """The small call."""
        return request("VM.get_power_state", self.session, self.vms[0])

    @property
    def everything(self) -> bytes:
        """The big one."""
        return request("VM.get_all_records", self.session)

    def rest(self) -> None:
        """Read everything once, let what was started come to rest, and forget the turns of starting."""
        self.connection.drain(self.everything)
        time.sleep(0.3)
        self.daemon.turns()

    def labelled(self, count: int) -> list[str]:
        """Return the references of some VMs, by name."""
        found = []
        for number in range(1, count + 1):
            found += self.connection.call("VM.get_by_name_label", self.session, f"vm-{number:06}")
        return found


class Stage:
    """Start what is asked for, once; `close` ends all of it and removes the directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running = ExitStack()

    def enter(self, child: Child) -> None:
        """End a child when the stage closes."""
        self._running.enter_context(child)

    def peer(self, name: str, *arguments: str) -> tuple[Child, int]:
        """Start a peer's server and return it with its port."""
        child = Child("tests.benchmarks.peers", name, *arguments, log=self.directory / f"{name}.log")
        self.enter(child)
        return child, int(child.wait_for(r"Ready: http://127\.0\.0\.1:(\d+)/").group(1))

    @cached_property
    def _filled(self) -> Path:
        """The state directory of a daemon that has made 10,000 VMs and ended."""
        say(f"making {VMS:,} VMs")
        state = self.directory / "filled"
        Daemon(state, "--vms", str(VMS)).stop()
        return state

    def _start(self, name: str, *arguments: str) -> Login:
        state = self.directory / name
        shutil.copytree(self._filled, state, ignore=shutil.ignore_patterns("xapi", "turns.json"))
        daemon = Daemon(state, *arguments)
        self.enter(daemon)
        return Login(daemon)

    @cached_property
    def warm(self) -> Login:
        """A daemon with all VMs rendered."""
        login = self._start("warm")
        login.rest()
        return login

    @cached_property
    def cold(self) -> Login:
        """A daemon that may keep 1 MiB of rendered records: each read renders all, as if all had changed."""
        config = self.directory / "cold.toml"
        config.write_text("fragment_budget = 1048576\n", "utf-8")
        login = self._start("cold", "--config", str(config))
        login.rest()  # so that only the rendering is cold
        return login

    def close(self) -> None:
        """End all children, then remove the directory."""
        self._running.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def say(text: str) -> None:
    """Tell people how far we are."""
    print(f"... {text}", file=sys.stderr, flush=True)
