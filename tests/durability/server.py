"""A PostgreSQL server of the tests' own, which ends with them however they end."""

from __future__ import annotations

import os
import pwd
import select
import signal
import subprocess
from itertools import count
from pathlib import Path

import psycopg

START_SECONDS = 60
_HBA = "local all locked scram-sha-256\nlocal all all trust\n"


_WATCH = """
trap '' HUP INT TERM
read -r _
directory=$1
shift
"$@" >/dev/null 2>&1
rm -rf "$directory"
"""
"""Reads until whoever started it has closed the pipe or is dead; then ends the server and removes its directory."""


class Server:
    """A PostgreSQL server in a directory, which goes with it. `end` ends it, and so does the end of the process."""

    def __init__(self, binaries: Path, directory: Path, user: str | None) -> None:
        self.binaries = binaries
        self.directory = directory
        self.user = user
        self._numbers = count(1)
        self._stopping = ("-D", str(directory / "data"), "-w", "-m", "immediate", "stop")

    def _command(self, program: str, *arguments: str) -> list[str]:
        command = [str(self.binaries / program), *arguments]
        if self.user is not None:
            command = ["setpriv", f"--reuid={self.user}", f"--regid={pwd.getpwnam(self.user).pw_gid}",
                       "--clear-groups", *command]  # fmt: skip
        return command

    def _run(self, program: str, *arguments: str) -> None:
        command = self._command(program, *arguments)
        # Output to a file: the server inherits it, and a pipe would stay open until the server ends.
        with (self.directory / "output").open("ab") as output:
            subprocess.run(command, check=True, cwd=self.directory, stdout=output, stderr=output, timeout=START_SECONDS)

    def create(self) -> None:
        """Make the data directory and start."""
        data = self.directory / "data"
        self._watch = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", self.directory, *self._command("pg_ctl", *self._stopping)],
            stdin=subprocess.PIPE, cwd="/", start_new_session=True,
        )  # fmt: skip
        self._run("initdb", "-D", str(data), "-U", "kronos", "-E", "UTF8", "--locale=C", "--auth=trust")
        (data / "pg_hba.conf").write_text(_HBA)
        self.start()

    def start(self) -> None:
        """Start and wait until it answers."""
        self._run(
            "pg_ctl", "-D", str(self.directory / "data"), "-w", "-l", str(self.directory / "log"),
            "-o", f"-k {self.directory} -c listen_addresses='' -c max_connections=20", "start",
        )  # fmt: skip

    def stop(self) -> None:
        """Stop, without care for the data; harmless when it does not run."""
        if (self.directory / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", *self._stopping)

    def end(self) -> None:
        """Stop for good and remove the directory."""
        assert self._watch.stdin is not None
        self._watch.stdin.close()
        self._watch.wait(START_SECONDS)

    def kill(self) -> None:
        """End all of it at once, as a failing machine does, and wait until it is gone."""
        lock = self.directory / "data" / "postmaster.pid"
        parent = int(lock.read_text().split()[0])
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, check=True)
        handles = []
        for process in [parent, *map(int, listed.stdout.split())]:
            try:
                handles.append(os.pidfd_open(process))
            except ProcessLookupError:  # it ended of itself
                continue
            signal.pidfd_send_signal(handles[-1], signal.SIGKILL)
        for handle in handles:
            ended = select.poll()
            ended.register(handle, select.POLLIN)  # readable when the process has ended
            ended.poll(START_SECONDS * 1000)
            os.close(handle)
        # The process may stay a zombie for a while, which a new server takes for alive.
        for lock_file in (lock, self.directory / ".s.PGSQL.5432.lock"):
            lock_file.unlink()

    def url(self, database: str, user: str = "kronos") -> str:
        """Return the URL of a database."""
        return f"postgresql://{user}@/{database}?host={self.directory}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside any transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def new(self, options: str = "") -> str:
        """Make an empty database; return its URL."""
        name = f"test{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)
