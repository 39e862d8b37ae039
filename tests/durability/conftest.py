"""A pool with real guests, and databases for the durability tests: SQLite files, and a PostgreSQL server of our own.

The server is Debian's package or whatever is on PATH, on a Unix socket in a private directory, without
TCP, with all that makes it durable at its default. It refuses to run as root, so then it runs as
`postgres` or `nobody`. Where there is no server, its tests are skipped.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.durability.server import Server
from tests.real_pool import RealPool


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def _user() -> str | None:
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A running PostgreSQL server."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server: neither /usr/lib/postgresql/*/bin nor PATH has initdb")
    server = made(binaries)
    try:
        yield server
    finally:
        server.end()


def made(binaries: Path) -> Server:
    """Return a server that runs."""
    user = _user()
    # Not under pytest's own directory, which only root may enter; and short, for the socket's name.
    directory = Path(tempfile.mkdtemp(prefix="kronos-pg-", dir="/tmp"))
    if user is not None:
        os.chown(directory, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    server = Server(binaries, directory, user)
    server.create()
    return server


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """A function that makes an empty database and returns its URL, for each kind."""
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgresql")
        return server.new
    numbers = count(1)
    return lambda: f"sqlite:///{tmp_path / f'{next(numbers)}.db'}"


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    """The URL of an empty database, for each kind."""
    return new_url()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[RealPool]:
    """A pool whose hosts run guests."""
    made = RealPool(tmp_path)
    try:
        yield made
    finally:
        made.close()
