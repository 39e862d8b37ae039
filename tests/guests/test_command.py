"""`python -m hypervisor boot` as people meet it: a process, a terminal, and what can go wrong with them."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hypervisor.command.options import mac
from hypervisor.disks import raw, vhd
from tests.guests.demo_guest import MIB, pattern

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-W", "error", "-m", "hypervisor", "boot"]
SECONDS = 30
PROMPT = b"demo> "


def run(*arguments: str, typed: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end with input from a pipe."""
    return subprocess.run(
        [*COMMAND, *arguments], input=typed, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, **options
    )


def refusal(*arguments: str) -> str:
    """Run a command that is refused, and return the one line that it says."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert re.fullmatch(r"hypervisor: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs, its output in a pipe; killed at the end if it still does."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for file in (process.stdin, process.stdout, process.stderr):
            if file is not None:
                file.close()


def until_prompt(process: subprocess.Popen[bytes]) -> bytes:
    """Return what a guest shows up to its next prompt."""
    assert process.stdout is not None
    heard = b""
    while not heard.endswith(PROMPT):
        data = os.read(process.stdout.fileno(), 4096)
        assert data, heard
        heard += data
    return heard


class Session:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.output = b""

    def expect(self, text: bytes) -> Session:
        """Wait until the terminal shows a text, and forget what came before it."""
        end = time.monotonic() + SECONDS
        while text not in self.output:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, self.output
            self.output += os.read(self.master, 4096)
        self.output = self.output.partition(text)[2]
        return self

    def type(self, text: bytes) -> Session:
        os.write(self.master, text)
        return self

    def ended(self) -> int:
        return self.process.wait(SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def demo() -> Iterator[Session]:
    session = Session("--demo")
    yield session
    session.close()


# From a pipe


def test_a_pipe_types_and_reads() -> None:
    """Status 0 when the guest powers off; the output is the guest's, what we say is apart."""
    done = run("--demo", "--append", "from the test", typed="info\rpoweroff\r")
    assert done.returncode == 0 and "command-line: from the test" in done.stdout
    assert done.stdout.startswith("Kronos demo guest")
    assert done.stderr == "hypervisor: the guest is down: poweroff\n"


def test_a_crash_is_told_by_the_status() -> None:
    """With the reason."""
    done = run("--demo", typed="crash\r")
    assert done.returncode == 1 and "the guest is down: crash" in done.stderr


def test_a_guest_that_reboots_comes_back(tmp_path: Path) -> None:
    """It boots again, with its devices, and is a new guest: what was typed ahead is lost."""
    raw.create(tmp_path / "disk", MIB).close()
    command = [*COMMAND, "--demo", "--disk", str(tmp_path / "disk"), "--net", "lan"]
    with started(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        for typed in (b"reboot\r", b"poweroff\r"):
            assert b"Kronos demo guest" in until_prompt(process)
            process.stdin.write(typed)
            process.stdin.flush()
        assert process.wait(SECONDS) == 0
        assert process.stderr.read() == b"hypervisor: the guest is down: poweroff\n"


def test_input_larger_than_the_ring_arrives() -> None:
    """A script of 70 KB, more than may wait at once, is typed to its end."""
    word = "x" * 70
    done = run("--demo", typed=f"{word}\r" * 1000 + "poweroff\r")
    assert done.returncode == 0 and done.stdout.count(f"> {word}") == 1000


def has_open(process: subprocess.Popen[bytes], path: Path) -> bool:
    """Tell whether a process has a file open."""
    for file in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(file) == str(path):
                return True
    return False


def test_without_the_console_nothing_is_shown_or_typed(tmp_path: Path) -> None:
    """The guest runs, as its open disk tells, until somebody ends it."""
    path = tmp_path / "disk"
    raw.create(path, MIB).close()
    with started([*COMMAND, "--demo", "--no-console", "--disk", str(path)], stdin=subprocess.DEVNULL) as process:
        while not has_open(process, path):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS)[0] == b"" and process.returncode == 130


def test_an_end_of_input_leaves_the_guest_running() -> None:
    """As with </dev/null; Ctrl-C, from the shell that started it, ends it with its status."""
    with started([*COMMAND, "--demo"], stdin=subprocess.DEVNULL) as process:
        until_prompt(process)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130


@pytest.mark.parametrize("closed", ["1", "2", "1 2"])
def test_closed_outputs_do_no_harm(closed: str) -> None:
    """Their numbers do not become something else's: the guest runs and is typed to."""
    redirect = " ".join(f"{number}>&-" for number in closed.split())
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(COMMAND)} --demo {redirect}"],
        cwd=ROOT,
        input="poweroff\r",
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert ("demo> poweroff" in done.stdout, "is down" in done.stderr) == ("1" not in closed, "2" not in closed)


def test_a_closed_input_is_an_empty_one() -> None:
    """The guest runs until it is ended from outside."""
    with started(["sh", "-c", f"exec {' '.join(COMMAND)} --demo <&-"]) as process:
        until_prompt(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130


def test_an_output_that_nobody_reads_ends_it() -> None:
    """As in `… | head -1`: status 1, no traceback."""
    with started([*COMMAND, "--demo"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        process.stdin.write(b"help\r")
        process.stdin.flush()
        assert process.wait(SECONDS) == 1
        assert process.stderr.read() == b""


# Devices


def test_disks_and_a_card_work(tmp_path: Path) -> None:
    """What is written is there in the file and at the next boot; the second is read-only, the third a VHD."""
    paths = [tmp_path / name for name in ("first", "second", "third.vhd")]
    raw.create(paths[0], MIB).close()
    raw.create(paths[1], MIB).close()
    vhd.create(paths[2], 4 * MIB, clock=lambda: 0)
    options = ["--demo", "--net", "lan", "--disk", str(paths[0]), "--disk", f"{paths[1]}:ro", "--disk", str(paths[2])]
    done = run(*options, typed="write xvda 0 65536 7\rwrite xvdb 0 4096\rfill xvdc 9\rpoweroff\r")
    assert done.returncode == 0 and done.stdout.count("error:") == 1, done
    assert paths[0].read_bytes()[:65536] == pattern(7, 0, 65536) and not any(paths[1].read_bytes())
    with contextlib.closing(vhd.open(paths[2], read_only=True)) as third:
        assert third.read(MIB, 4096) == pattern(9, MIB, 4096)
    done = run(*options, typed="verify xvda 0 65536 7\rcheck xvdc 9\rdhcp\rnet\rpoweroff\r")
    assert done.returncode == 0 and done.stdout.count("verify: ok") == 2, done
    assert re.search(rf"eth0: mac={mac('guest', 0)} .*address=169\.254\.", done.stdout)


def test_one_disk_cannot_be_written_twice(tmp_path: Path) -> None:
    """The image is locked by whoever writes it: also by another process."""
    path = tmp_path / "disk"
    raw.create(path, MIB).close()
    assert str(path) in refusal("--demo", "--disk", str(path), "--disk", str(path))
    session = Session("--demo", "--disk", str(path)).expect(PROMPT)
    assert str(path) in refusal("--demo", "--disk", str(path))
    session.type(b"\x1d")
    assert session.ended() == 0
    session.close()
    assert run("--demo", "--disk", str(path), typed="poweroff\r").returncode == 0


# On a terminal


def test_the_terminal_is_raw_and_then_restored(demo: Session) -> None:
    """Ctrl-C goes to the guest, Ctrl-] leaves, and the terminal is as before."""
    demo.expect(PROMPT)
    assert termios.tcgetattr(demo.slave)[3] & termios.ICANON == 0
    demo.type(b"sleep 20\r").expect(b"sleep 20\r\n").type(b"\x03").expect(PROMPT)
    demo.type(b"info\r").expect(b"domid: 1\r\n").expect(PROMPT).type(b"\x1d")
    assert demo.ended() == 0
    assert termios.tcgetattr(demo.slave) == demo.before


def test_a_terminated_command_restores_the_terminal(demo: Session) -> None:
    """SIGTERM, as from kill."""
    demo.expect(PROMPT)
    demo.process.terminate()
    assert demo.ended() == 128 + signal.SIGTERM
    assert termios.tcgetattr(demo.slave) == demo.before


def test_a_hung_up_terminal_ends_it(demo: Session) -> None:
    """The window was closed: no process is left behind."""
    demo.expect(PROMPT)
    demo.process.send_signal(signal.SIGHUP)
    assert demo.ended() == 128 + signal.SIGHUP


# What cannot be run


def test_files_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    """Missing, a directory, no kernel, another disk image."""
    other = tmp_path / "disk.qcow2"
    other.write_bytes(b"QFI\xfb" + bytes(1020))
    (tmp_path / "text").write_text("hello\n" * 1000)
    assert "No such file" in refusal("--kernel", str(tmp_path / "missing"))
    assert "Is a directory" in refusal("--kernel", str(tmp_path))
    assert "neither an ELF file nor a bzImage" in refusal("--kernel", str(tmp_path / "text"))
    assert "No such file" in refusal("--demo", "--disk", str(tmp_path / "missing"))
    assert "qemu-img convert" in refusal("--demo", "--disk", str(other))


def test_memory_that_cannot_be_is_one_line() -> None:
    """Less than the kernel needs, and more than the machine has."""
    assert "8192 bytes" in refusal("--demo", "--memory", "8K")
    assert f"{1 << 44} bytes asked for" in refusal("--demo", "--memory", "16T")


def test_usage_errors_have_status_2() -> None:
    """As of other commands."""
    done = run("--demo", "--vcpus", "0")
    assert done.returncode == 2 and "error: argument --vcpus" in done.stderr
