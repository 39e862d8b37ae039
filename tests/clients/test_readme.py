"""The README's commands do what it says, as written."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_start_is_the_seven_blocks_that_are_tested_here() -> None:
    assert [language for language, _ in BLOCKS[:7]] == ["sh", "sh", "", "python", "", "python", ""]
    assert BLOCKS[0][1] == "make run\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The daemon of `make run`, with its state in a folder of the test's."""
    if not (ROOT / ".venv" / "bin" / "xapi").exists():
        pytest.skip("make run would install into .venv, which make test has made: run the tests by make test")
    for port in (8080, 8443):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"port {port}, which the README uses, is taken")
    environment = os.environ | {"STATE": str(tmp_path_factory.mktemp("readme") / "state")}
    command = subprocess.Popen(
        BLOCKS[0][1], shell=True, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert command.stderr is not None
    lines = []
    for line in command.stderr:
        lines.append(line)
        if "Ready: " in line:
            break
    else:
        pytest.fail("".join(lines))
    yield
    os.killpg(command.pid, signal.SIGINT)
    command.communicate(timeout=30)


def run(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_logs_in_and_reads(daemon: None) -> None:
    assert run(["bash"], BLOCKS[1][1]) == BLOCKS[2][1]


def test_the_python_client_changes_follows_and_waits(daemon: None) -> None:
    assert run([sys.executable, "-W", "ignore"], BLOCKS[3][1]) == BLOCKS[4][1]


def test_a_guest_runs_and_its_shell_answers(daemon: None) -> None:
    assert run([sys.executable, "-W", "ignore"], BLOCKS[5][1]) == BLOCKS[6][1]


def test_help_names_every_option_of_the_readme() -> None:
    text = run([sys.executable, "-m", "xapi", "--help"], "")
    named = set(re.findall(r"`(--[a-z-]+)", (ROOT / "README.md").read_text("utf-8")))
    assert {option for option in named if option not in text} == set()


TESTING = (ROOT / "README.md").read_text("utf-8").partition("## In your tests\n")[2].partition("\n## ")[0]
IN_TESTS = re.findall(r"^```(\w*)\n(.*?)^```$", TESTING, re.MULTILINE | re.DOTALL)


def test_a_daemon_runs_in_a_program() -> None:
    assert [language for language, _ in IN_TESTS] == ["python", "", "python"]
    assert run([sys.executable, "-W", "ignore"], IN_TESTS[0][1]) == IN_TESTS[1][1]


def test_the_fixture_gives_a_test_its_pool(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(IN_TESTS[2][1], "utf-8")
    shown = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)], "")
    assert "1 passed" in shown
