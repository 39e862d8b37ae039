"""The tests' PostgreSQL server does not outlive them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.durability import conftest

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 60
_TEST = """
import sys
from tests.durability import conftest
server = conftest.made(conftest._binaries())
parent = (server.directory / "data" / "postmaster.pid").read_text().split()[0]
print(parent, server._watch.pid, server.directory, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_server_ends_with_tests_that_are_interrupted(number: signal.Signals) -> None:
    """Ctrl-C reaches the whole process group; kill -9 leaves no time for anything."""
    if conftest._binaries() is None:
        pytest.skip("there is no PostgreSQL server")
    test = subprocess.Popen(
        [sys.executable, "-c", _TEST], cwd=CHECKOUT, text=True, start_new_session=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with test:
        assert test.stdout is not None
        parent, watch, directory = test.stdout.readline().split()
        ending = [os.pidfd_open(int(process)) for process in (parent, watch)]
        os.killpg(test.pid, number)
        for handle in ending:
            assert select.select([handle], [], [], SECONDS)[0]  # readable when the process has ended
            os.close(handle)
    assert not Path(directory).exists()
