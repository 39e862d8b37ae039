"""kill -9 at any moment: every acknowledged change is there afterwards, and nothing is half-done.

A child process changes objects under load and writes a line for each change that it was told is
durable; the parent kills it after some number of lines, opens the database and compares. As many rounds
as ``XAPI_KILLS`` says, over both kinds of database.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.durability.harness import Opened
from tests.durability.server import Server
from xapi.datamodel.errors import Fault

KILLS = int(os.environ.get("XAPI_KILLS", "20"))
CLIENTS = 16


class Child:
    """What runs in the process to be killed. Its lines: what, client, number, generation."""

    def __init__(self, url: str, output: int, round_number: int) -> None:
        self.output = output
        self.opened = Opened(url)
        self.rng = random.Random(round_number)
        self.number = round_number * 1_000_000

    def tell(self, *words: object) -> None:
        os.write(self.output, (" ".join(map(str, words)) + "\n").encode())

    def run(self) -> None:
        """Serve clients for ever."""
        store = self.opened.store
        for client in range(CLIENTS):
            if f"OpaqueRef:vm{client}" not in store.VM:
                with store.atomic():
                    store.VM.create(f"OpaqueRef:vm{client}", name_description="0")
                    store.VDI.create(f"OpaqueRef:vdi{client}", name_description="0")
        with self.opened:
            assert self.opened.flush() is None
            self.tell("ready", 0, 0, store.generation)
            for client in range(CLIENTS):
                self.next(client)
            self.opened.loop.until(lambda: False)

    def next(self, client: int) -> None:
        """Let a client make its next change; it makes another when this one is durable."""
        self.number += 1
        store, number = self.opened.store, self.number
        mine = [row._ref for row in store.secret if row.uuid.startswith(f"{client}-")]
        action = self.rng.choice(["set", "make", "drop"] if mine else ["set", "make"])
        if action == "drop":
            ref: str = self.rng.choice(mine)
            number = int(ref.removeprefix("OpaqueRef:pair"))
            self.tell("dropping", client, number, 0)
            with store.atomic():
                store.secret.delete(ref)
                store.network.delete(ref)
        elif action == "make":
            ref = f"OpaqueRef:pair{number}"
            with store.atomic():
                store.secret.create(ref, uuid=f"{client}-{number}")
                store.network.create(ref, uuid=f"{client}-{number}")
        else:
            with store.atomic():
                store.VM[f"OpaqueRef:vm{client}"].name_description = str(number)
                store.VDI[f"OpaqueRef:vdi{client}"].name_description = str(number)
        generation = store.generation

        def told(fault: Fault | None) -> None:
            assert fault is None, fault
            self.tell(action, client, number, generation)
            self.opened.loop.soon(lambda: self.next(client))

        store.when_flushed(generation, told)


@dataclass
class Expected:
    """What the acknowledged changes add up to."""

    newest: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(CLIENTS), 0))
    made: set[int] = field(default_factory=set)
    perhaps_dropped: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    generation: int = 0
    ready: bool = False

    def hear(self, line: str) -> None:
        """Take one line of the child."""
        action, client, number, generation = line.split()
        self.generation = max(self.generation, int(generation))
        if action == "ready":
            self.ready = True
        elif action == "set":
            self.newest[int(client)] = int(number)
        else:
            {"make": self.made, "drop": self.dropped, "dropping": self.perhaps_dropped}[action].add(int(number))

    def compare(self, opened: Opened) -> None:
        """See that the reopened database holds it all, and each pair of changes wholly or not at all."""
        store = opened.store
        assert opened.database.generation >= self.generation
        if not self.ready:
            return
        for client, number in self.newest.items():
            found = store.VM[f"OpaqueRef:vm{client}"].name_description
            assert found == store.VDI[f"OpaqueRef:vdi{client}"].name_description
            assert int(found) >= number
        pairs = {int(ref.removeprefix("OpaqueRef:pair")) for ref in store.secret.rows}
        assert {int(ref.removeprefix("OpaqueRef:pair")) for ref in store.network.rows} == pairs
        assert self.made - self.perhaps_dropped <= pairs
        assert not self.dropped & pairs
        # What was not acknowledged and yet is there, or was dropped and is gone, holds from now on.
        self.made = set(pairs)
        self.perhaps_dropped = set()


def start(child: Callable[[int], None]) -> tuple[int, int]:
    """Run a function in a new process; return its id and what reads the lines that it writes."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            child(writing)
        finally:
            os._exit(1)  # whatever happens, this process must not become a second pytest
    os.close(writing)
    return process, reading


def kill_after(process: int, reading: int, count: int, hear: Callable[[str], None]) -> None:
    """Kill a process once it has written `count` lines; hear all lines that it wrote, while it lived."""
    with os.fdopen(reading, encoding="ascii") as lines:
        for _ in range(count):
            line = lines.readline()
            assert line, "the child failed by itself"
            hear(line)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        for line in lines:
            if line.endswith("\n"):
                hear(line)


def _rounds(request: pytest.FixtureRequest) -> int:
    return max(KILLS * 3 // 4 if "sqlite" in request.node.name else KILLS // 4, 1)


def test_acknowledged_changes_outlive_kill(url: str, request: pytest.FixtureRequest) -> None:
    """The same database is killed again and again, at the first start, while opening and under load."""
    rng = random.Random(20260131)
    expected = Expected()
    for number in range(1, _rounds(request) + 1):
        process, reading = start(lambda output, number=number: Child(url, output, number).run())  # type: ignore[misc]
        kill_after(process, reading, rng.choice([0, 1, *(rng.randrange(400) for _ in range(6))]), expected.hear)
        opened = Opened(url)
        opened.database.close()
        expected.compare(opened)
    assert expected.ready and expected.made


def test_acknowledged_changes_outlive_the_server(postgresql: Server) -> None:
    """The database server is killed instead, under load; the daemon is cut off and killed after it."""
    url = postgresql.new()
    expected = Expected()
    for number in range(1, max(KILLS // 20, 1) + 1):
        process, reading = start(lambda output, number=number: Child(url, output, number).run())  # type: ignore[misc]
        with os.fdopen(os.dup(reading), encoding="ascii") as lines:
            for _ in range(300):
                expected.hear(lines.readline())
            postgresql.kill()
            for line in lines:  # until its assertion in `told` fails, as nothing can be stored
                if line.endswith("\n"):
                    expected.hear(line)
        os.close(reading)
        os.waitpid(process, 0)
        postgresql.start()
        opened = Opened(url)
        opened.database.close()
        expected.compare(opened)
    assert expected.ready and expected.made
