"""A database that cannot be written: what is undone, what is refused, and how it goes on."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.durability.harness import Opened, contents
from tests.durability.server import Server
from xapi.datamodel.errors import Fault
from xapi.store.database import RESERVE

BIG = "x" * 200_000


class Ceiling:
    """A connect hook that leaves a SQLite file a few pages to grow, until it is lifted."""

    def __init__(self) -> None:
        self.spare: int | None = 20

    def __call__(self, connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if self.spare is not None:
            connection.execute(f"PRAGMA max_page_count={pages + self.spare}")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[tuple[Opened, Ceiling]]:
    """A store whose database is nearly full."""
    url = f"sqlite:///{tmp_path / 'full.db'}"
    Opened(url).database.close()
    ceiling = Ceiling()
    with Opened(url, on_connect=ceiling) as opened:
        yield opened, ceiling


def lift(opened: Opened, ceiling: Ceiling) -> None:
    """Make room and wait until the writer has noticed by itself."""
    ceiling.spare = None
    opened.loop.until(lambda: opened.store.refusal is None)


def test_a_full_database_undoes_the_change_and_says_out_of_space(full: tuple[Opened, Ceiling]) -> None:
    """The client hears OUT_OF_SPACE without the file's path, and memory is as before."""
    opened, _ = full
    vm = opened.store.VM.create(name_description="before")
    assert opened.flush() is None
    vm.name_description = BIG
    fault = opened.flush()
    assert fault is not None
    assert fault.description == ["OUT_OF_SPACE", "the database"]
    assert vm.name_description == "before"


def test_changes_are_refused_while_the_database_is_full(full: tuple[Opened, Ceiling]) -> None:
    """Better a refusal at once than an undoing later."""
    opened, _ = full
    opened.store.VM.create(name_description=BIG)
    opened.flush()
    with pytest.raises(Fault, match="OUT_OF_SPACE"):
        opened.store.VM.create()
    assert len(opened.store.VM) == 0


def test_memory_only_changes_go_on_while_the_database_is_full(full: tuple[Opened, Ceiling]) -> None:
    """Whoever is to make room must be able to log in."""
    opened, _ = full
    opened.store.VM.create(name_description=BIG)
    opened.flush()
    opened.store.session.create()
    assert opened.flush() is None
    assert len(opened.store.session) == 1


def test_the_writer_recovers_when_there_is_room(full: tuple[Opened, Ceiling]) -> None:
    """The same change that failed is durable afterwards."""
    opened, ceiling = full
    opened.store.VM.create(name_description=BIG)
    opened.flush()
    lift(opened, ceiling)
    opened.store.VM.create(name_description=BIG)
    assert opened.flush() is None
    opened.writer.stop()
    again = Opened(f"sqlite:///{opened.database.location}")
    again.database.close()
    assert [row.name_description for row in again.store.VM] == [BIG]


def test_a_database_without_room_for_a_small_write_stays_refused(full: tuple[Opened, Ceiling]) -> None:
    """Rewriting a mark needs no new page; the probe must need some, or it would say yes too soon."""
    opened, ceiling = full
    opened.store.VM.create(name_description=BIG)
    opened.flush()
    ceiling.spare = 2
    probes: list[int] = []
    probe = opened.writer._probe

    def counted(repair: Any) -> None:
        probes.append(1)
        opened.loop.from_thread(lambda: None)
        probe(repair)

    opened.writer._probe = counted  # type: ignore[method-assign]
    opened.loop.until(lambda: len(probes) > 5)
    assert opened.store.refusal is not None
    ceiling.spare = None


def test_changes_between_the_failure_and_its_news_are_dropped_too(full: tuple[Opened, Ceiling]) -> None:
    """They were accepted on the ground of what is lost; the database must never see them."""
    opened, ceiling = full
    news: list[Any] = []
    arrived = opened.loop.from_thread

    def hold_back(*call: Any) -> None:
        news.append(call)
        arrived(lambda: None)

    opened.writer._call_from_thread = hold_back
    vm = opened.store.VM.create(name_description=BIG)
    opened.loop.until(lambda: news)
    vm.name_label = "late"
    opened.store.secret.create(value="late")
    (function, *arguments) = news.pop()
    opened.writer._call_from_thread = arrived
    function(*arguments)
    assert [len(opened.store.VM), len(opened.store.secret)] == [0, 0]
    lift(opened, ceiling)
    opened.store.secret.create(value="after")
    assert opened.flush() is None
    opened.writer.stop()
    again = Opened(f"sqlite:///{opened.database.location}")
    again.database.close()
    assert [row.value for row in again.store.secret] == ["after"]
    assert len(again.store.VM) == 0


def test_stop_during_a_failure_ends_the_thread(full: tuple[Opened, Ceiling]) -> None:
    """Even before the reactor has heard of the failure."""
    opened, _ = full
    opened.store.VM.create(name_description=BIG)
    opened.writer.stop()
    assert not opened.writer._thread.is_alive()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_failing_write_is_an_internal_error_and_mends(tmp_path: Path) -> None:
    """The system refuses the write itself, half-way into the transaction."""
    url = f"sqlite:///{tmp_path / 'limited.db'}"
    with Opened(url) as opened:
        opened.store.secret.create(value="before")
        assert opened.flush() is None
        with largest_file(1 << 20):
            with opened.store.atomic():
                for number in range(20):
                    opened.store.secret.create(value=f"{number} {BIG}")
            fault = opened.flush()
            assert fault is not None and fault.code == "INTERNAL_ERROR"
            assert [row.value for row in opened.store.secret] == ["before"]
        opened.loop.until(lambda: opened.store.refusal is None)
        opened.store.secret.create(value="after")
        assert opened.flush() is None
        before = contents(opened.store)
    again = Opened(url)
    again.database.close()
    assert contents(again.store) == before


_ON_A_SMALL_DISK = """
import errno, os, sys
from tests.durability.harness import Opened
path, ballast = sys.argv[1] + "/small.db", sys.argv[1] + "/ballast"
with Opened("sqlite:///" + path) as opened:
    opened.store.secret.create(value="before")
    assert opened.flush() is None
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    opened.store.secret.create(value="x" * 100_000)
    fault = opened.flush()
    assert fault is not None and fault.description == ["OUT_OF_SPACE", "the database"], fault
    os.remove(ballast)
    opened.loop.until(lambda: opened.store.refusal is None)
    opened.store.secret.create(value="after")
    assert opened.flush() is None
again = Opened("sqlite:///" + path)
again.database.close()
assert sorted(row.value for row in again.store.secret) == ["after", "before"]
print("recovered")
"""

_ON_A_READ_ONLY_DISK = """
import sys
from tests.durability.harness import Opened
from xapi.store.kind import DatabaseError
try:
    Opened("sqlite:///" + sys.argv[1] + "/small.db")
except DatabaseError as error:
    print(error)
"""


def on_a_file_system(directory: Path, mount: str, program: str) -> str:
    """Run a program where `directory` is a file system of its own, seen by nobody else; return its output."""
    able = subprocess.run(["unshare", "--mount", "true"], capture_output=True) if os.getuid() == 0 else None
    if able is None or able.returncode != 0:
        pytest.skip("this sandbox does not let a test mount a file system in a namespace of its own")
    shell = f'{mount}; exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-e", "-c", shell, sys.executable, program, str(directory)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_file_system_is_survived(tmp_path: Path) -> None:
    """ENOSPC from a real file system, then room again."""
    output = on_a_file_system(tmp_path, 'mount -t tmpfs -o size=3m none "$2"', _ON_A_SMALL_DISK)
    assert output == "recovered\n"


def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    """Also for root, whom permission bits do not bind. The file is ours and whole, and stays as it is."""
    Opened(f"sqlite:///{tmp_path / 'small.db'}").database.close()
    before = (tmp_path / "small.db").read_bytes()
    mount = 'mount --bind "$2" "$2"; mount -o remount,bind,ro "$2"'
    output = on_a_file_system(tmp_path, mount, _ON_A_READ_ONLY_DISK)
    assert output.startswith(f"{tmp_path}/small.db: cannot be ")
    assert "read" in output and output.count("\n") == 1
    assert (tmp_path / "small.db").read_bytes() == before


def test_a_full_file_system_at_the_first_start_is_named(tmp_path: Path) -> None:
    """Creating the tables needs room as well."""
    output = on_a_file_system(tmp_path, 'mount -t tmpfs -o size=64k none "$2"', _ON_A_READ_ONLY_DISK)
    assert "no space is left" in output and output.count("\n") == 1


def test_a_lost_server_is_survived(postgresql: Server) -> None:
    """The server is killed under load: what was acknowledged is there, what was not is undone or refused."""
    url = postgresql.new()
    with Opened(url) as opened:
        kept = opened.store.secret.create(value="kept")
        assert opened.flush() is None
        postgresql.kill()
        opened.store.secret.create(value="lost")
        fault = opened.flush()
        assert fault is not None and fault.code == "INTERNAL_ERROR"
        assert list(opened.store.secret) == [kept]
        postgresql.start()
        opened.loop.until(lambda: opened.store.refusal is None)
        opened.store.secret.create(value="after")
        assert opened.flush() is None
    again = Opened(url)
    again.database.close()
    assert {row.value for row in again.store.secret} == {"kept", "after"}


def test_a_commit_whose_answer_was_lost_is_taken_back(url: str) -> None:
    """The client was told that it failed, so the database must say so too once it is back."""
    with Opened(url) as opened:
        old = opened.store.secret.create(value="old")
        gone = opened.store.secret.create(value="to go")
        assert opened.flush() is None
        commit = opened.writer._commit

        def commit_unheard(net: Any) -> None:
            opened.writer._commit = commit  # type: ignore[method-assign]
            commit(net)
            raise ConnectionError("the answer was lost")

        opened.writer._commit = commit_unheard  # type: ignore[method-assign]
        with opened.store.atomic():
            old.value = "new"
            opened.store.secret.delete(gone._ref)
            opened.store.secret.create(value="more")
        assert opened.flush() is not None
        opened.loop.until(lambda: opened.store.refusal is None)
        before = contents(opened.store)
    again = Opened(url)
    again.database.close()
    assert contents(again.store) == before
    assert {row.value for row in again.store.secret} == {"old", "to go"}


def test_a_database_that_another_process_used_is_never_written_again(url: str) -> None:
    """After a break the other may have changed anything: this memory is stale."""
    with Opened(url) as opened:
        opened.database.connection.close()  # the break; PostgreSQL lets the lock go with it
        other = Opened(url)
        other.database.close()
        opened.database._connection = None
        opened.store.secret.create(value="stale")
        assert opened.flush() is not None
        texts: list[str] = []
        explain = opened.database.explain

        def noted(error: BaseException) -> str:
            texts.append(explain(error))
            opened.loop.from_thread(lambda: None)
            return texts[-1]

        opened.database.explain = noted  # type: ignore[method-assign]
        opened.loop.until(lambda: len(texts) > 2)
        assert opened.store.refusal is not None
        assert "another process has used it meanwhile" in texts[-1]
    again = Opened(url)
    again.database.close()
    assert len(again.store.secret) == 0


def test_generations_go_on_above_all_that_were_told(url: str) -> None:
    """Even those of memory-only changes, which nothing but the mark remembers."""
    opened = Opened(url)
    opened.store.session.create()
    told = opened.store.generation
    opened.database.close()  # as a crash: nothing is written
    again = Opened(url)
    again.database.close()
    assert again.store.generation > told


def test_the_mark_moves_with_a_write_when_half_is_used(url: str) -> None:
    """A crash right after that write is safe."""
    with Opened(url) as opened:
        opened.store.generation += RESERVE - 10
        opened.store.secret.create(value="x")
        assert opened.flush() is None
        told = opened.store.generation
    again = Opened(url)
    again.database.close()
    assert again.store.generation == told + RESERVE


def test_the_mark_moves_on_request_without_a_write(url: str) -> None:
    """The daemon's timer asks for it when only memory changes."""
    with Opened(url) as opened:
        opened.store.generation += RESERVE - 10
        opened.writer.reserve(opened.store.generation)
    again = Opened(url)
    again.database.close()
    assert again.store.generation == opened.store.generation + RESERVE
