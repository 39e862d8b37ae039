"""Every file of a state directory, damaged in every way: refused in one clear line, and nothing is written."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.clients.daemon import Daemon, refused
from xapi.process import program as process
from xapi.process.config import Config
from xapi.process.service import XapiService, make_service
from xapi.process.state import State, StateError

BELIEVED = ("passwords.json", "ptoken", "xapi-ssl.pem", "xapi.db")
"""What a start relies on."""
MADE_ANEW = ("lock", "root-password", "xapi.db-shm", "xapi.db-reserve", "audit.log")
"""What tells a start nothing, so that damage does no harm; a directory in its place is another matter."""
OF_THE_RUN = ("xapi", "xapi.db-wal", "storage")
"""The socket, which a start makes anew; what SQLite has not moved yet, which it checks; the volumes' repositories."""
NOBODY = 65534


def to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def to_garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(10_000))


def to_words(path: Path) -> None:
    path.write_text("it was here\n")


def to_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_a_loose_end(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def unreadable(path: Path) -> None:
    path.chmod(0)


DAMAGES = (to_nothing, to_garbage, to_words, to_a_directory, to_a_loose_end, cut_short, unreadable)


@pytest.fixture(scope="module")
def used() -> Iterator[Path]:
    """The state directory of a daemon that has served, and was killed; the file of the invented password is there."""
    above = Path(tempfile.mkdtemp(prefix="kronos-state-", dir="/tmp"))
    daemon = Daemon(above / "state", "--tls", "127.0.0.1:0", password=None).ready()
    daemon.kill()
    yield above / "state"
    shutil.rmtree(above)


@pytest.fixture
def state(used: Path) -> Iterator[Path]:
    """A copy of it, which belongs to who looks at it: root may read everything, so root is nobody meanwhile."""
    copy = used.parent / "copy"
    copy.mkdir()
    used.parent.chmod(0o755)
    shutil.copytree(used, copy / "state", ignore=lambda _, names: {"xapi"} & set(names))
    root = os.getuid() == 0
    if root:
        for path in (copy, *copy.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        os.seteuid(NOBODY)
    yield copy / "state"
    if root:
        os.seteuid(0)
    shutil.rmtree(copy)


def begin(state: Path) -> XapiService:
    """Load a daemon from a state directory. Raises what the process tells in one line."""
    reactor: Any = SimpleNamespace(
        callFromThread=lambda *call: None, callLater=lambda *call: None, seconds=lambda: 1_769_850_307.0
    )
    return make_service(Config(state=state, tls=()), reactor, lambda line: None)


def end(service: Any) -> None:
    service.remains.keeping.close()
    service.remains.writer.database.close()
    service.remains.state.close()


def contents(directory: Path) -> dict[str, bytes | None]:
    """Return all files but those in which nothing can be lost."""
    return {
        path.name: path.read_bytes() if path.is_file() and path.stat().st_mode & 0o400 else None
        for path in directory.iterdir()
        if path.name not in MADE_ANEW
    }


def test_each_file_of_a_used_state_directory_is_one_of_those_tried_here(used: Path) -> None:
    """A file that comes to it later needs a row of this test."""
    assert {path.name for path in used.iterdir()} <= {*BELIEVED, *MADE_ANEW, *OF_THE_RUN}
    assert {path.name for path in used.iterdir()} >= {*BELIEVED, "lock", "root-password"}


def test_a_killed_daemon_s_state_is_sound(state: Path) -> None:
    """The same directory undamaged."""
    end(begin(state))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", BELIEVED)
def test_a_damaged_file_is_refused_in_one_line_and_left_alone(
    state: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """The line begins with the file."""
    sqlite3.connect(state / "xapi.db").execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    damage(state / name)
    before = contents(state)
    with pytest.raises(process.REFUSALS) as caught:
        end(begin(state))
    line = str(caught.value)
    assert line.startswith(f"{state / name}: ") and "\n" not in line and len(line) < 400
    assert contents(state) == before


@pytest.mark.parametrize("damage", [to_nothing, to_garbage, to_words, cut_short])
@pytest.mark.parametrize("name", MADE_ANEW)
def test_a_damaged_file_that_tells_nothing_does_no_harm(state: Path, name: str, damage: Callable[[Path], None]) -> None:
    """The pool is there."""
    (state / name).touch()
    damage(state / name)
    service = begin(state)
    assert len(service.daemon.db.pool) == 1
    end(service)


def test_the_pool_is_not_made_again_where_its_changes_are_lost(state: Path) -> None:
    """SQLite takes an empty log for none: all that was only in it has gone."""
    os.truncate(state / "xapi.db-wal", 0)
    with pytest.raises(process.REFUSALS, match=r"xapi\.db: is damaged \(the pool is gone\)"):
        end(begin(state))


def test_a_removed_database_begins_anew(state: Path) -> None:
    """That is how to start over with the same passwords."""
    for name in ("xapi.db", "xapi.db-wal", "xapi.db-shm"):
        (state / name).unlink(missing_ok=True)
    service = begin(state)
    assert len(service.daemon.db.pool) == 1
    end(service)


def test_what_is_no_socket_is_not_removed(state: Path) -> None:
    """Somebody's file of the socket's name."""
    (state / "xapi").write_text("mine")
    with pytest.raises(StateError, match="is in the way of the daemon's socket"):
        end(begin(state))
    assert (state / "xapi").read_text() == "mine"


def test_a_path_too_long_for_a_socket_is_refused_with_the_limit(tmp_path: Path) -> None:
    """Before anything is made."""
    long = tmp_path / ("x" * 120)
    with pytest.raises(StateError, match=r"is too long a path.* more than 107 bytes; name a shorter one with --state"):
        State(long)
    assert not long.exists()
    State(Path("/tmp") / ("y" * (107 - len("/tmp//xapi")))).abandon()


# A first start that fails


@pytest.mark.parametrize(
    "options", [["--listen", "192.0.2.1:80"], ["--listen", "127.0.0.1:0", "--tls", "192.0.2.1:443"]]
)
def test_a_first_start_that_cannot_listen_leaves_nothing(tmp_path: Path, options: list[str]) -> None:
    """By then all had been made: the directory above, too."""
    said = refused(tmp_path / "a" / "state", *options)
    assert "192.0.2.1" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["database.open_database", "service.Daemon", "service.first_inventory", "service.Runner"]
)
def test_a_first_start_that_fails_at_any_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before the database, after it, and when passwords are there."""

    def fails(*arguments: object, **more: object) -> None:
        raise StateError("this step fails")

    monkeypatch.setattr(f"xapi.process.{name}", fails)
    with pytest.raises(StateError, match="this step fails"):
        begin(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_a_later_start_that_cannot_listen_keeps_everything(used: Path) -> None:
    """What has served once stays."""
    before = contents(used)
    refused(used, "--listen", "192.0.2.1:80")
    assert contents(used).keys() - {"xapi.db-wal", "xapi"} == before.keys() - {"xapi.db-wal", "xapi"}


def test_another_password_for_an_old_state_is_said_to_be_ignored(used: Path) -> None:
    """With what to do; the right one is no reason for a word."""
    daemon = Daemon(used, password="another").ready()
    warnings = [line for line in daemon.stop() if "password of root is ignored" in line]
    assert len(warnings) == 1
    assert "session.change_password" in warnings[0]
    right = (used / "root-password").read_text().strip()
    daemon = Daemon(used, password=right).ready()
    assert not [line for line in daemon.stop() if "ignored" in line]
